"""One-pass evaluation (OPE): per-frame errors, curves and the numbers that papers print.

The conventions are those of the pytracking and MixFormer analysis code, on which the published LaSOT, OTB,
UAV123 and NFS tables rest. Where benchmarks differ, the difference is a field of `OpeRules`; the mathematics
knows no benchmark names. All arithmetic is float64. Rates are fractions in `Curves`; the headline numbers
(`Curves.auc` ...) are percentages.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# i * 0.05, but made in blocks of four as in the toolkits: 0.65 and 0.75 are one ulp larger than the product.
_STEP = np.arange(21)
OVERLAP_THRESHOLDS: Float[np.ndarray, " 21"] = (_STEP // 4 * 4) * 0.05 + (_STEP % 4) * 0.05
CENTER_THRESHOLDS: Float[np.ndarray, " 51"] = np.arange(51.0)
NORM_CENTER_THRESHOLDS: Float[np.ndarray, " 51"] = np.arange(51) / 100
for _thresholds in (OVERLAP_THRESHOLDS, CENTER_THRESHOLDS, NORM_CENTER_THRESHOLDS):
    _thresholds.flags.writeable = False

# No image is larger, and below it no product of two coordinates leaves float64.
MAX_COORDINATE = 1e9

Validity = Literal["mixformer", "pytracking"]


@dataclasses.dataclass(frozen=True)
class OpeRules:
    """How a benchmark is scored where the benchmarks differ.

    Attributes:
        validity: which ground truth boxes count as present. "mixformer": w > 0 and h > 0. "pytracking": all
            of x, y, w, h > 0, so that a visible target touching the left or top border counts as absent.
        exclude_invalid_frames: divide by the number of valid frames instead of all frames. As in the toolkits
            the numerator keeps all frames, so with `invalid_norm_error` = -1 a rate can exceed one.
        nan_is_absent: a NaN ground truth row means that the target is absent; otherwise it is an error.
        visibility_required: the benchmark is scored with visibility flags, and their absence is an error.
        pad_short_results: missing last rows are filled up with empty boxes; otherwise they are an error.
        invalid_center_error, invalid_norm_error: what an invalid frame gets. Infinity is a miss at every
            threshold, -1 a hit at every threshold.
        invisible_is_miss: frames flagged invisible get infinity in both errors, and not the two values above.
    """

    validity: Validity = "mixformer"
    exclude_invalid_frames: bool = False
    nan_is_absent: bool = False
    visibility_required: bool = False
    pad_short_results: bool = True
    invalid_center_error: float = np.inf
    invalid_norm_error: float = -1.0
    invisible_is_miss: bool = False


# pytracking decides by the exact benchmark name: "lasot" has rules that "lasot_extension_subset" has not.
BENCHMARK_RULES: Mapping[str, OpeRules] = MappingProxyType(
    {
        "folder": OpeRules(nan_is_absent=True, invalid_norm_error=np.inf, pad_short_results=False),
        "got10k": OpeRules(),
        "lasot": OpeRules(visibility_required=True, pad_short_results=False, invisible_is_miss=True),
        "lasot_extension_subset": OpeRules(),
        "nfs": OpeRules(),
        "otb": OpeRules(),
        "trackingnet": OpeRules(),
        "uav": OpeRules(nan_is_absent=True, invalid_center_error=-1.0),
    }
)


def benchmark_rules(benchmark: str, validity: Validity = "mixformer", exclude_invalid_frames: bool = False) -> OpeRules:
    """The rules of a benchmark by name.

    Raises:
        ValueError: no rules are known for that name.
    """
    if benchmark not in BENCHMARK_RULES:
        known = ", ".join(BENCHMARK_RULES)
        raise ValueError(f"no scoring rules for benchmark {benchmark!r}; known: {known}")
    rules = BENCHMARK_RULES[benchmark]
    return dataclasses.replace(rules, validity=validity, exclude_invalid_frames=exclude_invalid_frames)


class FrameErrors(NamedTuple):
    """One sequence, frame by frame. Invalid frames hold what `OpeRules` gives them (-1 in `overlap`)."""

    overlap: Float[np.ndarray, " n"]  # IoU
    center: Float[np.ndarray, " n"]  # distance of the centres, pixels
    norm_center: Float[np.ndarray, " n"]  # the same with x divided by the true width and y by the true height
    valid: Bool[np.ndarray, " n"]

    @property
    def average_overlap(self) -> float:
        """Mean IoU over the valid frames alone; NaN when there is none."""
        return float(self.overlap[self.valid].mean()) if self.valid.any() else float("nan")


@dataclasses.dataclass(frozen=True)
class Curves:
    """Rates over thresholds as fractions; leading axes are whatever was stacked (sequences, runs)."""

    success: Float[np.ndarray, "*batch 21"]  # share of frames with IoU > t
    precision: Float[np.ndarray, "*batch 51"]  # share with centre error <= t pixels
    norm_precision: Float[np.ndarray, "*batch 51"]  # share with normalised centre error <= t

    def mean(self) -> "Curves":
        """Equal-weight mean over the first axis: sequences of a benchmark, or runs of a repeated tracker."""
        return Curves(self.success.mean(0), self.precision.mean(0), self.norm_precision.mean(0))

    @property
    def auc(self) -> Float[np.ndarray, " *batch"]:
        """Percent. Plain mean of the 21 success values: a perfect tracker has 20/21 = 95.238."""
        return np.asarray(100 * self.success.mean(-1))

    @property
    def op50(self) -> Float[np.ndarray, " *batch"]:
        """Percent of frames with IoU > 0.5."""
        return np.asarray(100 * self.success[..., 10])

    @property
    def op75(self) -> Float[np.ndarray, " *batch"]:
        """Percent of frames with IoU > 0.75."""
        return np.asarray(100 * self.success[..., 15])

    @property
    def precision20(self) -> Float[np.ndarray, " *batch"]:
        """Percent of frames with a centre error of at most 20 pixels ("P")."""
        return np.asarray(100 * self.precision[..., 20])

    @property
    def norm_precision20(self) -> Float[np.ndarray, " *batch"]:
        """Percent of frames with a normalised centre error of at most 0.20 ("P_norm")."""
        return np.asarray(100 * self.norm_precision[..., 20])


def stack_curves(curves: Sequence[Curves]) -> Curves:
    """Curves of several sequences (or runs) along a new first axis.

    Raises:
        ValueError: there is nothing to stack.
    """
    if not curves:
        raise ValueError("no curves to stack: the benchmark has no sequences")
    return Curves(
        np.stack([c.success for c in curves]),
        np.stack([c.precision for c in curves]),
        np.stack([c.norm_precision for c in curves]),
    )


def frame_errors(
    boxes_xywh: Float[np.ndarray, "m 4"],
    groundtruth_xywh: Float[np.ndarray, "n 4"],
    visible: Bool[np.ndarray, " n"] | None,
    rules: OpeRules,
) -> FrameErrors:
    """Overlap and centre errors of one tracked sequence.

    The first frame is scored as perfect and counted; empty boxes repeat the box before them; more rows than
    the ground truth are cut, fewer follow `rules.pad_short_results`. The arguments are left as they are.

    Args:
        boxes_xywh: predictions in pixels, the first row standing for the frame on which the tracker was
            started.
        groundtruth_xywh: pixels; NaN rows are allowed where `rules.nan_is_absent`.
        visible: False where the benchmark says that the target cannot be seen.

    Raises:
        ValueError: predictions that are not finite, beyond `MAX_COORDINATE` or of negative size; a ground
            truth that the rules do not allow; missing rows or visibility flags where the rules ask for them.
    """
    truth = np.array(groundtruth_xywh, np.float64)
    absent = _absent_rows(truth, rules)
    if visible is None and rules.visibility_required:
        raise ValueError(
            "these rules need visibility flags (full_occlusion.txt, out_of_view.txt for LaSOT); none given"
        )

    boxes = _settle_boxes(boxes_xywh, absent, rules)
    boxes[0] = truth[0]

    valid = ~absent & (truth[:, 2:] > 0).all(1)
    if rules.validity == "pytracking":
        valid &= (truth[:, :2] > 0).all(1)
    if visible is not None:
        valid &= visible

    # Frames without a target are computed on a stand-in and overwritten, so that no NaN or zero size enters
    # below.
    truth[~valid] = (0.0, 0.0, 1.0, 1.0)
    boxes[~valid] = (0.0, 0.0, 1.0, 1.0)
    overlap = np.where(valid, _overlap(boxes, truth), -1.0)
    box_center, true_center = _centers(boxes), _centers(truth)
    center = np.where(valid, _distance(box_center, true_center), rules.invalid_center_error)
    # Divided one by one, not their difference: on integer boxes errors fall exactly on thresholds, and the
    # last bit decides.
    true_size = truth[:, 2:]
    norm_center = _distance(box_center / true_size, true_center / true_size)
    norm_center = np.where(valid, norm_center, rules.invalid_norm_error)
    if rules.invisible_is_miss and visible is not None:
        center[~visible] = np.inf
        norm_center[~visible] = np.inf
    return FrameErrors(overlap, center, norm_center, valid)


def sequence_curves(errors: FrameErrors, rules: OpeRules) -> Curves:
    """Success, precision and normalised-precision rates of one sequence.

    Success is strict (IoU > t), the errors are not (error <= t). The numerator runs over all frames.

    Raises:
        ValueError: `rules.exclude_invalid_frames` leaves no frame to divide by.
    """
    count = int(errors.valid.sum()) if rules.exclude_invalid_frames else len(errors.valid)
    if count == 0:
        raise ValueError("no valid frame in the sequence, so rates over valid frames alone are not defined")
    return Curves(
        success=1.0 * (len(errors.overlap) - _rank(errors.overlap, OVERLAP_THRESHOLDS)) / count,
        precision=1.0 * _rank(errors.center, CENTER_THRESHOLDS) / count,
        norm_precision=1.0 * _rank(errors.norm_center, NORM_CENTER_THRESHOLDS) / count,
    )


def _absent_rows(truth: Float[np.ndarray, "n 4"], rules: OpeRules) -> Bool[np.ndarray, " n"]:
    if len(truth) == 0:
        raise ValueError("the ground truth has no rows")
    absent = np.isnan(truth).any(1)
    if absent.any() and not rules.nan_is_absent:
        raise ValueError(f"ground truth row {np.flatnonzero(absent)[0] + 1} holds NaN, which these rules do not allow")
    broken = np.flatnonzero(~absent & ~(np.abs(truth) <= MAX_COORDINATE).all(1))
    if broken.size:
        row = broken[0]
        raise ValueError(f"ground truth row {row + 1} is {truth[row].tolist()}: infinite or too large for pixels")
    return absent


def _settle_boxes(
    boxes_xywh: Float[np.ndarray, "m 4"], absent: Bool[np.ndarray, " n"], rules: OpeRules
) -> Float[np.ndarray, "n 4"]:
    """A copy of the predictions, checked, with empty boxes replaced and as many rows as the ground truth."""
    boxes = np.array(boxes_xywh, np.float64)
    broken = np.flatnonzero(~((np.abs(boxes) <= MAX_COORDINATE).all(1) & (boxes[:, 2:] >= 0).all(1)))
    if broken.size:
        row = broken[0]
        raise ValueError(
            f"predicted box in row {row + 1} is {boxes[row].tolist()}: "
            "expected finite x,y,w,h in pixels with w >= 0 and h >= 0"
        )
    length = len(absent)
    boxes = boxes[:length]
    if len(boxes) < length and not rules.pad_short_results:
        raise ValueError(f"{len(boxes)} predicted boxes for {length} frames; every frame needs one")

    # Rows to keep; the others take the nearest kept row before them. Where the target is absent the toolkits
    # leave an empty box alone, and a following empty box then copies it.
    keep = (boxes[:, 2:] > 0).all(1) | absent[: len(boxes)]
    keep[:1] = True
    source = np.maximum.accumulate(np.where(keep, np.arange(len(boxes)), 0))
    settled = np.zeros((length, 4))
    settled[: len(boxes)] = boxes[source]
    return settled


def _overlap(boxes: Float[np.ndarray, "n 4"], truth: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    # Not boxes.iou: a perfect frame counts at t = 1.0 or not by the last bit, so the order of operations is
    # the toolkits' own, down to taking away a pixel and adding it again.
    left_top = np.maximum(boxes[:, :2], truth[:, :2])
    right_bottom = np.minimum(boxes[:, :2] + boxes[:, 2:] - 1, truth[:, :2] + truth[:, 2:] - 1)
    intersection = (right_bottom - left_top + 1).clip(min=0).prod(1)
    return intersection / (boxes[:, 2:].prod(1) + truth[:, 2:].prod(1) - intersection)


def _centers(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    return boxes[:, :2] + 0.5 * (boxes[:, 2:] - 1)


def _distance(a: Float[np.ndarray, "n 2"], b: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    return np.sqrt(((a - b) ** 2).sum(1))


def _rank(values: Float[np.ndarray, " n"], thresholds: Float[np.ndarray, " t"]) -> np.ndarray:
    """For each threshold, the number of values <= it, by sorting instead of comparing all with all."""
    return np.searchsorted(np.sort(values), thresholds, side="right")
