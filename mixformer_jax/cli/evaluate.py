"""`mixformer evaluate`: runs trackers over a benchmark and leaves their result files.

Imports stay inside the command, as in `cli`.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mixformer_jax.cli.console import TRACKER_PREFIX, Commands, Parser, UsageError, positive
from mixformer_jax.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from mixformer_jax.datasets.sequences import Dataset
    from mixformer_jax.evaluation.runner import RunSummary
    from mixformer_jax.evaluation.trackers import OpenedTracker, TrackerChoice
    from mixformer_jax.evaluation.workers import Alone, Workers

ADVICE = "the same command goes on where this one was"
STOP_S = 5.0  # a signal waits so long for the frames that are being tracked
ABOUT = """A model of the paper tracks with the official experiments' settings for the benchmark (benchmarks.toml of the
configs), any other with the settings of its weights; which they are is printed at the start. It computes in float32,
as the published numbers, on every device. A run may be killed at any moment: the same command goes on, and finished
sequences are not run again. The exit status is 1 when a sequence failed."""


def add_evaluate_command(command: Commands) -> None:
    """Gives `mixformer` its command that runs benchmarks."""
    evaluate = command(
        "evaluate",
        run_evaluate,
        "Run trackers over a benchmark and leave their result files.",
        "--dataset lasot --root LaSOT --weights mixvit_b.safetensors --out results/",
        "--dataset folder --root DATA --tracker mixformer,opencv:MIL --out results/ --report report/",
        overrides=TRACKER_PREFIX,
        about=ABOUT,
    )
    evaluate.fill = _add_arguments


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from mixformer_jax.datasets.sequences import READERS
    from mixformer_jax.evaluation.trackers import BENCHMARK_DTYPE, TRACKERS

    parser.add_argument("--dataset", required=True, choices=sorted(READERS))
    parser.add_argument("--root", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--split", help="a published part of the data set; default: the one that the reader names")
    parser.add_argument("--list", type=Path, metavar="FILE", help="track only the sequences that it names, one a line")
    parser.add_argument("--out", required=True, type=Path, help="results go to OUT/TRACKER_NAME/")
    parser.add_argument(
        "--tracker", default=TRACKERS[0], metavar="T,T", help=f"default: {TRACKERS[0]}; also {', '.join(TRACKERS[1:])}"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="then score these trackers, as mixformer report --out DIR"
    )
    parser.add_argument(
        "--weights", help="name, folder, .safetensors file or official checkpoint; default: the embedded tracker"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=f"default: {BENCHMARK_DTYPE} on every device")
    parser.add_argument("--tracker-name", help="default: from the weights")
    parser.add_argument(
        "--settings-of", metavar="NAME", help="a table of benchmarks.toml; default: the model's own name"
    )
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="track every sequence N times")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that track (default: 1)")
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="videos in one step of a model (default: 1 on a CPU, 16 elsewhere)"
    )


def run_evaluate(args: argparse.Namespace) -> int:
    """Runs one tracker after the other; 1 when a sequence failed."""
    with StopSignals("mixformer evaluate", ADVICE) as signals:
        try:
            return _evaluate(args, signals)
        except Stopped as stopped:
            print(f"mixformer evaluate: {stopped.word}; {ADVICE}", file=sys.stderr)
            return stopped.status


def _evaluate(args: argparse.Namespace, signals: StopSignals) -> int:
    from mixformer_jax.datasets.sequences import open_dataset
    from mixformer_jax.evaluation.runner import describe

    logging.basicConfig(format="%(message)s")
    failures: set[str] = set()
    names = []
    try:
        choices = _choices(args)
        # Opened once for all trackers and the report: a data set tells of its faults when it is first read.
        sequences = open_dataset(args.dataset, args.root, args.split, args.list)
        for choice in choices:
            # What is open closes, and no process stays behind.
            with signals.saving(STOP_S):
                name, summary = _run(args, choice, sequences)
            names.append(name)
            print(describe(summary))
            failures |= {failure.sequence for failure in summary.failures}
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    # What cannot be read is named in the report, too; with other results missing there is none.
    if args.report is None:
        return 1 if failures else 0
    if failures <= set(sequences.read_all()[1]):
        return _report(args, names, sequences)
    print(f"no report in {args.report}: sequences without results would be missing in it", file=sys.stderr)
    return 1


def _report(args: argparse.Namespace, names: list[str], sequences: "Dataset") -> int:
    from mixformer_jax.cli.report import add_arguments, run_report

    parser = Parser(allow_abbrev=False)
    add_arguments(parser)
    options = ["--dataset", args.dataset, "--root", str(args.root), "--results", str(args.out)]
    options += [] if args.split is None else ["--split", args.split]
    options += [] if args.list is None else ["--list", str(args.list)]
    options += ["--trackers", ",".join(names), "--out", str(args.report)]
    return run_report(parser.parse_args(options), sequences)


def _choices(args: argparse.Namespace) -> "list[TrackerChoice]":
    """The trackers that the command line names.

    Raises:
        ConfigError: settings of the tracker that do not exist or cannot work.
    """
    from mixformer_jax.config_files import BENCHMARK_SETTINGS, parse_overrides
    from mixformer_jax.evaluation.trackers import TRACKERS, TrackerChoice, read_benchmark_settings, settings_on
    from mixformer_jax.models.config import TrackerConfig

    kinds = args.tracker.split(",")
    if len(kinds) > 1 and args.tracker_name:
        raise UsageError("--tracker-name names one tracker, and --tracker several")

    model_options = {
        "weights": args.weights,
        "device": args.device,
        "dtype": args.dtype,
        "batch": args.batch,
        "settings": settings_on(read_benchmark_settings(BENCHMARK_SETTINGS), args.dataset, args.settings_of),
        "settings_of": args.settings_of,
        "benchmark": args.dataset,
        "changes": parse_overrides(args.overrides, TrackerConfig().to_dict(), TRACKER_PREFIX),
    }
    # Beside a model, what has none takes no options of its.
    alone = len(kinds) == 1
    return [TrackerChoice(kind, **model_options if alone or kind == TRACKERS[0] else {}) for kind in kinds]


def _run(args: argparse.Namespace, choice: "TrackerChoice", sequences: "Dataset") -> "tuple[str, RunSummary]":
    """Runs one tracker, and says how its results are named."""
    from mixformer_jax.evaluation.runner import run_dataset
    from mixformer_jax.evaluation.trackers import announce
    from mixformer_jax.evaluation.workers import Alone, Workers

    kept = {"dataset": args.dataset} | ({} if args.split is None else {"split": args.split})

    def track(crew: "Alone | Workers", opened: "OpenedTracker | Workers") -> "tuple[str, RunSummary]":
        name, settings, about = args.tracker_name or opened.name, opened.settings, opened.about
        print(announce(choice, settings, about), flush=True)
        return name, run_dataset(crew, sequences, args.out, name, settings | kept, args.dataset, args.repeat, about)

    if args.workers == 1:
        opened = choice.open()
        return track(Alone(opened), opened)
    with Workers(choice.open, args.workers) as workers:
        return track(workers, workers)
