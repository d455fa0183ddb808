"""Following targets through a source, and leaving the annotated video and the boxes on disk as it goes: those that are
marked on the first frame (`record`), or all that detections show (`record_objects`)."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64
from tqdm import tqdm

from mixformer_jax.datasets.detections import DetectionsLike
from mixformer_jax.datasets.mot import MotRows
from mixformer_jax.files import write_atomically
from mixformer_jax.media.images import GROUND_TRUTH, SourceError, draw_box, draw_caption, draw_mask, target_colour
from mixformer_jax.media.sources import Frame, FrameSource, TimedFrame
from mixformer_jax.media.video import VideoWriter, prepare_output
from mixformer_jax.signals import check, saving
from mixformer_jax.tracking.mot import MotTracker
from mixformer_jax.tracking.result_files import MaskFolder, MotResultFile, ResultFiles
from mixformer_jax.tracking.resume import (
    RunState,
    describe_files,
    describe_run,
    joined,
    object_arrays,
    objects_of,
    restored,
    run_arrays,
    run_of,
)
from mixformer_jax.tracking.tracker import Tracked, Tracker

# A signal waits so long for the frame that is being tracked, and no longer for a compilation.
STOP_S = 3.0


@runtime_checkable
class MultiTrackerLike(Protocol):
    """Anything that follows several targets at once; `has_scores` tells whether its predictions carry scores."""

    @property
    def has_scores(self) -> bool: ...

    def start(self, frame: Frame, boxes_xywh: Any) -> Any: ...

    def step(self, state: Any, frame: Frame) -> tuple[Any, Tracked]: ...


class Recording(NamedTuple):
    """What `record` left behind. Times and rates are NaN where no frame was there to measure."""

    boxes_xywh: Float64[np.ndarray, "frames n 4"]  # pixels, a row a tracked frame; the first holds the given boxes
    lost: Bool[np.ndarray, "frames n"] | None  # None where the tracker gives no scores
    video: Path | None  # annotated
    codec: str | None  # of the video
    boxes: tuple[Path, ...]  # see `result_files`
    mask_images: Path | None  # folder, see `result_files.MaskFolder`
    resumed: int  # frames that an earlier run had tracked
    warm_up_s: float  # `start` and the first `step`, compilation included
    tracking_fps: float  # inside `step`, without the first call
    overall_fps: float  # the same with decoding, drawing and writing
    stopped_by: SourceError | KeyboardInterrupt | None  # why it ended before the source did


@dataclasses.dataclass
class _Run:
    """One way through a source: results on disk as they come, with what a later run needs to go on."""

    source: FrameSource
    first: TimedFrame  # of the source
    frames: Iterator[TimedFrame]  # all of them
    known: Sequence[Tracked]  # what is on the first ones: given, or found by an earlier run
    files: ResultFiles
    images: MaskFolder | None
    writer: VideoWriter | None
    draw: Callable[[Frame, int, Tracked], Frame]  # as `annotate`
    run_state: RunState | None
    is_resumed: bool
    arrays: Callable[[Any, list[Tracked]], Mapping[str, Any]]  # what `run_state` keeps of `state` and `results`
    state: Any = None  # belongs to the last result
    results: list[Tracked] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)  # of each call that was `timed`
    kept_at: list[float] = dataclasses.field(default_factory=list)  # when the results of steps were on disk
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    is_begun: bool = False

    def timed(self, call: Callable[..., Any], *given: Any) -> Any:
        """What a call gives; how long it took is noted."""
        before = time.perf_counter()
        answer = call(*given)
        self.seconds.append(time.perf_counter() - before)
        return answer

    def follow(
        self,
        start: Callable[[], Any],
        step: Callable[[Any, TimedFrame], tuple[Any, Tracked]],
        progress: bool,
        segment: Callable[[Any, Frame, Any], Any] | None = None,
    ) -> SourceError | KeyboardInterrupt | None:
        """Goes to the end of the source; returns why it ended before. `segment` gives the masks of known results."""
        stopped_by: SourceError | KeyboardInterrupt | None = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(saving(STOP_S, self._finish))
            stack.callback(self._forget)
            stack.enter_context(self.writer or contextlib.nullcontext())
            stack.enter_context(self.files)
            stack.enter_context(self.images or contextlib.nullcontext())
            # The files are this run's alone. Who is killed from here on leaves them, and this tells whose they are.
            if self.run_state is not None and not self.is_resumed:
                self.run_state.write(dict, now=True)
                self.is_begun = True
            state = start()
            source, is_silent = self.source, not progress or None
            bar = tqdm(total=source.num_frames, unit=" frames", desc=source.name, disable=is_silent)
            stack.enter_context(bar)
            try:
                for found in self.known:
                    check()
                    frame = next(self.frames, None)
                    if frame is None:
                        before = f"before frame {found.frame}, up to which it was tracked"
                        raise SourceError(f"{source.name} ends {before}")
                    if segment is not None:
                        found = found._replace(masks=segment(state, frame.pixels, found.boxes_xywh))
                    self._keep(frame, found, state)
                    bar.update()
                for frame in self.frames:
                    check()
                    state, found = step(state, frame)
                    self._keep(frame, found, state)
                    self.kept_at.append(time.perf_counter())
                    bar.update()
            except (SourceError, KeyboardInterrupt) as reason:
                if not self.results:
                    raise
                stopped_by = reason
                self._save(now=True)
            except Exception:  # of a detector, say
                with contextlib.suppress(OSError):  # on a full disk what was raised tells more
                    self._save(now=True)
                raise
        if self.run_state is not None and stopped_by is None:
            self.run_state.discard()  # now that the files have their names
        return stopped_by

    def _keep(self, frame: TimedFrame, found: Tracked, state: Any) -> None:
        # Copies: a view keeps alive, or changes with, what the tracker made it of.
        scores, lost = (None if x is None else np.array(x) for x in (found.scores, found.lost))
        boxes_xywh = np.array(found.boxes_xywh, np.float64)
        found = Tracked(boxes_xywh, scores, lost, found.numbers, frame.number, frame.seconds, found.masks)
        with self.lock:
            self.files.write(found)
            if self.images is not None:
                self.images.write(found)
            if self.writer is not None:
                picture = self.draw(frame.pixels[..., :3], frame.number - 1, found)
                self.writer.write(picture, abs(frame.seconds - self.first.seconds))
            self.results.append(found._replace(masks=None))  # masks of a long video would fill the memory
            self.state = state
            self._save(now=False)

    def _save(self, now: bool) -> None:
        if self.run_state is not None and len(self.results) > len(self.known):
            self.run_state.write(lambda: self.arrays(self.state, self.results), now)

    def _forget(self) -> None:
        if self.run_state is not None and self.is_begun and not self.results:  # nothing to go on with
            self.run_state.discard()

    def _finish(self) -> str:
        """Ends the files from another thread, whatever the loop is doing; see `StopSignals.saving`."""
        self.lock.acquire(timeout=STOP_S)  # and never given back
        if self.writer is not None:
            self.writer.close()
        self.files.__exit__()
        self._save(now=True)
        self._forget()
        kept = ", ".join(map(str, self.files.paths)) + (f" and {self.writer.path}" if self.writer is not None else "")
        return f"the {len(self.results)} frames tracked until then are in {kept}" if self.results else ""


def _first_frame(source: FrameSource) -> tuple[TimedFrame, Iterator[TimedFrame]]:
    """The first frame, and all of them."""
    frames = source.timed()
    first = next(frames, None)
    if first is None:
        raise SourceError(f"{source.name}: there is no frame")
    return first, itertools.chain([first], frames)


def _rate(count: int, seconds: float) -> float:
    """So many a second; NaN where none was measured."""
    return count / seconds if count > 0 and seconds > 0 else math.nan


def record(
    tracker: MultiTrackerLike,
    source: FrameSource,
    boxes_xywh: Float64[np.ndarray, "n 4"],
    video: str | Path | None,
    boxes: str | Path,
    groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None,
    progress: bool = False,
    overwrite: bool = False,
    run_state: RunState | None = None,
    resume: bool = False,
    mask_images: str | Path | None = None,
) -> Recording:
    """Tracks the targets that `boxes_xywh` mark on the first frame, to the end of the source.

    A source that breaks off and Ctrl-C end the recording early: boxes are flushed line by line, the video is finished,
    and `stopped_by` in the result, at which the caller must look, tells why. In a program that listens
    (`signals.StopSignals`), where a frame takes longer than STOP_S, the process ends here instead.

    Args:
        video: file to write: each frame with the boxes, the frame's number, and the scores where there are. None: none.
        boxes: file to write, in the format of its suffix; see `result_files`.
        groundtruth_xywh: boxes to draw beside the tracker's, one row a frame of the source.
        progress: a bar on stderr, where that is a terminal.
        overwrite: replace files that are there.
        run_state: where the run keeps what it needs to go on; removed at the end of the source.
        mask_images: folder to make for masks, of a tracker that gives them. None: none.
        resume: go on from there, and replace the files of the interrupted run. Where nothing is, begin.

    Raises:
        ValueError: a box is unusable (from `tracker.start`). Nothing is left behind.
        SourceError: there is no first frame.
        OutputError: a file cannot be written, or `mask_images` holds what is no mask.
        NameTakenError: a file is there, or another run is writing it.
        ResumeError: `run_state` is of another run.
    """
    video, boxes = None if video is None else prepare_output(video), prepare_output(boxes)
    mask_images = None if mask_images is None else prepare_output(mask_images, is_folder=True)
    first, frames = _first_frame(source)
    saved = None
    if run_state is not None:
        about = describe_run(tracker, source, first, boxes_xywh) | describe_files(run_state.path, video, mask_images)
        saved = run_state.open(about, resume)
    earlier, leaves = run_of(saved) if saved else ([], {})
    overwrite = overwrite or saved is not None
    run = _Run(
        source,
        first,
        frames,
        known=earlier or [Tracked.given(boxes_xywh, tracker.has_scores)],
        files=ResultFiles(boxes, len(boxes_xywh), overwrite),
        images=None if mask_images is None else MaskFolder(mask_images, overwrite),
        writer=None if video is None else VideoWriter(video, source.fps, source.size, overwrite),
        draw=functools.partial(annotate, groundtruth_xywh=groundtruth_xywh),
        run_state=run_state,
        is_resumed=bool(earlier),
        arrays=run_arrays,
    )

    def start() -> Any:
        state = tracker.start(first.pixels, boxes_xywh)
        return restored(tracker, state, leaves) if earlier else state

    stopped_by = run.follow(
        start=lambda: run.timed(start),
        step=lambda state, frame: run.timed(tracker.step, state, frame.pixels),
        progress=progress,
        segment=tracker.segment if isinstance(tracker, Tracker) else None,
    )
    count, results, kept_at = len(run.kept_at) - 1, run.results, run.kept_at
    return Recording(
        boxes_xywh=np.stack([found.boxes_xywh for found in results]),
        lost=None if results[0].lost is None else np.stack([found.lost for found in results if found.lost is not None]),
        video=video,
        codec=None if run.writer is None else run.writer.codec,
        boxes=run.files.paths,
        mask_images=mask_images,
        resumed=len(earlier),
        warm_up_s=math.fsum(run.seconds[:2]) if len(run.seconds) > 1 else math.nan,
        tracking_fps=_rate(count, math.fsum(run.seconds[2:])),
        overall_fps=_rate(count, kept_at[-1] - kept_at[0] if kept_at else 0.0),
        stopped_by=stopped_by,
    )


class MotRecording(NamedTuple):
    """What `record_objects` left behind; the rate is NaN where no frame was there to measure."""

    rows: MotRows  # as in the file
    num_frames: int
    num_objects: int  # that were shown
    resumed: int  # frames that an earlier run had tracked
    video: Path | None
    tracking_fps: float  # inside `step`, without the first call; detectors are not in it
    stopped_by: SourceError | KeyboardInterrupt | None  # why it ended before the source did


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

    How it ends, goes on and fails: see `record`. In the file `results`, which may have no rows, pixels count from
    `origin`; in the video boxes are dashed where no detection supports them. ValueError: a detector's answer that is
    none.
    """
    results = prepare_output(results)
    first, frames = _first_frame(source)
    saved = None
    if run_state is not None:
        about = describe_run(tracker.tracker, source, first, np.zeros((0, 4))) | describe_files(run_state.path, video)
        about |= {"detections": detections.about, "objects": json.dumps(tracker.settings.to_dict())}
        saved = run_state.open(about, resume)
    state, earlier = objects_of(saved) if saved else (tracker.start(), [])
    overwrite = overwrite or saved is not None
    run = _Run(
        source,
        first,
        frames,
        known=earlier,
        files=MotResultFile(results, origin, overwrite),
        images=None,
        writer=None if video is None else VideoWriter(video, source.fps, source.size, overwrite),
        draw=functools.partial(annotate, lost_word="undetected"),
        run_state=run_state,
        is_resumed=bool(earlier),
        arrays=object_arrays,
    )
    stopped_by = run.follow(
        start=lambda: state,
        step=lambda state, frame: run.timed(tracker.step, state, frame.pixels, detections(frame)),
        progress=progress,
    )
    rows = result_rows(results, run.results, origin)
    if stopped_by is None and len(rows.ids) == 0:
        write_atomically(results, "")
    return MotRecording(
        rows=rows,
        num_frames=len(run.results),
        num_objects=len(np.unique(rows.ids)),
        resumed=len(earlier),
        video=video,
        tracking_fps=_rate(len(run.seconds) - 1, math.fsum(run.seconds[1:])),
        stopped_by=stopped_by,
    )


