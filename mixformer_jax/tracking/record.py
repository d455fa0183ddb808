"""Following one target through a source, and leaving the annotated video and the boxes on disk as it goes."""

import itertools
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, UInt8
from tqdm import tqdm

from mixformer_jax.files import write_atomically
from mixformer_jax.images import SourceError
from mixformer_jax.tracking.draw import GROUND_TRUTH, TARGET, draw_box
from mixformer_jax.video import FrameSource, VideoWriter, prepare_output

Frame = UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class PredictionLike(Protocol):
    """What a tracker says about a frame."""

    @property
    def box_xywh(self) -> Float[np.ndarray, "4"]: ...

    @property
    def score(self) -> float | None: ...


@runtime_checkable
class TrackerLike(Protocol):
    """Anything that follows one target: state in, state out."""

    def start(self, frame: Frame, box_xywh: Any) -> Any: ...

    def step(self, state: Any, frame: Frame) -> tuple[Any, PredictionLike]: ...


class Recording(NamedTuple):
    """What `record` left behind.

    Attributes:
        boxes_xywh: one row a tracked frame, pixels; the first is the given box.
        video: the annotated video.
        boxes: the text file, one `x,y,w,h` line a tracked frame.
        warm_up_s: seconds for `start` and the first `step`, compilation included; NaN after a single frame.
        tracking_fps: frames a second inside `step`, without the first call; NaN when there was no other.
        overall_fps: the same with decoding, drawing and writing.
        stopped_by: why it ended before the source did; None when it did not.
    """

    boxes_xywh: Float64[np.ndarray, "n 4"]
    video: Path
    boxes: Path
    warm_up_s: float
    tracking_fps: float
    overall_fps: float
    stopped_by: SourceError | KeyboardInterrupt | None


def record(
    tracker: TrackerLike,
    source: FrameSource,
    box_xywh: Float64[np.ndarray, "4"],
    video: str | Path,
    boxes: str | Path,
    every: int = 1,
    groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None,
    progress: bool = False,
) -> Recording:
    """Tracks the target that `box_xywh` marks on the first frame, to the end of the source.

    A source that breaks off and Ctrl-C end the recording early, but not in vain: boxes are flushed line by
    line, the video is finished, and `stopped_by` in the result tells why. The caller must look at it.

    Args:
        tracker: anything with `start` and `step`.
        source: where the frames come from.
        box_xywh: the target on the first frame, pixels.
        video: file to write: each frame with the box, the frame's number, and the score where there is one.
        boxes: file to write.
        every: only every N-th frame is tracked, drawn and written. The video's rate is divided by it.
        groundtruth_xywh: boxes to draw beside the tracker's, one row a frame of the source.
        progress: show a bar with the rate on stderr.

    Raises:
        ValueError: the box is unusable (from `tracker.start`), or `every` is below 1. Nothing is left behind.
        SourceError: there is no first frame.
        OutputError: a file cannot be written.
    """
    if every < 1:
        raise ValueError(f"every is {every}; expected 1 (each frame) or more")
    video, boxes = prepare_output(video), prepare_output(boxes)
    frames = itertools.islice(enumerate(source), 0, None, every)
    first = next(frames, None)
    if first is None:
        raise SourceError(f"{source.name}: there is no frame")

    rows: list[np.ndarray] = []
    step_seconds: list[float] = []
    warm_at = finished_at = math.nan
    stopped_by: SourceError | KeyboardInterrupt | None = None
    with ExitStack() as stack:
        writer = stack.enter_context(VideoWriter(video, source.fps / every, source.size))
        started = time.perf_counter()
        state = tracker.start(first[1], box_xywh)
        start_s = time.perf_counter() - started

        # Not under a temporary name: whoever kills the run, or watches it, finds every line written so far.
        lines = stack.enter_context(boxes.open("w", encoding="ascii"))
        total = None if source.num_frames is None else -(-source.num_frames // every)
        bar = stack.enter_context(tqdm(total=total, unit=" frames", desc=source.name, disable=not progress))

        def keep(index: int, frame: Frame, box: Float[np.ndarray, "4"], score: float | None) -> None:
            rows.append(np.asarray(box, np.float64))
            print(format_box(box), file=lines, flush=True)
            writer.write(annotate(frame, index, box, score, groundtruth_xywh))
            bar.update()

        try:
            keep(*first, box_xywh, None)
            for index, frame in frames:
                before = time.perf_counter()
                state, prediction = tracker.step(state, frame)
                step_seconds.append(time.perf_counter() - before)
                keep(index, frame, prediction.box_xywh, prediction.score)
                finished_at = time.perf_counter()
                if len(step_seconds) == 1:
                    warm_at = finished_at
        except (SourceError, KeyboardInterrupt) as reason:
            stopped_by = reason

    return Recording(
        boxes_xywh=np.stack(rows),
        video=video,
        boxes=boxes,
        warm_up_s=start_s + step_seconds[0] if step_seconds else math.nan,
        tracking_fps=_rate(len(step_seconds) - 1, math.fsum(step_seconds[1:])),
        overall_fps=_rate(len(step_seconds) - 1, finished_at - warm_at),
        stopped_by=stopped_by,
    )


def annotate(
    frame: Frame,
    index: int,
    box_xywh: Float[np.ndarray, "4"],
    score: float | None = None,
    groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None,
) -> Frame:
    """A copy of frame `index` (shown counted from 1) with the tracker's box over the thinner ground truth."""
    if groundtruth_xywh is not None and index < len(groundtruth_xywh):
        frame = draw_box(frame, groundtruth_xywh[index], GROUND_TRUTH, thickness=1)
    label = f"frame {index + 1}" if score is None else f"frame {index + 1}  score {score:.2f}"
    return draw_box(frame, box_xywh, TARGET, label)


def format_box(box_xywh: Float[np.ndarray, "4"]) -> str:
    """`x,y,w,h` to a thousandth of a pixel, without superfluous zeros."""
    return ",".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in box_xywh)


def write_boxes(path: str | Path, boxes_xywh: Sequence | np.ndarray) -> None:
    """Writes one `x,y,w,h` line a frame, at once: the file appears whole or not at all."""
    write_atomically(prepare_output(path), "".join(format_box(box) + "\n" for box in boxes_xywh))


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else math.nan
