"""Between two frames of many objects: where each is expected, and which detection is whose. Not in the paper."""

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mixformer_jax.boxes import cxcywh_to_xywh, xywh_to_cxcywh

# A box is followed by a line through its past centres, and its size by a mean of the past ones: with the gains of a
# least-squares fit while the past is short (Brookner, Tracking and Kalman Filtering Made Easy, 1998, section 1.2.10),
# and with these from then on.
CENTRE_GAIN, SPEED_GAIN, SIZE_GAIN = 0.5, 0.15, 0.2
# What is left of the speed after a frame on which an object was not seen.
SPEED_DECAY = 0.9


def expected_boxes(
    boxes_xywh: Float64[np.ndarray, "n 4"], speeds: Float64[np.ndarray, "n 2"]
) -> Float64[np.ndarray, "n 4"]:
    """Boxes a frame later; speeds are those of the centres, pixels a frame."""
    moved = boxes_xywh.copy()
    moved[:, :2] += speeds
    return moved


def corrected_boxes(
    expected_xywh: Float64[np.ndarray, "n 4"],
    speeds: Float64[np.ndarray, "n 2"],
    measured_xywh: Float64[np.ndarray, "n 4"],
    times: Int64[np.ndarray, " n"],
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, "n 2"]]:
    """Boxes and speeds between what was expected and what is measured; `times` counts measurements, this one too."""
    k = times[:, None].astype(np.float64)
    centre_gain = np.maximum(2 * (2 * k - 1) / (k * (k + 1)), CENTRE_GAIN)
    speed_gain = np.where(k > 1, np.maximum(6 / (k * (k + 1)), SPEED_GAIN), 0)
    size_gain = np.maximum(1 / k, SIZE_GAIN)
    expected, measured = xywh_to_cxcywh(expected_xywh), xywh_to_cxcywh(measured_xywh)
    off = measured[:, :2] - expected[:, :2]
    sides = expected[:, 2:] ** (1 - size_gain) * measured[:, 2:] ** size_gain
    boxes = np.concatenate([expected[:, :2] + np.minimum(centre_gain, 1) * off, sides], axis=1)
    return cxcywh_to_xywh(boxes), speeds + speed_gain * off


def sure_pairs(
    overlaps: Float64[np.ndarray, "n m"], least: float, most_beside: float
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Objects and detections that overlap by `least` or more, and nothing else of either kind by `most_beside`."""
    rows, columns = np.nonzero(overlaps >= least)
    beside = overlaps >= most_beside
    alone = (beside.sum(axis=1)[rows] <= 1) & (beside.sum(axis=0)[columns] <= 1)
    return rows[alone], columns[alone]


def best_pairs(
    overlaps: Float64[np.ndarray, "n m"], weights: Float64[np.ndarray, "#n m"], least: float
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """The pairs, no object or detection in two, of the largest sum of weighted overlaps; none below `least`."""
    from scipy.optimize import linear_sum_assignment  # it takes a quarter of a second to import

    values = np.where(overlaps >= least, overlaps * weights, 0)
    rows, columns = linear_sum_assignment(values, maximize=True)
    chosen = values[rows, columns] > 0
    return rows[chosen].astype(np.int64), columns[chosen].astype(np.int64)


def others_overlap(
    overlaps: Float64[np.ndarray, "n m"], is_other: Bool[np.ndarray, "n m"]
) -> Float64[np.ndarray, " n"]:
    """The largest overlap of each row with a column that is another; 0 where there is none."""
    return np.max(np.where(is_other, overlaps, 0.0), axis=1, initial=0.0)
