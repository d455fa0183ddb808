"""Run a tracker over a benchmark and leave its result files.

    python eval/run.py --dataset folder --root DATA --out results/
    python eval/report.py --dataset folder --root DATA --results results/

Finished sequences are not run again. The exit status is 1 when a sequence failed.
"""

import argparse
import logging
import sys
from pathlib import Path

from mixformer_jax.data.sequences import READERS, open_dataset
from mixformer_jax.evaluation.runner import describe, run_dataset
from mixformer_jax.evaluation.trackers import TRACKERS, open_tracker


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
    args = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")

    try:
        sequences = open_dataset(args.dataset, args.root)
        tracker, name, settings = open_tracker(args.tracker, args.weights, args.device)
        settings["dataset"] = args.dataset
        summary = run_dataset(tracker, sequences, args.out, args.tracker_name or name, settings)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(describe(summary))
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
