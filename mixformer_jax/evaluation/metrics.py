"""One-pass evaluation (OPE): the rules of toolkits, per-frame errors, curves and headline numbers.

    mixformer       the paper's own analysis code (and OSTrack's, MixFormerV2's): the default
    pytracking      its ancestor, in which a target that touches x = 0 or y = 0 counts as absent
    lasot-toolkit   the MATLAB toolkit of LaSOT, a descendant of OTB's
    got10k-toolkit  the OTB, NfS, UAV123 and LaSOT experiments of the got10k toolkit

Each difference between toolkits is a field of `OpeRules`. All arithmetic is float64. `Curves` holds fractions; the
headline numbers (`Curves.auc` ...) are percentages.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.boxes import MAX_PIXELS

RuleSet = Literal["mixformer", "pytracking", "lasot-toolkit", "got10k-toolkit"]


@dataclasses.dataclass(frozen=True)
class OpeRules:
    """How a benchmark is scored. The defaults are MixFormer's rules for a benchmark without exceptions."""

    rule_set: RuleSet = "mixformer"
    # Which ground truth boxes count as present: those with w, h > 0 ("area"), with x, y, w, h > 0 ("positive"), or all
    # that are known ("any").
    validity: Literal["area", "positive", "any"] = "area"
    # Divide by the number of valid frames. The numerator keeps all frames, so with `invalid_norm_error` = -1 a rate can
    # exceed one, as in pytracking.
    exclude_invalid_frames: bool = False
    nan_is_absent: bool = False  # NaN in the ground truth means that the target is absent; otherwise it is an error
    visibility: Literal["used", "required", "ignored"] = "used"  # flags; "required": without them is an error
    pad_short_results: bool = True  # missing rows at the end become empty boxes; otherwise they are an error
    unusable_boxes: Literal["error", "repeat"] = "error"  # NaN or negative sizes; "repeat" the box before
    repeat_empty_boxes: bool = True  # a prediction without area becomes the box before it
    # Errors of an invalid frame: infinity is a miss at every threshold, -1 a hit.
    invalid_center_error: float = np.inf
    invalid_norm_error: float = -1.0
    invisible_is_miss: bool = False  # frames flagged invisible have infinity instead
    # IoU in pytracking's order of operations, or in the got10k toolkit's, with machine epsilon in the denominator and
    # clipped to [0, 1]. Their last bits differ, which decides at thresholds.
    overlap: Literal["pixels", "continuous"] = "pixels"
    # "separate" divides the centres by the true size before the difference, "clamped" divides the difference by at
    # least one pixel.
    norm_error: Literal["separate", "clamped"] = "separate"
    thresholds: Literal["blocks", "linspace"] = "blocks"  # i * 0.05 and i * 0.01, which differ in the last bit
    norm_score: Literal["at 0.2", "mean"] = "at 0.2"  # P_norm: one point of its curve, or the mean over 0..0.5
    # Of each frame the better of the errors towards two ground truths: of the visible and of the thermal images.
    better_of_two: bool = False
    drop_zero_curves: bool = False  # sequences whose curve is all zero leave the benchmark's mean of that curve


