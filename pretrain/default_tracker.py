"""Make the default tracker from the pool: TrackMAE, boxes (stage 1) on small and then on large crops, scores.

    python pretrain/default_tracker.py                    # make default-tracker
    python pretrain/default_tracker.py --minutes 10       # a piece: stops, saved, after so many minutes
    python pretrain/default_tracker.py --config.data.root=pool --config.data.render=device

The stages are configs/pretrain/trackmae_tiny.py, configs/mixvit_nano.py, configs/mixvit_tiny.py (made for an
accelerator) and pretrain/mined_scores.py; each has a folder in RUNS (`runs/`) and goes on where it was stopped.
--config.SECTION.SETTING=VALUE changes a setting of all of them. A stage that has begun needs the newest of its
checkpoints and none of the stages before, and a fresh one the weights of the one before it: docs/training.md says what
to copy for a piece on another machine. At the end RUNS/mixvit_tiny_mined/model.safetensors, float16, is what belongs
into mixformer_jax/assets as mixvit_tiny.safetensors; then `python -m tests.store_doctor` renews the boxes that
`mixformer doctor` expects.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

from mixformer_jax.cli.console import ADVICE, parse_arguments
from mixformer_jax.config_files import CONFIG_PREFIX, CONFIGS
from mixformer_jax.signals import Stopped, StopSignals, check

STAGES = ("trackmae_tiny", "mixvit_nano", "mixvit_tiny", "mixvit_tiny_mined")


def stages(runs: Path, changes: list[str]) -> list[list[str | Path]]:
    """The stages' commands, as arguments of Python."""
    train, pretrain = (("-m", "mixformer_jax", command) for command in ("train", "pretrain"))
    folders = [runs / name for name in STAGES]
    programs: tuple[list[str | Path], ...] = (
        [*pretrain, "--config", CONFIGS / "pretrain" / "trackmae_tiny.py"],
        [*train, "--config", CONFIGS / "mixvit_nano.py", f"--config.train.init={folders[0]}"],
        [*train, "--config", CONFIGS / "mixvit_tiny.py", f"--config.train.init={folders[1]}"],
        [Path(__file__).with_name("mined_scores.py"), folders[2]],
    )
    return [[*program, "--out", folder, *changes] for program, folder in zip(programs, folders, strict=True)]


def stage_to_go_on_with(runs: Path) -> int:
    """The last stage with a checkpoint, or the one after the last stage of which only the weights are there."""
    from mixformer_jax.convert.convert import RUN_WEIGHTS

    for stage, name in reversed(list(enumerate(STAGES))):
        if any((runs / name / "checkpoints").glob("[0-9]*")):
            return stage
        if (runs / name / RUN_WEIGHTS).is_file():
            return stage + 1
    return 0


def run_until(arguments: list[str | Path], deadline: float | None) -> int | None:
    """Runs Python and returns its exit status; None where the time was up first. It has saved and exited by then."""
    # In its own session: else it would get Ctrl-C twice, here and from this process, and at the second does not save.
    process = subprocess.Popen([sys.executable, *map(str, arguments)], start_new_session=True)
    try:
        while (status := process.poll()) is None and time.monotonic() < (deadline or math.inf):
            check()
            time.sleep(0.1)
        return status
    finally:
        process.terminate()
        process.wait()


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (runs)")
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="stop after so many minutes; the same command goes on"
    )
    parser.set_defaults(override_prefix=CONFIG_PREFIX)
    args = parse_arguments(parser, arguments)

    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    # A stage that is stopped saves first.
    with StopSignals("pretrain/default_tracker.py", ADVICE) as signals, signals.saving():
        for program in stages(args.runs, args.overrides)[stage_to_go_on_with(args.runs) :]:
            try:
                status = run_until(program, deadline)
            except Stopped as stopped:
                print(f"pretrain/default_tracker.py: {stopped.word}; {ADVICE}", file=sys.stderr)
                return stopped.status
            if status is None:
                print(f"{args.minutes:g} minutes are over; the same command goes on", file=sys.stderr)
                return 0
            if status:
                return status
    from mixformer_jax.convert.convert import RUN_WEIGHTS

    target = args.runs / STAGES[-1] / RUN_WEIGHTS
    print(f"default tracker  {target}, {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
