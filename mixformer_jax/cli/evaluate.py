"""`mixformer evaluate` runs trackers over a benchmark, and `toolkit` lets the benchmark's own toolkit do so; `report`
scores result files, and `pack` packs them for a benchmark's server."""

import argparse
import dataclasses
import inspect
import logging
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mixformer_jax import DEFAULT_MASKS
from mixformer_jax.cli.console import ADVICE, WEIGHTS, Parser, UsageError, add_device_argument, for_the_user, positive
from mixformer_jax.config_files import BENCHMARK_SETTINGS, TRACKER_PREFIX, parse_overrides
from mixformer_jax.datasets.records import in_one_frame
from mixformer_jax.datasets.sequences import READERS, Dataset, open_dataset
from mixformer_jax.datasets.vot import LONG_TERM
from mixformer_jax.evaluation.evaluation_servers import TEST_SEQUENCES, pack_results
from mixformer_jax.evaluation.metrics import RuleSet, benchmark_rules
from mixformer_jax.evaluation.results import EXPERIMENTS, LAYOUTS, printable
from mixformer_jax.evaluation.runner import RunSummary, describe, run_dataset
from mixformer_jax.evaluation.scoring import SequenceNames, find_results
from mixformer_jax.evaluation.trackers import (
    BENCHMARK_DTYPE,
    TRACKERS,
    OpenedTracker,
    TrackerChoice,
    announce,
    read_benchmark_settings,
    settings_on,
)
from mixformer_jax.evaluation.vot import EAO_HIGH, EAO_LOW
from mixformer_jax.evaluation.workers import Alone, Workers
from mixformer_jax.masks import fit_to_frame, mask_box_xywh
from mixformer_jax.media.images import read_depth, read_image
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.reports.benchmarks import (
    got10k_report,
    long_term_report,
    ope_report,
    trackingnet_report,
    vot_report,
)
from mixformer_jax.reports.report import Report, summary, write_report
from mixformer_jax.signals import saving

MASKS = "answers are masks in place of boxes; W: weights of a mask network (default: the embedded masks)"
STOP_S = 5.0  # a signal waits so long for the frames that are being tracked
ABOUT = """A model of the paper tracks with the official experiments' settings for the benchmark (mixformer configs show
benchmarks.toml), any other with the settings of its weights; which they are is printed at the start. It computes in
float32, as the published numbers, on every device. A run may be killed at any moment: the same command goes on, and
finished sequences are not run again. The exit status is 1 when a sequence failed."""


def add_evaluate(parser: Parser) -> None:
    one = "--dataset lasot --root LaSOT --weights mixvit_b.safetensors --out results/"
    two = "--dataset folder --root DATA --tracker mixformer,opencv:MIL --out results/ --report report/"
    parser.describe(run_evaluate, one, two, overrides=TRACKER_PREFIX, about=ABOUT, advice=ADVICE)
    _add_dataset(parser)
    parser.add_argument("--out", type=Path, required=True, help="results go to OUT/TRACKER_NAME/")
    tracker_help = f"default: {TRACKERS[0]}; also {', '.join(TRACKERS[1:])}"
    parser.add_argument("--tracker", default=TRACKERS[0], metavar="T,T", help=tracker_help)
    report_help = "then score these trackers, as mixformer report --out DIR"
    parser.add_argument("--report", type=Path, metavar="DIR", help=report_help)
    _add_model(parser)
    parser.add_argument("--masks", nargs="?", const=DEFAULT_MASKS, metavar="W", help=f"{MASKS}; with --dataset vot")
    parser.add_argument("--tracker-name", help="default: from the weights")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="track every sequence N times")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that track (default: 1)")
    batch_help = "videos in one step of a model (default: 1 on a CPU, 16 elsewhere)"
    parser.add_argument("--batch", type=positive, metavar="N", help=batch_help)


def _add_dataset(parser: Parser) -> None:
    parser.add_argument("--dataset", required=True, choices=sorted(READERS))
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    split_help = "a published part of the data set, such as LaSOT's test; default: the one that the reader names"
    parser.add_argument("--split", help=split_help)
    parser.add_argument("--list", type=Path, metavar="FILE", help="take only the sequences that it names, one a line")


def _add_model(parser: Parser) -> None:
    parser.add_argument("--weights", help=WEIGHTS)
    add_device_argument(parser)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=f"default: {BENCHMARK_DTYPE} on every device")
    settings_help = "a table of mixformer configs show benchmarks.toml; default: the model's own name"
    parser.add_argument("--settings-of", metavar="NAME", help=settings_help)


