"""The loop that tracks sequences in the lanes of a tracker, and measures where the time goes."""

import dataclasses
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import MAX_PIXELS
from mixformer_jax.evaluation.results import SequenceResult
from mixformer_jax.media.video import Frame
from mixformer_jax.signals import check
from mixformer_jax.tracking.lanes import LaneError, LanesLike, PredictionLike

# Frames that are read ahead of the tracker: at most 25 MB of Full HD.
FRAMES_AHEAD = 4


class Job(NamedTuple):
    """A sequence to track; `number` tells it from other jobs on the same sequence."""

    number: int
    sequence: TrackingSequence


class Outcome(NamedTuple):
    """What became of the job `number`: a result, or the reason why there is none."""

    number: int
    result: SequenceResult | None
    reason: str = ""  # in a sentence
    trace: str = ""  # of an error that nobody foresaw


@dataclasses.dataclass
class Clock:
    """Seconds of a loop from its first job to its last."""

    wait_s: float = 0.0  # waiting for frames that were not decoded in time
    tracker_s: float = 0.0
    total_s: float = 0.0
    frames: int = 0  # tracked in that time

    @property
    def rest_s(self) -> float:
        """What running costs beyond decoding and the tracker."""
        return self.total_s - self.wait_s - self.tracker_s

    def add(self, other: "Clock") -> None:
        self.wait_s += other.wait_s
        self.tracker_s += other.tracker_s
        self.total_s += other.total_s
        self.frames += other.frames


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """The order in which several lanes or processes end at about the same time."""
    return sorted(jobs, key=lambda job: -len(job.sequence))


class LaneLoop:
    """Tracks sequences, each from its first ground truth box, which is also the first box of its result.

    A sequence fails if its target is absent in the first frame, a frame cannot be read, or the tracker raises, returns
    something that is no box, or gives a score for some frames and none for others; the others go on. Times are those
    inside the tracker, decoding left out: the first is that of `start`, and a step of several lanes counts for each in
    equal parts.

    Args:
        next_job: gives a job for a free lane; None when there are no more.
        on_frames: is called with a number of frames after they were tracked.
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
        """Goes on while it is iterated, until every job that `next_job` gave has its outcome."""
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
                run.close()

    def _fill(self) -> Iterator[Outcome]:
        """Starts jobs in free lanes."""
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
                frame = self._frame(run)
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
        """Tracks on one frame in every lane."""
        frames: dict[int, Frame] = {}
        for lane, run in list(self._running.items()):
            try:
                frames[lane] = self._frame(run)
            except Exception as error:  # noqa: BLE001
                yield self._end(lane, error)
        if not frames:
            return
        began = time.perf_counter()
        try:
            self._state, found = self._lanes.step(self._state, frames)
        except LaneError as error:
            # Nothing was tracked in the other lanes either, and they keep their frames for the next step.
            self._took(began)
            yield self._end(error.lane, error.__cause__ or error)
            return
        except Exception as error:  # noqa: BLE001
            self._took(began)
            self._state = None  # a step that fails half-way may have used it up; all of its lanes end here
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

    def _frame(self, run: "_Running") -> Frame:
        began = time.perf_counter()
        try:
            return run.frame()
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
        run.close()
        if error is None:
            return Outcome(run.job.number, run.result())
        return Outcome(run.job.number, None, *explain(error, is_foreseen))


def explain(error: BaseException, is_foreseen: bool = False) -> tuple[str, str]:
    """An error in a sentence; and its traceback, which is empty where the sentence says all.

    Errors of our own classes and of the file system are messages; others are bugs, here or in a library.
    """
    is_foreseen = is_foreseen or isinstance(error, OSError) or type(error).__module__.startswith("mixformer_jax.")
    lines = str(error).split("\n") if is_foreseen else str(error).strip().split("\n")[:1]
    reason = f"{type(error).__name__}: {' '.join(line.strip() for line in lines)}"
    return reason, "" if is_foreseen else "".join(traceback.format_exception(error))


class _Running:
    """A sequence in a lane, as far as it has come."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._frames = frames_ahead(job.sequence.frames())
        self._frame: Frame | None = None
        self._boxes_xywh: list[Float64[np.ndarray, "4"]] = []
        self._times_s: list[float] = []
        self._scores: list[float | None] = []

    @property
    def is_done(self) -> bool:
        return len(self._boxes_xywh) == len(self.job.sequence)

    def frame(self) -> Frame:
        """The next frame, until a box is kept for it."""
        if self._frame is None:
            self._frame = next(self._frames)
        return self._frame

    def keep(self, box_xywh: Float64[np.ndarray, "4"], seconds: float) -> None:
        self._frame = None
        self._boxes_xywh.append(box_xywh)
        self._times_s.append(seconds)

    def keep_prediction(self, prediction: PredictionLike, seconds: float) -> None:
        where = f"{self.job.sequence.name}, frame {len(self._boxes_xywh)}"
        self.keep(_checked_box(prediction.box_xywh, where), seconds)
        self._scores.append(prediction.score)
        if (self._scores[0] is None) != (prediction.score is None):
            raise ValueError(f"{where}: the tracker gives a score on some frames and none on others; all or none")

    def result(self) -> SequenceResult:
        known = [score for score in self._scores if score is not None]
        return SequenceResult(
            np.array(self._boxes_xywh, np.float64), np.array(self._times_s), np.array([1.0, *known]) if known else None
        )

    def close(self) -> None:
        self._frames.close()


def _checked_box(box_xywh: object, where: str) -> Float64[np.ndarray, "4"]:
    box = np.array(box_xywh, np.float64)  # a copy: a view keeps alive, or changes with, what the tracker made it of
    if box.shape != (4,) or not (np.abs(box) <= MAX_PIXELS).all() or (box[2:] < 0).any():
        raise ValueError(
            f"{where}: the tracker returned {box.tolist()}; expected finite x,y,w,h with w >= 0 and h >= 0"
        )
    return box


def frames_ahead(frames: Iterator[Frame], depth: int = FRAMES_AHEAD) -> Generator[Frame]:
    """The frames of an iterator, in order, read by a thread of its own while the tracker is busy.

    At most `depth` frames wait. What the iterator raises is raised where its frame would have come.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="frames")
    try:
        waiting = deque(thread.submit(next, frames, None) for _ in range(depth))
        while (frame := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, frames, None))
            yield frame
    finally:  # it ends once it has read the frame that it is at
        thread.shutdown(wait=False, cancel_futures=True)