def result_rows(path: Path, shown: list[Tracked], origin: float = 0.0) -> MotRows:
    """What was shown on one frame or more, as the rows of the file that has it."""
    boxes_xywh, scores, numbers = (joined(shown, name) for name in ("boxes_xywh", "scores", "numbers"))
    frames = np.repeat(np.array([found.frame for found in shown]), [len(found.boxes_xywh) for found in shown])
    n, corner = len(numbers), np.array([origin, origin, 0, 0])
    lines, classes = np.arange(1, n + 1), np.zeros(n, np.int64)
    return MotRows(path, lines, frames, numbers + 1, np.round(boxes_xywh + corner, 3), scores, classes, np.ones(n))


def annotate(
    frame: Frame,
    index: int,
    found: Tracked,
    groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None,
    lost_word: str = "lost",
) -> Frame:
    """A copy of frame `index` (shown counted from 1) with the tracker's boxes and masks over the thinner ground truth.

    Several targets have colours and numbers of their own, and those that come and go keep theirs (`Tracked.numbers`).
    The box of a target that counts as lost is dashed, and `lost_word` stands beside it.
    """
    if groundtruth_xywh is not None and index < len(groundtruth_xywh):
        frame = draw_box(frame, groundtruth_xywh[index], GROUND_TRUTH, thickness=1)
    several = len(found.boxes_xywh) > 1 or found.numbers is not None
    targets = range(len(found.boxes_xywh)) if found.numbers is None else found.numbers.tolist()
    for row, (target, box_xywh) in enumerate(zip(targets, found.boxes_xywh, strict=True)):
        is_lost = found.lost is not None and bool(found.lost[row])
        words = [str(target + 1) if several else f"frame {index + 1}"]
        if found.scores is not None:
            words.append(f"{'' if several else 'score '}{found.scores[row]:.2f}")
        words += [lost_word] if is_lost else []
        if found.masks is not None:
            frame = draw_mask(frame, found.masks[row], target_colour(target))
        frame = draw_box(frame, box_xywh, target_colour(target), "  ".join(words), dashed=is_lost)
    return draw_caption(frame, f"frame {index + 1}") if several else frame
