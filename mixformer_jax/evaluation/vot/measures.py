"""Accuracy, robustness and EAO of anchor based runs, and accuracy of unsupervised ones (VOT2020 report, section 3.2).

A run starts at an anchor frame and goes to the sequence's end, forward or backward. Its overlaps are in run order; the
first belongs to the frame of initialisation and is 0 in every result, which counts, as in vot-toolkit. Fractions.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.evaluation.vot.regions import FAILURE, INITIALIZATION, UNKNOWN, Region, Special

FAILURE_THRESHOLD = 0.1  # an overlap at or below it is a frame lost
GRACE = 10  # so many frames lost in a row are a failure at the first of them
# The interval of sequence lengths over which EAO is averaged: VOT2020, VOT2021 and VOT2022, boxes and masks alike.
EAO_LOW, EAO_HIGH = 115, 755


class Run(NamedTuple):
    """What a run from one anchor came to."""

    overlaps: Float64[np.ndarray, " n"]
    progress: int  # frames before the failure; all of them without one

    @property
    def failed(self) -> bool:
        return self.progress < len(self.overlaps)


@dataclasses.dataclass(frozen=True)
class SequenceRuns:
    """One tracker's runs from every anchor of a sequence."""

    name: str
    length: int  # frames of the sequence
    runs: tuple[Run, ...]

    @property
    def accuracy(self) -> float:
        """Overlap over the frames before failures; 0 where every run failed at once."""
        frames = self.accuracy_weight
        return sum(float(run.overlaps[: run.progress].sum()) for run in self.runs) / frames if frames else 0.0

    @property
    def robustness(self) -> float:
        """Frames before failures, as a share of all frames of the runs."""
        return self.accuracy_weight / sum(len(run.overlaps) for run in self.runs)

    @property
    def accuracy_weight(self) -> int:
        return sum(run.progress for run in self.runs)


def find_progress(
    overlaps: Float[np.ndarray, " n"],
    target_present: Bool[np.ndarray, " n"],
    threshold: float = FAILURE_THRESHOLD,
    grace: int = GRACE,
) -> int:
    """Frames before the first `grace` lost ones in a row; all frames if there are none.

    A frame without a target in the ground truth is never lost.
    """
    lost = (overlaps <= threshold) & target_present
    # How many frames in a row are lost up to each one.
    index = np.arange(1, len(lost) + 1)
    streak = index - np.maximum.accumulate(np.where(lost, 0, index))
    failures = np.flatnonzero(streak >= grace)
    return int(failures[0]) + 1 - grace if failures.size else len(overlaps)


def accuracy_robustness(sequences: Sequence[SequenceRuns]) -> tuple[float, float]:
    """A, weighted by the frames before failures, and R, weighted by the length of the sequences.

    A is NaN if every run of every sequence failed at once.
    """
    weights = [sequence.accuracy_weight for sequence in sequences]
    lengths = [sequence.length for sequence in sequences]
    accuracy = sum(s.accuracy * weight for s, weight in zip(sequences, weights, strict=True))
    robustness = sum(s.robustness * length for s, length in zip(sequences, lengths, strict=True))
    return accuracy / sum(weights) if any(weights) else float("nan"), robustness / sum(lengths)


def sequence_eao(runs: Sequence[Run], high: int) -> tuple[Float64[np.ndarray, " high"], Float64[np.ndarray, " high"]]:
    """Expected overlap of a sequence by length 0 .. high - 1, and how many runs contribute to each.

    A run contributes the mean over its first frames without the one of initialisation. Beyond its end it contributes
    only if it failed, and then as if it went on with overlap 0. Frames from a failure on have overlap 0.

    Raises:
        ValueError: a run that failed is shorter than two frames.
    """
    total, active = np.zeros(high), np.zeros(high)
    for run in runs:
        if run.failed and len(run.overlaps) < 2:
            raise ValueError(f"a run of {len(run.overlaps)} frames cannot fail")
        overlaps = np.where(np.arange(len(run.overlaps)) < run.progress, run.overlaps, 0.0)
        sums = np.cumsum(overlaps[1:high])
        total[1 : len(sums) + 1] += sums / np.arange(1, len(sums) + 1)
        active[1 : len(sums) + 1] += 1
        beyond = np.arange(len(overlaps), high)
        if run.failed and beyond.size:
            # Divided by one frame less than within the run: the toolkit's way.
            total[beyond] += sums[-1] / (beyond - 1)
            active[beyond] += 1
    return np.divide(total, active, out=np.zeros(high), where=active > 0), active


def eao_curve(sequences: Sequence[SequenceRuns], high: int = EAO_HIGH) -> Float64[np.ndarray, " high"]:
    """Expected overlap by length over all sequences, each weighted by its contributing runs; 0 where there are none."""
    total, active = np.zeros(high), np.zeros(high)
    for sequence in sequences:
        expected, contributing = sequence_eao(sequence.runs, high)
        total += expected * contributing
        active += contributing
    return np.divide(total, active, out=np.zeros(high), where=active > 0)


def eao(curve: Float64[np.ndarray, " high"], low: int = EAO_LOW, high: int = EAO_HIGH) -> float:
    """EAO: the mean of the curve over the lengths low .. high - 1."""
    return float(curve[low:high].mean())


def unsupervised_accuracy(
    overlaps: Float64[np.ndarray, " n"], predicted: Sequence[Region], groundtruth: Sequence[Region], burn_in: int = 1
) -> float:
    """Mean overlap of one run through a whole sequence; NaN where no frame counts.

    Left out are frames of unknown ground truth, unknown or failed predictions, and `burn_in` frames from an
    initialisation on.
    """
    counted = np.ones(len(overlaps), bool)
    for index, (region, truth) in enumerate(zip(predicted, groundtruth, strict=True)):
        if truth == Special(UNKNOWN) or region in (Special(UNKNOWN), Special(FAILURE)):
            counted[index] = False
        elif region == Special(INITIALIZATION):
            counted[index : index + burn_in] = False
    return float(overlaps[counted].mean()) if counted.any() else float("nan")
