"""`mixformer mot`: many objects, from detections to tracks, and how good tracks are."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mixformer_jax.cli.console import (
    Parser,
    UsageError,
    add_model_arguments,
    load_model,
    number,
    positive,
    positives,
    tell_end,
)
from mixformer_jax.config_files import TRACKER_PREFIX
from mixformer_jax.files import is_taken

if TYPE_CHECKING:
    from mixformer_jax.datasets.mot import MotRows
    from mixformer_jax.media.sources import FrameSource
    from mixformer_jax.tracking.record import MotRecording

ABOUT = """Tracks begin at detections. The network looks for those objects that detections leave in doubt, all of a
frame in one batched step. Where SOURCE is a folder of MOTChallenge's layout, such as MOT17, each of its sequences is
tracked by its own det/det.txt, and scored where it has a gt/gt.txt."""
SOURCE = "video file or folder of images; or a folder of sequences in MOTChallenge's layout"
DETECTIONS = """rows of MOT (frame,-1,x,y,w,h,score), COCO's results (.json), or a detector, package.module:function: \
a frame in, boxes_xywh and scores out (default: det/det.txt of each sequence; a path is looked for in each folder)"""
GROUNDTRUTH = "rows of MOT, by which the tracks are scored (default: gt/gt.txt of each sequence)"
SCORE = "track nothing: score the result files that are there, FOLDER/NAME.txt"
SEARCHES = "objects that are looked for on a frame at most; all: every object on every frame (default: all in doubt)"
OVERWRITE = "replace files that are there"
RESUME = "go on with an interrupted run; sequences whose results are there are done"


def add_mot(parser: Parser) -> None:
    examples = ("street.mp4 --detections det.txt --video", "MOT17 --out tracks/", "MOT17 --score tracks/")
    parser.describe(run_mot, *examples, overrides=TRACKER_PREFIX, about=ABOUT)
    parser.add_argument("source", metavar="SOURCE", help=SOURCE)
    parser.add_argument("--detections", metavar="D", help=DETECTIONS)
    parser.add_argument("--categories", type=positives, default=(), metavar="N,N", help="of COCO's results, to take")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="gets NAME.txt a video (default: NAME_mot)")
    parser.add_argument("--video", action="store_true", help="also NAME.mp4, with the objects drawn")
    parser.add_argument("--groundtruth", type=Path, metavar="GT", help=GROUNDTRUTH)
    parser.add_argument("--score", type=Path, metavar="FOLDER", help=SCORE)
    parser.add_argument("--searches", type=_searches, metavar="N", help=SEARCHES)
    parser.add_argument("--min-score", type=number, metavar="S", help="of detections that count (default: 0.1)")
    parser.add_argument("--birth-score", type=number, metavar="S", help="at which a track begins (default: 0.5)")
    end_help = "frames without a detection after which a track ends (default: 30)"
    parser.add_argument("--end-after", type=positive, metavar="N", help=end_help)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE)
    parser.add_argument("--resume", action="store_true", help=RESUME)
    quiet_help = "no progress and no summary, only scores and what is wrong"
    parser.add_argument("--quiet", action="store_true", help=quiet_help)
    add_model_arguments(parser)


def _searches(text: str) -> str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 on, or all, got {text!r}")
    return text


class _Video(NamedTuple):
    """A video to track objects in, and what belongs to it."""

    name: str
    num_frames: int | None
    open: Callable[[], "FrameSource"]
    detections: Path | str | None
    groundtruth: Path | None
    origin: float


def run_mot(args: argparse.Namespace) -> int:
    """Tracks in a video, or in every sequence of a folder, and scores what has a ground truth."""
    from mixformer_jax.datasets.mot import read_mot_rows
    from mixformer_jax.evaluation.mot_scoring import read_truth, score_results, score_table

    if args.score is not None and (args.detections or args.out or args.video):
        raise UsageError("--score scores results that are there: --detections, --out and --video are for tracking")
    videos = _videos(args)
    # Read before anything is tracked.
    truths = {
        video.name: read_truth(video.groundtruth, video.name, video.num_frames) for video in videos if video.groundtruth
    }
    if args.score is None:
        results, status = _track_all(args, videos)
        if status:
            return status
    elif truths:
        results = {name: read_mot_rows(args.score / f"{name}.txt", "results") for name in truths}
    else:
        raise UsageError("--score: there is no ground truth; expected gt/gt.txt in each sequence, or --groundtruth GT")
    if truths:
        lengths = {video.name: video.num_frames for video in videos}
        print(score_table(score_results(truths, results, lengths)), end="")
    return 0


