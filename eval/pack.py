"""Check a tracker's results on a test set and pack them for its server.

    python eval/pack.py --dataset got10k --root GOT-10k/test --results results/mixvit_b --out mixvit_b.zip
    python eval/pack.py --dataset trackingnet --root TrackingNet --results results/mixvit_b --out mixvit_b.zip

The root is read for the names, the lengths and the first boxes of the sequences. What the server would refuse is
listed, and then nothing is written.
"""

import argparse
import sys
from pathlib import Path

from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.evaluation.submission import BENCHMARKS, TEST_SEQUENCES, pack_results


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--dataset", required=True, choices=sorted(BENCHMARKS))
    parser.add_argument("--root", required=True, type=Path, help="folder of the test set")
    parser.add_argument("--split", help="a published part of the data set; TrackingNet: test, without its chunks")
    parser.add_argument("--results", required=True, type=Path, help="folder of one tracker, which holds SEQUENCE.txt")
    parser.add_argument("--out", required=True, type=Path, help="the archive, NAME.zip")
    args = parser.parse_args(arguments)

    try:
        pack = pack_results(args.dataset, args.results, open_dataset(args.dataset, args.root, args.split), args.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{pack.path}: {pack.sequences} sequences, {pack.frames} frames, {pack.repetitions} repetition(s)")
    if pack.sequences != TEST_SEQUENCES[args.dataset]:
        print(f"warning: the server's test set has {TEST_SEQUENCES[args.dataset]} sequences", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
