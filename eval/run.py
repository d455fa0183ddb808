"""Run a tracker over a benchmark and leave its result files.

    python eval/run.py --dataset folder --root DATA --out results/
    python eval/report.py --dataset folder --root DATA --results results/

A model of the paper tracks with the official experiments' settings for the benchmark (configs/benchmarks.toml), any
other with the settings of its weights; --tracker.SETTING=VALUE changes one. Finished sequences are not run again. The
exit status is 1 when a sequence failed.
"""

import argparse
import logging
import sys
from pathlib import Path

from mixformer_jax.config_files import TRACKER_PREFIX, parse_overrides
from mixformer_jax.data.sequences import READERS, open_dataset
from mixformer_jax.evaluation.runner import describe, run_dataset
from mixformer_jax.evaluation.settings import read_benchmark_settings
from mixformer_jax.evaluation.trackers import TRACKERS, open_tracker
from mixformer_jax.models.config import TrackerConfig

SETTINGS = Path(__file__).resolve().parents[1] / "configs" / "benchmarks.toml"


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--dataset", required=True, choices=sorted(READERS))
    parser.add_argument("--root", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--out", required=True, type=Path, help="results go to OUT/TRACKER_NAME/SEQUENCE.txt")
    parser.add_argument("--tracker", choices=TRACKERS, default=TRACKERS[0])
    parser.add_argument("--weights", help="name, folder or .safetensors file; default: the embedded tracker")
    parser.add_argument("--device", choices=("cpu", "gpu"))
    parser.add_argument("--tracker-name", help="default: from the weights")
    parser.add_argument(
        "--settings-of", metavar="NAME", help="a table of configs/benchmarks.toml; default: the model's own name"
    )
    args, rest = parser.parse_known_args(arguments)
    overrides = [text for text in rest if text.startswith(TRACKER_PREFIX)]
    if len(overrides) < len(rest):
        parser.error(f"unknown arguments: {' '.join(text for text in rest if text not in overrides)}")
    logging.basicConfig(format="%(message)s")

    try:
        known = read_benchmark_settings(SETTINGS)
        changes = parse_overrides(overrides, TrackerConfig().to_dict(), TRACKER_PREFIX)
        if args.settings_of and args.settings_of not in known:
            parser.error(f"--settings-of {args.settings_of}: not in {SETTINGS}; it has {', '.join(known)}")
        sequences = open_dataset(args.dataset, args.root)
        tracker, name, settings = open_tracker(
            args.tracker,
            args.weights,
            args.device,
            lambda model: {**known.get(args.settings_of or model, {}).get(args.dataset, {}), **changes},
        )
        settings["dataset"] = args.dataset
        summary = run_dataset(tracker, sequences, args.out, args.tracker_name or name, settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(describe(summary))
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
