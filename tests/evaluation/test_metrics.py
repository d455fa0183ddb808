import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixformer_jax.datasets.sequences import READERS
from mixformer_jax.datasets.vot import LONG_TERM
from mixformer_jax.evaluation.metrics import (
    BENCHMARK_RULES,
    CENTER_THRESHOLDS,
    NORM_CENTER_THRESHOLDS,
    OVERLAP_THRESHOLDS,
    OpeRules,
    benchmark_rules,
    frame_errors,
    sequence_curves,
    stack_curves,
)

_SUMMARY = Path(__file__).resolve().parents[1] / "data" / "evalgold" / "ope" / "golden" / "summary.json"
GOLDEN_RUNS = sorted(json.loads(_SUMMARY.read_text())["runs"])
HEADLINES = {
    "AUC": "auc",
    "OP50": "op50",
    "OP75": "op75",
    "Precision": "precision20",
    "NormPrecision": "norm_precision20",
}
SEQUENCE_HEADLINES = {
    "per_sequence_AUC": "auc",
    "per_sequence_OP50": "op50",
    "per_sequence_OP75": "op75",
    "per_sequence_precision20": "precision20",
    "per_sequence_normprec02": "norm_precision20",
}
CURVES = ("success", "precision", "norm_precision")
FRACTION, PERCENT = 1e-6, 1e-4


@pytest.mark.parametrize("key", GOLDEN_RUNS)
def test_curves_and_summaries_equal_the_toolkits(key, ope_golden):
    validity, benchmark, variant = [*key.split("_"), ""][:3]
    rules = benchmark_rules(benchmark, validity, variant == "exclude")
    run = ope_golden.summary["runs"][key]
    trackers = ["steady", "laggy", "drifty"] if variant == "merged3" else run["trackers"]

    curves, average_overlap = [], []
    for name in ope_golden.summary["sequences"]:
        sequence = ope_golden.sequence(benchmark, name)
        by_tracker = []
        for tracker in trackers:
            boxes_xywh = ope_golden.boxes(tracker, name)
            if variant == "intpred":
                boxes_xywh = np.trunc(boxes_xywh)
            errors = frame_errors(boxes_xywh, sequence.boxes_xywh, sequence.visible, rules)
            by_tracker.append((sequence_curves(errors, rules), errors.average_overlap))
        stacked, overlaps = stack_curves([c for c, _ in by_tracker]), [o for _, o in by_tracker]
        if variant == "merged3":  # three runs of one tracker: runs are averaged before sequences
            stacked, overlaps = stack_curves([stacked.mean()]), [np.mean(overlaps)]
        curves.append(stacked)
        average_overlap.append(overlaps)
    curves = stack_curves(curves)

    for curve in CURVES:
        ours = getattr(curves, curve)
        np.testing.assert_allclose(ours, ope_golden.curves[f"{key}/{curve}"], rtol=0, atol=FRACTION)
        overall = 100 * getattr(curves.mean(), curve)
        np.testing.assert_allclose(overall, ope_golden.curves[f"{key}/{curve}_overall"], rtol=0, atol=PERCENT)
    for name, attribute in HEADLINES.items():
        np.testing.assert_allclose(getattr(curves.mean(), attribute), run[name], rtol=0, atol=PERCENT)
    for name, attribute in SEQUENCE_HEADLINES.items():
        np.testing.assert_allclose(getattr(curves, attribute), run[name], rtol=0, atol=PERCENT)
    np.testing.assert_allclose(average_overlap, run["per_sequence_average_overlap"], rtol=0, atol=FRACTION)


def test_goldens_cover_every_rule():
    # The keys come from the file: this fails if it shrinks.
    assert len(GOLDEN_RUNS) == 15
    assert {key.split("_")[1] for key in GOLDEN_RUNS} == {"lasot", "uav", "otb", "nfs"}


def test_frame_errors_equal_the_toolkit(ope_golden):
    triples = sorted({tuple(key.split("/")[:3]) for key in ope_golden.frames.files})
    assert len(triples) == 5
    for benchmark, name, tracker in triples:
        rules = benchmark_rules(benchmark, "pytracking")
        sequence = ope_golden.sequence(benchmark, name)
        boxes_xywh = ope_golden.boxes(tracker, name)
        errors = frame_errors(boxes_xywh, sequence.boxes_xywh, sequence.visible, rules)
        golden = {k: ope_golden.frames[f"{benchmark}/{name}/{tracker}/{k}"] for k in _GOLDEN_FIELDS}
        _assert_errors(errors, golden)


