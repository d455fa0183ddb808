"""Time of a tracker's step on one frame (backbone, box head, score module), beside PyTorch and beside recomputing.

    python -m eval.bench_step --models mixvit_b_online --targets 32 --turns 40 --append docs/benchmarks.md

Ours is `locate` on cached templates, for 1 and 3 online templates. Beside it, with the same random weights: the PyTorch
peer (`torch_peer.py`), and ours with the templates recomputed on every frame. All must give the same boxes and scores
before they are timed in turns (`turns.py`). On a CPU everything is float32, and PyTorch, eager and compiled, has one
thread for each core of this process. On a GPU ours is bfloat16; PyTorch needs CUDA there, and is eager in float32, and
compiled in bfloat16 with CUDA graphs.
"""

import dataclasses
import functools
import importlib.util
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eval.turns import WARM_UP_CALLS, Arguments, Parts, bench_parser, run_bench, time_in_turns, today
from mixformer_jax.cli.bench import device_name, num_cores
from mixformer_jax.cli.console import positive
from mixformer_jax.extras import is_not_installed
from mixformer_jax.models.config import ComputeDtype, MixFormerConfig, size_config
from mixformer_jax.models.mixformer import Model, build_model, variable_shapes

ONLINE_TEMPLATES = (1, 3)
OURS = "ours, cached"
# What rounding may do to a box, as a share of the search crop, and to a score's logit.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
COLUMNS = (
    *("date", "model", "device", "step", "dtype", "online", "targets", "ms", "quartiles"),
    *("boxes/s", "time over ours", "box difference", "turns", "versions"),
)


class Answer(NamedTuple):
    """A step's output on the host."""

    boxes_cxcywh: np.ndarray
    score_logits: np.ndarray | None


class Contender(NamedTuple):
    step: str  # its name
    dtype: ComputeDtype
    answer: Callable[[], Answer]  # computes the step, and returns with its output on the host


class Crops(NamedTuple):
    """Random input of a step, normalised NHWC."""

    templates: np.ndarray
    search: np.ndarray


def random_variables(config: MixFormerConfig) -> dict[str, Any]:
    """Random weights of a tracker, see `random_values`."""
    return random_values(build_model(config))


def random_values(model: Model) -> dict[str, Any]:
    """Random weights that keep activations in range, with no two channels alike."""
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
            case "scale" | "var":
                return np.exp(np.float32(0.1) * noise)
        return np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(model))


def random_crops(config: MixFormerConfig, num_online: int, targets: int) -> Crops:
    rng = np.random.default_rng(1)
    templates = (targets, 1 + num_online, config.template_size, config.template_size, 3)
    search = (targets, config.search_size, config.search_size, 3)
    return Crops(*(rng.standard_normal(shape, dtype=np.float32) for shape in (templates, search)))


def our_contenders(config: MixFormerConfig, variables: Mapping[str, Any], crops: Crops) -> list[Contender]:
    """The step on cached templates, and the one that encodes them again."""
    model = build_model(config)
    on_device, templates, search = jax.device_put((variables, *map(jnp.asarray, crops)))
    cache = jax.jit(functools.partial(model.apply, method="encode_templates"))(on_device, templates)
    locate, joint = jax.jit(functools.partial(model.apply, method="locate")), jax.jit(model.apply)

    def answer(step: Callable[..., Any], first: Any) -> Answer:
        prediction = step(on_device, first, search)
        return Answer(*jax.device_get((prediction.boxes_cxcywh, prediction.score_logits)))

    return [
        Contender(OURS, config.dtype, functools.partial(answer, locate, cache)),
        Contender("ours, recomputed", config.dtype, functools.partial(answer, joint, templates)),
    ]


def torch_contenders(config: MixFormerConfig, variables: Mapping[str, Any], crops: Crops) -> list[Contender]:
    """The PyTorch peer with the same weights, on the kind of device that ours runs on."""
    import torch

    from eval.torch_peer import channels_first, peer_of

    platform = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_num_threads(num_cores())

    def contender(step: str, dtype: ComputeDtype, fused_attention: bool, compiled: bool = False) -> Contender:
        peer = peer_of(config, variables, fused_attention).to(platform, getattr(torch, dtype)).eval()
        images, shown = (channels_first(each).to(platform, getattr(torch, dtype)) for each in crops)
        # CUDA graphs: without them, launches take longer than the step of one target.
        mode = "reduce-overhead" if platform == "cuda" else None
        forward = torch.compile(peer.forward_test, mode=mode) if compiled else peer.forward_test
        with torch.inference_mode():
            peer.set_online(images[:, 0], images[:, 1:])

        def answer() -> Answer:
            with torch.inference_mode():
                output = forward(shown)
                score = None if output.score_logits is None else output.score_logits.cpu().numpy()
                return Answer(output.boxes_cxcywh.cpu().numpy(), score)

        return Contender(step, dtype, answer)

    eager = [
        contender("PyTorch eager", "float32", fused_attention=False),
        contender("PyTorch eager, fused attention", "float32", fused_attention=True),
    ]
    if shutil.which("c++") is None if platform == "cpu" else importlib.util.find_spec("triton") is None:
        return eager
    dtype: ComputeDtype = "float32" if platform == "cpu" else "bfloat16"
    step = "PyTorch compiled, fused attention" + (", CUDA graphs" if platform == "cuda" else "")
    return [*eager, contender(step, dtype, fused_attention=True, compiled=True)]


