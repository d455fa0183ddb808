import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.evaluation.evaluation_servers import (
    THRESHOLDS,
    score_sequence,
    score_sequences,
)

FOLDER = Path(__file__).resolve().parents[1] / "data" / "evalgold" / "trackingnet"


def _archive(name):
    with zipfile.ZipFile(FOLDER / f"{name}.zip") as archive:
        return {
            Path(member).stem: np.loadtxt(io.BytesIO(archive.read(member)), delimiter=",", ndmin=2)
            for member in archive.namelist()
        }


def _golden():
    return json.loads((FOLDER / "devkit.json").read_text())


@pytest.mark.parametrize("tracker", sorted(_golden()["results"]))
def test_every_value_of_the_dev_kit(tracker):
    golden = _golden()["results"][tracker]
    scores = score_sequences(_archive(tracker), _archive("GT"))
    assert len(scores.covered) == 12
    overall = scores.curves.mean()
    numbers = scores.headline
    assert golden.keys() == {
        *("coverage", "success", "precision", "normalized_precision"),
        *("curve_success", "curve_precision", "curve_normalized_precision"),
    }
    for name, key in (
        ("Success", "success"),
        ("P", "precision"),
        ("P_norm", "normalized_precision"),
        ("Coverage", "coverage"),
    ):
        assert numbers[name] == pytest.approx(golden[key], abs=1e-4)
    np.testing.assert_allclose(overall.success, golden["curve_success"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(overall.precision, golden["curve_precision"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(overall.norm_precision, golden["curve_normalized_precision"], rtol=0, atol=1e-6)


def test_thresholds():
    golden = _golden()["thresholds"]
    np.testing.assert_array_equal(THRESHOLDS.success, golden["success"])
    np.testing.assert_array_equal(THRESHOLDS.precision, golden["precision"])
    np.testing.assert_array_equal(THRESHOLDS.norm_precision, golden["normalized_precision"])


def test_a_perfect_tracker_has_100():
    truth = np.array([[5.0, 6, 16, 8], [7, 8, 32, 4], [9, 1, 2, 2]])
    numbers = score_sequences({"a": truth, "b": truth + 0.4}, {"a": truth, "b": truth}).headline
    assert numbers == pytest.approx({"Success": 100, "P": 100, "P_norm": 100, "Coverage": 100})


def test_missing_rows_fail_everywhere_and_missing_files_are_empty_boxes():
    truth = np.tile([50.0, 50, 20, 20], (4, 1))
    short, covered = score_sequence(truth[:2], truth)
    assert short.success[0] == short.precision[-1] == 0.5
    assert covered.tolist() == [True, True, False, False]
    absent = score_sequences({"a": None}, {"a": truth})
    assert absent.curves.success[0, 0] == 1.0  # an overlap of 0 is >= 0
    assert absent.curves.success[0, 1] == 0.25
    assert absent.headline["Coverage"] == 25.0
    assert score_sequences({}, {"a": truth}).headline == absent.headline


def test_rounding_is_half_to_even_and_arguments_stay():
    truth = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    boxes = np.array([[0.0, 0, 10, 10], [0.5, 1.5, 10, 10]])
    before = boxes.copy()
    curves, _ = score_sequence(boxes, truth)
    exact, _ = score_sequence(np.array([[0.0, 0, 10, 10], [0, 2, 10, 10]]), truth)
    np.testing.assert_array_equal(curves.success, exact.success)
    np.testing.assert_array_equal(boxes, before)


def test_true_boxes_without_area_reach_no_normalised_threshold():
    truth = np.array([[5.0, 5, 10, 10], [5, 5, 0, 0]])
    curves, _ = score_sequence(truth, truth)
    assert curves.norm_precision[-1] == 0.5 and curves.success[0] == 0.5 and curves.precision[0] == 1.0


@pytest.mark.parametrize(
    ("boxes", "truth", "message"),
    [
        ({}, {}, "no sequences"),
        ({"a": np.ones((3, 4))}, {"a": np.ones((2, 4))}, "a: 3 predicted boxes for 2 frames"),
        ({"a": np.ones((2, 4))}, {"a": np.array([[1, 1, 5, 5], [np.nan] * 4])}, "a: the ground truth is not finite"),
    ],
)
def test_unusable_input_is_named(boxes, truth, message):
    with pytest.raises(ValueError, match=message):
        score_sequences(boxes, truth)
