"""Which toolkit's rules a one-pass evaluation follows, by benchmark and by rule set.

Four rule sets, each named after the code that it gives the numbers of:

    mixformer       the paper's own analysis code (and OSTrack's, MixFormerV2's): the default
    pytracking      the code from which it descends; a target that touches x = 0 or y = 0 counts as absent
    lasot-toolkit   the MATLAB toolkit of LaSOT, which descends from OTB's
    got10k-toolkit  the OTB, NfS, UAV123 and LaSOT experiments of the got10k toolkit

Where toolkits differ, the difference is a field of `OpeRules`; the mathematics (`metrics`) knows neither benchmarks nor
toolkits.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np

RuleSet = Literal["mixformer", "pytracking", "lasot-toolkit", "got10k-toolkit"]


@dataclasses.dataclass(frozen=True)
class OpeRules:
    """How a benchmark is scored. The defaults are the rules of MixFormer's code for a benchmark without exceptions.

    Attributes:
        rule_set: the toolkit.
        validity: which ground truth boxes count as present. "area": w > 0 and h > 0. "positive": all of x, y, w, h > 0,
            so that a visible target touching the left or top border counts as absent. "any": every box that is known.
        exclude_invalid_frames: divide by the number of valid frames instead of all frames. The numerator keeps all
            frames, so with `invalid_norm_error` = -1 a rate can exceed one, as in pytracking.
        nan_is_absent: a NaN ground truth row means that the target is absent; otherwise it is an error.
        visibility: "required": the absence of visibility flags is an error. "ignored": they are not looked at.
        pad_short_results: missing last rows are filled up with empty boxes; otherwise they are an error.
        unusable_boxes: predictions that are NaN or of negative size. "error", or "repeat" for the box before.
        repeat_empty_boxes: a prediction without area becomes the box before it.
        invalid_center_error, invalid_norm_error: what an invalid frame gets. Infinity is a miss at every threshold,
            -1 a hit at every threshold.
        invisible_is_miss: frames flagged invisible get infinity in both errors, and not the two values above.
        overlap: "pixels" computes IoU in pytracking's order of operations. "continuous" in the got10k toolkit's: with
            machine epsilon in the denominator, clipped to [0, 1]. They differ in the last bits, and those decide at
            thresholds.
        norm_error: "separate" divides the centres by the true size and then takes the difference; "clamped" divides
            the difference, by at least one pixel.
        thresholds: "blocks" or "linspace": two ways to make i * 0.05 and i * 0.01, which differ in the last bit.
        norm_score: the number that stands for the normalised precision curve: "at 0.2", or its "mean" over 0..0.5.
        drop_zero_curves: sequences whose whole curve is zero leave the benchmark's mean of that curve.
    """

    rule_set: RuleSet = "mixformer"
    validity: Literal["area", "positive", "any"] = "area"
    exclude_invalid_frames: bool = False
    nan_is_absent: bool = False
    visibility: Literal["used", "required", "ignored"] = "used"
    pad_short_results: bool = True
    unusable_boxes: Literal["error", "repeat"] = "error"
    repeat_empty_boxes: bool = True
    invalid_center_error: float = np.inf
    invalid_norm_error: float = -1.0
    invisible_is_miss: bool = False
    overlap: Literal["pixels", "continuous"] = "pixels"
    norm_error: Literal["separate", "clamped"] = "separate"
    thresholds: Literal["blocks", "linspace"] = "blocks"
    norm_score: Literal["at 0.2", "mean"] = "at 0.2"
    drop_zero_curves: bool = False


# pytracking decides by the exact benchmark name: "lasot" has rules that "lasot_extension_subset" has not.
_PLAIN = OpeRules()
_LASOT = OpeRules(visibility="required", pad_short_results=False, invisible_is_miss=True)
# UAV20L and UAV123@10fps, of which pytracking has no rules, are marked as UAV123 is.
_UAV = OpeRules(nan_is_absent=True, invalid_center_error=-1.0)
# No toolkit scores a folder of one's own: absent targets are misses in all three curves, as in LaSOT.
_FOLDER = OpeRules(nan_is_absent=True, invalid_norm_error=np.inf, pad_short_results=False)

BENCHMARK_RULES: Mapping[str, OpeRules] = MappingProxyType(
    {
        "dtb70": _PLAIN,
        "folder": _FOLDER,
        "got10k": _PLAIN,
        "lasot": _LASOT,
        "lasot_ext": _PLAIN,
        "lasot_extension_subset": _PLAIN,
        "nfs": _PLAIN,
        "otb": _PLAIN,
        "otb100": _PLAIN,
        "tnl2k": _PLAIN,
        "trackingnet": _PLAIN,
        "uav": _UAV,
        "uav123": _UAV,
        "uav123_10fps": _UAV,
        "uav20l": _UAV,
    }
)
"""MixFormer's rules by benchmark, under our names and under pytracking's."""

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
    """The rules of a benchmark by name, under a rule set.

    Args:
        exclude_invalid_frames: an option of the mixformer and pytracking rule sets; the others have no such choice.

    Raises:
        ValueError: no rules are known for that name, or the option does not belong to the rule set.
    """
    if benchmark not in BENCHMARK_RULES:
        known = ", ".join(BENCHMARK_RULES)
        raise ValueError(f"no one-pass rules for benchmark {benchmark!r}; known: {known}")
    rules = BENCHMARK_RULES[benchmark]
    if rule_set in ("mixformer", "pytracking"):
        validity: Literal["area", "positive"] = "area" if rule_set == "mixformer" else "positive"
        return dataclasses.replace(
            rules, rule_set=rule_set, validity=validity, exclude_invalid_frames=exclude_invalid_frames
        )
    if exclude_invalid_frames:
        raise ValueError(f"rates over valid frames alone are a choice of mixformer and pytracking, not of {rule_set}")
    if rule_set == "lasot-toolkit":
        # The toolkit reads absence flags for LaSOT; other benchmarks have none, or NaN rows.
        return dataclasses.replace(_LASOT_TOOLKIT, visibility=rules.visibility, nan_is_absent=rules.nan_is_absent)
    # Rows of NaN leave numerator and denominator: UAV123 and LaSOT in the toolkit, and a folder here.
    nan_is_absent = rules.nan_is_absent or benchmark.startswith("lasot")
    return dataclasses.replace(_GOT10K_TOOLKIT, nan_is_absent=nan_is_absent)


def describe_rules(rules: OpeRules) -> str:
    """The choices under which numbers were made, in words; every table carries them."""
    present = {
        "area": "w > 0 and h > 0",
        "positive": "x, y, w and h > 0",
        "any": "wherever a box is given",
    }[rules.validity]
    frames = "valid frames only" if rules.exclude_invalid_frames else "all frames"
    norm = "at 0.20" if rules.norm_score == "at 0.2" else "mean over 0..0.5"
    return (
        f"{rules.rule_set} rules: target present where {present}; rates over {frames}; P_norm {norm}; "
        "first frame counted"
    )
