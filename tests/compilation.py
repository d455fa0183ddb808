"""Options of XLA for tests: most of their programs run for moments, and optimising them takes longer."""

from importlib.metadata import version

# From jaxlib 0.11.1 on XLA always uses its fusion emitters, and the option that leaves them out is refused.
_HAS_CHOICE = tuple(int(part) for part in version("jaxlib").split(".")[:3]) < (0, 11, 1)


def _options(level: int, fusion_emitters: bool) -> dict[str, int | bool]:
    emitters = {"xla_cpu_use_fusion_emitters": fusion_emitters} if _HAS_CHOICE else {}
    # What tells LLVM's passes which arrays are apart: where none of them run, it is only written and read.
    metadata = {f"xla_llvm_enable_{what}_metadata": level > 0 for what in ("noalias", "alias_scope", "invariant_load")}
    return {"xla_backend_optimization_level": level, **emitters, **metadata}


QUICK = _options(0, False)
AS_USERS = _options(3, True)
# QUICK as XLA_FLAGS has it, and one part a program: in thirty-two parts, for as many cores, it takes a sixth longer.
FLAGS = " ".join(
    f"--{name}={str(value).lower()}" for name, value in {**QUICK, "xla_cpu_parallel_codegen_split_count": 1}.items()
)
