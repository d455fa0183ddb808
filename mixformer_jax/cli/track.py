"""`mixformer track`: from a video and boxes in its first frame to boxes and an annotated video."""

import argparse
import contextlib
import functools
import itertools
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixformer_jax import DEFAULT_MASKS
from mixformer_jax.cli.console import (
    Parser,
    UsageError,
    add_model_arguments,
    for_the_user,
    load_model,
    number,
    positive,
    print_table,
    read_box,
    tell_end,
)
from mixformer_jax.config_files import TRACKER_PREFIX
from mixformer_jax.files import NameTakenError, is_taken

if TYPE_CHECKING:
    from mixformer_jax.media.sources import FrameSource
    from mixformer_jax.tracking.record import Recording

Outputs = tuple[Path | None, Path, Path | None]
SOURCE = "video file, folder of images or frames/%%06d.jpg, camera index, or an address (https://..., rtsp://...)"
BOX_NEEDED = """--box X,Y,W,H is needed: the target in the first frame, in pixels from its left upper corner, such as \
--box 120,80,60,90; once for each target; or --select, to draw it with the mouse"""
BOXES = """by its suffix: .csv, .json or .jsonl, a record of frame, time, target, x, y, w, h, score, lost a frame and \
target; else text, one x,y,w,h line a tracked frame, x,y,w,h,score,lost where the model gives scores (default: \
NAME_boxes.txt; NAME_boxes_1.txt, NAME_boxes_2.txt, ... for several targets)"""
START = "the frame in which the boxes are, counted from 1 (default: the first; with --backward the last)"
END = "the last frame to track (default: the source's last; with --backward its first)"
STRIDE = """only every N-th frame is tracked, drawn and written; the video keeps its speed (default: 1, every frame)"""
SECOND = """for models of two streams: depth or thermal images that lie over SOURCE's, as many and of their size; a \
video, a folder or frames/%%06d.png, in which 16 bits are depth in millimetres"""
LIVE = """whether only the newest frame of an address counts, and those that came while the one before was tracked are \
dropped (default: of what has no end); cameras are live"""
RECONNECTS = "how often a live stream that broke off is opened again without a frame (default: %(default)s)"
MASKS = """masks are drawn, and written as grey PNGs, or as run lengths in the records of .json and .jsonl; W: a run \
folder or file of a mask network, or Alpha-Refine's official checkpoint (default: the embedded masks)"""
MASK_IMAGES = "folder for a PNG a frame (default: NAME_masks, and none where --boxes is .json or .jsonl)"
OVERWRITE = "replace files that are there; without it they stay: NAME of the defaults becomes NAME-2, NAME-3, ..."
RESUME = """go on with the run of the same arguments that was interrupted or killed, and replace its files; or begin, \
where there is none"""


def add_track(parser: Parser) -> None:
    example = "my.mp4 --box 120,80,60,90"
    parser.describe(run_track, example, f"{example} --tracker.search_factor=5", overrides=TRACKER_PREFIX)
    # Optional for argparse alone: a `--masks` before it takes it for its own, see `_check_arguments`.
    parser.add_argument("source", nargs="?", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--second", metavar="SOURCE", help=SECOND)
    box_help = "the target in the first frame, in pixels; again for each further target"
    parser.add_argument("--box", action="append", metavar="X,Y,W,H", help=box_help)
    parser.add_argument("--select", action="store_true", help="draw the boxes with the mouse")
    parser.add_argument("--start", type=positive, metavar="FRAME", help=START)
    parser.add_argument("--end", type=positive, metavar="FRAME", help=END)
    parser.add_argument("--stride", type=positive, default=1, metavar="N", help=STRIDE)
    parser.add_argument("--backward", action="store_true", help="from --start down to --end")
    parser.add_argument("--live", action=argparse.BooleanOptionalAction, help=LIVE)
    parser.add_argument("--reconnects", type=_count, default=6, metavar="N", help=RECONNECTS)
    parser.add_argument("--out", type=Path, metavar="FILE", help="annotated video (default: NAME_tracked.mp4)")
    parser.add_argument("--no-video", action="store_true", help="boxes alone")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help=BOXES)
    parser.add_argument("--masks", nargs="?", const=DEFAULT_MASKS, metavar="W", help=MASKS)
    parser.add_argument("--mask-images", type=Path, metavar="FOLDER", help=MASK_IMAGES)
    mask_threshold_help = "least probability of a pixel (default: 0.6)"
    parser.add_argument("--mask-threshold", type=_SHARE, metavar="P", help=mask_threshold_help)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    parser.add_argument("--resume", action="store_true", help=RESUME)
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary, only what is wrong")
    add_model_arguments(parser)


