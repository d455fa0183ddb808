"""What the benchmarks share: timing in turns, so that other load hits all alike, peaks of devices, and tables."""

import argparse
import datetime
import math
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mixformer_jax.cli.console import parse_arguments, positive
from mixformer_jax.media.video import prepare_output
from mixformer_jax.text_tables import append_rows, markdown

Name = TypeVar("Name", bound=Hashable)  # of a contender
WARM_UP_CALLS = 2
SHORTEST_TURN_S = 0.2
# A turn in which other processes used a larger share of the machine is left out, as long as enough others remain.
OTHERS_LIMIT = 0.05
ENOUGH_TURNS = 3


class Timed(NamedTuple):
    seconds: np.ndarray  # of a call, mean over each turn
    others: np.ndarray  # other processes' share of the machine's processor time; NaN where the system does not tell

    @property
    def quiet(self) -> np.ndarray:
        """Seconds of the undisturbed turns."""
        return self.seconds[~(self.others > OTHERS_LIMIT)]  # NaN is none

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median, third quartile, in seconds, of the undisturbed turns; of all where those are few."""
        counted = self.quiet if len(self.quiet) >= ENOUGH_TURNS else self.seconds
        first, median, third = np.percentile(counted, [25, 50, 75]).tolist()
        return first, median, third

    def milliseconds(self, digits: int = 1, parts: int = 1) -> tuple[str, str]:
        """Cells of a table: median and quartiles of a call, divided by its equal `parts`."""
        first, median, third = (f"{1e3 * seconds / parts:.{digits}f}" for seconds in self.quartiles())
        return median, f"{first} to {third}"

    def turns(self) -> str:
        """A cell of a table: the number of turns."""
        return f"{len(self.quiet)} undisturbed of {len(self.seconds)}"


def time_in_turns(
    calls: Mapping[Name, Callable[[], object]],
    num_turns: int,
    title: str = "",
    progress: bool = False,
    shortest_turn_s: float = SHORTEST_TURN_S,
) -> dict[Name, Timed]:
    """Times every call in `num_turns` turns; the contenders alternate, and take turns at being first.

    A turn is one untimed call (the other contender's threads may still spin, and its data fills the caches), then as
    many timed ones as take `shortest_turn_s`, at least one. A call must return when its work is done; the first ones,
    which compile and allocate, are not timed.
    """
    calls_a_turn = {}
    for name, call in calls.items():
        for _ in range(WARM_UP_CALLS):
            call()
        before = time.perf_counter()
        call()
        calls_a_turn[name] = max(1, math.ceil(shortest_turn_s / (time.perf_counter() - before)))
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    others: dict[Name, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with tqdm(total=num_turns * len(calls), unit=" turns", desc=title, disable=not progress) as bar:
        for turn in range(num_turns):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                calls[name]()
                busy, before = _busy_others(), time.perf_counter()
                for _ in range(calls_a_turn[name]):
                    calls[name]()
                elapsed = time.perf_counter() - before
                seconds[name].append(elapsed / calls_a_turn[name])
                others[name].append((_busy_others() - busy) / (elapsed * (os.cpu_count() or 1)))
                bar.update()
    return {name: Timed(np.array(seconds[name]), np.array(others[name])) for name in calls}


def _busy_others() -> float:
    """Processor seconds of other processes since the machine started, or NaN."""
    statistics = Path("/proc/stat")
    if not statistics.is_file():
        return math.nan
    user, nice, system, _idle, _wait, *interrupts = map(int, statistics.read_text().split("\n", 1)[0].split()[1:8])
    own = os.times()
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def today() -> str:
    return datetime.date.today().isoformat()


Arguments = argparse.Namespace
# Parts of a measurement: columns, rows, and which cells of each are printed by name (None: a table of them all).
Parts = Iterable[tuple[Sequence[str], Sequence[Sequence[str]], slice | None]]


def plain_parser(about: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with a module's docstring as it stands."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=about, formatter_class=raw, allow_abbrev=False)


def bench_parser(about: str | None, turns: int | None, overrides: str | None = None) -> argparse.ArgumentParser:
    """A parser with --append and, where contenders take turns, --turns; `overrides` as in `Parser.describe`."""
    parser = plain_parser(about)
    if turns is not None:
        turns_help = "turns of each contender (default: %(default)s)"
        parser.add_argument("--turns", type=positive, default=turns, help=turns_help)
    parser.add_argument("--append", type=Path, metavar="FILE", help="Markdown file that gets the rows")
    parser.set_defaults(override_prefix=overrides)
    return parser


def run_bench(
    parser: argparse.ArgumentParser, arguments: list[str] | None, measure: Callable[[Arguments], Parts]
) -> int:
    """Measures, prints and appends to the file of --append, which is tried first; errors end it in a sentence."""
    args = parse_arguments(parser, arguments)
    try:
        if args.append is not None:
            prepare_output(args.append)
        for columns, rows, shown in measure(args):
            if shown is None:
                print(markdown([columns, *rows]), end="")
            else:
                for row in rows:
                    cells = list(zip(columns, row, strict=True))[shown]
                    print("  ".join(f"{name}: {cell}" for name, cell in cells if cell), flush=True)
            if args.append is not None and rows:
                append_rows(args.append.expanduser(), columns, rows)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


# Dense products, FLOP/s: (bfloat16, float32). On NVIDIA's cards JAX computes float32 products in TF32. From the makers'
# data sheets: H100 (SXM), H200, A100, L4, L40S, RTX 4090 (Ada whitepaper, FP32 accumulation); for TPU v4, v5e, v5p and
# v6e the pages of Cloud TPU, where float32 has no figure of its own.
PUBLISHED: Mapping[str, tuple[float, float | None]] = MappingProxyType(
    {
        "NVIDIA H100 80GB HBM3": (989.4e12, 494.7e12),
        "NVIDIA H100": (989.4e12, 494.7e12),
        "NVIDIA H200": (989.4e12, 494.7e12),
        "NVIDIA A100-SXM4-40GB": (312e12, 156e12),
        "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
        "NVIDIA A100-PCIE-40GB": (312e12, 156e12),
        "NVIDIA A100 80GB PCIe": (312e12, 156e12),
        "NVIDIA L4": (121e12, 60e12),
        "NVIDIA L40S": (362e12, 183e12),
        "NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12),
        "TPU v4": (275e12, None),
        "TPU v5 lite": (197e12, None),
        "TPU v5": (459e12, None),
        "TPU v6 lite": (918e12, None),
    }
)
MATRIX_SIDE = 2048
PRODUCT_MACS = MATRIX_SIDE**3


def published_peak(device: jax.Device, dtype: str) -> float | None:
    """FLOP/s of an accelerator, two for each multiply-accumulate; None where it is not known."""
    bfloat16, float32 = PUBLISHED.get(device.device_kind, (None, None))
    return float32 if dtype == "float32" else bfloat16


def large_product(device: jax.Device, dtype: str) -> Callable[[], object]:
    """A call that multiplies two matrices (PRODUCT_MACS), for the peak of a CPU."""
    matrix = jax.device_put(jnp.ones((MATRIX_SIDE, MATRIX_SIDE), dtype), device)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix).block_until_ready()
