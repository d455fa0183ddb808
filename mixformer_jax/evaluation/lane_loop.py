"""Tracks sequences in the lanes of a tracker, and measures where the time goes."""

import dataclasses
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from mixformer_jax.boxes import MAX_PIXELS
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.datasets.vot import mask_text
from mixformer_jax.evaluation.results import SequenceResult
from mixformer_jax.media.video import Frame
from mixformer_jax.signals import check
from mixformer_jax.tracking.lanes import LaneError, LanesLike, PredictionLike
from mixformer_jax.tracking.tracker import Tracked

# Frames that are read ahead of the tracker: at most 25 MB of Full HD.
FRAMES_AHEAD = 4


class Job(NamedTuple):
    """A sequence to track; `number` tells it from other jobs on the same sequence."""

    number: int
    sequence: TrackingSequence


class Outcome(NamedTuple):
    """The result of job `number`, or the reason why there is none."""

    number: int
    result: SequenceResult | None
    reason: str = ""  # one sentence
    trace: str = ""  # of an unexpected error


@dataclasses.dataclass
class Clock:
    """Where the seconds of a loop went."""

    wait_s: float = 0.0  # waiting for frames to be decoded
    tracker_s: float = 0.0
    total_s: float = 0.0
    frames: int = 0

    @property
    def rest_s(self) -> float:
        """Neither decoding nor the tracker."""
        return self.total_s - self.wait_s - self.tracker_s

    def add(self, other: "Clock") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The order in which several lanes or processes finish at about the same time."""
    return sorted(jobs, key=lambda job: -len(job.sequence))


class LaneLoop:
    """Tracks sequences, each from its first ground truth box, which is also the first box of its result.

    A sequence fails if its target is absent in the first frame, a frame cannot be read, or the tracker raises, returns
    something that is no box, or gives scores for some frames only; the others go on. Times are those inside the
    tracker, without decoding; the first is that of `start`. A step of several lanes counts for each in equal parts.

    `next_job` gives a job for a free lane, None when there are no more; `on_frames` gets numbers of tracked frames.
    """

    def __init__(
        self, lanes: LanesLike, next_job: Callable[[], Job | None], on_frames: Callable[[int], object]
    ) -> None:
        self.clock = Clock()  # complete when `outcomes` has ended
        self._lanes, self._next_job, self._on_frames = lanes, next_job, on_frames
        self._running: dict[int, _Running] = {}
        self._state: Any = None
        self._has_more = True

    def outcomes(self) -> Iterator[Outcome]:
        """Yields one outcome for every job that `next_job` gave."""
        began = time.perf_counter()
        try:
            while True:
                check()
                yield from self._fill()
                if not self._running:
                    break
                yield from self._step()
        finally:
            self.clock.total_s += time.perf_counter() - began
            for run in self._running.values():
                run.frames.close()

    def _fill(self) -> Iterator[Outcome]:
        while self._has_more and len(self._running) < self._lanes.num_lanes:
            job = self._next_job()
            if job is None:
                self._has_more = False
                return
            lane = next(lane for lane in range(self._lanes.num_lanes) if lane not in self._running)
            run = self._running[lane] = _Running(job)
            box_xywh = job.sequence.boxes_xywh[0]
            if not job.sequence.has_target[0]:
                absent = ValueError(
                    f"{job.sequence.name}: the target is absent in the first frame, whose box is {box_xywh.tolist()}; "
                    "cut the sequence to begin where the target is seen"
                )
                yield self._end(lane, absent, is_foreseen=True)
                continue
            try:
                frame = self._wait_for(run)
                began = time.perf_counter()
                self._state = self._lanes.start(self._state, lane, frame, box_xywh.copy())
                run.keep(box_xywh, self._took(began))
            except Exception as error:  # noqa: BLE001  one sequence must not cost the others
                yield self._end(lane, error)
                continue
            self._count(1)
            if run.is_done:
                yield self._end(lane)

    def _step(self) -> Iterator[Outcome]:
        frames: dict[int, Frame] = {}
        for lane, run in list(self._running.items()):
            try:
                frames[lane] = self._wait_for(run)
            except Exception as error:  # noqa: BLE001
                yield self._end(lane, error)
        if not frames:
            return
        began = time.perf_counter()
        try:
            self._state, found = self._lanes.step(self._state, frames)
        except LaneError as error:
            # The other lanes were not tracked either; they keep their frames for the next step.
            self._took(began)
            yield self._end(error.lane, error.__cause__ or error)
            return
        except Exception as error:  # noqa: BLE001
            self._took(began)
            self._state = None  # a step that failed may have donated its buffers: all of its lanes end here
            for lane in frames:
                yield self._end(lane, error)
            return
        share_s = self._took(began) / len(frames)
        self._count(len(frames))
        for lane in frames:
            run = self._running[lane]
            try:
                run.keep_prediction(found[lane], share_s)
            except ValueError as error:
                yield self._end(lane, error, is_foreseen=True)
                continue
            if run.is_done:
                yield self._end(lane)

    def _wait_for(self, run: "_Running") -> Frame:
        began = time.perf_counter()
        try:
            return run.next_frame()
        finally:
            self.clock.wait_s += time.perf_counter() - began

    def _took(self, began: float) -> float:
        seconds = time.perf_counter() - began
        self.clock.tracker_s += seconds
        return seconds

    def _count(self, frames: int) -> None:
        self.clock.frames += frames
        self._on_frames(frames)

    def _end(self, lane: int, error: BaseException | None = None, is_foreseen: bool = False) -> Outcome:
        run = self._running.pop(lane)
        run.frames.close()
        if error is None:
            return Outcome(run.job.number, run.result())
        return Outcome(run.job.number, None, *explain(error, is_foreseen))


def explain(error: BaseException, is_foreseen: bool = False) -> tuple[str, str]:
    """An error in one sentence, and its traceback, which is empty for our own errors and those of the file system."""
    is_foreseen = is_foreseen or isinstance(error, OSError) or type(error).__module__.startswith("mixformer_jax.")
    lines = str(error).split("\n") if is_foreseen else str(error).strip().split("\n")[:1]
    reason = f"{type(error).__name__}: {' '.join(line.strip() for line in lines)}"
    return reason, "" if is_foreseen else "".join(traceback.format_exception(error))


class _Running:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.frames = frames_ahead(job.sequence.frames())
        self._frame: Frame | None = None
        self._boxes_xywh: list[Float64[np.ndarray, "4"]] = []
        self._times_s: list[float] = []
        self._scores: list[float | None] = []
        self._masks: list[str] = []

    @property
    def is_done(self) -> bool:
        return len(self._boxes_xywh) == len(self.job.sequence)

    def next_frame(self) -> Frame:
        """The same one until a box is kept for it."""
        if self._frame is None:
            self._frame = next(self.frames)
        return self._frame

    def keep(self, box_xywh: Float64[np.ndarray, "4"], seconds: float) -> None:
        self._frame = None
        self._boxes_xywh.append(box_xywh)
        self._times_s.append(seconds)

    def keep_prediction(self, prediction: PredictionLike, seconds: float) -> None:
        where = f"{self.job.sequence.name}, frame {len(self._boxes_xywh)}"
        # A copy: a view would change with the tracker's own array, or keep that alive.
        box_xywh = np.array(prediction.box_xywh, np.float64)
        if box_xywh.shape != (4,) or not (np.abs(box_xywh) <= MAX_PIXELS).all() or (box_xywh[2:] < 0).any():
            expected = "expected finite x,y,w,h with w >= 0 and h >= 0"
            raise ValueError(f"{where}: the tracker returned {box_xywh.tolist()}; {expected}")
        self.keep(box_xywh, seconds)
        self._scores.append(prediction.score)
        if isinstance(prediction, Tracked) and prediction.masks is not None:
            self._masks.append(mask_text(prediction.masks[0]))
        if (self._scores[0] is None) != (prediction.score is None):
            raise ValueError(f"{where}: the tracker gives a score on some frames and none on others; all or none")

    def result(self) -> SequenceResult:
        known = [score for score in self._scores if score is not None]
        return SequenceResult(
            np.array(self._boxes_xywh, np.float64),
            np.array(self._times_s),
            np.array([1.0, *known]) if known else None,
            tuple(self._masks) or None,
        )


def frames_ahead(frames: Iterator[Frame], depth: int = FRAMES_AHEAD) -> Generator[Frame]:
    """The frames of an iterator, read by a thread while the tracker is busy; at most `depth` of them wait. What the
    iterator raises is raised in place of its frame."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="frames")
    try:
        waiting = deque(thread.submit(next, frames, None) for _ in range(depth))
        while (frame := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, frames, None))
            yield frame
    finally:  # it ends once it has read the frame that it is at
        thread.shutdown(wait=False, cancel_futures=True)