def test_edge_cases_equal_the_toolkits(ope_golden):
    outcomes = {"errors": 0, "exception": 0}
    for case in ope_golden.edge_cases:
        boxes_xywh, groundtruth = np.array(case["pred"], float), np.array(case["gt"], float)
        visible = None if case["visible"] is None else np.array(case["visible"], bool)
        for validity, expected in case["expect"].items():
            rules = benchmark_rules(case["dataset"], validity)
            if "exception" in expected:
                with pytest.raises(ValueError):
                    frame_errors(boxes_xywh, groundtruth, visible, rules)
                outcomes["exception"] += 1
            else:
                errors = frame_errors(boxes_xywh, groundtruth, visible, rules)
                _assert_errors(errors, {k: np.array(expected[k], float) for k in _GOLDEN_FIELDS})
                outcomes["errors"] += 1
    assert outcomes == {"errors": 52, "exception": 10}


def test_thresholds_equal_the_toolkits_to_the_last_bit(ope_golden):
    np.testing.assert_array_equal(OVERLAP_THRESHOLDS, ope_golden.curves["thresholds/overlap"])
    np.testing.assert_array_equal(CENTER_THRESHOLDS, ope_golden.curves["thresholds/center"])
    np.testing.assert_array_equal(NORM_CENTER_THRESHOLDS, ope_golden.curves["thresholds/center_norm"])
    with pytest.raises(ValueError, match="read-only"):
        OVERLAP_THRESHOLDS[0] = 1


def test_excluding_invalid_frames_can_exceed_one_as_in_the_toolkits():
    # Two frames, the second without area: -1 in the normalised error is a hit, and only one frame is counted.
    truth = np.array([[5.0, 5, 10, 10], [5, 5, 0, 0]])
    rules = benchmark_rules("otb", exclude_invalid_frames=True)
    curves = sequence_curves(frame_errors(truth, truth, None, rules), rules)
    assert curves.norm_precision[0] == 2.0
    assert curves.precision[0] == 1.0


@pytest.mark.parametrize("benchmark", sorted(BENCHMARK_RULES))
def test_a_perfect_tracker_has_20_of_21(benchmark):
    truth = np.array([[5.0, 6, 16, 8], [7, 8, 32, 4], [9, 1, 2, 2]])
    rules = benchmark_rules(benchmark)
    curves = sequence_curves(frame_errors(truth, truth, np.ones(3, bool), rules), rules)
    assert curves.auc == pytest.approx(100 * 20 / 21, abs=1e-9)
    assert (curves.op50, curves.op75, curves.precision20, curves.norm_precision20) == (100, 100, 100, 100)


@pytest.mark.parametrize("validity", ["mixformer", "pytracking"])
def test_absent_targets_of_a_folder_are_misses_like_lasots_invisible_frames(validity):
    truth = np.array([[5.0, 6, 16, 8], [7, 8, 32, 4], [9, 1, 2, 2], [9, 1, 2, 2]])
    boxes_xywh = truth + np.array([0, 0.5, 0, 0])
    visible = np.array([True, False, True, True])
    folder, lasot = benchmark_rules("folder", validity), benchmark_rules("lasot", validity)

    reference = sequence_curves(frame_errors(boxes_xywh, truth, visible, lasot), lasot)
    with_nan = np.where(visible[:, None], truth, np.nan)
    without_area = np.where(visible[:, None], truth, 0.0)
    for marked, flags in ((with_nan, None), (without_area, None), (truth, visible)):
        curves = sequence_curves(frame_errors(boxes_xywh, marked, flags, folder), folder)
        for curve in CURVES:
            np.testing.assert_array_equal(getattr(curves, curve), getattr(reference, curve))
    assert reference.norm_precision[-1] == 0.75


def test_every_reader_has_rules():
    assert set(READERS) - set(BENCHMARK_RULES) == {
        "vot",
        "vot_rgbd",
        "depthtrack",
        *LONG_TERM,
    }  # VOT has measures of its own
    with pytest.raises(ValueError, match=r"'lassot'.*known: .*lasot"):
        benchmark_rules("lassot")


