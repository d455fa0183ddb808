"""`mixformer track`, `attention` and `demo`: what they take on the command line, and what they print.

Imports stay inside the commands, as in `cli`.
"""

import argparse
import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixformer_jax.cli.console import (
    TRACKER_PREFIX,
    Commands,
    UsageError,
    complain,
    for_the_user,
    positive,
    print_table,
    tell_stopped,
)
from mixformer_jax.cli.loading import add_model_arguments, load_model, random_model
from mixformer_jax.signals import Stopped

if TYPE_CHECKING:
    from mixformer_jax.tracking.record import Recording


def add_tracking_commands(command: Commands) -> None:
    """Gives `mixformer` its commands that track."""
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
    add_model_arguments(track)

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
    add_model_arguments(attention).add_argument(
        "--model", metavar="NAME", help="a size (mixvit_b, mixcvt) with random weights"
    )

    demo = command(
        "demo", run_demo, "Render a clip with exact ground truth, track it, and show how well.", "--out demo_output"
    )
    demo.add_argument("--out", type=Path, default=Path("demo_output"), metavar="FOLDER", help="default: %(default)s")
    demo.add_argument("--seed", type=int, default=0, help="another seed, another clip (default: %(default)s)")
    add_model_arguments(demo)


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
        tracker = _with_overrides(load_model(args), args)
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
        tracker = _with_overrides(load_model(args) if args.model is None else random_model(args), args)
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

    report = run_demo(load_model(args), args.out, args.seed, progress=True)
    return _report(
        report.recording,
        [
            ("ground truth", str(report.groundtruth)),
            ("picture", f"{report.picture} (first, middle and last frame)"),
            ("mean IoU", f"{report.mean_iou:.3f}"),
        ],
    )


def _with_overrides(tracker: Any, args: argparse.Namespace) -> Any:
    from mixformer_jax.config_files import TRACKER_PREFIX, parse_overrides

    if not args.overrides:
        return tracker
    return tracker.with_settings(**parse_overrides(args.overrides, tracker.settings.to_dict(), TRACKER_PREFIX))


def _checked_box(text: str, size: tuple[int, int]) -> Any:
    from mixformer_jax.boxes import check_box_xywh

    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"--box {text}: expected four numbers X,Y,W,H in pixels") from None
    return for_the_user(ValueError, check_box_xywh, numbers, size)


def _track_outputs(args: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """Where `track` writes. Nothing is replaced unasked: NAME of default names becomes NAME-2, NAME-3, ..."""
    from mixformer_jax.files import is_taken
    from mixformer_jax.tracking.record import numbered_paths

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


def join_negative_box(argv: Sequence[str]) -> list[str]:
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
        return tell_stopped(recording.stopped_by, kept)
    if recording.stopped_by is not None:
        return complain(f"{recording.stopped_by}; {kept}")
    return 0