def _videos(args: argparse.Namespace) -> list[_Video]:
    from mixformer_jax.datasets.detections import is_detector
    from mixformer_jax.datasets.mot import mot_sequences, read_seqinfo
    from mixformer_jax.media.video import open_source

    root = Path(args.source).expanduser()
    sequences = mot_sequences(root) if root.is_dir() else []
    if not sequences:
        source = open_source(args.source)
        return [_Video(source.name, source.num_frames, lambda: source, args.detections, args.groundtruth, 0.0)]
    if len(sequences) > 1 and args.groundtruth is not None:
        raise UsageError(f"--groundtruth: {root} has {len(sequences)} sequences, each with its own gt/gt.txt or none")
    videos = []
    for sequence in sequences:
        named = args.detections
        detections = sequence.detections if named is None else named
        if named is not None and (sequence.folder / named).is_file():
            detections = sequence.folder / named
        is_shared = Path(named or "").is_absolute() or detections == named
        if named is not None and is_shared and len(sequences) > 1 and not is_detector(named):
            raise UsageError(
                f"--detections {named}: not in {sequence.folder}, and one file cannot be of {len(sequences)} "
                "sequences; put a file of that name into each of their folders"
            )
        # Who scores needs no frames.
        length = read_seqinfo(sequence.folder).length if args.score else sequence.open().num_frames
        truth = args.groundtruth or sequence.groundtruth
        videos.append(_Video(sequence.name, length, sequence.open, detections, truth, sequence.origin))
    return videos


def _track_all(args: argparse.Namespace, videos: list[_Video]) -> tuple[dict[str, "MotRows"], int]:
    """Rows by video, and the exit status if it is to end here."""
    from mixformer_jax.datasets.detections import ListedDetections, open_detections
    from mixformer_jax.datasets.mot import read_mot_rows
    from mixformer_jax.tracking.mot import MotSettings, MotTracker
    from mixformer_jax.tracking.record import record_objects
    from mixformer_jax.tracking.resume import RunState, resume_path

    def is_done(rows: Path) -> bool:
        return rows.exists() and not resume_path(rows).exists()

    name = videos[0].name if len(videos) == 1 else Path(args.source).expanduser().resolve().name
    folder = (args.out or Path(f"{name}_mot")).expanduser()
    changes = {"min_score": args.min_score, "birth_score": args.birth_score, "end_after": args.end_after}
    changes |= {"search_all": True} if args.searches == "all" else {"searches": args.searches and int(args.searches)}
    settings = MotSettings.from_dict({name: value for name, value in changes.items() if value is not None})
    listed = []
    for video in videos:
        if video.detections is None:
            raise UsageError(
                f"--detections D is needed: {video.name} has no det/det.txt, and tracks begin at detections"
            )
        given = str(video.detections), video.num_frames, video.name, video.origin, args.categories
        listed.append(open_detections(*given))
        rows, drawn = folder / f"{video.name}.txt", folder / f"{video.name}.mp4"
        if args.resume and args.video and is_done(rows) and not drawn.exists():
            raise UsageError(f"{rows} is done, without --video; for {drawn} give another --out, or only --overwrite")
        for path in (rows, drawn)[: 1 + args.video]:
            if is_taken(path) and not (args.overwrite or args.resume):
                raise UsageError(
                    f"{path}: there already, or being written; give another --out, --overwrite or --resume"
                )
    tracker = MotTracker(load_model(args), settings)
    results: dict[str, MotRows] = {}
    for video, detections in zip(videos, listed, strict=True):
        path = folder / f"{video.name}.txt"
        if args.resume and is_done(path):
            results[video.name] = read_mot_rows(path, "results")
            continue
        drawn = folder / f"{video.name}.mp4" if args.video else None
        options = {"progress": not args.quiet, "overwrite": args.overwrite, "resume": args.resume}
        with video.open() as source:
            if source.is_live and isinstance(detections, ListedDetections):
                raise UsageError(f"{source.name} is live: its detections come from a detector, module:function")
            options["run_state"] = None if source.is_live else RunState(resume_path(path))
            recording = record_objects(tracker, source, detections, path, drawn, origin=video.origin, **options)
        if status := _report(recording, video.name, path, args.quiet):
            return {}, status
        results[video.name] = recording.rows
    return results, 0


def _report(recording: "MotRecording", name: str, path: Path, quiet: bool) -> int:
    """Says what was tracked; the status tells whether it reached the end."""
    rate = "" if math.isnan(recording.tracking_fps) else f", {recording.tracking_fps:.1f} FPS tracking"
    earlier = f", {recording.resumed} of them by the run that was interrupted" if recording.resumed else ""
    files = f"{path}" if recording.num_objects else f"{path}, without rows, as nothing was detected twice"
    files += "" if recording.video is None else f" and {recording.video}"
    if not quiet:
        found = f"{recording.num_frames} frames{earlier}, {recording.num_objects} objects{rate}"
        print(f"{name}: {found}: {files}", flush=True)
    return tell_end(recording.stopped_by, f"the {recording.num_frames} frames tracked until then are in {files}")
