"""Following targets through a source, and leaving the annotated video and the boxes on disk as it goes."""

import contextlib
import dataclasses
import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64
from tqdm import tqdm

from mixformer_jax.media.images import GROUND_TRUTH, SourceError, draw_box, draw_caption, draw_mask, target_colour
from mixformer_jax.media.sources import Frame, FrameSource, TimedFrame
from mixformer_jax.media.video import VideoWriter, prepare_output
from mixformer_jax.signals import check, saving
from mixformer_jax.tracking.result_files import MaskFolder, ResultFiles
from mixformer_jax.tracking.resume import RunState, describe_files, describe_run, restored, run_arrays, run_of
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
class Progress:
    """Results on disk as they come, with what a later run needs to go on."""

    files: ResultFiles
    writer: VideoWriter | None
    draw: Callable[[Frame, int, Tracked], Frame]  # as `annotate`
    run_state: RunState | None
    least: int  # more results than these are worth saving
    arrays: Callable[[Any, list[Tracked]], Mapping[str, Any]]  # what `run_state` keeps of `state` and `results`
    images: MaskFolder | None = None
    state: Any = None  # belongs to the last result
    results: list[Tracked] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def keep(self, frame: TimedFrame, seconds: float, found: Tracked, state: Any) -> None:
        """What was found on a frame, so many seconds from the first, and the state behind it."""
        with self.lock:
            self.files.write(found)
            if self.images is not None:
                self.images.write(found)
            if self.writer is not None:
                colour = frame.pixels[..., :3]
                self.writer.write(self.draw(colour, frame.number - 1, found), abs(seconds))
            self.results.append(found._replace(masks=None))  # masks of a long video would fill the memory
            self.state = state
            self.save(now=False)

    def save(self, now: bool) -> None:
        """For a later run."""
        if self.run_state is not None and len(self.results) > self.least:
            self.run_state.write(lambda: self.arrays(self.state, self.results), now)

    def finish(self) -> str:
        """Ends the files from another thread, whatever the loop is doing; see `StopSignals.saving`."""
        self.lock.acquire(timeout=STOP_S)  # and never given back
        if self.writer is not None:
            self.writer.close()
        self.files.__exit__()
        self.save(now=True)
        kept = ", ".join(map(str, self.files.paths)) + (f" and {self.writer.path}" if self.writer is not None else "")
        return f"the {len(self.results)} frames tracked until then are in {kept}" if self.results else ""


def replayed(
    source: FrameSource, frames: Iterator[TimedFrame], earlier: Sequence[Tracked]
) -> Iterator[tuple[TimedFrame, Tracked]]:
    """The next frames of a source with what an earlier run found on them; SourceError where there are fewer."""
    for found in earlier:
        check()
        frame = next(frames, None)
        if frame is None:
            raise SourceError(f"{source.name} ends before frame {found.frame}, up to which it was tracked")
        yield frame, found


def rate(count: int, seconds: float) -> float:
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
    frames = source.timed()
    first = next(frames, None)
    if first is None:
        raise SourceError(f"{source.name}: there is no frame")
    saved = None
    if run_state is not None:
        about = describe_run(tracker, source, first, boxes_xywh)
        run_state.describe(about | describe_files(run_state.path, video, mask_images))
        saved = run_state.read() if resume else None
    earlier, leaves = run_of(saved) if saved else ([], {})
    overwrite = overwrite or saved is not None

    step_seconds: list[float] = []
    warm_at = finished_at = math.nan
    stopped_by: SourceError | KeyboardInterrupt | None = None
    is_begun = False

    def finish() -> str:
        told = progressed.finish()
        forget()
        return told

    def begin() -> None:
        """Once a file is this run's alone. Who is killed from here on leaves files, and this tells whose they are."""
        nonlocal is_begun
        if run_state is not None and not earlier:
            run_state.begin()
            is_begun = True

    def forget() -> None:
        if run_state is not None and is_begun and not progressed.results:  # nothing to go on with
            run_state.discard()

    files = ResultFiles(boxes, len(boxes_xywh), overwrite)
    writer = None if video is None else VideoWriter(video, source.fps, source.size, overwrite)
    images = None if mask_images is None else MaskFolder(mask_images, overwrite)
    draw = functools.partial(annotate, groundtruth_xywh=groundtruth_xywh)
    progressed = Progress(files, writer, draw, run_state, max(1, len(earlier)), run_arrays, images)
    with saving(STOP_S, finish), writer or contextlib.nullcontext(), contextlib.ExitStack() as stack:
        stack.callback(forget)
        if writer is not None:
            begin()
        started = time.perf_counter()
        state = tracker.start(first.pixels, boxes_xywh)
        if earlier:
            state = restored(tracker, state, leaves)
        start_s = time.perf_counter() - started

        stack.enter_context(files)
        stack.enter_context(images or contextlib.nullcontext())
        if writer is None:
            begin()
        bar = stack.enter_context(
            tqdm(total=source.num_frames, unit=" frames", desc=source.name, disable=not progress or None)
        )

        def segmented(frame: TimedFrame, found: Tracked, state: Any) -> Tracked:
            """With the masks that a step gives by itself."""
            if not isinstance(tracker, Tracker):
                return found
            return found._replace(masks=tracker.segment(state, frame.pixels, found.boxes_xywh))

        def keep(frame: TimedFrame, found: Tracked, state: Any) -> None:
            # Copies: a view keeps alive, or changes with, what the tracker made it of.
            scores, lost = (None if x is None else np.array(x) for x in (found.scores, found.lost))
            boxes_xywh = np.array(found.boxes_xywh, np.float64)
            kept = Tracked(boxes_xywh, scores, lost, frame=frame.number, time=frame.seconds, masks=found.masks)
            progressed.keep(frame, frame.seconds - first.seconds, kept, state)
            bar.update()

        try:
            # What was given is certain.
            certain = (np.ones(len(boxes_xywh)), np.zeros(len(boxes_xywh), bool)) if tracker.has_scores else ()
            given = Tracked(boxes_xywh, *certain)
            keep(first, segmented(first, earlier[0] if earlier else given, state), state)
            for frame, found in replayed(source, frames, earlier[1:]):
                keep(frame, segmented(frame, found, state), state)
            for frame in frames:
                check()
                before = time.perf_counter()
                state, found = tracker.step(state, frame.pixels)
                step_seconds.append(time.perf_counter() - before)
                keep(frame, found, state)
                finished_at = time.perf_counter()
                if len(step_seconds) == 1:
                    warm_at = finished_at
        except (SourceError, KeyboardInterrupt) as reason:
            stopped_by = reason
            progressed.save(now=True)

    if run_state is not None and stopped_by is None:
        run_state.discard()  # now that the files have their names
    results = progressed.results
    lost = None if results[0].lost is None else np.stack([found.lost for found in results if found.lost is not None])
    warm_up_s = start_s + step_seconds[0] if step_seconds else math.nan
    count = len(step_seconds) - 1
    return Recording(
        boxes_xywh=np.stack([found.boxes_xywh for found in results]),
        lost=lost,
        video=video,
        codec=None if writer is None else writer.codec,
        boxes=files.paths,
        mask_images=mask_images,
        resumed=len(earlier),
        warm_up_s=warm_up_s,
        tracking_fps=rate(count, math.fsum(step_seconds[1:])),
        overall_fps=rate(count, finished_at - warm_at),
        stopped_by=stopped_by,
    )


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
