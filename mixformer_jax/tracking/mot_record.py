"""Following many objects through a source, and leaving MOTChallenge's rows and the annotated video as it goes."""

import contextlib
import functools
import itertools
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mixformer_jax.datasets.detections import DetectionsLike
from mixformer_jax.datasets.mot import MotRows
from mixformer_jax.files import write_atomically
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import FrameSource, TimedFrame
from mixformer_jax.media.video import VideoWriter, prepare_output
from mixformer_jax.signals import check, saving
from mixformer_jax.tracking.mot import MotState, MotTracker, Objects
from mixformer_jax.tracking.record import STOP_S, Progress, annotate, rate, replayed
from mixformer_jax.tracking.result_files import ResultFiles, format_box
from mixformer_jax.tracking.resume import RunState, describe_files, describe_run
from mixformer_jax.tracking.tracker import Tracked


class MotRecording(NamedTuple):
    """What `record_objects` left behind; the rate is NaN where no frame was there to measure."""

    rows: MotRows  # as in the file
    num_frames: int
    num_objects: int  # that were shown
    resumed: int  # frames that an earlier run had tracked
    video: Path | None
    tracking_fps: float  # inside `step`, without the first call; detectors are not in it
    stopped_by: SourceError | KeyboardInterrupt | None  # why it ended before the source did


class MotResultFile(ResultFiles):
    """Rows of MOTChallenge while a video is tracked: frame,id,x,y,w,h,score,-1,-1,-1; ids count from 1."""

    def __init__(self, path: Path, origin: float = 0.0, overwrite: bool = False) -> None:
        super().__init__(path, 1, overwrite)
        self._corner = np.array([origin, origin, 0, 0])

    def write(self, found: Tracked) -> None:
        assert found.numbers is not None and found.scores is not None
        rows = zip(found.numbers, found.boxes_xywh + self._corner, found.scores, strict=True)
        lines = (f"{found.frame},{number + 1},{format_box(box)},{score:.4f},-1,-1,-1\n" for number, box, score in rows)
        self._append(0, "".join(lines))


def record_objects(
    tracker: MotTracker,
    source: FrameSource,
    detections: DetectionsLike,
    results: Path,
    video: Path | None = None,
    origin: float = 0.0,
    progress: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    run_state: RunState | None = None,
) -> MotRecording:
    """Follows what is detected to the end of the source.

    How it ends, goes on and fails: see `record.record`. In the file `results`, which may have no rows, pixels count
    from `origin`; in the video boxes are dashed where no detection supports them. ValueError: a detector's answer that
    is none.
    """
    results = prepare_output(results)
    frames = source.timed()
    first = next(frames, None)
    if first is None:
        raise SourceError(f"{source.name}: there is no frame")
    saved = None
    if run_state is not None:
        about = describe_run(tracker.tracker, source, first, np.zeros((0, 4)))
        about |= describe_files(run_state.path, video)
        about |= {"detections": detections.about, "objects": json.dumps(tracker.settings.to_dict())}
        run_state.describe(about)
        saved = run_state.read() if resume else None
    state, earlier = (tracker.start(), []) if not saved else _loaded(saved)
    overwrite = overwrite or saved is not None
    step_seconds: list[float] = []
    stopped_by: SourceError | KeyboardInterrupt | None = None
    is_at_end = False
    files = MotResultFile(results, origin, overwrite)
    writer = None if video is None else VideoWriter(video, source.fps, source.size, overwrite)
    draw = functools.partial(annotate, lost_word="undetected")
    progressed = Progress(files, writer, draw, run_state, len(earlier), _arrays)
    with saving(STOP_S, progressed.finish), writer or contextlib.nullcontext(), contextlib.ExitStack() as stack:
        stack.enter_context(files)
        if run_state is not None and not earlier:
            run_state.begin()
        bar = stack.enter_context(
            tqdm(total=source.num_frames, unit=" frames", desc=source.name, disable=not progress or None)
        )

        def keep(frame: TimedFrame, found: Tracked, state: MotState) -> None:
            progressed.keep(frame, frame.seconds - first.seconds, found, state)
            bar.update()

        frames = itertools.chain([first], frames)
        try:
            for frame, found in replayed(source, frames, earlier):
                keep(frame, found, state)
            for frame in frames:
                check()
                detected = detections(frame)
                before = time.perf_counter()
                state, found = tracker.step(state, frame.pixels, detected)
                step_seconds.append(time.perf_counter() - before)
                keep(frame, found._replace(frame=frame.number, time=frame.seconds), state)
            is_at_end = True
        except (SourceError, KeyboardInterrupt) as reason:
            stopped_by = reason
        finally:
            if not is_at_end:  # a detector may have raised
                progressed.save(now=True)

    shown = progressed.results
    if stopped_by is None and not any(len(found.boxes_xywh) for found in shown):
        write_atomically(results, "")
    if run_state is not None and stopped_by is None:
        run_state.discard()  # now that the files have their names
    rows = result_rows(results, shown, origin)
    return MotRecording(
        rows=rows,
        num_frames=len(shown),
        num_objects=len(np.unique(rows.ids)),
        resumed=len(earlier),
        video=video,
        tracking_fps=rate(len(step_seconds) - 1, math.fsum(step_seconds[1:])),
        stopped_by=stopped_by,
    )


def result_rows(path: Path, shown: list[Tracked], origin: float = 0.0) -> MotRows:
    """What was shown, frame after frame, as the rows of the file that has it."""
    boxes_xywh, scores, ids = _joined(shown, "boxes_xywh"), _joined(shown, "scores"), _joined(shown, "numbers") + 1
    frames = np.repeat(np.array([found.frame for found in shown]), [len(found.boxes_xywh) for found in shown])
    n, corner = len(ids), np.array([origin, origin, 0, 0])
    lines, classes = np.arange(1, n + 1), np.zeros(n, np.int64)
    return MotRows(path, lines, frames, ids, np.round(boxes_xywh + corner, 3), scores, classes, np.ones(n))


def _joined(shown: list[Tracked], name: str) -> np.ndarray:
    """A column of all frames; the first frame is there."""
    return np.concatenate([getattr(found, name) for found in shown])


def _arrays(state: MotState, shown: list[Tracked]) -> dict[str, np.ndarray]:
    counts = np.array([len(found.boxes_xywh) for found in shown])
    arrays = {name: _joined(shown, name) for name in ("boxes_xywh", "scores", "lost", "numbers")}
    arrays |= {"counts": counts, "frame": np.array([found.frame for found in shown])}
    arrays |= {"time": np.array([found.time for found in shown], np.float64)}
    arrays |= {f"object {name}": column for name, column in zip(Objects._fields, state.objects, strict=True)}
    return arrays | {"counters": np.array([state.frame_index, state.next_number])}


def _loaded(arrays: dict[str, np.ndarray]) -> tuple[MotState, list[Tracked]]:
    ends = np.cumsum(arrays["counts"])
    parts = {name: np.split(arrays[name], ends[:-1]) for name in ("boxes_xywh", "scores", "lost", "numbers")}
    shown = [
        Tracked(boxes_xywh, scores, lost, numbers, int(frame), float(seconds))
        for boxes_xywh, scores, lost, numbers, frame, seconds in zip(
            *parts.values(), arrays["frame"], arrays["time"], strict=True
        )
    ]
    objects = Objects(*(arrays[f"object {name}"] for name in Objects._fields))
    frame_index, next_number = arrays["counters"].tolist()
    return MotState(objects, frame_index, next_number, {}), shown
