"""`mixformer track`: from a video and boxes in its first frame to boxes and an annotated video."""

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixformer_jax.cli.console import (
    Parser,
    UsageError,
    add_model_arguments,
    complain,
    load_model,
    positive,
    print_table,
    read_box,
    tell_stopped,
)
from mixformer_jax.config_files import TRACKER_PREFIX
from mixformer_jax.files import NameTakenError, is_taken
from mixformer_jax.signals import Stopped

if TYPE_CHECKING:
    from mixformer_jax.tracking.record import Recording

SOURCE = "video file, folder of images, camera index, or rtsp://..."
BOX_NEEDED = """--box X,Y,W,H is needed: the target in the first frame, in pixels from its left upper corner, such as \
--box 120,80,60,90; once for each target"""
BOXES = """one x,y,w,h line a tracked frame, x,y,w,h,score,lost where the model gives scores (default: \
NAME_boxes.txt; NAME_boxes_1.txt, NAME_boxes_2.txt, ... for several targets)"""
EVERY = """only every N-th frame is tracked, drawn and written: frames 1, N + 1, 2 N + 1, ...; the video keeps its \
speed (default: 1, every frame)"""
OVERWRITE = "replace files that are there; without it they stay: NAME of the defaults becomes NAME-2, NAME-3, ..."


def add_track(parser: Parser) -> None:
    """The arguments of `mixformer track`."""
    example = "my.mp4 --box 120,80,60,90"
    parser.describe(run_track, example, f"{example} --tracker.search_factor=5", overrides=TRACKER_PREFIX)
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    box_help = "the target in the first frame, in pixels; again for each further target"
    parser.add_argument("--box", action="append", metavar="X,Y,W,H", help=box_help)
    parser.add_argument("--out", type=Path, metavar="FILE", help="annotated video (default: NAME_tracked.mp4)")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help=BOXES)
    parser.add_argument("--every", type=positive, default=1, metavar="N", help=EVERY)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    add_model_arguments(parser)


def run_track(args: argparse.Namespace) -> int:
    """Tracks the targets that boxes mark through a source."""
    import numpy as np

    from mixformer_jax.media.video import open_source, prepare_output
    from mixformer_jax.tracking.record import record

    if args.box is None:
        raise UsageError(BOX_NEEDED)
    with open_source(args.source) as source:
        video, boxes = _outputs(args, source.name)
        prepare_output(video)
        prepare_output(boxes)
        boxes_xywh = np.stack([read_box(text, source.size) for text in args.box])
        tracker = load_model(args)
        while True:
            try:
                recording = record(
                    tracker, source, boxes_xywh, video, boxes, args.every, progress=True, overwrite=args.overwrite
                )
                return report_recording(recording)
            except NameTakenError:  # by a run that was as far a moment earlier
                video, boxes = _outputs(args, source.name)


def _outputs(args: argparse.Namespace, name: str) -> tuple[Path, Path]:
    """Where `track` writes. Nothing is replaced unasked: NAME of default names becomes NAME-2, NAME-3, ..."""
    from mixformer_jax.tracking.record import numbered_paths

    for number in itertools.count(1):
        stem = name if number == 1 else f"{name}-{number}"
        video, boxes = args.out or Path(f"{stem}_tracked.mp4"), args.boxes or Path(f"{stem}_boxes.txt")
        texts = numbered_paths(boxes, len(args.box))
        _check_distinct(args.source, video, texts)
        taken = {path for path in (video, *texts) if not args.overwrite and is_taken(path.expanduser())}
        if typed := {args.out, *(texts if args.boxes else ())} & taken:
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


def report_recording(recording: "Recording", more: Sequence[tuple[str, str]] = ()) -> int:
    """Prints what a recording left behind; the status tells whether it reached the end of its source."""
    count, files = len(recording.boxes_xywh), ", ".join(map(str, recording.boxes))
    speed = "too few frames to tell"
    if math.isfinite(recording.tracking_fps):
        speed = (
            f"{recording.tracking_fps:.1f} FPS tracking, {recording.overall_fps:.1f} FPS with reading, "
            f"drawing and writing (after a warm-up of {recording.warm_up_s:.1f} s)"
        )
    lines = [("frames", str(count)), ("speed", speed)]
    if recording.lost is not None:
        lines.append(("lost", ", ".join(f"{share} of {count} frames" for share in recording.lost.sum(axis=0))))
    print_table([*lines, ("video", str(recording.video)), ("boxes", files), *more])
    kept = f"the {count} frames tracked until then are in {files} and {recording.video}"
    if isinstance(recording.stopped_by, Stopped):
        return tell_stopped(recording.stopped_by, kept)
    if recording.stopped_by is not None:
        return complain(f"{recording.stopped_by}; {kept}")
    return 0
