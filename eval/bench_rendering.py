"""Samples a second: rendered on the device, rendered on the host, and trained on by the step that they are for.

    python -m eval.bench_rendering --config mixvit_tiny --config.train.batch_size=256 --root POOL --turns 20

All three take turns, with one config: batches rendered on the first device, which holds the pool; the same number of
samples from threads of the host, one for each core; and the train step on a batch that is on the device. The ratios
tell which of them waits.
"""

import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from eval.turns import Arguments, Parts, bench_parser, run_bench, time_in_turns, today
from mixformer_jax.cli.bench import device_name
from mixformer_jax.config_files import CONFIG_PREFIX, default_settings, load_config
from mixformer_jax.data.pipeline import batches, one_opencv_thread
from mixformer_jax.data.pool.device import DeviceSamples
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.program import train_program
from mixformer_jax.training.sharding import make_mesh, to_devices
from mixformer_jax.training.supervised import tracking_objective

COLUMNS = (
    *("date", "model", "device", "cores", "batch", "samples", "samples/s", "quartiles", "times the step's", "versions"),
)


def bench(experiment: Experiment, num_turns: int, progress: bool) -> list[tuple[str, ...]]:
    """Rows of the table, on one device."""
    settings = dataclasses.replace(experiment.train, mesh=(1, 1, 1))
    size, cores, device = settings.batch_size, os.cpu_count() or 1, device_name(jax.devices()[0])
    versions = f"jax {jax.__version__}"
    print(f"{device}; {cores} cores; {versions}; batches of {size}")
    pools, config = Material.load(experiment.data), experiment.data
    mesh = make_mesh((1, 1, 1))
    began = time.perf_counter()
    samples = DeviceSamples(pools, config, settings.seed)
    render = to_devices(samples, mesh, size)
    numbers = {"index": np.arange(size, dtype=np.uint32)}
    batch = jax.block_until_ready(render(numbers))
    print(
        f"the pool takes {samples.resident.nbytes / 2**20:,.0f} MiB; warm-up (building and checking it, compiling): "
        f"{time.perf_counter() - began:.1f} s"
    )
    program = train_program(tracking_objective(experiment), settings, mesh)
    state = program.init(jax.random.key(0))
    step = program.step.lower(program.state, program.batch).compile()

    def train() -> None:
        nonlocal state
        state, report = step(state, batch)
        jax.block_until_ready(report)

    stream = batches(TrackingSamples(pools, config, settings.seed), size, workers=cores)
    with one_opencv_thread(), contextlib.closing(stream):
        calls = {
            "rendered on the device": lambda: jax.block_until_ready(render(numbers)),
            f"rendered on the host, {cores} threads": lambda: next(stream),
            "trained on": train,
        }
        timed = time_in_turns(calls, num_turns, "turns", progress)
    trained = timed["trained on"].quartiles()[1]
    about = (today(), experiment.model.name, device, str(cores), str(size))
    rows: list[tuple[str, ...]] = []
    for name, timing in timed.items():
        first, median, third = timing.quartiles()
        spread, ratio = f"{size / third:.0f} to {size / first:.0f}", f"{trained / median:.2f}"
        rows.append((*about, name, f"{size / median:.0f}", spread, ratio, versions))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=20, overrides=CONFIG_PREFIX)
    parser.add_argument("--config", type=Path, default=Path("mixvit_tiny"), help="default: %(default)s")
    parser.add_argument("--root", help="the pool of videos and photographs, in place of data.root")

    def measure(args: Arguments) -> Parts:
        config = load_config(args.config, args.overrides, default_settings(Experiment))
        if args.root is not None:
            config.data.root = args.root
        experiment = Experiment.from_mapping(config.to_dict())
        yield COLUMNS, bench(experiment, args.turns, progress=sys.stderr.isatty()), slice(5, -1)

    return run_bench(parser, arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