def missing_torch() -> str | None:
    """Why PyTorch cannot be compared with, or None."""
    if importlib.util.find_spec("torch") is None:
        return is_not_installed("torch")
    import torch

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} has no CUDA device"
    return None if jax.default_backend() in ("cpu", "gpu") else "PyTorch does not run on this device"


def box_difference(contender: Contender, reference: Contender) -> float:
    """Largest difference of a box coordinate, as a fraction of the search crop.

    Raises ValueError for a contender with other boxes or scores than the reference.
    """
    ours, theirs = reference.answer(), contender.answer()
    tolerance = max(TOLERANCE[contender.dtype], TOLERANCE[reference.dtype])
    pairs = [(ours.boxes_cxcywh, theirs.boxes_cxcywh)]
    if ours.score_logits is not None and theirs.score_logits is not None:
        pairs.append((ours.score_logits, theirs.score_logits))
    worst = max(float(np.abs(a - b).max() / max(1.0, np.abs(a).max())) for a, b in pairs)
    if not worst <= tolerance:
        raise ValueError(
            f"{contender.step}: boxes and scores differ from {reference.step} by {worst:.1e}; expected at most "
            f"{tolerance:.0e}: they do not compute the same, so their times do not compare"
        )
    return float(np.abs(ours.boxes_cxcywh - theirs.boxes_cxcywh).max())


def bench_model(config: MixFormerConfig, targets: int, num_turns: int, progress: bool) -> list[tuple[str, ...]]:
    """Rows of the table for one model."""
    variables = random_variables(config)
    contenders: dict[tuple[str, int], Contender] = {}
    for num_online in ONLINE_TEMPLATES:
        crops = random_crops(config, num_online, targets)
        alike = our_contenders(config, variables, crops)
        if num_online == ONLINE_TEMPLATES[0] and missing_torch() is None:
            alike += torch_contenders(config, variables, crops)
        contenders |= {(each.step, num_online): each for each in alike}
    differences = {key: box_difference(each, contenders[OURS, key[1]]) for key, each in contenders.items()}
    timed = time_in_turns({key: each.answer for key, each in contenders.items()}, num_turns, config.name, progress)
    rows: list[tuple[str, ...]] = []
    for key, timing in timed.items():
        step, num_online = key
        median, ours = timing.quartiles()[1], timed[OURS, num_online].quartiles()[1]
        others = "" if np.isnan(timing.others).any() else f", others {np.median(timing.others):.0%}"
        about = (today(), config.name, device_name(jax.devices()[0]), step, contenders[key].dtype)
        ratios = (f"{targets / median:.1f}", f"{median / ours:.2f}", f"{differences[key]:.0e}")
        figures = (*timing.milliseconds(), *ratios, f"{timing.turns()}{others}", versions())
        rows.append((*about, str(num_online), str(targets), *figures))
    return rows


def versions() -> str:
    found = f"jax {jax.__version__}"
    if missing_torch() is None:
        import torch

        found += f", torch {torch.__version__}"
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=30)
    parser.add_argument("--models", default="mixvit_b_online,mixcvt_online", help="sizes, separated by commas")
    parser.add_argument("--targets", type=positive, default=1, help="targets in one batched step")
    parser.add_argument("--depth", type=positive, help="other blocks of the last stage than the size has")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="ours; default: float32 on a CPU")
    return run_bench(parser, arguments, measure)


def measure(args: Arguments) -> Parts:
    dtype: ComputeDtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    print(f"{device_name(jax.devices()[0])}; {num_cores()} threads; {versions()}; {WARM_UP_CALLS} calls of warm-up")
    if absent := missing_torch():
        print(f"no comparison with PyTorch: {absent}")
    for name in args.models.split(","):
        size = size_config(name)
        config = dataclasses.replace(size, dtype=dtype, depth=args.depth or size.depth)
        yield COLUMNS, bench_model(config, args.targets, args.turns, progress=sys.stderr.isatty()), slice(3, -1)


if __name__ == "__main__":
    sys.exit(main())
