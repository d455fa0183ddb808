"""The tracking loop without scores against the official one, over 60 frames: host crops, device crops, scan."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.convert.names import variables_from_official
from mixformer_jax.crops import context_crop
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model
from mixformer_jax.tracking.step import start, step
from mixformer_jax.tracking.tracker import Tracker

PIXELS = 0.02


@pytest.fixture(scope="module")
def case(golden):
    arrays = golden("track/vit.npz")
    meta = json.loads(str(arrays["meta"]))
    model = MixFormerConfig(
        name="golden",
        search_size=meta["search"],
        template_size=meta["template"],
        width=meta["dims"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        head="corner_pyramid",
        head_width=meta["head_dim"],
        head_norm="frozen",
    )
    state = {
        name.removeprefix("state/"): arrays[name]
        for name in arrays.files
        if name.startswith("state/") and "score_branch" not in name
    }
    settings = TrackerConfig(
        template_factor=meta["template_factor"],
        search_factor=meta["search_factor"],
        num_online_templates=1,
        update_interval=meta["update_interval"],
    )
    frames = np.ascontiguousarray(np.moveaxis(arrays["video_hwct"], -1, 0))
    return arrays, model, settings, variables_from_official(state, model), frames


def test_host_loop(case):
    arrays, model, settings, variables, frames = case
    tracker = Tracker(model, settings, variables)
    state = tracker.start(frames[0], arrays["init_bbox"])
    boxes = []
    for index, frame in enumerate(frames[1:]):
        crop = tracker.search_crop(state, frame)
        assert int(crop.pixels.sum(dtype=np.int64)) == arrays["plain/search_sum"][index]
        state, tracked = tracker.step(state, frame)
        assert tracked.score is None
        boxes.append(tracked.box_xywh)
    assert np.abs(np.stack(boxes) - arrays["plain/target_bbox"]).max() < PIXELS
    assert int(state.num_refreshes) == 5


def test_one_program_from_frames_to_boxes(case):
    arrays, model, settings, variables, frames = case
    network = build_model(model)
    state = start(network, settings, variables, jnp.asarray(frames[0]), jnp.asarray(arrays["init_bbox"][None]))
    _, found = jax.lax.scan(
        lambda state, frame: step(network, settings, variables, state, frame), state, jnp.asarray(frames[1:])
    )
    np.testing.assert_allclose(found.boxes_cxcywh[:, 0], arrays["plain/raw_pred_boxes"], atol=1e-4)
    assert np.abs(found.boxes_xywh[:, 0] - arrays["plain/target_bbox"]).max() < PIXELS


def test_slots_fill_up_then_the_oldest_goes(case):
    arrays, model, settings, variables, frames = case
    settings = dataclasses.replace(settings, num_online_templates=3, update_interval=1)
    tracker = Tracker(model, settings, variables)
    state = tracker.start(frames[0], arrays["init_bbox"])
    assert state.filled.tolist() == [[True, True, False, False]]
    for expected_slot in (2, 3, 1, 2):
        before = np.asarray(state.templates[0])
        state, tracked = tracker.step(state, frames[1])
        after = np.asarray(state.templates[0])
        assert np.flatnonzero((before != after).any(axis=(1, 2, 3))).tolist() in ([expected_slot], [])
        crop = context_crop(frames[1], tracked.box_xywh, settings.template_factor, model.template_size)
        np.testing.assert_array_equal(after[expected_slot], crop.pixels)
    assert state.filled.all()


def test_several_targets_at_once(case):
    arrays, model, settings, variables, frames = case
    network = build_model(model)
    boxes = np.stack([arrays["init_bbox"], arrays["init_bbox"] + [8.0, 4.0, 2.0, 2.0]]).astype(np.float32)
    together = start(network, settings, variables, jnp.asarray(frames[0]), jnp.asarray(boxes))
    _, both = step(network, settings, variables, together, jnp.asarray(frames[1]))
    for index in range(2):
        alone = start(network, settings, variables, jnp.asarray(frames[0]), jnp.asarray(boxes[index : index + 1]))
        _, one = step(network, settings, variables, alone, jnp.asarray(frames[1]))
        np.testing.assert_allclose(both.boxes_xywh[index], one.boxes_xywh[0], atol=1e-3)


def test_bad_input_is_met_at_the_door(case):
    _arrays, model, settings, variables, frames = case
    tracker = Tracker(model, settings, variables)
    with pytest.raises(ValueError, match="no area"):
        tracker.start(frames[0], (10, 10, 0, 5))
    with pytest.raises(ValueError, match="outside the frame"):
        tracker.start(frames[0], (1000, 10, 5, 5))
    with pytest.raises(ValueError, match="NaN"):
        tracker.start(frames[0], (1, float("nan"), 5, 5))