_SHARE = functools.partial(number, kind="a number between 0 and 1", above=0, below=1)


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


def run_track(args: argparse.Namespace) -> int:
    import numpy as np

    from mixformer_jax.media.images import read_depth
    from mixformer_jax.media.sources import LiveSource
    from mixformer_jax.media.video import SelectedFrames, TwoStreams, open_source, prepare_output
    from mixformer_jax.tracking.masks import MaskSettings, load_segmenter
    from mixformer_jax.tracking.record import record
    from mixformer_jax.tracking.resume import RunState, resume_path

    _check_arguments(args)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_source(args.source, args.live, args.reconnects))
        if args.second is not None:
            opened = TwoStreams(opened, stack.enter_context(open_source(args.second, read=read_depth)))
        with for_the_user(ValueError):
            source = SelectedFrames(opened, args.start, args.end, args.stride, args.backward)
        if args.select:
            args.box = select_boxes(source)
        boxes_xywh = np.stack([read_box(text, source.size) for text in args.box])
        outputs = _outputs(args, source.name)
        for path in filter(None, outputs[:2]):
            prepare_output(path)
        if args.resume and source.is_live:
            raise UsageError(f"--resume: {args.source} is live, and cannot be gone back to")
        tracker = load_model(args, colour_alone=args.second is None)
        if args.second is not None and tracker.config.streams == "colour":
            name = args.weights or "the default tracker"
            raise UsageError(f"--second: {name} reads RGB alone; give --weights of a model of two streams")
        if args.masks is not None:
            settings = MaskSettings() if args.mask_threshold is None else MaskSettings(threshold=args.mask_threshold)
            tracker = tracker.with_masks(load_segmenter(args.masks, tracker.device, settings))
        options = {"progress": not args.quiet, "overwrite": args.overwrite, "resume": args.resume}
        while True:
            video, boxes, images = outputs
            run_state = None if source.is_live else RunState(resume_path(boxes.expanduser()))
            try:
                recording = record(
                    tracker, source, boxes_xywh, video, boxes, run_state=run_state, mask_images=images, **options
                )
                break
            except NameTakenError:  # by a run that was as far a moment earlier
                outputs = _outputs(args, source.name)
    dropped = []
    if isinstance(opened, LiveSource):
        dropped.append(("dropped", f"{opened.dropped} frames that came while another was tracked"))
        if opened.reconnections:
            dropped.append(("reconnected", f"{opened.reconnections} times"))
    return report_recording(recording, dropped, args.quiet)


def _check_arguments(args: argparse.Namespace) -> None:
    if args.source is None and args.masks not in (None, DEFAULT_MASKS):
        args.source, args.masks = args.masks, DEFAULT_MASKS
    if args.source is None:
        raise UsageError("SOURCE is needed: what to track in; see mixformer track --help")
    if (args.box is None) == (not args.select):
        raise UsageError(BOX_NEEDED if args.box is None else "--box and --select: give one of them")
    if args.no_video and args.out is not None:
        raise UsageError("--out and --no-video: give one of them")
    if args.masks is None and (args.mask_images or args.mask_threshold):
        raise UsageError("--mask-images and --mask-threshold are for the masks of --masks")


