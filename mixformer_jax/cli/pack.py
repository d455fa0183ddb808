"""`mixformer pack`: checks a tracker's results on a test set and packs them for the benchmark's server.

Imports stay inside the command, as in `cli`.
"""

import argparse
import sys
from pathlib import Path

from mixformer_jax.cli.console import Commands, UsageError

ABOUT = """The root is read for the names, the lengths and the first boxes of the sequences. What the server would
refuse is listed, and then nothing is written."""


def add_pack_command(command: Commands) -> None:
    """Gives `mixformer` its command that packs results; for data, see `mixformer data pack`."""
    pack = command(
        "pack",
        run_pack,
        "Check results on a test set and pack them for the benchmark's server.",
        "--dataset got10k --root GOT-10k/test --results results/mixvit_b --out mixvit_b.zip",
        "--dataset trackingnet --root TrackingNet --split test --results results/mixvit_b --out mixvit_b.zip",
        about=ABOUT,
    )
    pack.fill = _add_arguments


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from mixformer_jax.evaluation.submission import TEST_SEQUENCES

    parser.add_argument("--dataset", required=True, choices=sorted(TEST_SEQUENCES))
    parser.add_argument("--root", required=True, type=Path, help="folder of the test set")
    parser.add_argument("--split", help="a published part of the data set; TrackingNet: test, without its chunks")
    parser.add_argument("--results", required=True, type=Path, help="folder of one tracker, which holds SEQUENCE.txt")
    parser.add_argument("--out", required=True, type=Path, help="the archive, NAME.zip")


def run_pack(args: argparse.Namespace) -> int:
    """Writes the archive."""
    from mixformer_jax.datasets.sequences import open_dataset
    from mixformer_jax.evaluation.submission import TEST_SEQUENCES, pack_results

    try:
        pack = pack_results(args.dataset, args.results, open_dataset(args.dataset, args.root, args.split), args.out)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    print(f"{pack.path}: {pack.sequences} sequences, {pack.frames} frames, {pack.repetitions} repetition(s)")
    if pack.sequences != TEST_SEQUENCES[args.dataset]:
        print(f"warning: the server's test set has {TEST_SEQUENCES[args.dataset]} sequences", file=sys.stderr)
    return 0
