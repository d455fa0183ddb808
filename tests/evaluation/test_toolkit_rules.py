"""The rule sets of the got10k and LaSOT toolkits against their numbers for the same files."""

import json
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.evaluation.metrics import (
    benchmark_rules,
    describe_rules,
    frame_errors,
    headline,
    mean_over_sequences,
    sequence_curves,
    stack_curves,
)

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "evalgold" / "ope" / "golden"
TRACKERS = ("steady", "laggy", "drifty", "fragile", "scalebad")
FRACTION = 1e-6


def _curves(ope_golden, benchmark, tracker, rules):
    curves = []
    for name in ope_golden.summary["sequences"]:
        sequence = ope_golden.sequence(benchmark, name)
        errors = frame_errors(ope_golden.boxes(tracker, name), sequence.boxes_xywh, sequence.visible, rules)
        curves.append(sequence_curves(errors, rules))
    return stack_curves(curves)


@pytest.mark.parametrize("tracker", TRACKERS)
@pytest.mark.parametrize("benchmark", ["otb", "nfs", "uav", "lasot"])
def test_every_value_of_the_got10k_toolkit(benchmark, tracker, ope_golden):
    golden = json.loads((GOLDEN / "got10k_toolkit.json").read_text())
    golden_curves = np.load(GOLDEN / "got10k_toolkit_curves.npz")
    rules = benchmark_rules(benchmark, "got10k-toolkit")
    curves = _curves(ope_golden, benchmark, tracker, rules)
    overall = mean_over_sequences(curves, rules)
    assert golden["sequences"] == ope_golden.summary["sequences"]

    ours = {
        "success_score": "AUC",
        "precision_score": "P",
        "success_rate": "OP50",
        "normalized_precision_score": "P_norm",
    }
    expected = golden["results"][benchmark][tracker]
    for values, numbers in [(expected["overall"], headline(overall, rules))] + [
        (expected["seq_wise"][name], {k: v[i] for k, v in headline(curves, rules).items()})
        for i, name in enumerate(golden["sequences"])
    ]:
        assert values.keys() - ours.keys() == {"speed_fps"}
        for key in values.keys() & ours.keys():
            assert numbers[ours[key]] / 100 == pytest.approx(values[key], abs=FRACTION)

    keys = [key for key in golden_curves.files if key.startswith(f"{benchmark}/{tracker}/")]
    assert len(keys) == (6 if benchmark == "lasot" else 4)
    fields = {
        "success_curve": "success",
        "precision_curve": "precision",
        "normalized_precision_curve": "norm_precision",
    }
    for key in keys:
        _, _, curve, which = key.split("/")
        ours_curve = getattr(curves if which == "seq" else overall, fields[curve])
        np.testing.assert_allclose(ours_curve, golden_curves[key], rtol=0, atol=FRACTION)


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_value_of_the_lasot_toolkits_rules(tracker, ope_golden):
    golden = json.loads((GOLDEN / "lasot_toolkit_transcribed.json").read_text())["results"][tracker]
    rules = benchmark_rules("lasot", "lasot-toolkit")
    curves = _curves(ope_golden, "lasot", tracker, rules)
    overall = mean_over_sequences(curves, rules)
    ours = {
        "success_auc": overall.auc,
        "success_at_05": overall.op50,
        "success_at_075": overall.op75,
        "precision20": overall.precision20,
        "norm_precision_02": overall.norm_precision20,
        "per_sequence_auc": curves.auc,
        "per_sequence_precision20": curves.precision20,
        "per_sequence_norm_precision02": curves.norm_precision20,
        "success_curve": 100 * overall.success,
        "precision_curve": 100 * overall.precision,
        "norm_precision_curve": 100 * overall.norm_precision,
    }
    assert golden.keys() == ours.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value / 100, golden[key], rtol=0, atol=FRACTION, err_msg=key)


def test_the_lasot_toolkit_repeats_the_box_before_an_unusable_one():
    truth = np.tile([50.0, 50, 20, 20], (5, 1))
    boxes_xywh = truth.copy()
    boxes_xywh[1] = np.nan
    boxes_xywh[2] = (50, 50, -3, 20)
    boxes_xywh[4] = (50, 50, 0, 20)
    rules = benchmark_rules("otb", "lasot-toolkit")
    np.testing.assert_array_equal(frame_errors(boxes_xywh, truth, None, rules).overlap, np.ones(5))
    # Nothing to repeat: the frames are misses in all three curves, and no NaN comes out.
    boxes_xywh[0] = np.nan
    errors = frame_errors(boxes_xywh, truth, None, rules)
    np.testing.assert_array_equal(errors.overlap, [1, -1, -1, 1, 1])
    np.testing.assert_array_equal(errors.center, [0, np.inf, np.inf, 0, 0])
    for rule_set in ("mixformer", "pytracking", "got10k-toolkit"):
        with pytest.raises(ValueError, match="row 1 is"):
            frame_errors(boxes_xywh, truth, None, benchmark_rules("otb", rule_set))


def test_the_lasot_toolkit_drops_sequences_without_any_hit():
    rules = benchmark_rules("lasot", "lasot-toolkit")
    truth = np.tile([50.0, 50, 20, 20], (4, 1))
    seen = sequence_curves(frame_errors(truth, truth, np.ones(4, bool), rules), rules)
    unseen = sequence_curves(frame_errors(truth, truth, np.zeros(4, bool), rules), rules)
    both = stack_curves([seen, unseen])
    assert mean_over_sequences(both, rules).op50 == 100
    assert mean_over_sequences(both, benchmark_rules("lasot")).op50 == 50
    assert mean_over_sequences(stack_curves([unseen]), rules).auc == 0


def test_the_got10k_toolkit_counts_boxes_without_area_and_leaves_out_unknown_ones():
    truth = np.array([[50.0, 50, 20, 20], [50, 50, 0, 0], [np.nan] * 4, [50, 50, 20, 20]])
    boxes_xywh = np.tile([50.0, 50, 20, 20], (4, 1))
    rules = benchmark_rules("uav", "got10k-toolkit")
    curves = sequence_curves(frame_errors(boxes_xywh, truth, None, rules), rules)
    assert curves.success[0] == pytest.approx(2 / 3)
    assert curves.success[-1] == 0  # clipped at 1, so that a perfect frame is never above it
    assert curves.precision[-1] == 1
    with pytest.raises(ValueError, match="row 3 holds NaN"):
        frame_errors(boxes_xywh, truth, None, benchmark_rules("otb", "got10k-toolkit"))


def test_an_option_of_two_rule_sets_is_refused_by_the_others():
    for rule_set in ("lasot-toolkit", "got10k-toolkit"):
        with pytest.raises(ValueError, match=f"not of {rule_set}"):
            benchmark_rules("otb", rule_set, exclude_invalid_frames=True)
        assert describe_rules(benchmark_rules("lasot", rule_set)).startswith(f"{rule_set} rules")
