"""The `mixformer` command: each subcommand calls one function of the library and prints what it says.

Imports stay inside the subcommands: `mixformer --help` is quick, and an extra is needed only by who uses it.
"""

import argparse
import datetime
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mixformer_jax
from mixformer_jax.cli.configs import add_configs_command
from mixformer_jax.cli.console import (
    TRACKER_PREFIX,
    Commands,
    Parser,
    UsageError,
    complain,
    parse_arguments,
    positive,
    positives,
    print_table,
    silence_decoders,
)
from mixformer_jax.cli.data import add_data_commands
from mixformer_jax.cli.evaluate import add_evaluate_command
from mixformer_jax.cli.pack import add_pack_command
from mixformer_jax.cli.report import add_report_command
from mixformer_jax.cli.study import add_study_command
from mixformer_jax.cli.train import add_training_commands
from mixformer_jax.extras import EXTRAS, is_not_installed
from mixformer_jax.signals import Stopped, StopSignals

if TYPE_CHECKING:
    from mixformer_jax.tracking.record import Recording

DATA = "Check a data set, pack it for fast training, or look at training samples."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status.

    0; 1 when `doctor` finds something wrong; 2 after a message on stderr; 128 + signal.
    """
    # Before anything imports JAX.
    with StopSignals("mixformer"):
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    silence_decoders()
    arguments = _join_negative_box(argv)
    parser = _parser()
    try:
        args = parse_arguments(parser, arguments)
        return args.run(args)
    except Stopped as stopped:
        return _stopped(stopped)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return complain(is_not_installed(package))
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        return complain(str(error))


def run_track(args: argparse.Namespace) -> int:
    """Tracks the targets that boxes mark through a source."""
    import numpy as np

    from mixformer_jax.files import NameTakenError
    from mixformer_jax.media.video import open_source, prepare_output
    from mixformer_jax.tracking.record import record

    if args.box is None:
        raise UsageError(
            "--box X,Y,W,H is needed: the target in the first frame, in pixels from its left upper corner, "
            "such as --box 120,80,60,90; once for each target"
        )
    with open_source(args.source) as source:
        video, boxes = _track_outputs(args, source.name)
        prepare_output(video)
        prepare_output(boxes)
        boxes_xywh = np.stack([_checked_box(text, source.size) for text in args.box])
        tracker = _with_overrides(_load(args), args)
        while True:
            try:
                recording = record(
                    tracker, source, boxes_xywh, video, boxes, args.every, progress=True, overwrite=args.overwrite
                )
                break
            except NameTakenError:  # by a run that was as far a moment earlier
                video, boxes = _track_outputs(args, source.name)
    return _report(recording, [])


def run_attention(args: argparse.Namespace) -> int:
    """Draws what attends to what on one frame."""
    from mixformer_jax.cli.attention import attention_sheet
    from mixformer_jax.media.video import open_source

    with open_source(args.source) as source:
        box_xywh = _checked_box(args.box, source.size)
        tracker = _with_overrides(_load(args) if args.model is None else _random(args), args)
        blocks = None if args.blocks is None else args.blocks.split(",")
        sheet = attention_sheet(tracker, source, box_xywh, args.frame, args.out, blocks, over=args.over, progress=True)
    lines = [
        ("model", tracker.config.name + (" with random weights" if args.model else "")),
        ("rows", ", ".join(sheet.maps.weights)),
        ("blocks", ", ".join(sheet.maps.blocks)),
        ("picture", str(sheet.picture)),
        ("arrays", str(sheet.arrays)),
    ]
    if "online" not in sheet.maps.views:
        lines.insert(2, ("", "none to or from online templates: for these, --tracker.num_online_templates=1"))
    print_table(lines)
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """Renders the demo clip and tracks it."""
    from mixformer_jax.cli.demo import run_demo

    report = run_demo(_load(args), args.out, args.seed, progress=True)
    return _report(
        report.recording,
        [
            ("ground truth", str(report.groundtruth)),
            ("picture", f"{report.picture} (first, middle and last frame)"),
            ("mean IoU", f"{report.mean_iou:.3f}"),
        ],
    )


def run_bench(args: argparse.Namespace) -> int:
    """Measures where the time of a frame goes."""
    from mixformer_jax.cli.bench import append_row, measure, table

    size = _checked_size(args.size)
    tracker = _load(args) if args.model is None else _random(args)
    timing = measure(tracker, args.frames, size, progress=True)
    markdown = table(timing, datetime.date.today())
    print(f"{timing.device}; warm-up (compilation and first steps): {timing.warm_up_s:.1f} s, not counted below")
    print(markdown, end="")
    if args.append is not None:
        append_row(args.append, markdown)
        print(f"added to {args.append}")
    return 0


def run_profile(args: argparse.Namespace) -> int:
    """Counts what models cost."""
    from mixformer_jax.planning.profile import PAPER, profile_models, tables

    print(tables(profile_models(args.names or PAPER, args.templates, progress=True)), end="")
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Checks numbers, weights and video on this machine; the status is 1 when something is wrong."""
    from mixformer_jax.cli.doctor import environment, examine
    from mixformer_jax.tracking.tracker import find_device

    device = _user(ValueError, find_device, args.device)
    print_table(environment(device, EXTRAS))
    print(f"\n{'':7}{'check':46}{'found':12}expected")
    findings = []
    for finding in examine(device):
        print(finding, flush=True)
        findings.append(finding)
    wrong = sum(not finding.is_right for finding in findings)
    if wrong:
        print(f"\n{wrong} of {len(findings)} checks are WRONG: do not trust what is computed here.")
        return 1
    print(f"\nall {len(findings)} checks are right")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Converts weights between official files and ours."""
    from mixformer_jax.convert.convert import convert
    from mixformer_jax.convert.infer import Hints

    hints = Hints(args.num_heads, args.early_heads, args.score_heads, args.search_size, args.template_size, args.name)
    report = convert(args.source, args.target, official=args.official, hints=hints)
    print_table(report.lines())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mixformer", description="Track objects in video with MixFormer.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mixformer-jax {mixformer_jax.__version__}")
    command = Commands(parser)

    track = command(
        "track",
        run_track,
        "Track targets through a video, a folder of images or a camera.",
        "my.mp4 --box 120,80,60,90",
        "my.mp4 --box 120,80,60,90 --tracker.search_factor=5",
        overrides=TRACKER_PREFIX,
    )
    track.add_argument("source", metavar="SOURCE", help="video file, folder of images, camera index, or rtsp://...")
    track.add_argument(
        "--box",
        action="append",
        metavar="X,Y,W,H",
        help="the target in the first frame, in pixels; again for each further target",
    )
    track.add_argument("--out", type=Path, metavar="FILE", help="annotated video (default: NAME_tracked.mp4)")
    track.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="one x,y,w,h line a tracked frame, x,y,w,h,score,lost where the model gives scores (default: "
        "NAME_boxes.txt; NAME_boxes_1.txt, NAME_boxes_2.txt, ... for several targets)",
    )
    track.add_argument(
        "--every",
        type=positive,
        default=1,
        metavar="N",
        help="only every N-th frame is tracked, drawn and written: frames 1, N + 1, 2 N + 1, ...; the video "
        "keeps its speed (default: 1, every frame)",
    )
    track.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that are there; without it they stay: NAME of the defaults becomes NAME-2, NAME-3, ...",
    )
    _add_model(track)

    attention = command(
        "attention",
        run_attention,
        "Draw what attends to what on one frame (Figs. 8 and 9).",
        "my.mp4 --box 120,80,60,90 --frame 50 --tracker.num_online_templates=1",
        overrides=TRACKER_PREFIX,
    )
    attention.add_argument("source", metavar="SOURCE", help="video file, folder of images, camera index, or rtsp://...")
    attention.add_argument("--box", required=True, metavar="X,Y,W,H", help="the target in the first frame, in pixels")
    attention.add_argument(
        "--frame",
        required=True,
        type=positive,
        metavar="N",
        help="tracked up to and shown; counted from 1, so from 2 on",
    )
    attention.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="gets NAME_frameN_attention.png and .npz (default: .)",
    )
    attention.add_argument(
        "--blocks",
        metavar="B,B",
        help="such as B0,B11 (MixViT) or S1-B0,S2-B15 (MixCvT); all; default: at most 9 of the last stage",
    )
    attention.add_argument(
        "--over",
        choices=("queries", "keys"),
        default="queries",
        help="queries: who looks at the target's tokens; keys: where the target's tokens look (default: %(default)s)",
    )
    _add_model(attention).add_argument("--model", metavar="NAME", help="a size (mixvit_b, mixcvt) with random weights")

    demo = command(
        "demo", run_demo, "Render a clip with exact ground truth, track it, and show how well.", "--out demo_output"
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="another seed, another clip (default: %(default)s)")
    _add_model(demo)

    bench = command(
        "bench",
        run_bench,
        "Measure decoding, cropping, the model and the rest, a frame.",
        "--model mixvit_b --frames 50",
    )
    _add_model(bench).add_argument(
        "--model", metavar="NAME", help="a size (mixvit_tiny, mixvit_b_online, mixcvt, ...) with random weights"
    )
    bench.add_argument("--frames", type=positive, default=100, metavar="N", help="default: %(default)s")
    bench.add_argument("--size", default="640x360", metavar="WxH", help="of the video (default: %(default)s)")
    bench.add_argument("--append", type=Path, metavar="FILE", help="add the row to a Markdown file")

    profile = command("profile", run_profile, "Count parameters and FLOPs, beside the paper's.", "mixvit_b mixcvt")
    profile.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a size or study model, see docs/models.md (default: all of the paper's Tables 1 to 3)",
    )
    profile.add_argument(
        "--templates",
        type=positive,
        metavar="N",
        help="the initial and online templates (default: 1 for study models, else 2, as in the paper)",
    )

    doctor = command(
        "doctor", run_doctor, "Check numbers, weights and video here; the status is 1 if any is wrong.", "--device cpu"
    )
    doctor.add_argument("--device", choices=("cpu", "gpu"), help="default: the best that JAX finds")

    add_data_commands(command.group("data", DATA))

    convert = command(
        "convert",
        run_convert,
        "Convert weights between official PyTorch files and ours.",
        "mixformer_vit_base.pth.tar mixvit_b.safetensors",
        "runs/mixvit_tiny mine.pth.tar",
    )
    convert.add_argument("source", type=Path, metavar="IN", help="weights, or the folder of a training run")
    convert.add_argument("target", type=Path, metavar="OUT", help="ends in .safetensors, .pth or .pth.tar")
    convert.add_argument("--official", action="store_true", help="official names in a .safetensors OUT too")
    hints = convert.add_argument_group("hints", "what names and shapes in official files do not tell")
    for name in ("--num-heads", "--score-heads", "--search-size", "--template-size"):
        hints.add_argument(name, type=positive, metavar="N")
    hints.add_argument("--early-heads", type=positives, metavar="N,N", help="of the stages before the last (MixCvT)")
    hints.add_argument(
        "--name",
        help="of the model, a table of benchmarks.toml (default: the published model's, with _1k and _got "
        "where the file's name or experiment has these words)",
    )

    add_training_commands(command)
    add_study_command(command)
    add_evaluate_command(command)
    add_report_command(command)
    add_pack_command(command)
    add_configs_command(command)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: the best that JAX finds")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="in which the model computes (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--weights",
        metavar="W",
        help="name, run folder, .safetensors file or official checkpoint (default: the embedded tracker)",
    )
    return group


def _load(args: argparse.Namespace) -> Any:
    return _user(ValueError, mixformer_jax.load, args.weights, device=args.device, dtype=args.dtype)


def _random(args: argparse.Namespace) -> Any:
    from mixformer_jax.tracking.tracker import Tracker

    return _user(ValueError, Tracker.random, args.model, args.device, dtype=args.dtype)


def _with_overrides(tracker: Any, args: argparse.Namespace) -> Any:
    from mixformer_jax.config_files import TRACKER_PREFIX, parse_overrides

    if not args.overrides:
        return tracker
    return tracker.with_settings(**parse_overrides(args.overrides, tracker.settings.to_dict(), TRACKER_PREFIX))


def _checked_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise UsageError(f"--size {text}: expected WIDTHxHEIGHT, such as 640x360, and 16 or more each")
    return int(height), int(width)


def _checked_box(text: str, size: tuple[int, int]) -> Any:
    from mixformer_jax.boxes import check_box_xywh

    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"--box {text}: expected four numbers X,Y,W,H in pixels") from None
    return _user(ValueError, check_box_xywh, numbers, size)


def _track_outputs(args: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """Where `track` writes. Nothing is replaced unasked: NAME of default names becomes NAME-2, NAME-3, ..."""
    from mixformer_jax.files import is_taken
    from mixformer_jax.tracking.result_files import numbered_paths

    for number in itertools.count(1):
        stem = name if number == 1 else f"{name}-{number}"
        video, boxes = args.out or Path(f"{stem}_tracked.mp4"), args.boxes or Path(f"{stem}_boxes.txt")
        texts = numbered_paths(boxes, len(args.box))
        _check_distinct(args.source, video, texts)
        taken = {path for path in (video, *texts) if not args.overwrite and is_taken(path.expanduser())}
        typed = {args.out, *(texts if args.boxes else ())} & taken
        if typed:
            listed = ", ".join(sorted(map(str, typed)))
            raise UsageError(f"{listed}: there already, or being written; give another name, or --overwrite")
        if not taken:
            break
    return video, boxes


def _check_distinct(source: str, video: Path, texts: Sequence[Path]) -> None:
    """An output must not overwrite the input, or another output."""
    from mixformer_jax.media.decoders import is_address

    paths = [*([] if is_address(source) else [Path(source)]), video, *texts]
    if len({path.expanduser().resolve() for path in paths}) < len(paths):
        listed = ", ".join(map(str, paths))
        raise UsageError(f"{listed} must be different files: see --out and --boxes")


def _join_negative_box(argv: Sequence[str]) -> list[str]:
    """`--box -5,3,40,40` -> `--box=-5,3,40,40`, which argparse would take for an option."""
    joined: list[str] = []
    for text in argv:
        if joined and joined[-1] == "--box" and re.match(r"-[\d.]", text):
            joined[-1] = f"--box={text}"
        else:
            joined.append(text)
    return joined


def _report(recording: "Recording", more: list[tuple[str, str]]) -> int:
    """Prints what a recording left behind; the status tells whether it reached the end of its source."""
    count = len(recording.boxes_xywh)
    speed = "too few frames to tell"
    if math.isfinite(recording.tracking_fps):
        speed = (
            f"{recording.tracking_fps:.1f} FPS tracking, {recording.overall_fps:.1f} FPS with reading, "
            f"drawing and writing (after a warm-up of {recording.warm_up_s:.1f} s)"
        )
    files = ", ".join(map(str, recording.boxes))
    lines = [("frames", str(count)), ("speed", speed)]
    if recording.lost is not None:
        lost = ", ".join(f"{share} of {count} frames" for share in recording.lost.sum(axis=0))
        lines.append(("lost", lost))
    lines += [("video", str(recording.video)), ("boxes", files)]
    print_table([*lines, *more])
    kept = f"the {count} frames tracked until then are in {files} and {recording.video}"
    if isinstance(recording.stopped_by, Stopped):
        return _stopped(recording.stopped_by, kept)
    if recording.stopped_by is not None:
        return complain(f"{recording.stopped_by}; {kept}")
    return 0


def _stopped(stopped: Stopped, kept: str | None = None) -> int:
    print(f"mixformer: {stopped.word}" + (f"; {kept}" if kept else ""), file=sys.stderr)
    return stopped.status


def _is_for_the_user(error: Exception) -> bool:
    """Errors of our own classes and of the file system are messages; others are bugs, with a traceback."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == mixformer_jax.__name__


def _user(kind: type[Exception], function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a function whose errors of this builtin kind are about what the user typed."""
    try:
        return function(*args, **kwargs)
    except kind as error:
        raise error if _is_for_the_user(error) else UsageError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
