"""`mixformer report` scores result files; `mixformer pack` packs them for a benchmark's server."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import get_args

from mixformer_jax.cli.console import Parser, UsageError
from mixformer_jax.datasets.sequences import READERS, Dataset, open_dataset
from mixformer_jax.evaluation.evaluation_servers import TEST_SEQUENCES, pack_results
from mixformer_jax.evaluation.metrics import RuleSet, benchmark_rules
from mixformer_jax.evaluation.results import EXPERIMENTS, LAYOUTS, printable
from mixformer_jax.evaluation.scoring import SequenceNames, find_results
from mixformer_jax.evaluation.vot import EAO_HIGH, EAO_LOW
from mixformer_jax.reports.benchmarks import got10k_report, ope_report, trackingnet_report, vot_report
from mixformer_jax.reports.long_term import long_term_report
from mixformer_jax.reports.report import Report, summary, write_report

ABOUT = """With --out it also writes them, with plots and a page (HTML). GOT-10k, TrackingNet and VOT have measures of
their own; --measures ope scores the first two as LaSOT. The exit status is 1 when a ground truth cannot be read."""
PACK_ABOUT = """The root is read for the names, the lengths and the first boxes of the sequences. What the server would
refuse is listed, and then nothing is written."""
OWN_MEASURES = {"got10k": got10k_report, "trackingnet": trackingnet_report}


def add_dataset(parser: Parser) -> None:
    """Adds --dataset, --root, --split and --list."""
    parser.add_argument("--dataset", required=True, choices=sorted(READERS))
    parser.add_argument("--root", required=True, type=Path, help="folder of the data set")
    split_help = "a published part of the data set, such as LaSOT's test; default: the one that the reader names"
    parser.add_argument("--split", help=split_help)
    parser.add_argument("--list", type=Path, metavar="FILE", help="take only the sequences that it names, one a line")


def add_report(parser: Parser) -> None:
    parser.describe(
        run_report,
        "--dataset folder --root DATA --results results/ --out report/",
        "--dataset vot --root WORKSPACE --results WORKSPACE/results --out report/",
        about=ABOUT,
    )
    add_dataset(parser)
    parser.add_argument("--results", required=True, type=Path, help="holds TRACKER/SEQUENCE.txt")
    parser.add_argument("--trackers", help="names, separated by commas; default: all in RESULTS")
    parser.add_argument("--out", type=Path, help="write the report there: index.html, tables, plots")
    parser.add_argument("--worst", type=int, default=3, metavar="N", help="sequences a tracker with pictures (3)")
    parser.add_argument("--measures", choices=("own", "ope"), default="own", help="of GOT-10k and TrackingNet")
    ope = parser.add_argument_group("one-pass evaluation")
    ope.add_argument("--rules", choices=get_args(RuleSet), default="mixformer", help="whose numbers (mixformer)")
    ope.add_argument("--exclude-invalid-frames", action="store_true", help="rates over valid frames")
    ope.add_argument("--separate-runs", action="store_true", help="NAME_000, NAME_001, ... are not averaged")
    vot = parser.add_argument_group("VOT")
    interval, ends = (EAO_LOW, EAO_HIGH), ("LOW", "HIGH")
    interval_help = f"lengths over which EAO is averaged ({EAO_LOW} {EAO_HIGH}, VOT2020 to VOT2022)"
    vot.add_argument("--eao-interval", type=int, nargs=2, metavar=ends, default=interval, help=interval_help)


def run_report(args: argparse.Namespace, opened: Dataset | None = None) -> int:
    """Scores what trackers left, on the data set that is `opened` already, or that the arguments name; 1 when a ground
    truth cannot be read."""
    if args.worst < 0 or not 1 <= args.eao_interval[0] < args.eao_interval[1]:
        raise UsageError("--worst needs a number from 0 on, and --eao-interval two from 1 on, the lower first")
    try:
        report, unreadable = _score(args, opened)
        print(summary(report), end="")
        if args.out is not None:
            for path in write_report(report, args.out):
                print(f"wrote {path}")
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    for name, reason in unreadable.items():
        print(f"FAILED {printable(name)}: {printable(reason)}", file=sys.stderr)
    return 1 if unreadable else 0


def _score(args: argparse.Namespace, opened: Dataset | None) -> tuple[Report, dict[str, str]]:
    """The report, and why the sequences that are not in it could not be read."""
    trackers = args.trackers.split(",") if args.trackers else None
    # Pictures are for the page alone.
    worst = args.worst if args.out else 0
    layout = LAYOUTS.get(args.dataset, "pytracking")
    if layout in EXPERIMENTS:
        # The names alone: scoring needs no frames. DepthTrack's reader takes folders, and no list.
        is_chosen = args.list or layout == "votrgbd"
        shown = open_dataset(args.dataset, args.root, args.split, args.list) if worst or is_chosen else None
        chosen = list(shown.keys) if is_chosen and shown is not None else None
        drawn = shown if worst else None
        if layout != "vot":
            return long_term_report(args.dataset, args.root, args.results, trackers, drawn, worst, chosen), {}
        options = (trackers, tuple(args.eao_interval), drawn, worst, chosen, args.dataset)
        return vot_report(args.root, args.results, *options), {}
    dataset = opened if opened is not None else open_dataset(args.dataset, args.root, args.split, args.list)
    sequences, unreadable = dataset.read_all()
    if not sequences:
        raise ValueError("; ".join(unreadable.values()))
    names = [sequence.name for sequence in sequences]
    # Files of the other sequences are not files of these under another name.
    others = unreadable if args.list is None else open_dataset(args.dataset, args.root, args.split).keys
    known = SequenceNames([*names, *(key.rpartition("/")[2] for key in others)], args.dataset)
    files = find_results(args.results, names, trackers, args.separate_runs, known)
    if args.dataset in OWN_MEASURES and args.measures == "own":
        report = OWN_MEASURES[args.dataset](sequences, files, worst)
    else:
        rules = benchmark_rules(args.dataset, args.rules, args.exclude_invalid_frames)
        report = ope_report(args.dataset, sequences, files, rules, worst, progress=sys.stderr.isatty())
    notes = [f"{name} is not scored, since its ground truth cannot be read: {why}" for name, why in unreadable.items()]
    empty = {each.name: [fault.kind for fault in each.faults].count("box empty") for each in sequences}
    if any(empty.values()):
        names = [name for name, count in empty.items() if count]
        notes.append(
            f"{sum(empty.values())} boxes of negative or no size are rows without target, in {', '.join(names[:5])}"
            + (f" and {len(names) - 5} more sequences" if len(names) > 5 else "")
        )
    return dataclasses.replace(report, notes=(*report.notes, *notes)), unreadable


def add_pack(parser: Parser) -> None:
    """The arguments of `mixformer pack`; for data, see `mixformer data pack`."""
    parser.describe(
        run_pack,
        "--dataset got10k --root GOT-10k/test --results results/mixvit_b --out mixvit_b.zip",
        "--dataset trackingnet --root TrackingNet --split test --results results/mixvit_b --out mixvit_b.zip",
        about=PACK_ABOUT,
    )
    parser.add_argument("--dataset", required=True, choices=sorted(TEST_SEQUENCES))
    parser.add_argument("--root", required=True, type=Path, help="folder of the test set")
    parser.add_argument("--split", help="a published part of the data set; TrackingNet: test, without its chunks")
    parser.add_argument("--results", required=True, type=Path, help="folder of one tracker, which holds SEQUENCE.txt")
    parser.add_argument("--out", required=True, type=Path, help="the archive, NAME.zip")


def run_pack(args: argparse.Namespace) -> int:
    try:
        pack = pack_results(args.dataset, args.results, open_dataset(args.dataset, args.root, args.split), args.out)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    print(f"{pack.path}: {pack.sequences} sequences, {pack.frames} frames, {pack.repetitions} repetition(s)")
    if pack.sequences != TEST_SEQUENCES[args.dataset]:
        print(f"warning: the server's test set has {TEST_SEQUENCES[args.dataset]} sequences", file=sys.stderr)
    return 0
