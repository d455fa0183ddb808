"""Run trackers over a benchmark and leave their result files.

    python eval/run.py --dataset lasot --root LaSOT --weights mixvit_b.safetensors --out results/
    python eval/run.py --dataset folder --root DATA --tracker mixformer,opencv:MIL --out results/ --report report/

The second ends with the table that eval/report.py makes of both trackers.

A model of the paper tracks with the official experiments' settings for the benchmark (configs/benchmarks.toml), any
other with the settings of its weights; --tracker.SETTING=VALUE changes one. A run may be killed at any moment: the same
command goes on, and finished sequences are not run again. The exit status is 1 when a sequence failed.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mixformer_jax.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from mixformer_jax.evaluation.runner import Alone, RunSummary
    from mixformer_jax.evaluation.trackers import TrackerChoice
    from mixformer_jax.evaluation.workers import Workers

ADVICE = "the same command goes on where this one was"
STOP_S = 5.0  # a signal waits so long for the frames that are being tracked
SETTINGS = Path(__file__).resolve().parents[1] / "configs" / "benchmarks.toml"


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, "list[TrackerChoice]"]:
    """The command line, and the trackers that it names.

    Raises:
        ConfigError: settings of the tracker that do not exist or cannot work.
    """
    from mixformer_jax.config_files import TRACKER_PREFIX, parse_overrides
    from mixformer_jax.data.sequences import READERS
    from mixformer_jax.evaluation.settings import read_benchmark_settings
    from mixformer_jax.evaluation.trackers import TRACKERS, TrackerChoice
    from mixformer_jax.models.config import TrackerConfig

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--dataset", required=True, choices=sorted(READERS))
    parser.add_argument("--root", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--split", help="a published part of the data set; default: the one that the reader names")
    parser.add_argument("--out", required=True, type=Path, help="results go to OUT/TRACKER_NAME/")
    parser.add_argument(
        "--tracker", default=TRACKERS[0], metavar="T,T", help=f"default: {TRACKERS[0]}; also {', '.join(TRACKERS[1:])}"
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="then score these trackers, as eval/report.py --out DIR"
    )
    parser.add_argument("--weights", help="name, folder or .safetensors file; default: the embedded tracker")
    parser.add_argument("--device", choices=("cpu", "gpu"))
    parser.add_argument("--tracker-name", help="default: from the weights")
    parser.add_argument(
        "--settings-of", metavar="NAME", help="a table of configs/benchmarks.toml; default: the model's own name"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="track every sequence N times")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that track (default: 1)")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="videos in one step of a model (default: 1 on a CPU, 16 elsewhere)"
    )
    args, rest = parser.parse_known_args(arguments)
    overrides = [text for text in rest if text.startswith(TRACKER_PREFIX)]
    if len(overrides) < len(rest):
        parser.error(f"unknown arguments: {' '.join(text for text in rest if text not in overrides)}")
    for option in ("repeat", "workers", "batch"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option} is {value}; expected at least 1")
    kinds = args.tracker.split(",")
    if len(kinds) > 1 and args.tracker_name:
        parser.error("--tracker-name names one tracker, and --tracker several")

    known = read_benchmark_settings(SETTINGS)
    if args.settings_of and args.settings_of not in known:
        parser.error(f"--settings-of {args.settings_of}: not in {SETTINGS}; it has {', '.join(known)}")
    model_options = {
        "weights": args.weights,
        "device": args.device,
        "batch": args.batch,
        "settings": {model: benchmarks.get(args.dataset, {}) for model, benchmarks in known.items()},
        "settings_of": args.settings_of,
        "changes": parse_overrides(overrides, TrackerConfig().to_dict(), TRACKER_PREFIX),
    }
    # Beside a model, what has none takes no options of its.
    alone = len(kinds) == 1
    return args, [TrackerChoice(kind, **model_options if alone or kind == TRACKERS[0] else {}) for kind in kinds]


def run(args: argparse.Namespace, choice: "TrackerChoice") -> "tuple[str, RunSummary]":
    """Runs one tracker, and says how its results are named."""
    from mixformer_jax.data.sequences import open_dataset
    from mixformer_jax.evaluation.runner import Alone, run_dataset
    from mixformer_jax.evaluation.workers import Workers

    sequences = open_dataset(args.dataset, args.root, args.split)
    kept = {"dataset": args.dataset} | ({} if args.split is None else {"split": args.split})

    def track(crew: "Alone | Workers", name: str, settings: dict) -> "tuple[str, RunSummary]":
        name = args.tracker_name or name
        return name, run_dataset(crew, sequences, args.out, name, settings | kept, args.dataset, args.repeat)

    if args.workers == 1:
        opened = choice.open()
        return track(Alone(opened), opened.name, opened.settings)
    with Workers(choice.open, args.workers) as workers:
        return track(workers, workers.name, workers.settings)


def main(arguments: list[str] | None = None) -> int:
    # Before anything imports JAX.
    with StopSignals("eval/run.py", ADVICE) as signals:
        return _main(arguments, signals)


def _main(arguments: list[str] | None, signals: StopSignals) -> int:
    from mixformer_jax.evaluation.runner import describe

    logging.basicConfig(format="%(message)s")
    failed, names = False, []
    try:
        args, choices = parse(arguments)
        for choice in choices:
            # What is open closes, and no process stays behind.
            with signals.saving(STOP_S):
                name, summary = run(args, choice)
            names.append(name)
            print(describe(summary))
            failed |= bool(summary.failures)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except Stopped as stopped:
        print(f"eval/run.py: {stopped.word}; {ADVICE}", file=sys.stderr)
        return stopped.status
    if args.report is not None and not failed:
        from eval.report import main as report

        options = ["--dataset", args.dataset, "--root", str(args.root), "--results", str(args.out)]
        options += [] if args.split is None else ["--split", args.split]
        return report([*options, "--trackers", ",".join(names), "--out", str(args.report)])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
