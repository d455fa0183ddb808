"""Seconds of a short run of `mixformer track` and `train`, the first and the second time: compiled programs are kept.

    python -m eval.bench_start                                     # tracking alone
    python -m eval.bench_start --root POOL --train mixvit_b --config.train.batch_size=64

A run is a process from its start to its end, with a cache of its own that is empty the first time: tracking of two
frames; training of one step, without validation, on videos and photographs of a pool.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from eval.turns import Arguments, Parts, bench_parser, run_bench, today
from mixformer_jax.config_files import CONFIG_PREFIX

COLUMNS = ("date", "command", "run", "seconds", "over the first")
RUNS = ("first", "second")
MIXFORMER = (sys.executable, "-c", "import sys; from mixformer_jax.cli import main; sys.exit(main())")
ONE_STEP = ("train.steps=1", "train.warmup_steps=0", "data.exclude=()", "data.groups=()")


def seconds_of(command: Sequence[str], cache: Path) -> float:
    """Of one run of `mixformer`, with its cache in a folder; ValueError with the end of what it said where it fails."""
    variables = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    variables["XDG_CACHE_HOME"] = str(cache)
    began = time.perf_counter()
    run = subprocess.run([*MIXFORMER, *command], env=variables, capture_output=True, text=True)
    if run.returncode:
        raise ValueError(f"mixformer {' '.join(command)}: status {run.returncode}\n{run.stderr[-2000:]}")
    return time.perf_counter() - began


def bench(name: str, command: Callable[[Path], Sequence[str]], folder: Path) -> list[tuple[str, ...]]:
    """Rows of one command, which is told where to write."""
    found = [seconds_of([name, *command(folder / f"{name}_{run}")], folder / "cache") for run in RUNS]
    return [
        (today(), f"mixformer {name}", run, f"{seconds:.1f}", f"{seconds / found[0]:.2f}")
        for run, seconds in zip(RUNS, found, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=None, overrides=CONFIG_PREFIX)
    parser.add_argument("--train", default="mixvit_tiny", help="config of the training (default: %(default)s)")
    parser.add_argument("--root", type=Path, help="pool of the training; default: tracking alone")
    return run_bench(parser, arguments, measure)


def measure(args: Arguments) -> Parts:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        frames = folder / "frames"
        frames.mkdir()
        for number in (1, 2):
            pixels = np.random.default_rng(number).integers(0, 256, (360, 640, 3), np.uint8)
            cv2.imwrite(str(frames / f"{number}.png"), pixels)
        source = [str(frames), "--box=300,150,60,60", "--no-video"]
        rows = bench("track", lambda out: [*source, f"--boxes={out}.csv"], folder)
        if args.root is not None:
            options = [f"{CONFIG_PREFIX}{each}" for each in (*ONE_STEP, f"data.root={args.root}")]
            train = ["--config", args.train, *options, *args.overrides]
            rows += bench("train", lambda out: [*train, f"--out={out}"], folder)
    yield COLUMNS, rows, slice(1, None)


if __name__ == "__main__":
    sys.exit(main())
