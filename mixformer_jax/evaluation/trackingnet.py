"""TrackingNet's numbers: areas under its dev kit's three curves, and coverage (Müller et al. 2018; dev kit metrics.py).

Papers print the server's values, and the dev kit says that the server runs this code. Its "Precision" and "Normalized
Precision" are not the values at 20 pixels or 0.2 of an OPE report but areas, and all boxes are rounded to whole pixels.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.evaluation.metrics import MAX_COORDINATE

OVERLAP_THRESHOLDS: Float64[np.ndarray, " 21"] = np.linspace(0, 1, 21)
DISTANCE_THRESHOLDS: Float64[np.ndarray, " 21"] = np.linspace(0, 50, 21)
NORM_DISTANCE_THRESHOLDS: Float64[np.ndarray, " 21"] = np.linspace(0, 0.5, 21)
for _thresholds in (OVERLAP_THRESHOLDS, DISTANCE_THRESHOLDS, NORM_DISTANCE_THRESHOLDS):
    _thresholds.flags.writeable = False


@dataclasses.dataclass(frozen=True)
class AreaCurves:
    """Rates over thresholds as fractions; a leading axis is that of sequences."""

    success: Float64[np.ndarray, "*batch 21"]  # share of frames with IoU >= t
    precision: Float64[np.ndarray, "*batch 21"]  # share with centre distance <= t pixels, t up to 50
    norm_precision: Float64[np.ndarray, "*batch 21"]  # share with normalised distance <= t, t up to 0.5

    def mean(self) -> "AreaCurves":
        """Equal-weight mean over sequences."""
        return AreaCurves(self.success.mean(0), self.precision.mean(0), self.norm_precision.mean(0))

    @property
    def areas(self) -> dict[str, Float64[np.ndarray, " *batch"]]:
        """Success, P and P_norm: percent of the area that a perfect tracker has, which has 100."""
        return {"Success": _area(self.success), "P": _area(self.precision), "P_norm": _area(self.norm_precision)}


@dataclasses.dataclass(frozen=True)
class TrackingNetScores:
    """One tracker over the sequences of the ground truth."""

    sequences: tuple[str, ...]
    curves: AreaCurves  # first axis: sequences
    covered: tuple[Bool[np.ndarray, " _"], ...]  # by sequence, whether the tracker gave a box

    @property
    def numbers(self) -> dict[str, float]:
        """Success, P, P_norm and Coverage in percent."""
        areas = {name: float(area) for name, area in self.curves.mean().areas.items()}
        return {**areas, "Coverage": 100 * float(np.concatenate(self.covered).mean())}


def score_sequences(
    boxes_xywh: Mapping[str, Float[np.ndarray, "_ 4"] | None], groundtruth_xywh: Mapping[str, Float[np.ndarray, "_ 4"]]
) -> TrackingNetScores:
    """Scores one tracker on every sequence of the ground truth.

    Args:
        boxes_xywh: by sequence name, pixels, the first row standing for the given box. None or no entry: the result is
            missing, and all its boxes but the first are taken for 0,0,0,0.
        groundtruth_xywh: by sequence name, pixels.

    Raises:
        ValueError: no sequences, more boxes than frames, or a ground truth that is not finite (the sequence is named).
    """
    if not groundtruth_xywh:
        raise ValueError("the ground truth has no sequences")
    curves, covered = [], []
    for name, truth in groundtruth_xywh.items():
        boxes = boxes_xywh.get(name)
        if boxes is None:
            boxes = np.zeros_like(truth)
        if len(boxes) > len(truth):
            raise ValueError(f"{name}: {len(boxes)} predicted boxes for {len(truth)} frames")
        if not (np.abs(truth) <= MAX_COORDINATE).all():
            raise ValueError(f"{name}: the ground truth is not finite; TrackingNet's test set is scored by its server")
        sequence_curves, has_box = score_sequence(boxes, truth)
        curves.append(sequence_curves)
        covered.append(has_box)
    stacked = AreaCurves(
        np.stack([c.success for c in curves]),
        np.stack([c.precision for c in curves]),
        np.stack([c.norm_precision for c in curves]),
    )
    return TrackingNetScores(tuple(groundtruth_xywh), stacked, tuple(covered))


def score_sequence(
    boxes_xywh: Float[np.ndarray, "m 4"], groundtruth_xywh: Float[np.ndarray, "n 4"]
) -> tuple[AreaCurves, Bool[np.ndarray, " n"]]:
    """The three curves of one sequence, and which frames have a box (x + y + w + h > 0).

    All boxes are rounded to whole pixels (half to even) and the first is the ground truth's. Missing last rows fail at
    every threshold, 0 included; the rates are over all frames.
    """
    truth = np.round(groundtruth_xywh.astype(np.float64))
    boxes = np.full_like(truth, np.nan)
    boxes[: len(boxes_xywh)] = np.round(boxes_xywh)
    boxes[0] = truth[0]
    # A true box without area divides by zero: NaN or infinity, which no threshold reaches.
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = _overlap(boxes, truth)
        offset = (boxes[:, :2] + boxes[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)
        distance = np.sqrt((offset**2).sum(1))
        norm_distance = np.sqrt(((offset / truth[:, 2:]) ** 2).sum(1))
        curves = AreaCurves(
            (overlap[:, None] >= OVERLAP_THRESHOLDS).mean(0),
            (distance[:, None] <= DISTANCE_THRESHOLDS).mean(0),
            (norm_distance[:, None] <= NORM_DISTANCE_THRESHOLDS).mean(0),
        )
        return curves, boxes.sum(1) > 0


def _overlap(boxes: Float64[np.ndarray, "n 4"], truth: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    left_top = np.maximum(boxes[:, :2], truth[:, :2])
    right_bottom = np.minimum(boxes[:, :2] + boxes[:, 2:], truth[:, :2] + truth[:, 2:])
    # NaN stays NaN under max(), so a missing row has no overlap to compare.
    intersection = np.maximum(right_bottom - left_top, 0).prod(1)
    return intersection / (boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - intersection)


def _area(curves: Float64[np.ndarray, "*batch 21"]) -> Float64[np.ndarray, " *batch"]:
    # Trapezoids over thresholds that are scaled to 0..1, 20 intervals.
    return np.asarray(100 * (curves[..., :-1] + curves[..., 1:]).sum(-1) / 2 / 20)
