"""Time of exported functions in onnxruntime beside JAX, on a CPU (see docs/export.md).

    python -m eval.bench_export --models mixvit_tiny --turns 200 --append docs/benchmarks.md

Both compute the same function of the same bytes, `locate` on every frame and `encode_templates` for new templates, with
as many threads as this process has cores; they must give the same before they are timed, a call a turn. The least of
many is what a call takes where nothing else runs; the median tells how busy the machine was.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnxruntime

from eval.turns import Arguments, Parts, bench_parser, run_bench, time_in_turns, today
from mixformer_jax.cli.bench import device_name, num_cores
from mixformer_jax.cli.console import positive
from mixformer_jax.convert.convert import WeightsError
from mixformer_jax.export.export import Function, tracking_functions
from mixformer_jax.export.onnx_graph import onnx_bytes
from mixformer_jax.tracking.tracker import Tracker, load

TOLERANCE = 1e-4
COLUMNS = (
    *("date", "model", "device", "function", "targets", "runtime", "least ms", "median ms", "least over JAX's"),
    *("difference", "turns", "versions"),
)

Arrays = dict[str, Any]


def find_tracker(name: str) -> Tracker:
    """An embedded tracker, or a size with random weights."""
    try:
        return load(name, device="cpu")
    except WeightsError:
        return Tracker.random(name, device="cpu")


def random_bytes(function: Function) -> Arrays:
    """Crops of noise, every slot filled and an entropy limit of 1, for the inputs that are no cache."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.integers(0, 256, leaf.shape, np.uint8) if leaf.dtype == np.uint8 else np.ones(leaf.shape, leaf.dtype)

    return {name: draw(leaf) for name, leaf in function.inputs.items() if not name.startswith("cache_")}


def in_jax(tracker: Tracker, function: Function) -> Callable[[Arrays], Arrays]:
    """The compiled function; it returns when the result is on the host."""
    compiled = jax.jit(function.call)
    return lambda inputs: jax.device_get(compiled(tracker.variables, inputs))


def in_onnxruntime(tracker: Tracker, function: Function) -> Callable[[Arrays], Arrays]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    session = onnxruntime.InferenceSession(onnx_bytes(tracker, function), options, ["CPUExecutionProvider"])
    names = list(function.outputs)
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def difference(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference of a number, as a share of the largest of its array where that is above 1."""
    pairs = [(np.asarray(ours[name], np.float32), np.asarray(theirs[name], np.float32)) for name in ours]
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(a).max())) for a, b in pairs)


def bench_model(tracker: Tracker, targets: int, num_turns: int) -> list[tuple[str, ...]]:
    """Rows of the table for one model; ValueError where the runtimes do not compute the same."""
    rows: list[tuple[str, ...]] = []
    versions = f"jax {jax.__version__}, onnxruntime {onnxruntime.__version__}"
    cache: Arrays = {}
    for function in tracking_functions(tracker, targets):
        inputs = random_bytes(function) | cache
        calls = {
            "JAX": functools.partial(in_jax(tracker, function), inputs),
            "onnxruntime": functools.partial(in_onnxruntime(tracker, function), inputs),
        }
        cache, other = (call() for call in calls.values())
        worst = difference(cache, other)
        if not worst <= TOLERANCE:
            raise ValueError(f"{function.name}: onnxruntime differs from JAX by {worst:.1e}; expected {TOLERANCE:.0e}")
        timed = time_in_turns(calls, num_turns, shortest_turn_s=0)
        for runtime, (seconds, _others) in timed.items():
            about = (today(), tracker.config.name, device_name(tracker.device), function.name, str(targets), runtime)
            least, ratio = seconds.min(), seconds.min() / timed["JAX"].seconds.min()
            figures = (f"{1e3 * least:.1f}", f"{1e3 * np.median(seconds):.1f}", f"{ratio:.2f}", f"{worst:.0e}")
            rows.append((*about, *figures, str(num_turns), versions))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=100)
    models_help = "embedded weights, or sizes with random ones, separated by commas (default: %(default)s)"
    parser.add_argument("--models", default="mixvit_tiny,mixvit_b_online,mixcvt_online", help=models_help)
    parser.add_argument("--targets", type=positive, default=1, help="targets in one batched call")

    def measure(args: Arguments) -> Parts:
        for name in args.models.split(","):
            yield COLUMNS, bench_model(find_tracker(name), args.targets, args.turns), slice(1, -1)

    return run_bench(parser, arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