def _outputs(args: argparse.Namespace, name: str) -> Outputs:
    """Where `track` writes: video, boxes, images of masks; with --resume as the last run that left its state.

    Nothing is replaced unasked: NAME of default names becomes NAME-2, NAME-3, ...
    """
    from mixformer_jax.media.decoders import is_address
    from mixformer_jax.tracking.result_files import numbered_paths
    from mixformer_jax.tracking.resume import resume_path

    inputs = [Path(source) for source in (args.source, args.second) if source is not None and not is_address(source)]
    unfinished: Outputs | None = None
    for count in itertools.count(1):
        stem = name if count == 1 else f"{name}-{count}"
        video = None if args.no_video else args.out or Path(f"{stem}_tracked.mp4")
        boxes = args.boxes or Path(f"{stem}_boxes.txt")
        texts = numbered_paths(boxes, len(args.box))
        has_images = args.masks is not None and boxes.suffix.lower() not in (".json", ".jsonl")
        images = args.mask_images or (Path(f"{stem}_masks") if has_images else None)
        outputs = (*texts, *filter(None, (video, images)))
        files = [*inputs, *outputs]
        if len({path.expanduser().resolve() for path in files}) < len(files):
            listed = ", ".join(map(str, files))
            raise UsageError(f"{listed} must be different files: see --out, --boxes and --mask-images")
        if is_unfinished := resume_path(boxes.expanduser()).exists():
            unfinished = video, boxes, images
        taken = {path for path in outputs if not args.overwrite and is_taken(path.expanduser())}
        if args.resume and not args.boxes and (is_unfinished or any(is_taken(path.expanduser()) for path in texts)):
            continue
        if args.resume and unfinished:
            return unfinished
        if typed := {args.out, args.mask_images, *(texts if args.boxes else ())} & taken:
            listed = ", ".join(sorted(map(str, typed)))
            raise UsageError(f"{listed}: there already, or being written; give another name, or --overwrite")
        if args.overwrite or not (taken or (is_unfinished and not args.boxes)):
            break
    return video, boxes, images


def report_recording(recording: "Recording", more: Sequence[tuple[str, str]] = (), quiet: bool = False) -> int:
    """Prints what a recording left behind; the status tells whether it reached the end of its source."""
    count, files = len(recording.boxes_xywh), ", ".join(map(str, recording.boxes))
    if not quiet:
        print_table([*_summary(recording), ("boxes", files), *more])
    kept = f"the {count} frames tracked until then are in {files}"
    return tell_end(recording.stopped_by, kept + ("" if recording.video is None else f" and {recording.video}"))


def _summary(recording: "Recording") -> list[tuple[str, str]]:
    from mixformer_jax.media.video import H264, h264_library

    count, speed = len(recording.boxes_xywh), "too few frames to tell"
    if math.isfinite(recording.tracking_fps):
        speed = (
            f"{recording.tracking_fps:.1f} FPS tracking, {recording.overall_fps:.1f} FPS with reading, "
            f"drawing and writing (after a warm-up of {recording.warm_up_s:.1f} s)"
        )
    resumed = f", {recording.resumed} of them by the run that was interrupted" if recording.resumed else ""
    lines = [("frames", f"{count}{resumed}"), ("speed", speed)]
    if recording.lost is not None:
        lines.append(("lost", ", ".join(f"{share} of {count} frames" for share in recording.lost.sum(axis=0))))
    if recording.video is not None:
        hint = "" if h264_library() is not None else f"; {H264}, which browsers play, needs PyAV: pip install av"
        lines.append(("video", f"{recording.video} ({recording.codec}{hint})"))
    if recording.mask_images is not None:
        lines.append(("masks", f"{recording.mask_images}/"))
    return lines


_TITLE = "Draw a box, then Space or Enter; again for each further target; Esc ends"
_WINDOWS_NEEDED = "--select needs {}; or give --box X,Y,W,H"


def select_boxes(source: "FrameSource") -> list[str]:
    """The boxes that a user draws on the first frame, as --box takes them; UsageError where this OpenCV or this
    computer has no windows, or nothing was drawn."""
    import cv2

    if re.search(r"GUI:\s+NONE", cv2.getBuildInformation()):
        lacks = "an OpenCV with windows: pip uninstall opencv-python-headless, then pip install opencv-python"
        raise UsageError(_WINDOWS_NEEDED.format(lacks))
    # Qt would end the process.
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError(_WINDOWS_NEEDED.format("a screen, and neither DISPLAY nor WAYLAND_DISPLAY is set"))
    frame = cv2.cvtColor(source.peek().pixels[..., :3], cv2.COLOR_RGB2BGR)
    try:
        boxes_xywh = cv2.selectROIs(_TITLE, frame, showCrosshair=False)
        cv2.destroyAllWindows()
    except cv2.error as error:
        raise UsageError(_WINDOWS_NEEDED.format(f"a window, which OpenCV cannot open: {error.err}")) from error
    drawn = [",".join(map(str, map(int, box))) for box in boxes_xywh if min(box[2:]) > 0]
    if not drawn:
        raise UsageError("--select: no box was drawn")
    return drawn