# MixFormer's rules by benchmark, under our names and under pytracking's, which decides by the exact name: "lasot" has
# rules that "lasot_extension_subset" has not. It has none for UAV20L and UAV123@10fps, which are annotated as UAV123.
BENCHMARK_RULES: Mapping[str, OpeRules] = {
    **dict.fromkeys(("dtb70", "got10k", "lasher", "lasot_ext", "lasot_extension_subset", "nfs"), OpeRules()),
    **dict.fromkeys(("otb", "otb100", "tnl2k", "trackingnet"), OpeRules()),
    "lasot": OpeRules(visibility="required", pad_short_results=False, invisible_is_miss=True),
    # Li et al. 2019: MPR and MSR, by the visible and the thermal annotation of each frame.
    "rgbt234": OpeRules(better_of_two=True),
    **dict.fromkeys(
        ("uav", "uav123", "uav123_10fps", "uav20l"), OpeRules(nan_is_absent=True, invalid_center_error=-1.0)
    ),
    # No toolkit scores a user's folder so: absent targets are misses in all three curves, as in LaSOT.
    **dict.fromkeys(
        ("folder", "coco_video", "cvat", "label_studio", "mot"),
        OpeRules(nan_is_absent=True, invalid_norm_error=np.inf, pad_short_results=False),
    ),
}
_GOT10K_TOOLKIT = OpeRules(
    "got10k-toolkit",
    validity="any",
    exclude_invalid_frames=True,
    visibility="ignored",
    pad_short_results=False,
    repeat_empty_boxes=False,
    invalid_norm_error=np.inf,
    overlap="continuous",
    norm_error="clamped",
    thresholds="linspace",
    norm_score="mean",
)
_LASOT_TOOLKIT = OpeRules(
    "lasot-toolkit",
    validity="positive",
    pad_short_results=False,
    unusable_boxes="repeat",
    invalid_center_error=-1.0,
    invisible_is_miss=True,
    drop_zero_curves=True,
)


def benchmark_rules(benchmark: str, rule_set: RuleSet = "mixformer", exclude_invalid_frames: bool = False) -> OpeRules:
    """The rules of a benchmark by name, under a rule set; ValueError where no rules are known for that name, or
    `exclude_invalid_frames` is no choice of the rule set."""
    if benchmark not in BENCHMARK_RULES:
        known = ", ".join(sorted(BENCHMARK_RULES))
        raise ValueError(f"no one-pass rules for benchmark {benchmark!r}; known: {known}")
    rules = BENCHMARK_RULES[benchmark]
    if rule_set in ("mixformer", "pytracking"):
        changed = dataclasses.replace(rules, rule_set=rule_set, exclude_invalid_frames=exclude_invalid_frames)
        return dataclasses.replace(changed, validity="area" if rule_set == "mixformer" else "positive")
    if exclude_invalid_frames:
        raise ValueError(f"rates over valid frames alone are a choice of mixformer and pytracking, not of {rule_set}")
    if rule_set == "lasot-toolkit":
        # The toolkit reads absence flags of LaSOT; other benchmarks have none, or NaN rows.
        return dataclasses.replace(_LASOT_TOOLKIT, visibility=rules.visibility, nan_is_absent=rules.nan_is_absent)
    # Rows of NaN leave numerator and denominator: UAV123 and LaSOT in the toolkit, and a folder here.
    nan_is_absent = rules.nan_is_absent or benchmark.startswith("lasot")
    return dataclasses.replace(_GOT10K_TOOLKIT, nan_is_absent=nan_is_absent)


def describe_rules(rules: OpeRules) -> str:
    """The rules in words; every report carries them."""
    present = {"area": "w > 0 and h > 0", "positive": "x, y, w and h > 0", "any": "wherever a box is given"}
    frames = "valid frames only" if rules.exclude_invalid_frames else "all frames"
    norm = "at 0.20" if rules.norm_score == "at 0.2" else "mean over 0..0.5"
    truth = "; of each frame the better of two annotations: AUC is MSR, P is MPR" if rules.better_of_two else ""
    return (
        f"{rules.rule_set} rules: target present where {present[rules.validity]}; rates over {frames}; P_norm {norm}; "
        f"first frame counted{truth}"
    )


