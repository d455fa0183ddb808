"""Following targets through a source, and leaving the annotated video and the boxes on disk as it goes."""

import itertools
import math
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64
from tqdm import tqdm

from mixformer_jax.media.drawing import GROUND_TRUTH, draw_box, draw_caption, target_colour
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.video import FrameSource, VideoWriter, prepare_output
from mixformer_jax.signals import check, saving
from mixformer_jax.tracking.interface import Frame, MultiTrackerLike
from mixformer_jax.tracking.result_files import ResultFiles

# A signal waits so long for the frame that is being tracked, and no longer for a compilation.
STOP_S = 3.0


class Recording(NamedTuple):
    """What `record` left behind.

    Attributes:
        boxes_xywh: one row a tracked frame, pixels; the first holds the given boxes.
        lost: whether the targets counted as lost; None where the tracker gives no scores.
        video: the annotated video.
        boxes: the text files of boxes (and scores), one a target; see `result_files`.
        warm_up_s: seconds for `start` and the first `step`, compilation included; NaN after a single frame.
        tracking_fps: frames a second inside `step`, without the first call; NaN when there was no other.
        overall_fps: the same with decoding, drawing and writing.
        stopped_by: why it ended before the source did; None when it did not.
    """

    boxes_xywh: Float64[np.ndarray, "frames n 4"]
    lost: Bool[np.ndarray, "frames n"] | None
    video: Path
    boxes: tuple[Path, ...]
    warm_up_s: float
    tracking_fps: float
    overall_fps: float
    stopped_by: SourceError | KeyboardInterrupt | None


def record(
    tracker: MultiTrackerLike,
    source: FrameSource,
    boxes_xywh: Float64[np.ndarray, "n 4"],
    video: str | Path,
    boxes: str | Path,
    every: int = 1,
    groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None,
    progress: bool = False,
    overwrite: bool = False,
) -> Recording:
    """Tracks the targets that `boxes_xywh` mark on the first frame, to the end of the source.

    A source that breaks off and Ctrl-C end the recording early, but not in vain: boxes are flushed line by
    line, the video is finished, and `stopped_by` in the result tells why. The caller must look at it. In a program
    that listens (`signals.StopSignals`), where a frame takes longer than STOP_S, the process ends here instead.

    Args:
        tracker: anything with `start` and `step`.
        source: where the frames come from.
        boxes_xywh: the targets on the first frame, pixels.
        video: file to write: each frame with the boxes, the frame's number, and the scores where there are.
        boxes: file to write for one target; for several, the name before the numbers (`result_files`).
        every: only every N-th frame is tracked, drawn and written. The video's rate is divided by it.
        groundtruth_xywh: boxes to draw beside the tracker's, one row a frame of the source.
        progress: show a bar with the rate on stderr.
        overwrite: whether files that are there may be replaced.

    Raises:
        ValueError: a box is unusable (from `tracker.start`), or `every` is below 1. Nothing is left behind.
        SourceError: there is no first frame.
        OutputError: a file cannot be written.
        NameTakenError: a file is there, or another run is writing it.
    """
    if every < 1:
        raise ValueError(f"every is {every}; expected 1 (each frame) or more")
    video, boxes = prepare_output(video), prepare_output(boxes)
    frames = itertools.islice(enumerate(source), 0, None, every)
    first = next(frames, None)
    if first is None:
        raise SourceError(f"{source.name}: there is no frame")

    rows: list[np.ndarray] = []
    lost_rows: list[np.ndarray] = []
    step_seconds: list[float] = []
    warm_at = finished_at = math.nan
    stopped_by: SourceError | KeyboardInterrupt | None = None
    keeping = threading.Lock()

    def finish() -> str:
        keeping.acquire(timeout=STOP_S)  # and never given back
        writer.close()
        files.__exit__()
        kept = f"{', '.join(map(str, files.paths))} and {video}"
        return f"the {len(rows)} frames tracked until then are in {kept}" if rows else ""

    files = ResultFiles(boxes, len(boxes_xywh), overwrite)
    writer = VideoWriter(video, source.fps / every, source.size, overwrite)
    with saving(STOP_S, finish), writer, ExitStack() as stack:
        started = time.perf_counter()
        state = tracker.start(first[1], boxes_xywh)
        start_s = time.perf_counter() - started

        stack.enter_context(files)
        total = None if source.num_frames is None else -(-source.num_frames // every)
        bar = stack.enter_context(tqdm(total=total, unit=" frames", desc=source.name, disable=not progress))

        def keep(
            index: int,
            frame: Frame,
            boxes_xywh: Float[np.ndarray, "n 4"],
            scores: Float[np.ndarray, " n"] | None,
            lost: Bool[np.ndarray, " n"] | None,
        ) -> None:
            # Copies: a view keeps alive, or changes with, what the tracker made it of.
            with keeping:
                rows.append(np.array(boxes_xywh, np.float64))
                if lost is not None:
                    lost_rows.append(np.array(lost))
                files.write(boxes_xywh, scores, lost)
                writer.write(annotate(frame, index, boxes_xywh, scores, lost, groundtruth_xywh))
            bar.update()

        try:
            # What was given is certain.
            certain = np.ones(len(boxes_xywh)), np.zeros(len(boxes_xywh), bool)
            keep(*first, boxes_xywh, *(certain if tracker.has_scores else (None, None)))
            for index, frame in frames:
                check()
                before = time.perf_counter()
                state, found = tracker.step(state, frame)
                step_seconds.append(time.perf_counter() - before)
                keep(index, frame, found.boxes_xywh, found.scores, found.lost)
                finished_at = time.perf_counter()
                if len(step_seconds) == 1:
                    warm_at = finished_at
        except (SourceError, KeyboardInterrupt) as reason:
            stopped_by = reason

    return Recording(
        boxes_xywh=np.stack(rows),
        lost=np.stack(lost_rows) if lost_rows else None,
        video=video,
        boxes=files.paths,
        warm_up_s=start_s + step_seconds[0] if step_seconds else math.nan,
        tracking_fps=_rate(len(step_seconds) - 1, math.fsum(step_seconds[1:])),
        overall_fps=_rate(len(step_seconds) - 1, finished_at - warm_at),
        stopped_by=stopped_by,
    )


def annotate(
    frame: Frame,
    index: int,
    boxes_xywh: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"] | None = None,
    lost: Bool[np.ndarray, " n"] | None = None,
    groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None,
) -> Frame:
    """A copy of frame `index` (shown counted from 1) with the tracker's boxes over the thinner ground truth.

    Several targets have colours and numbers of their own. The box of a target that counts as lost is dashed.
    """
    if groundtruth_xywh is not None and index < len(groundtruth_xywh):
        frame = draw_box(frame, groundtruth_xywh[index], GROUND_TRUTH, thickness=1)
    several = len(boxes_xywh) > 1
    for target, box_xywh in enumerate(boxes_xywh):
        is_lost = lost is not None and bool(lost[target])
        words = [str(target + 1) if several else f"frame {index + 1}"]
        words += [] if scores is None else [f"{scores[target]:.2f}" if several else f"score {scores[target]:.2f}"]
        words += ["lost"] if is_lost else []
        frame = draw_box(frame, box_xywh, target_colour(target), "  ".join(words), dashed=is_lost)
    return draw_caption(frame, f"frame {index + 1}") if several else frame


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else math.nan
