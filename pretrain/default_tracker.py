"""Makes the default tracker: TrackMAE, then boxes (stage 1), then scores (stage 2), then the file to ship.

    python pretrain/default_tracker.py                    # make default-tracker
    python pretrain/default_tracker.py --minutes 10       # saves and stops after so many minutes
    python pretrain/default_tracker.py --config.data.root=pool --config.data.render=device

The stages are configs/pretrain/trackmae_tiny.py, configs/mixvit_tiny.py and configs/mixvit_tiny_score.py; each has a
folder in RUNS (`runs/`) and resumes there. --config.SECTION.SETTING=VALUE changes a setting of all of them. A stage
resumes from its newest checkpoint, and starts from the weights of the stage before it: docs/training.md says what to
copy to go on with another machine. The result, RUNS/mixvit_tiny.safetensors in float16, belongs into
mixformer_jax/assets; then `python -m tests.store_doctor` renews the boxes that `mixformer doctor` expects.
"""

import argparse
import dataclasses
import math
import subprocess
import sys
import time
from pathlib import Path

from mixformer_jax.cli.console import parse_arguments
from mixformer_jax.config_files import CONFIG_PREFIX, CONFIGS
from mixformer_jax.signals import Stopped, StopSignals, check

ADVICE = "the same command goes on where this one was"
STAGES = ("trackmae_tiny", "mixvit_tiny", "mixvit_tiny_score")


def stages(runs: Path, changes: list[str]) -> list[list[str | Path]]:
    """The stages' commands, as arguments of Python."""
    train, pretrain = (("-m", "mixformer_jax", command) for command in ("train", "pretrain"))
    folders = [runs / name for name in STAGES]
    programs: tuple[list[str | Path], ...] = (
        [*pretrain, "--config", CONFIGS / "pretrain" / "trackmae_tiny.py"],
        [*train, "--config", CONFIGS / "mixvit_tiny.py", f"--config.train.init={folders[0]}"],
        [*train, "--config", CONFIGS / "mixvit_tiny_score.py", f"--config.train.init={folders[1]}"],
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

    # A stage that is stopped saves first.
    with StopSignals("pretrain/default_tracker.py", ADVICE) as signals, signals.saving():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from mixformer_jax.convert.convert import RUN_WEIGHTS
    from mixformer_jax.convert.weights import load_weights, save_weights

    deadline = None if args.minutes is None else time.monotonic() + 60 * args.minutes
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
    target = args.runs / "mixvit_tiny.safetensors"
    weights = load_weights(args.runs / STAGES[-1] / RUN_WEIGHTS)
    # Chosen on held-out sequences, see docs/default_tracker.md; crops in training are wider.
    tracker = dataclasses.replace(weights.tracker, search_factor=3.75, update_interval=25)
    save_weights(target, weights.variables, weights.model, tracker, store="float16")
    print(f"default tracker  {target}, {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