def _choice(
    args: argparse.Namespace, kind: str, benchmark: str, batch: int | None, alone: bool = True
) -> TrackerChoice:
    """A tracker that the command line names; beside a model, what has none takes no options of its."""
    settings = settings_on(read_benchmark_settings(BENCHMARK_SETTINGS), benchmark, args.settings_of)
    changes = parse_overrides(args.overrides, TrackerConfig().to_dict(), TRACKER_PREFIX)
    if not alone and kind != TRACKERS[0]:
        return TrackerChoice(kind)
    return TrackerChoice(
        *(kind, args.weights, args.device, batch, settings, args.settings_of, changes, benchmark),
        *(getattr(args, "masks", None), args.dtype),
    )


@for_the_user(ValueError)
def run_evaluate(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s")
    kinds = args.tracker.split(",")
    if len(kinds) > 1 and args.tracker_name:
        raise UsageError("--tracker-name names one tracker, and --tracker several")
    if args.masks is not None and LAYOUTS.get(args.dataset) != "vot":
        raise UsageError(f"--masks: --dataset {args.dataset} is scored by boxes alone; masks are for --dataset vot")
    failures: set[str] = set()
    names = []
    choices = [_choice(args, kind, args.dataset, args.batch, len(kinds) == 1) for kind in kinds]
    # Opened once for all trackers and the report: a data set tells of its faults when it is first read.
    sequences = open_dataset(args.dataset, args.root, args.split, args.list)
    for choice in choices:
        # What is open closes, and no process stays behind.
        with saving(STOP_S):
            name, ran = _run(args, choice, sequences)
        names.append(name)
        print(describe(ran))
        failures |= {failure.sequence for failure in ran.failures}
    # What cannot be read is named in the report, too; with other results missing there is none.
    if args.report is None:
        return int(bool(failures))
    if failures <= set(sequences.read_all()[1]):
        parser = Parser(allow_abbrev=False)
        add_report(parser)
        given = {"dataset": args.dataset, "root": args.root, "split": args.split, "list": args.list}
        given |= {"results": args.out, "trackers": ",".join(names), "out": args.report}
        options = [f"--{name}={value}" for name, value in given.items() if value is not None]
        return run_report(parser.parse_args(options), sequences)
    print(f"no report in {args.report}: sequences without results would be missing in it", file=sys.stderr)
    return 1


def _run(args: argparse.Namespace, choice: TrackerChoice, sequences: Dataset) -> tuple[str, RunSummary]:
    """Runs one tracker, and says how its results are named."""
    kept = {"dataset": args.dataset} | ({} if args.split is None else {"split": args.split})

    def track(crew: Alone | Workers, opened: OpenedTracker | Workers) -> tuple[str, RunSummary]:
        name, settings, about = args.tracker_name or opened.name, opened.settings, opened.about
        print(announce(choice, settings, about), flush=True)
        return name, run_dataset(crew, sequences, args.out, name, settings | kept, args.dataset, args.repeat, about)

    if args.workers == 1:
        opened = choice.open()
        return track(Alone(opened), opened)
    with Workers(choice.open, args.workers) as workers:
        return track(workers, workers)


VOT_ABOUT = """Boxes over the TraX protocol, on standard input and output. One process serves all runs of an experiment
on a sequence. Masks come and go as the boxes around them; with --masks W both come, the tracker starts from the box
around the mask, and masks go. Long videos want --dataset votlt2022 --tracker.long_term=true. The toolkit starts it by
its list of trackers:

[MixFormer]
label = MixFormer
protocol = traxpython
command = from mixformer_jax.cli import main; sys.exit(main(['toolkit', 'vot', '--weights', 'mixvit_tiny']))
python = /path/to/the/python/that/has/mixformer-jax
timeout = 180"""
GOT10K_ABOUT = """mixformer evaluate does the same over several processes, and leaves the same files. Settings and
compute type are those of mixformer evaluate."""
# The toolkit's channels by what a tracker reads, as in its own bindings.
CHANNELS = {"rgb": ("color",), "rgbd": ("color", "depth"), "rgbt": ("color", "ir"), "depth": ("depth",), "ir": ("ir",)}
# The got10k toolkit's names of the data sets that have settings.
BENCHMARKS = {"GOT10k": "got10k", "LaSOT": "lasot", "OTB": "otb100", "UAV123": "uav123", "TrackingNet": "trackingnet"}


def add_toolkit(parser: Parser) -> None:
    got10k = "Run an experiment of the got10k toolkit: GOT-10k, OTB, UAV123, LaSOT, ..."
    parser.add_commands({"vot": ("Serve the VOT toolkit.", _add_vot), "got10k": (got10k, _add_got10k)})


def _add_vot(parser: Parser) -> None:
    parser.describe(run_vot, "--weights mixvit_b.safetensors", overrides=TRACKER_PREFIX, about=VOT_ABOUT)
    parser.add_argument("--tracker", choices=TRACKERS, default=TRACKERS[0])
    _add_model(parser)
    channels_help = "what the toolkit sends: colour, and behind it depth or infrared, or one of these (default: rgb)"
    parser.add_argument("--channels", choices=CHANNELS, default="rgb", help=channels_help)
    benchmark_help = "whose settings a model of the paper has (default: %(default)s)"
    parser.add_argument("--dataset", choices=("vot", *LONG_TERM), default="vot", help=benchmark_help)
    parser.add_argument("--masks", nargs="?", const=DEFAULT_MASKS, metavar="W", help=MASKS)


def run_vot(args: argparse.Namespace) -> int:
    """Answers the toolkit until it wants no more of this process."""
    import trax

    opened, channels = _open_alone(args, args.dataset, sys.stderr), CHANNELS[args.channels]
    if (opened.streams == "both" and len(channels) == 1) or (opened.streams == "second" and channels == ("color",)):
        raise UsageError(f"--channels {args.channels}: the model reads a second stream; give --channels rgbd, or rgbt")
    formats = [trax.Region.RECTANGLE] + ([] if args.masks is None else [trax.Region.MASK])
    server = trax.Server(formats, [trax.Image.PATH], list(channels), tracker_name=opened.name)
    state: Any = None
    with server:
        while True:
            request = server.wait()
            if request.type not in (trax.TraxStatus.INITIALIZE, trax.TraxStatus.FRAME):
                return 0
            images = {}
            for channel in channels:
                path = Path(request.image[channel].path())
                images[path] = read_depth(path) if channel == "depth" else read_image(path)
            frame = in_one_frame(images)
            if request.type == trax.TraxStatus.INITIALIZE:
                region, score = request.objects[0][0], None
                state = opened.lanes.start(state, 0, frame, _given_box(region, frame.shape[:2]))
            else:
                state, found = opened.lanes.step(state, {0: frame})
                masks, score = getattr(found[0], "masks", None), found[0].score
                if masks is None:
                    region = trax.Rectangle.create(*found[0].box_xywh.tolist())
                else:
                    region = trax.Mask.create(masks[0].astype(np.uint8))
            # What is given is certain, and so is, for want of scores, all that a model without them says.
            confidence = 1.0 if score is None else score
            server.status([(region, {"confidence": f"{confidence:.6f}"})])


def _given_box(region: Any, frame_size: tuple[int, int]) -> list[float]:
    """The box around the region of a first frame, x, y, w, h: a mask's tightest one inside the frame."""
    import trax

    if region.type != trax.Region.MASK:
        return list(region.bounds())
    mask = fit_to_frame(region.array(normalize=True) > 0, frame_size)
    if not mask.any():
        raise UsageError(
            "the mask of the first frame has no pixel inside the frame, so there is no target to begin with"
        )
    return mask_box_xywh(mask).tolist()


def _add_got10k(parser: Parser) -> None:
    example = "--experiment GOT10k --root GOT-10k --subset val --weights mixvit_b.safetensors"
    parser.describe(run_got10k, example, overrides=TRACKER_PREFIX, about=GOT10K_ABOUT)
    parser.add_argument("--experiment", default="GOT10k", choices=sorted(_experiments()))
    parser.add_argument("--root", required=True, help="folder of the data set, as the toolkit wants it")
    parser.add_argument("--subset", help="of GOT-10k: val or test")
    parser.add_argument("--results", default="results", help="folder of the toolkit's results (default: %(default)s)")
    parser.add_argument("--reports", default="reports", help="folder of the toolkit's reports (default: %(default)s)")
    parser.add_argument("--tracker", choices=TRACKERS, default=TRACKERS[0])
    parser.add_argument("--name", default="MixFormer", help="of the tracker in the toolkit (default: %(default)s)")
    _add_model(parser)


def run_got10k(args: argparse.Namespace) -> int:
    opened = _open_alone(args, BENCHMARKS.get(args.experiment, args.experiment), sys.stdout)
    subset = {} if args.subset is None else {"subset": args.subset}
    experiment = _experiments()[args.experiment](args.root, result_dir=args.results, report_dir=args.reports, **subset)
    experiment.run(got10k_tracker(args.name, opened))
    experiment.report([args.name])
    return 0


def got10k_tracker(name: str, opened: OpenedTracker) -> Any:
    """A tracker behind the got10k toolkit's interface, for experiments of one's own: `experiment.run(tracker)`.

    Images are PIL's, boxes x, y, w, h in pixels, 0-based. Deterministic: the toolkit does not repeat a run.
    """
    from got10k.trackers import Tracker

    class Got10kTracker(Tracker):
        def init(self, image: Any, box: np.ndarray) -> None:
            self._state = opened.lanes.start(None, 0, np.asarray(image), box)

        def update(self, image: Any) -> np.ndarray:
            self._state, found = opened.lanes.step(self._state, {0: np.asarray(image)})
            return found[0].box_xywh

    return Got10kTracker(name, is_deterministic=True)


def _experiments() -> dict[str, Any]:
    import got10k.experiments

    classes = inspect.getmembers(got10k.experiments, inspect.isclass)
    return {name.removeprefix("Experiment"): kind for name, kind in classes if name.startswith("Experiment")}


def _open_alone(args: argparse.Namespace, benchmark: str, log: Any) -> OpenedTracker:
    """A tracker of one video at a time, ready; a toolkit may talk on standard output."""
    with for_the_user(ValueError):
        choice = _choice(args, args.tracker, benchmark, batch=1)
        opened = choice.open()
    print(announce(choice, opened.settings, opened.about), file=log, flush=True)
    opened.warm_up()
    return opened


REPORT_ABOUT = """\
With --out it also writes them, with plots and a page (HTML). GOT-10k, TrackingNet and VOT have measures of
their own; --measures ope scores the first two as LaSOT. The exit status is 1 when a ground truth cannot be read."""
PACK_ABOUT = """The root is read for the names, the lengths and the first boxes of the sequences. What the server would
refuse is listed, and then nothing is written."""
OWN_MEASURES = {"got10k": got10k_report, "trackingnet": trackingnet_report}


def add_report(parser: Parser) -> None:
    of_boxes = "--dataset folder --root DATA --results results/ --out report/"
    of_vot = "--dataset vot --root WORKSPACE --results WORKSPACE/results --out report/"
    parser.describe(run_report, of_boxes, of_vot, about=REPORT_ABOUT)
    _add_dataset(parser)
    parser.add_argument("--results", type=Path, required=True, help="holds TRACKER/SEQUENCE.txt")
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


@for_the_user(ValueError)
def run_report(args: argparse.Namespace, opened: Dataset | None = None) -> int:
    """Scores what trackers left, on the data set that is `opened` already, or that the arguments name; 1 when a ground
    truth cannot be read."""
    if args.worst < 0 or not 1 <= args.eao_interval[0] < args.eao_interval[1]:
        raise UsageError("--worst needs a number from 0 on, and --eao-interval two from 1 on, the lower first")
    report, unreadable = _score(args, opened)
    print(summary(report), end="")
    if args.out is not None:
        for path in write_report(report, args.out):
            print(f"wrote {path}")
    for name, reason in unreadable.items():
        print(f"FAILED {printable(name)}: {printable(reason)}", file=sys.stderr)
    return int(bool(unreadable))


def _score(args: argparse.Namespace, opened: Dataset | None) -> tuple[Report, dict[str, str]]:
    """The report, and why the sequences that are not in it could not be read."""
    trackers = args.trackers.split(",") if args.trackers else None
    worst = args.worst if args.out else 0  # pictures are for the page alone
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
        where = ", ".join(names[:5]) + (f" and {len(names) - 5} more sequences" if len(names) > 5 else "")
        notes.append(f"{sum(empty.values())} boxes of negative or no size are rows without target, in {where}")
    return dataclasses.replace(report, notes=(*report.notes, *notes)), unreadable


def add_pack(parser: Parser) -> None:
    """The arguments of `mixformer pack`; for data, see `mixformer data pack`."""
    got10k = "--dataset got10k --root GOT-10k/test --results results/mixvit_b --out mixvit_b.zip"
    trackingnet = "--dataset trackingnet --root TrackingNet --split test --results results/mixvit_b --out mixvit_b.zip"
    parser.describe(run_pack, got10k, trackingnet, about=PACK_ABOUT)
    parser.add_argument("--dataset", required=True, choices=sorted(TEST_SEQUENCES))
    parser.add_argument("--root", type=Path, required=True, help="folder of the test set")
    parser.add_argument("--split", help="a published part of the data set; TrackingNet: test, without its chunks")
    parser.add_argument("--results", type=Path, required=True, help="folder of one tracker, which holds SEQUENCE.txt")
    parser.add_argument("--out", type=Path, required=True, help="the archive, NAME.zip")


@for_the_user(ValueError)
def run_pack(args: argparse.Namespace) -> int:
    pack = pack_results(args.dataset, args.results, open_dataset(args.dataset, args.root, args.split), args.out)
    print(f"{pack.path}: {pack.sequences} sequences, {pack.frames} frames, {pack.repetitions} repetition(s)")
    if pack.sequences != TEST_SEQUENCES[args.dataset]:
        print(f"warning: the server's test set has {TEST_SEQUENCES[args.dataset]} sequences", file=sys.stderr)
    return 0
