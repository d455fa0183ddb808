"""Counts over a traced program, exactly, from the shapes of its matrix products and convolutions."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

KERNEL = "pallas_call"


def scope_modules(scope: str) -> list[str]:
    """`MixFormer.locate/blocks_3.project/mlp` -> `MixFormer`, `blocks_3`, `mlp`."""
    return [module.partition(".")[0] for module in scope.split("/")]


def module_of(op_name: str) -> str:
    """Direction and module of a compiled operation, by XLA's name for it, whatever the block.

    `.../transpose(jvp(MixFormer))/.../blocks_3/mlp/fc1/dot_general` is `backward mlp`.
    """
    direction = "backward" if "transpose(" in op_name else "forward" if "jvp(" in op_name else "update"
    modules = scope_modules(re.sub(r"\w+\(([^()]*)\)", r"\1", op_name))
    parts = ("patch_embed", "attention", "mlp", "norm1", "norm2", "qkv", "proj", "head", "decoder", "score")
    found = [part for part in parts if part in modules]
    return " ".join([direction, *found[:2]]) if op_name else "not named"


def count_macs(program: ClosedJaxpr) -> Counter[str]:
    """Multiply-accumulates of a traced program, by the scope of the module that asks for them.

    Counted are matrix products, convolutions (every position of the window, padding included), and the
    multiplications of depth-wise convolutions, which are written as sums of shifted images. A scan counts as often as
    it is long, a kernel as often as its grid has places, and of alternatives (one a platform) the last one counts.

    Raises:
        NotImplementedError: for a loop whose length is not known.
    """
    counts = Counter[str]()
    for scope, equation, times in _equations(program.jaxpr, "", 1):
        size = math.prod(_shape(equation.outvars[0])) if equation.outvars else 0
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _batch = equation.params["dimension_numbers"]
                left = _shape(equation.invars[0])
                counts[scope] += times * size * math.prod(left[axis] for axis in contracted)
            case "conv_general_dilated":
                kernel = _shape(equation.invars[1])
                features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                # The gradient of a strided convolution has zeros between its inputs: nobody multiplies them.
                stride = math.prod(equation.params["lhs_dilation"])
                counts[scope] += times * size * math.prod(kernel) // features // stride
            case "mul" if scope_modules(scope)[-1].startswith("depthwise"):
                counts[scope] += times * size
    return counts


def count_product_bytes(program: ClosedJaxpr) -> int:
    """Bytes of the operands and results of a program's matrix products and convolutions: the least traffic with memory
    of a program whose other operations are all fused into these.

    Raises:
        NotImplementedError: for a loop whose length is not known.
    """
    total = 0
    for _scope, equation, times in _equations(program.jaxpr, "", 1):
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            arrays = (value.aval for value in (*equation.invars, *equation.outvars))
            total += times * sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)
    return total


def count_kernel_macs(program: ClosedJaxpr) -> int:
    """Multiply-accumulates inside of kernels, of which XLA's own counts know nothing."""
    return sum(
        times * math.prod(equation.params["grid_mapping"].grid) * sum(count_macs(ClosedJaxpr(inner, ())).values())
        for _scope, equation, times in _equations(program.jaxpr, "", 1)
        if equation.primitive.name == KERNEL
        for inner in _programs_inside(equation.params)
    )


def _equations(jaxpr: Jaxpr, outer: str, times: int) -> Iterator[tuple[str, Any, int]]:
    """Every equation with its scope and how often it is computed."""
    for equation in jaxpr.eqns:
        scope = "/".join(filter(None, (outer, str(equation.source_info.name_stack))))
        if equation.primitive.name == "while":
            raise NotImplementedError(f"a loop of unknown length in {scope or 'the program'}")
        yield scope, equation, times
        length = 1
        if equation.primitive.name == "scan":
            length = equation.params["length"]
        elif equation.primitive.name == KERNEL:
            length = math.prod(equation.params["grid_mapping"].grid)
        for inner in _programs_inside(equation.params):
            yield from _equations(inner, scope, times * length)


def _shape(operand: Any) -> tuple[int, ...]:
    return operand.aval.shape


def _programs_inside(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    for key, value in params.items():
        programs = value if isinstance(value, tuple | list) else (value,)
        for program in programs[-1:] if key == "branches" else programs:
            if isinstance(program, ClosedJaxpr):
                yield program.jaxpr
            elif isinstance(program, Jaxpr):
                yield program
