"""The tracking loop against the official trackers, over 60 frames of every family, with and without scores."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models.mixformer import build_model
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.step import track_sequence

pytestmark = pytest.mark.usefixtures("quick_compilation")

PIXELS = 0.02
SCORE = 1e-3
FAMILIES = ("vit", "convmae", "cvt")
LOOPS = ("plain", "online1", "online2", "online3")
EVERY = [(family, name) for family in FAMILIES for name in LOOPS]
# One program for a whole sequence takes long to compile: every rule once, and every family.
SCANNED = [*(("vit", name) for name in LOOPS), ("convmae", "online2"), ("cvt", "online3")]


@pytest.fixture
def case(request, golden_loop):
    return golden_loop(*request.param)


def statistics(crops):
    """Mean and deviation of each crop, as the model sees it."""
    pixels = normalise(np.asarray(crops)).astype(np.float64)
    return np.stack([pixels.mean(axis=(-3, -2, -1)), pixels.std(axis=(-3, -2, -1))], axis=-1)


@pytest.mark.parametrize("case", EVERY, indirect=True, ids="-".join)
def test_host_loop_does_what_the_official_loop_does(case):
    tracker = case.tracker()
    state = tracker.start(case.frames[0], case.box_xywh)
    slots = case.settings.num_online_templates
    for index, frame in enumerate(case.frames[1:]):
        crops = tracker.search_crops(state, frame)
        assert int(crops.pixels.sum(dtype=np.int64)) == case["search_sum"][index]
        state, tracked = tracker.step(state, frame)
        np.testing.assert_allclose(tracked.box_xywh, case["target_bbox"][index], atol=PIXELS, rtol=0)

        filled = np.asarray(state.filled[0, 1:])
        assert filled.sum() == case["ot_count"][index] and (np.diff(filled.astype(int)) <= 0).all()
        online = statistics(state.templates[0, 1:])
        np.testing.assert_allclose(online[filled], case["ot_mean_std"][index][filled], atol=2e-5)
        if case.config.score_heads == 0:
            assert tracked.score is None and tracked.is_lost is None and state.memory is None
            continue
        assert tracked.score == pytest.approx(case["pred_score"][index], abs=SCORE)
        assert float(state.memory.best[0]) == pytest.approx(case["max_pred_score"][index], abs=SCORE)
        np.testing.assert_allclose(statistics(state.memory.candidates[0]), case["max_mean_std"][index], atol=2e-5)
        overwritten = max(0, int(state.num_refreshes) - (slots - 1)) % slots
        assert overwritten == case["forget_id"][index]
    assert int(state.num_refreshes) == 5


@pytest.mark.parametrize("case", SCANNED, indirect=True, ids="-".join)
def test_scan_does_what_the_official_loop_does(case):
    found = track_sequence(
        build_model(case.config),
        case.settings,
        case.variables,
        jnp.asarray(case.frames),
        jnp.asarray(case.box_xywh[None], jnp.float32),
    )
    boxes_xywh = np.asarray(found.boxes_xywh)
    assert boxes_xywh.shape == (60, 1, 4)
    np.testing.assert_allclose(boxes_xywh[0, 0], case.box_xywh, rtol=1e-6)
    np.testing.assert_allclose(boxes_xywh[1:, 0], case["target_bbox"], atol=PIXELS, rtol=0)
    np.testing.assert_allclose(found.boxes_cxcywh[1:, 0], case["raw_pred_boxes"], atol=1e-4)
    if case.config.score_heads == 0:
        assert found.scores is None and found.is_candidate is None and found.lost is None
    else:
        np.testing.assert_allclose(found.scores[1:, 0], case["pred_score"], atol=SCORE)
        passed = case["max_pred_score"] == case["pred_score"]
        ends = np.arange(1, 60) % case.settings.update_interval == 0  # the best is forgotten before it is recorded
        np.testing.assert_array_equal(np.asarray(found.is_candidate)[1:, 0][~ends], passed[~ends])
        assert passed.any()