@pytest.mark.parametrize(
    ("boxes", "groundtruth", "rules", "message"),
    [
        ([[1, 1, 5, 5], [1, 1, np.inf, 5]], [[1, 1, 5, 5]] * 2, OpeRules(), "row 2 is"),
        ([[1, 1, 5, 5], [1, 1e12, 5, 5]], [[1, 1, 5, 5]] * 2, OpeRules(), "row 2 is"),
        ([[1, 1, 5, 5]] * 2, [[1, 1, 5, 5], [1, np.inf, 5, 5]], OpeRules(), "ground truth row 2"),
        ([[1, 1, 5, 5]], np.empty((0, 4)), OpeRules(), "no rows"),
        ([[1, 1, 5, 5]], [[1, 1, 5, 5]] * 2, OpeRules(pad_short_results=False), "1 predicted boxes for 2"),
        (np.empty((0, 4)), [[1, 1, 5, 5]] * 2, OpeRules(pad_short_results=False), "0 predicted boxes for 2"),
    ],
)
def test_unusable_input_is_named(boxes, groundtruth, rules, message):
    with pytest.raises(ValueError, match=message):
        frame_errors(np.array(boxes, float), np.array(groundtruth, float), None, rules)


def test_rates_over_no_valid_frame_are_an_error():
    rules = OpeRules(exclude_invalid_frames=True)
    errors = frame_errors(np.ones((2, 4)), np.zeros((2, 4)), None, rules)
    assert np.isnan(errors.average_overlap)
    with pytest.raises(ValueError, match="no valid frame"):
        sequence_curves(errors, rules)
    with pytest.raises(ValueError, match="no sequences"):
        stack_curves([])


_coordinates = st.floats(-50, 50)
_sizes = st.sampled_from([0.0, 0.5, 1.0, 7.5, 30.0])
_boxes = hnp.arrays(np.float64, (6, 2), elements=_coordinates).flatmap(
    lambda corners: hnp.arrays(np.float64, (6, 2), elements=_sizes).map(
        lambda sizes: np.concatenate([corners, sizes], 1)
    )
)


@given(boxes_xywh=_boxes, truth=_boxes, rows=st.integers(0, 6), data=st.data())
def test_properties_of_any_score(boxes_xywh, truth, rows, data):
    benchmark = data.draw(st.sampled_from(["folder", "uav", "otb", "lasot"]))
    validity = data.draw(st.sampled_from(["mixformer", "pytracking"]))
    rules = dataclasses.replace(benchmark_rules(benchmark, validity), pad_short_results=True)
    visible = data.draw(hnp.arrays(bool, 6)) if benchmark == "lasot" else None
    boxes_xywh = boxes_xywh[:rows]
    before = boxes_xywh.copy(), truth.copy()

    errors = frame_errors(boxes_xywh, truth, visible, rules)
    np.testing.assert_array_equal(boxes_xywh, before[0])
    np.testing.assert_array_equal(truth, before[1])

    assert not any(np.isnan(field).any() for field in (errors.overlap, errors.center, errors.norm_center))
    assert ((errors.overlap[errors.valid] >= 0) & (errors.overlap[errors.valid] <= 1 + 1e-9)).all()
    assert (errors.overlap[~errors.valid] == -1).all()
    curves = sequence_curves(errors, rules)
    assert (np.diff(curves.success) <= 0).all()
    assert (np.diff(curves.precision) >= 0).all()
    assert (np.diff(curves.norm_precision) >= 0).all()
    # The definition, frame by frame against threshold by threshold.
    for threshold in range(21):
        hits = (errors.overlap > OVERLAP_THRESHOLDS[threshold]).mean()
        assert curves.success[threshold] == pytest.approx(hits, abs=1e-12)


_GOLDEN_FIELDS = ("overlap", "center", "center_norm", "valid")


def _assert_errors(errors, golden):
    for field, ours in zip(
        _GOLDEN_FIELDS, (errors.overlap, errors.center, errors.norm_center, errors.valid), strict=True
    ):
        np.testing.assert_allclose(ours, golden[field], rtol=0, atol=1e-9)
