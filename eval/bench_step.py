"""Time of a tracker's step on one frame (backbone, box head, score module), beside PyTorch and beside recomputing.

    python -m eval.bench_step
    python -m eval.bench_step --models mixvit_b_online --targets 32
    python -m eval.bench_step --turns 40 --append docs/benchmarks.md

Ours is `locate` on cached templates. Beside it, with the same random weights and in the same run: the PyTorch peer
(`torch_peer.py`), and ours with the templates recomputed on every frame, for 1 and 3 online templates. All contenders
must give the same boxes and scores before they are timed; they take turns, so that other load hits them alike, and a
turn in which other processes disturbed is left out. On a CPU everything is float32, and PyTorch has as many threads as
this process has cores. On a GPU ours is bfloat16; PyTorch needs CUDA there, and is eager float32 and bfloat16, compiled
with CUDA graphs. On a CPU it is eager and compiled.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from eval.turns import WARM_UP_CALLS, Timed, time_in_turns
from mixformer_jax.cli.bench import device_name
from mixformer_jax.convert.names import variables_to_official
from mixformer_jax.extras import is_not_installed
from mixformer_jax.files import write_atomically
from mixformer_jax.media.video import prepare_output
from mixformer_jax.models.config import ComputeDtype, MixFormerConfig
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.models.sizes import size_config

ONLINE_TEMPLATES = (1, 3)
# What rounding may do to a box, as a share of the search crop, and to a score's logit.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
COLUMNS = (
    *("date", "model", "device", "step", "dtype", "online", "targets", "ms", "quartiles"),
    *("boxes/s", "time over ours", "box difference", "turns", "versions"),
)


class Answer(NamedTuple):
    """What a step finds, on the host."""

    boxes_cxcywh: np.ndarray
    score_logits: np.ndarray | None


class Contender(NamedTuple):
    """One way to compute a step.

    Attributes:
        step: what it is.
        dtype: its compute type.
        num_online: online templates.
        answer: computes the step; returns when the answer is on the host.
    """

    step: str
    dtype: ComputeDtype
    num_online: int
    answer: Callable[[], Answer]


class Crops(NamedTuple):
    """Random input of a step, normalised NHWC."""

    templates: np.ndarray
    search: np.ndarray


def random_variables(config: MixFormerConfig, seed: int = 0) -> dict[str, Any]:
    """Weights that keep activations in range, with no two channels alike."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.float32(math.sqrt(math.prod(leaf.shape[:-1])))
            case "scale" | "var":
                return np.exp(np.float32(0.1) * noise)
        return np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(draw, variable_shapes(build_model(config)))


def random_crops(config: MixFormerConfig, num_online: int, targets: int) -> Crops:
    rng = np.random.default_rng(1)
    sides = config.template_size, config.search_size
    shapes = ((targets, 1 + num_online, sides[0], sides[0], 3), (targets, sides[1], sides[1], 3))
    return Crops(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))


def our_contenders(config: MixFormerConfig, variables: Mapping[str, Any], crops: Crops) -> list[Contender]:
    """The cached step, and the joint one that encodes the templates again."""
    model = build_model(config)
    on_device, templates, search = jax.device_put((variables, *map(jnp.asarray, crops)))
    cache = jax.jit(functools.partial(model.apply, method="encode_templates"))(on_device, templates)
    locate, joint = jax.jit(functools.partial(model.apply, method="locate")), jax.jit(model.apply)

    def answer(step: Callable[..., Any], first: Any) -> Answer:
        prediction = step(on_device, first, search)
        return Answer(*jax.device_get((prediction.boxes_cxcywh, prediction.score_logits)))

    num_online = crops.templates.shape[1] - 1
    return [
        Contender("ours, cached", config.dtype, num_online, functools.partial(answer, locate, cache)),
        Contender("ours, recomputed", config.dtype, num_online, functools.partial(answer, joint, templates)),
    ]


def torch_contenders(config: MixFormerConfig, variables: Mapping[str, Any], crops: Crops) -> list[Contender]:
    """The PyTorch peer with the same weights, on a CPU or a CUDA device, whichever ours runs on."""
    import torch

    from eval.torch_peer import MixFormerPeer

    platform = "cuda" if jax.default_backend() == "gpu" else "cpu"
    state = {name: torch.from_numpy(np.array(x)) for name, x in variables_to_official(variables, config).items()}
    templates = torch.from_numpy(rearrange(crops.templates, "b s h w c -> b s c h w").copy())
    search = torch.from_numpy(rearrange(crops.search, "b h w c -> b c h w").copy())
    torch.set_num_threads(_cores())

    def contender(step: str, dtype: ComputeDtype, fused_attention: bool, compiled: bool = False) -> Contender:
        peer = MixFormerPeer(config, fused_attention)
        peer.load_state_dict(state, strict=True)
        peer = peer.to(platform, getattr(torch, dtype)).eval()
        shown, images = search.to(platform, getattr(torch, dtype)), templates.to(platform, getattr(torch, dtype))
        # CUDA graphs spare PyTorch the launches, which take longer than the step of one target.
        mode = "reduce-overhead" if platform == "cuda" else None
        forward = torch.compile(peer.forward_test, mode=mode) if compiled else peer.forward_test
        with torch.inference_mode():
            peer.set_online(images[:, 0], images[:, 1:])

        def answer() -> Answer:
            with torch.inference_mode():
                output = forward(shown)
                score = None if output.score_logits is None else output.score_logits.cpu().numpy()
                return Answer(output.boxes_cxcywh.cpu().numpy(), score)

        return Contender(step, dtype, crops.templates.shape[1] - 1, answer)

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
    """Why there is nothing to compare with, or None."""
    if importlib.util.find_spec("torch") is None:
        return is_not_installed("torch")
    import torch

    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} has no CUDA device"
    return None if jax.default_backend() in ("cpu", "gpu") else "PyTorch does not run on this device"