# i * 0.05, but made in blocks of four as in pytracking: 0.65 and 0.75 are one ulp larger than the product.
_STEP = np.arange(21)
OVERLAP_THRESHOLDS: Float[np.ndarray, " 21"] = (_STEP // 4 * 4) * 0.05 + (_STEP % 4) * 0.05
CENTER_THRESHOLDS: Float[np.ndarray, " 51"] = np.arange(51.0)
NORM_CENTER_THRESHOLDS: Float[np.ndarray, " 51"] = np.arange(51) / 100


class FrameErrors(NamedTuple):
    """Errors of one sequence by frame; invalid frames hold what `OpeRules` gives them (-1 in `overlap`)."""

    overlap: Float[np.ndarray, " n"]  # IoU
    center: Float[np.ndarray, " n"]  # distance of the centres, pixels
    norm_center: Float[np.ndarray, " n"]  # x divided by the true width, y by the true height
    valid: Bool[np.ndarray, " n"]

    @property
    def average_overlap(self) -> float:
        """Mean IoU over the valid frames; NaN without any."""
        return float(self.overlap[self.valid].mean()) if self.valid.any() else float("nan")


class Curves(NamedTuple):
    """Rates over thresholds as fractions; leading axes are sequences or runs. OPE has 21 overlap thresholds and 51 of
    the errors, TrackingNet 21 of each."""

    success: Float[np.ndarray, "*batch s"]  # share of frames with IoU > t
    precision: Float[np.ndarray, "*batch p"]  # share with centre error <= t pixels
    norm_precision: Float[np.ndarray, "*batch p"]  # share with normalised centre error <= t

    def mean(self) -> "Curves":
        """Mean over the first axis."""
        return Curves(*(curve.mean(0) for curve in self))

    @property
    def auc(self) -> Float[np.ndarray, " *batch"]:
        """Percent: mean of the success values. A perfect tracker has 20/21 = 95.238."""
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


# By `OpeRules.thresholds`.
_THRESHOLDS: Mapping[str, Curves] = {
    "blocks": Curves(OVERLAP_THRESHOLDS, CENTER_THRESHOLDS, NORM_CENTER_THRESHOLDS),
    "linspace": Curves(np.linspace(0, 1, 21), CENTER_THRESHOLDS, np.linspace(0, 0.5, 51)),
}
for _values in itertools.chain(*_THRESHOLDS.values()):
    _values.flags.writeable = False


def curve_thresholds(rules: OpeRules) -> Curves:
    """The thresholds of each curve."""
    return _THRESHOLDS[rules.thresholds]


def stack_curves(curves: Sequence[Curves]) -> Curves:
    """Curves of several sequences or runs along a new first axis; ValueError without any."""
    if not curves:
        raise ValueError("no curves to stack: the benchmark has no sequences")
    return Curves(*map(np.stack, zip(*curves, strict=True)))


def mean_over_sequences(curves: Curves, rules: OpeRules) -> Curves:
    """The mean over sequences (first axis), each with equal weight."""
    if not rules.drop_zero_curves:
        return curves.mean()
    kept = [curve[curve.sum(-1) > np.finfo(float).eps] for curve in curves]
    return Curves(*(curve.mean(0) if len(curve) else np.zeros(curve.shape[1:]) for curve in kept))


def headline(curves: Curves, rules: OpeRules) -> dict[str, Float[np.ndarray, " *batch"]]:
    """The numbers that papers print, in percent: AUC, OP50, OP75, P and P_norm."""
    p_norm = np.asarray(100 * curves.norm_precision.mean(-1)) if rules.norm_score == "mean" else curves.norm_precision20
    overlaps = {"AUC": curves.auc, "OP50": curves.op50, "OP75": curves.op75}
    return {**overlaps, "P": curves.precision20, "P_norm": p_norm}


def frame_errors(
    boxes_xywh: Float[np.ndarray, "m 4"],
    groundtruth_xywh: Float[np.ndarray, "n 4"],
    visible: Bool[np.ndarray, " n"] | None,
    rules: OpeRules,
) -> FrameErrors:
    """Overlap and centre errors of one tracked sequence.

    The first row is the given box: it is scored as perfect and counted. Rows beyond the ground truth are cut. `visible`
    is False where the benchmark says that the target cannot be seen. Raises ValueError for predictions that are
    infinite or beyond `MAX_PIXELS`, and for what the rules do not allow: NaN and negative sizes, NaN in the ground
    truth, missing rows or visibility flags.
    """
    absent = _absent_rows(groundtruth_xywh, rules)
    if visible is None and rules.visibility == "required":
        raise ValueError(
            "these rules need visibility flags (full_occlusion.txt, out_of_view.txt for LaSOT); none given"
        )
    if rules.visibility == "ignored":
        visible = None
    settled = _settle_boxes(boxes_xywh, absent, rules)
    settled[0] = groundtruth_xywh[0]
    # By column: x, y, w, h.
    boxes, truth = np.array(settled.T, np.float64), np.array(groundtruth_xywh.T, np.float64)

    valid = ~absent
    if rules.validity != "any":
        valid &= (truth[2] > 0) & (truth[3] > 0)
    if rules.validity == "positive":
        valid &= (truth[0] > 0) & (truth[1] > 0)
    if visible is not None:
        valid &= visible

    # Frames without a target are computed on a stand-in and overwritten below: no NaN or zero size enters.
    stand_in = np.array([[0.0], [0.0], [1.0], [1.0]])
    truth[:, ~valid] = stand_in
    boxes[:, ~valid] = stand_in
    # Unusable boxes at the start have nothing to repeat: misses.
    found = np.isfinite(boxes[0] + boxes[1]) & (boxes[2] >= 0) & (boxes[3] >= 0)
    boxes[:, ~found] = stand_in
    if rules.overlap == "continuous":
        overlap = continuous_overlap(boxes.T, truth.T)
    else:
        # Not boxes.iou: the last bit decides whether a perfect frame counts at t = 1.0, so this is pytracking's order
        # of operations, down to taking away a pixel and adding it again.
        intersection, union = intersection_and_union(boxes.T, truth.T, pixel=1)
        overlap = intersection / union
    overlap = np.where(valid & found, overlap, -1.0)
    (box_x, box_y), (true_x, true_y) = _centers(boxes), _centers(truth)
    center = np.where(found, _length(box_x - true_x, box_y - true_y), np.inf)
    center = np.where(valid, center, rules.invalid_center_error)
    # The order matters: on integer boxes, errors fall exactly on thresholds, and the last bit decides.
    w, h = truth[2:]
    if rules.norm_error == "separate":
        norm_center = _length(box_x / w - true_x / w, box_y / h - true_y / h)
    else:
        norm_center = _length((box_x - true_x) / np.maximum(1.0, w), (box_y - true_y) / np.maximum(1.0, h))
    norm_center = np.where(found, norm_center, np.inf)
    norm_center = np.where(valid, norm_center, rules.invalid_norm_error)
    if rules.invisible_is_miss and visible is not None:
        center[~visible] = np.inf
        norm_center[~visible] = np.inf
    return FrameErrors(overlap, center, norm_center, valid)


def better_errors(one: FrameErrors, other: FrameErrors) -> FrameErrors:
    """The better errors of each frame towards two ground truths; those towards the only one that has a target."""
    both = one.valid & other.valid

    def better(pick: np.ufunc, ours: Float[np.ndarray, " n"], theirs: Float[np.ndarray, " n"]) -> np.ndarray:
        return np.where(both, pick(ours, theirs), np.where(one.valid, ours, theirs))

    overlap = better(np.maximum, one.overlap, other.overlap)
    center, norm_center = (better(np.minimum, *pair) for pair in zip(one[1:3], other[1:3], strict=True))
    return FrameErrors(overlap, center, norm_center, one.valid | other.valid)


def sequence_curves(errors: FrameErrors, rules: OpeRules) -> Curves:
    """The rates of one sequence: success is strict (IoU > t), the errors are not (error <= t); ValueError where
    `rules.exclude_invalid_frames` leaves no frame to divide by."""
    count = int(errors.valid.sum()) if rules.exclude_invalid_frames else len(errors.valid)
    if count == 0:
        raise ValueError("no valid frame in the sequence, so rates over valid frames alone are not defined")
    thresholds = curve_thresholds(rules)
    return Curves(
        success=1.0 * (len(errors.overlap) - _rank(errors.overlap, thresholds.success)) / count,
        precision=1.0 * _rank(errors.center, thresholds.precision) / count,
        norm_precision=1.0 * _rank(errors.norm_center, thresholds.norm_precision) / count,
    )


def continuous_overlap(
    boxes_xywh: Float[np.ndarray, "n 4"], truth_xywh: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, " n"]:
    """IoU as in the got10k toolkit: machine epsilon added to the union, clipped to [0, 1]; two points have 0."""
    intersection, union = intersection_and_union(boxes_xywh, truth_xywh)
    return (intersection / (union + np.finfo(float).eps)).clip(0.0, 1.0)


def intersection_and_union(
    boxes_xywh: Float[np.ndarray, "n 4"], truth_xywh: Float[np.ndarray, "n 4"], pixel: int = 0
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Areas in toolkits' order of operations; with a `pixel` of 1, ends are a box's last pixels. NaN stays NaN."""
    boxes, truth = boxes_xywh.T, truth_xywh.T
    left_top = np.maximum(boxes[:2], truth[:2])
    right_bottom = np.minimum(boxes[:2] + boxes[2:] - pixel, truth[:2] + truth[2:] - pixel)
    width, height = np.maximum(right_bottom - left_top + pixel, 0)
    intersection = width * height
    return intersection, boxes[2] * boxes[3] + truth[2] * truth[3] - intersection


def _absent_rows(truth: Float[np.ndarray, "n 4"], rules: OpeRules) -> Bool[np.ndarray, " n"]:
    if len(truth) == 0:
        raise ValueError("the ground truth has no rows")
    fits = np.abs(truth) <= MAX_PIXELS
    if fits.all():
        return np.zeros(len(truth), bool)
    absent = np.asarray(np.isnan(truth).any(1))
    if absent.any() and not rules.nan_is_absent:
        raise ValueError(f"ground truth row {np.flatnonzero(absent)[0] + 1} holds NaN, which these rules do not allow")
    broken = np.flatnonzero(~absent & ~fits.all(1))
    if broken.size:
        row = broken[0]
        raise ValueError(f"ground truth row {row + 1} is {truth[row].tolist()}: infinite or too large for pixels")
    return absent


def _settle_boxes(
    boxes: Float[np.ndarray, "m 4"], absent: Bool[np.ndarray, " n"], rules: OpeRules
) -> Float64[np.ndarray, "n 4"]:
    """The checked predictions, as many as the ground truth has rows, with empty boxes replaced."""
    fits = np.abs(boxes) <= MAX_PIXELS
    w, h = boxes[:, 2], boxes[:, 3]
    usable = np.asarray((w >= 0) & (h >= 0))
    if not fits.all():
        usable &= fits.all(1)
    tolerated = usable
    if rules.unusable_boxes == "repeat":
        tolerated = np.asarray((fits | np.isnan(boxes)).all(1))
    if not tolerated.all():
        row = int(np.argmin(tolerated))
        raise ValueError(
            f"predicted box in row {row + 1} is {boxes[row].tolist()}: "
            "expected finite x,y,w,h in pixels with w >= 0 and h >= 0"
        )
    length = len(absent)
    count = min(len(boxes), length)
    if count < length and not rules.pad_short_results:
        raise ValueError(f"{count} predicted boxes for {length} frames; every frame needs one")

    # Rows to keep; the others repeat the last kept one. Where the target is absent the toolkits leave an empty box
    # alone, and a following empty box then copies it.
    keep = usable & (w > 0) & (h > 0) if rules.repeat_empty_boxes else usable
    keep = keep[:count] | absent[:count]
    keep[:1] = True
    settled = np.zeros((length, 4))
    settled[:count] = boxes[:count]
    if not keep.all():
        source = np.maximum.accumulate(np.where(keep, np.arange(count), 0))
        settled[:count] = boxes[source]
    return settled


def _centers(boxes: Float[np.ndarray, "4 n"]) -> Float[np.ndarray, "2 n"]:
    return boxes[:2] + 0.5 * (boxes[2:] - 1)


def _length(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    # Not np.hypot, which may differ in the last bit.
    return np.sqrt(x**2 + y**2)


def _rank(values: Float[np.ndarray, " n"], thresholds: Float[np.ndarray, " t"]) -> np.ndarray:
    """The number of values <= each threshold."""
    return np.searchsorted(np.sort(values), thresholds, side="right")
