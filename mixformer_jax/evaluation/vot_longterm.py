"""VOT's long-term measures (VOT-LT2018 to VOT-LT2022): tracking precision, recall and F over confidence, as fractions.

Lukezic et al. 2018, "Now you see me: evaluating performance in long-term visual tracking"; vot-toolkit's analyses
`average_tpr`, `pr_curve` and `f_curve`. One run goes through each sequence, and a tracker says by its confidence
whether the target is there: at a threshold only frames of at least that confidence count as answered.

    sequences/<s>/groundtruth.txt                      see `datasets.vot`; nan,nan,nan,nan where the target is absent
    results/<tracker>/longterm/<s>/<s>_001.txt         regions; the first line is 1, the code of an initialisation
    results/<tracker>/longterm/<s>/<s>_001_confidence.value     a number a frame; the toolkit's first line is blank
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.vot import Special
from mixformer_jax.evaluation.results import ResultsError, decode_text, read_bytes
from mixformer_jax.evaluation.vot import VotSequence, read_run
from mixformer_jax.evaluation.vot_regions import region_overlaps

RESOLUTION = 100  # thresholds


class LongTermRun(NamedTuple):
    """A tracker's run through a sequence."""

    overlaps: Float64[np.ndarray, " n"]  # 0 on the frame of initialisation, and where there is no target to overlap
    confidences: Float64[np.ndarray, " n"]
    num_present: int  # frames with a target


@dataclasses.dataclass(frozen=True)
class LongTermScores:
    """A tracker on all sequences: curves over thresholds from high to low."""

    thresholds: Float64[np.ndarray, " t"]
    precisions: Float64[np.ndarray, "s t"]  # by sequence
    recalls: Float64[np.ndarray, "s t"]

    @cached_property
    def precision(self) -> Float64[np.ndarray, " t"]:
        """Mean over sequences."""
        return self.precisions.mean(0)

    @cached_property
    def recall(self) -> Float64[np.ndarray, " t"]:
        """Mean over sequences."""
        return self.recalls.mean(0)

    @cached_property
    def f_score(self) -> Float64[np.ndarray, " t"]:
        """Of the mean precision and the mean recall."""
        return f_score(self.precision, self.recall)

    @property
    def best(self) -> int:
        """The threshold at which F is largest, the highest of several."""
        return int(self.f_score.argmax())

    @property
    def headline(self) -> dict[str, float]:
        """What the challenges print, at the best threshold."""
        curves = {"F": self.f_score, "Pr": self.precision, "Re": self.recall}
        return {name: float(curve[self.best]) for name, curve in curves.items()}

    @property
    def by_sequence(self) -> dict[str, Float64[np.ndarray, " s"]]:
        """The same of each sequence, at the threshold that is best for all of them."""
        precisions, recalls = self.precisions[:, self.best], self.recalls[:, self.best]
        return {"F": f_score(precisions, recalls), "Pr": precisions, "Re": recalls}


def f_score(precision: Float64[np.ndarray, " n"], recall: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Harmonic mean; 0 where both are 0."""
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def confidence_thresholds(confidences: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " t"]:
    """Infinity, confidences that part all frames of all sequences into equal shares, and minus infinity.

    Where there are fewer than `RESOLUTION` - 1 frames, every confidence is a threshold.
    """
    ranked, inner = np.sort(confidences)[::-1], RESOLUTION - 2
    if len(ranked) > inner:
        step = len(ranked) // inner
        ranked = ranked[np.round(np.linspace(step, len(ranked) - step, num=inner)).astype(int)]
    return np.concatenate([[np.inf], ranked, [-np.inf]])


def precision_recall(
    run: LongTermRun, thresholds: Float64[np.ndarray, " t"]
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """Precision and recall of a run: the overlaps of answered frames over their number, and over that of targets.

    Where no frame is answered, precision is 1. Frames without target count as answered wrongly.
    """
    order = np.argsort(-run.confidences, kind="stable")
    answered = len(order) - np.searchsorted(run.confidences[order][::-1], thresholds, side="left")
    overlap = np.concatenate([[0.0], np.cumsum(run.overlaps[order])])[answered]
    precision = np.divide(overlap, answered, out=np.ones(len(thresholds)), where=answered > 0)
    return precision, overlap / run.num_present


def score_runs(runs: Sequence[LongTermRun]) -> LongTermScores:
    """One tracker's runs, one a sequence."""
    thresholds = confidence_thresholds(np.concatenate([run.confidences for run in runs]))
    precisions, recalls = zip(*(precision_recall(run, thresholds) for run in runs), strict=True)
    return LongTermScores(thresholds, np.stack(precisions), np.stack(recalls))


def score_long_term(results: str | Path, sequences: Sequence[VotSequence]) -> LongTermScores:
    """One tracker, whose results are in `results/<tracker>/longterm`.

    Raises:
        DatasetError: a sequence has no target in any frame.
        ResultsError: a run is missing, unreadable or of another length.
    """
    return score_runs([read_long_term_run(Path(results), sequence) for sequence in sequences])


def read_long_term_run(results: Path, sequence: VotSequence) -> LongTermRun:
    """A run and its overlaps with the ground truth inside the frame; errors as in `score_long_term`."""
    truth, folder, name = sequence.groundtruth, results / sequence.name, f"{sequence.name}_001"
    num_present = sum(not isinstance(region, Special) for region in truth)
    if num_present == 0:
        raise DatasetError(f"sequence {sequence.name}: no frame has a target, so that recall is not defined")
    overlaps = region_overlaps(read_run(folder, name, len(truth)), truth, sequence.size)
    return LongTermRun(overlaps, read_confidences(folder / f"{name}_confidence.value", len(truth)), num_present)


def read_confidences(path: Path, length: int) -> Float64[np.ndarray, " n"]:
    """A confidence a frame; 0 on blank lines, and on all frames where there is no file, as in the toolkit.

    Raises ResultsError for another number of lines than `length`, or what is no finite number, with the line.
    """
    if not path.is_file():
        return np.zeros(length)
    content = read_bytes(path, "confidence file")
    lines = decode_text(path, content, "confidence file", "one number a frame").splitlines()
    lines += [""] * (content.count(b"\n") - len(lines))
    if len(lines) != length:
        raise ResultsError(f"confidence file {path}: {len(lines)} values for {length} frames")
    confidences = np.zeros(length)
    for index, line in enumerate(lines):
        try:
            confidences[index] = float(line.strip() or 0)
        except ValueError:
            confidences[index] = math.nan
        if not math.isfinite(confidences[index]):
            raise ResultsError(f"confidence file {path}, line {index + 1}: expected a finite number, found {line!r}")
    return confidences