def box_differences(contenders: Sequence[Contender]) -> list[float]:
    """Largest difference of a box coordinate from that of our cached step, as a share of the search crop.

    Raises:
        ValueError: a contender that computes something else, by its boxes or scores.
    """
    differences = []
    for contender in contenders:
        reference = _reference(contender, contenders)
        ours, theirs = reference.answer(), contender.answer()
        difference = float(np.abs(ours.boxes_cxcywh - theirs.boxes_cxcywh).max())
        tolerance = max(TOLERANCE[contender.dtype], TOLERANCE[reference.dtype])
        pairs = [(ours.boxes_cxcywh, theirs.boxes_cxcywh)]
        if ours.score_logits is not None and theirs.score_logits is not None:
            pairs.append((ours.score_logits, theirs.score_logits))
        worst = max(float(np.abs(a - b).max() / max(1.0, np.abs(a).max())) for a, b in pairs)
        if not worst <= tolerance:
            raise ValueError(
                f"{contender.step}: boxes and scores differ from {reference.step} by {worst:.1e}; expected at most "
                f"{tolerance:.0e}: they do not compute the same, and their times say nothing"
            )
        differences.append(difference)
    return differences


def bench_model(config: MixFormerConfig, targets: int, num_turns: int, progress: bool) -> list[tuple[str, ...]]:
    """Rows of the table for one model."""
    variables = random_variables(config)
    contenders = []
    for num_online in ONLINE_TEMPLATES:
        crops = random_crops(config, num_online, targets)
        contenders += our_contenders(config, variables, crops)
        if num_online == ONLINE_TEMPLATES[0] and missing_torch() is None:
            contenders += torch_contenders(config, variables, crops)
    differences = box_differences(contenders)
    keys = [f"{contender.step} {contender.num_online}" for contender in contenders]
    calls = {key: contender.answer for key, contender in zip(keys, contenders, strict=True)}
    timed = time_in_turns(calls, num_turns, config.name, progress)
    medians = {key: timing.quartiles()[1] for key, timing in timed.items()}
    rows = []
    for key, contender, difference in zip(keys, contenders, differences, strict=True):
        reference = _reference(contender, contenders)
        ratio = medians[key] / medians[f"{reference.step} {reference.num_online}"]
        rows.append(_row(config.name, contender, targets, timed[key], ratio, difference))
    return rows


def _reference(contender: Contender, contenders: Sequence[Contender]) -> Contender:
    """Our cached step with as many templates."""
    return next(c for c in contenders if c.step == "ours, cached" and c.num_online == contender.num_online)


def _row(
    model: str, contender: Contender, targets: int, timed: Timed, ratio: float, difference: float
) -> tuple[str, ...]:
    first, median, third = timed.quartiles()
    quiet = len(timed.seconds) - int(timed.is_disturbed.sum())
    others = "" if np.isnan(timed.others).any() else f", others {np.median(timed.others):.0%}"
    return (
        datetime.date.today().isoformat(),
        model,
        device_name(jax.devices()[0]),
        contender.step,
        contender.dtype,
        str(contender.num_online),
        str(targets),
        f"{1e3 * median:.1f}",
        f"{1e3 * first:.1f} to {1e3 * third:.1f}",
        f"{targets / median:.1f}",
        f"{ratio:.2f}",
        f"{difference:.0e}",
        f"{quiet} undisturbed of {len(timed.seconds)}{others}",
        versions(),
    )


def versions() -> str:
    found = f"jax {jax.__version__}"
    if missing_torch() is None:
        import torch

        found += f", torch {torch.__version__}"
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def append_rows(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> None:
    """Adds rows below the table of the same columns in a Markdown file; without one, a table at its end."""
    path = prepare_output(path)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ["# Benchmarks"]
    table = _markdown(rows, columns)
    if table[0] in lines:
        end = lines.index(table[0]) + 1
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        lines[end:end] = table[2:]
    else:
        lines += ["", *table]
    write_atomically(path, "\n".join(lines) + "\n")


def _markdown(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)]


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--models", default="mixvit_b_online,mixcvt_online", help="sizes, separated by commas")
    parser.add_argument("--targets", type=int, default=1, help="targets in one batched step")
    parser.add_argument("--turns", type=int, default=30, help="timed turns of every contender")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="ours; default: float32 on a CPU")
    parser.add_argument("--append", type=Path, help="Markdown file that gets the rows")
    args = parser.parse_args(arguments)
    if args.targets < 1:
        parser.error(f"--targets is {args.targets}; expected at least 1")
    default: ComputeDtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    dtype: ComputeDtype = args.dtype or default
    absent = missing_torch()
    print(f"{device_name(jax.devices()[0])}; {_cores()} threads; {versions()}; {WARM_UP_CALLS} calls of warm-up")
    if absent:
        print(f"no comparison with PyTorch: {absent}")
    rows = []
    try:
        if args.append:
            prepare_output(args.append)
        for name in args.models.split(","):
            config = dataclasses.replace(size_config(name), dtype=dtype)
            found = bench_model(config, args.targets, args.turns, progress=sys.stderr.isatty())
            for row in found:
                print(
                    "  ".join(f"{key}: {cell}" for key, cell in list(zip(COLUMNS, row, strict=True))[3:-1]), flush=True
                )
            rows += found
        if args.append:
            append_rows(args.append, rows)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
