"""Score result files and print the tables; with --out also write them, as text, Markdown, JSON and plots.

    python eval/report.py --dataset folder --root DATA --results results/ --out report/

The rules of scoring are in docs/evaluation.md.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from mixformer_jax.data.sequences import READERS, open_dataset
from mixformer_jax.evaluation.report import score_results, to_text, write_report
from mixformer_jax.evaluation.rules import RuleSet, benchmark_rules


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--dataset", required=True, choices=sorted(READERS))
    parser.add_argument("--root", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--results", required=True, type=Path, help="holds TRACKER/SEQUENCE.txt")
    parser.add_argument("--trackers", help="names, separated by commas; default: all in RESULTS")
    parser.add_argument("--out", type=Path, help="write report.txt, .md, .json and plots there")
    parser.add_argument(
        "--rules", choices=get_args(RuleSet), default="mixformer", help="the toolkit whose numbers these are"
    )
    parser.add_argument("--exclude-invalid-frames", action="store_true", help="rates over valid frames")
    args = parser.parse_args(arguments)

    try:
        rules = benchmark_rules(args.dataset, args.rules, args.exclude_invalid_frames)
        sequences = open_dataset(args.dataset, args.root)
        trackers = args.trackers.split(",") if args.trackers else None
        report = score_results(args.results, args.dataset, sequences, rules, trackers)
        print(to_text(report), end="")
        if args.out is not None:
            for path in write_report(report, args.out):
                print(f"wrote {path}")
    except (ValueError, ModuleNotFoundError, OSError) as error:
        sys.exit(f"error: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
