"""Following targets through a source, and leaving the annotated video and the boxes on disk as it goes.

Boxes are text files, one a target and a line a frame: `x,y,w,h` in pixels; where the tracker gives scores,
`x,y,w,h,score,lost`, with lost 0 or 1. The first line is what was given: its score is 1.
"""

import contextlib
import itertools
import math
import os
import threading
import time
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64
from tqdm import tqdm

from mixformer_jax.files import Part, named_errors, write_atomically
from mixformer_jax.media.images import GROUND_TRUTH, SourceError, draw_box, draw_caption, target_colour
from mixformer_jax.media.video import Frame, FrameSource, VideoWriter, prepare_output
from mixformer_jax.signals import check, saving
from mixformer_jax.tracking.tracker import Tracked

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
    video: Path  # annotated
    boxes: tuple[Path, ...]  # text files, one a target
    warm_up_s: float  # `start` and the first `step`, compilation included
    tracking_fps: float  # inside `step`, without the first call
    overall_fps: float  # the same with decoding, drawing and writing
    stopped_by: SourceError | KeyboardInterrupt | None  # why it ended before the source did


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

    A source that breaks off and Ctrl-C end the recording early: boxes are flushed line by line, the video is finished,
    and `stopped_by` in the result, at which the caller must look, tells why. In a program that listens
    (`signals.StopSignals`), where a frame takes longer than STOP_S, the process ends here instead.

    Args:
        video: file to write: each frame with the boxes, the frame's number, and the scores where there are.
        boxes: file to write for one target; for several, see `numbered_paths`.
        every: only every N-th frame is tracked, drawn and written. The video's rate is divided by it.
        groundtruth_xywh: boxes to draw beside the tracker's, one row a frame of the source.

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
    with saving(STOP_S, finish), writer, contextlib.ExitStack() as stack:
        started = time.perf_counter()
        state = tracker.start(first[1], boxes_xywh)
        start_s = time.perf_counter() - started

        stack.enter_context(files)
        total = None if source.num_frames is None else -(-source.num_frames // every)
        bar = stack.enter_context(tqdm(total=total, unit=" frames", desc=source.name, disable=not progress))

        def keep(index: int, frame: Frame, found: Tracked) -> None:
            # Copies: a view keeps alive, or changes with, what the tracker made it of.
            with keeping:
                rows.append(np.array(found.boxes_xywh, np.float64))
                if found.lost is not None:
                    lost_rows.append(np.array(found.lost))
                files.write(found)
                writer.write(annotate(frame, index, found, groundtruth_xywh))
            bar.update()

        try:
            # What was given is certain.
            certain = (np.ones(len(boxes_xywh)), np.zeros(len(boxes_xywh), bool)) if tracker.has_scores else ()
            keep(*first, Tracked(boxes_xywh, *certain))
            for index, frame in frames:
                check()
                before = time.perf_counter()
                state, found = tracker.step(state, frame)
                step_seconds.append(time.perf_counter() - before)
                keep(index, frame, found)
                finished_at = time.perf_counter()
                if len(step_seconds) == 1:
                    warm_at = finished_at
        except (SourceError, KeyboardInterrupt) as reason:
            stopped_by = reason

    lost = np.stack(lost_rows) if lost_rows else None
    warm_up_s = start_s + step_seconds[0] if step_seconds else math.nan
    count = len(step_seconds) - 1

    def rate(seconds: float) -> float:
        return count / seconds if count > 0 and seconds > 0 else math.nan

    tracking_fps, overall_fps = rate(math.fsum(step_seconds[1:])), rate(finished_at - warm_at)
    return Recording(np.stack(rows), lost, video, files.paths, warm_up_s, tracking_fps, overall_fps, stopped_by)


def annotate(
    frame: Frame, index: int, found: Tracked, groundtruth_xywh: Float64[np.ndarray, "m 4"] | None = None
) -> Frame:
    """A copy of frame `index` (shown counted from 1) with the tracker's boxes over the thinner ground truth.

    Several targets have colours and numbers of their own. The box of a target that counts as lost is dashed.
    """
    if groundtruth_xywh is not None and index < len(groundtruth_xywh):
        frame = draw_box(frame, groundtruth_xywh[index], GROUND_TRUTH, thickness=1)
    several = len(found.boxes_xywh) > 1
    for target, box_xywh in enumerate(found.boxes_xywh):
        is_lost = found.lost is not None and bool(found.lost[target])
        words = [str(target + 1) if several else f"frame {index + 1}"]
        if found.scores is not None:
            words.append(f"{'' if several else 'score '}{found.scores[target]:.2f}")
        words += ["lost"] if is_lost else []
        frame = draw_box(frame, box_xywh, target_colour(target), "  ".join(words), dashed=is_lost)
    return draw_caption(frame, f"frame {index + 1}") if several else frame


def numbered_paths(path: Path, count: int) -> tuple[Path, ...]:
    """`boxes.txt` for one target; `boxes_1.txt`, `boxes_2.txt`, ... for several."""
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1))


def format_box(box_xywh: Float[np.ndarray, "4"]) -> str:
    """`x,y,w,h` to a thousandth of a pixel, without superfluous zeros."""
    return ",".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in box_xywh)


def write_boxes(path: str | Path, boxes_xywh: Float[np.ndarray, "frames 4"]) -> None:
    """Writes one `x,y,w,h` line a frame, at once: the file appears whole or not at all."""
    write_atomically(prepare_output(path), "".join(format_box(box) + "\n" for box in boxes_xywh))


class ResultFiles:
    """Open text files, one a target (`numbered_paths`). A context manager.

    They are written as `boxes.txt.part`, a line at a time: whoever kills the run, or watches it, finds every line
    written so far. When the context ends, for whatever reason, they get their names.

    Raises:
        NameTakenError: on entering: a file is there and not to be overwritten, or another run is writing it; none is
            made.
    """

    def __init__(self, path: Path, num_targets: int, overwrite: bool = False) -> None:
        self.paths = numbered_paths(path, num_targets)
        self._overwrite = overwrite
        self._parts: list[Part] = []
        self._files: list[IO[str]] = []
        self._sizes = [0] * num_targets

    def __enter__(self) -> "ResultFiles":
        try:
            for path in self.paths:
                self._parts.append(Part(path, self._overwrite))
        except BaseException:
            self.__exit__()
            raise
        self._files = [part.path.open("w", encoding="ascii") for part in self._parts]
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.ExitStack() as stack:  # one that cannot be closed or named leaves none open
            for part in self._parts:
                stack.callback(part.finish)
            for path, file in zip(self.paths, self._files, strict=False):
                stack.enter_context(named_errors(path))
                stack.callback(file.close)

    def write(self, found: Tracked) -> None:
        """A line in each file, on disk when this returns.

        Raises:
            OSError: a full disk; it names the file, which keeps its whole lines.
        """
        for target, file in enumerate(self._files):
            line = format_box(found.boxes_xywh[target])
            if found.scores is not None and found.lost is not None:
                line += f",{found.scores[target]:.4f},{int(found.lost[target])}"
            try:
                with named_errors(self.paths[target]):
                    print(line, file=file, flush=True)
            except OSError:
                # Half a line could pass for a box.
                with contextlib.suppress(OSError):
                    file.close()
                os.truncate(self._parts[target].path, self._sizes[target])
                raise
            self._sizes[target] += len(line) + 1
