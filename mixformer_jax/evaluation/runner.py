"""Running a tracker over sequences and leaving its result files; nothing is scored here."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, UInt8
from tqdm import tqdm

from mixformer_jax.data.sequences import Sequence as TrackingSequence
from mixformer_jax.evaluation.metrics import MAX_COORDINATE
from mixformer_jax.evaluation.results import (
    SequenceResult,
    check_names,
    claim_folder,
    is_finished,
    write_result,
)
from mixformer_jax.tracking.interface import TrackerLike

logger = logging.getLogger(__name__)


class FirstBoxPrediction(NamedTuple):
    box_xywh: Float64[np.ndarray, " 4"]
    score: float | None = None


class FirstBoxTracker:
    """Says forever what it was told first: tests the harness with no model, and is the floor of a table."""

    def start(self, frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float[np.ndarray, " 4"]) -> Float64[np.ndarray, " 4"]:
        return np.array(box_xywh, np.float64)

    def step(
        self, state: Float64[np.ndarray, " 4"], frame: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[Float64[np.ndarray, " 4"], FirstBoxPrediction]:
        return state, FirstBoxPrediction(state.copy())


class Failure(NamedTuple):
    sequence: str
    reason: str


class RunSummary(NamedTuple):
    """What a run did. `failures` is not empty where sequences are still missing."""

    folder: Path
    finished: tuple[str, ...]
    skipped: tuple[str, ...]  # were finished before
    failures: tuple[Failure, ...]
    step_times_s: Float64[np.ndarray, " n"]  # inside `step`, over the sequences finished in this run


def run_sequence(
    tracker: TrackerLike, sequence: TrackingSequence, on_frame: Callable[[], object] = lambda: None
) -> SequenceResult:
    """Tracks one sequence from its first ground truth box, which is also the first box of the result.

    Frames are decoded outside the clock. The first time is that of `start`. `on_frame` is called after every
    frame.

    Raises:
        ValueError: the first ground truth box is NaN; the tracker returns something that is no box, or a
            score for some frames and none for others (the sequence and the frame are named).
    """
    first_box_xywh = sequence.boxes_xywh[0]
    if np.isnan(first_box_xywh).any():
        raise ValueError(
            f"{sequence.name}: the target is absent (NaN) in the first frame, nothing to start from; "
            "cut the sequence to begin where the target is seen"
        )
    boxes_xywh = np.empty((len(sequence), 4))
    times_s = np.empty(len(sequence))
    scores: list[float | None] = []
    state: Any = None
    for index, frame in enumerate(sequence.frames()):
        begin = time.perf_counter()
        if index == 0:
            state = tracker.start(frame, first_box_xywh.copy())
            times_s[0] = time.perf_counter() - begin
            boxes_xywh[0] = first_box_xywh
        else:
            state, prediction = tracker.step(state, frame)
            times_s[index] = time.perf_counter() - begin
            boxes_xywh[index] = _checked_box(prediction.box_xywh, f"{sequence.name}, frame {index}")
            scores.append(prediction.score)
        on_frame()
    return SequenceResult(boxes_xywh, times_s, _join_scores(scores, sequence.name))


def run_dataset(
    tracker: TrackerLike,
    sequences: Sequence[TrackingSequence],
    out_dir: str | Path,
    tracker_name: str,
    settings: Mapping[str, Any],
) -> RunSummary:
    """Tracks every sequence that has no finished result in `<out_dir>/<tracker_name>` yet.

    May be killed at any moment and called again: a sequence's files appear whole or not at all. A sequence
    that fails leaves no result, its traceback goes to the log, and the others go on.

    Args:
        settings: what makes these results different from others (weights, data set); results made with other
            settings in the same folder are refused, see `claim_folder`.

    Raises:
        ResultsError: names that cannot be files or folders, or a folder that belongs to other settings.
    """
    names = [sequence.name for sequence in sequences]
    check_names(names, tracker_name)
    folder = Path(out_dir) / tracker_name
    claim_folder(folder, settings)

    todo = [s for s in sequences if not is_finished(folder, s.name, s.boxes_xywh[0], len(s))]
    finished: dict[str, Float64[np.ndarray, " n"]] = {}
    failures = []
    with tqdm(total=sum(map(len, todo)), unit="frame", desc=tracker_name, disable=not todo) as progress:
        for sequence in todo:
            progress.set_postfix_str(sequence.name)
            try:
                result = run_sequence(tracker, sequence, progress.update)
                write_result(folder, sequence.name, result)
            except Exception as error:  # one sequence must not cost the others; it ends up in `failures`
                logger.exception("sequence %s failed", sequence.name)
                failures.append(Failure(sequence.name, f"{type(error).__name__}: {error}"))
            else:
                finished[sequence.name] = result.times_s[1:]
    attempted = {sequence.name for sequence in todo}
    return RunSummary(
        folder=folder,
        finished=tuple(finished),
        skipped=tuple(name for name in names if name not in attempted),
        failures=tuple(failures),
        step_times_s=np.concatenate([np.empty(0), *finished.values()]),
    )


def describe(summary: RunSummary) -> str:
    """The end of a run in words: counts, speed, where the files are, and every failure with its reason."""
    counts = (
        f"{len(summary.finished)} sequences tracked, {len(summary.skipped)} were finished before, "
        f"{len(summary.failures)} failed; results in {summary.folder}"
    )
    lines = [counts]
    if summary.step_times_s.size:
        lines.append(f"{1 / np.median(summary.step_times_s):.1f} frames/s in the tracker (median step, no decoding)")
    lines += [f"FAILED {failure.sequence}: {failure.reason}" for failure in summary.failures]
    return "\n".join(lines)


def _checked_box(box_xywh: object, where: str) -> Float64[np.ndarray, " 4"]:
    box = np.asarray(box_xywh, np.float64)
    if box.shape != (4,) or not (np.abs(box) <= MAX_COORDINATE).all() or (box[2:] < 0).any():
        raise ValueError(
            f"{where}: the tracker returned {box.tolist()}; expected finite x,y,w,h with w >= 0 and h >= 0"
        )
    return box


def _join_scores(scores: Sequence[float | None], sequence_name: str) -> Float64[np.ndarray, " n"] | None:
    known = [score for score in scores if score is not None]
    if not known:
        return None
    if len(known) < len(scores):
        raise ValueError(
            f"{sequence_name}: the tracker gave a score on {len(known)} of {len(scores)} frames; all or none"
        )
    return np.array([1.0, *known])
