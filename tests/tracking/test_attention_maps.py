"""The maps against the model's own attention, which tells its weights when its values are the identity."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.boxes import cxcywh_to_xyxy
from mixformer_jax.crops import context_crop
from mixformer_jax.models import attention
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig, size_config
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.attention_maps import (
    attention_maps,
    block_names,
    choose_blocks,
    looked_at,
    looking_at,
    mixing_blocks,
    token_mask,
)
from mixformer_jax.tracking.tracker import Tracker

VIT = MixFormerConfig(
    name="tiny", search_size=64, template_size=32, width=48, depth=2, num_heads=3, head="corner", head_width=16
)
CVT = dataclasses.replace(
    VIT,
    backbone="cvt",
    search_size=32,
    template_size=24,
    patch_size=8,
    early_widths=(16,),
    early_depths=(1,),
    early_heads=(1,),
    depth=1,
    projection="depthwise",
)
CONVMAE = dataclasses.replace(VIT, patch_embed="convmae", early_widths=(16, 24), early_depths=(1, 1), depth=1)
BOX = np.array([0.3, 0.3, 0.7, 0.7])

# Config, online templates, tokens along a side of search region and template, keys along a side of both.
CASES = {
    "vit": (VIT, 2, (4, 2), (4, 2)),
    "no online templates": (VIT, 0, (4, 2), (4, 2)),
    "regression token": (dataclasses.replace(VIT, head="query"), 1, (4, 2), (4, 2)),
    "cvt": (CVT, 2, (4, 3), (2, 2)),
    "convmae": (CONVMAE, 1, (4, 2), (4, 2)),
    "symmetric": (dataclasses.replace(VIT, attention="symmetric"), 1, (4, 2), (4, 2)),
}


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """Compiling takes longer than running here."""


def make(config, num_online_templates):
    """A tracker with weights so large that attention is far from even, its state after two frames, and a third one."""
    frames = np.random.default_rng(0).integers(0, 255, (3, 60, 80, 3), np.uint8)
    rng = np.random.default_rng(1)

    def draw(path, shape):
        values = rng.normal(0.0, 0.5, shape.shape).astype(np.float32)
        return np.abs(values) if path[-1].key in ("scale", "var") else values

    variables = jax.tree_util.tree_map_with_path(draw, variable_shapes(build_model(config)))
    settings = TrackerConfig(num_online_templates=num_online_templates, update_interval=1)
    tracker = Tracker(config, settings, variables)
    state = tracker.start(frames[0], (30, 20, 16, 16))
    return tracker, tracker.step(state, frames[1])[0], frames[2]


def caught_weights(monkeypatch, tracker, state, frame):
    """What every attention of a joint pass gives to its keys, in the order of the calls: [q, k], mean of heads."""
    caught = []
    original = attention.attend

    def attend(queries, keys, values, key_mask, scale, kernel):
        # As many columns of the identity at a time as values have channels.
        channels, identity = keys.shape[3], jnp.eye(keys.shape[2])
        parts = [identity[:, first : first + channels] for first in range(0, len(identity), channels)]
        parts = [jnp.pad(part, ((0, 0), (0, channels - part.shape[1]))) for part in parts]
        told = [original(queries, keys, jnp.broadcast_to(part, keys.shape), key_mask, scale, kernel) for part in parts]
        caught.append(jnp.concatenate(told, axis=-1)[0].mean(axis=0)[:, : len(identity)])
        return original(queries, keys, values, key_mask, scale, kernel)

    box_xywh = np.asarray(state.boxes_xywh, np.float64)[0]
    crop = context_crop(frame, box_xywh, tracker.settings.search_factor, tracker.config.search_size).pixels

    def run(templates, search):
        tracker.model.apply(tracker.variables, normalise(templates), normalise(search), jnp.asarray(state.filled))
        return tuple(caught)

    with monkeypatch.context() as patched:
        patched.setattr(attention, "attend", attend)
        return [np.asarray(weights) for weights in jax.jit(run)(state.templates, crop[None])]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_the_models_own(monkeypatch, case):
    config, online, (search_side, template_side), (search_keys, template_keys) = CASES[case]
    tracker, state, frame = make(config, online)
    maps = attention_maps(tracker, state, frame, BOX, [mixing_blocks(config)[-1]])
    caught = caught_weights(monkeypatch, tracker, state, frame)
    of_search = caught[-1][: search_side**2]
    of_templates = caught[-2]
    found = {kind: weights for kind, (weights,) in maps.weights.items()}
    per_slot = template_keys**2

    def expect(kind, weights, first_key, query_side, key_side):
        expected = weights[:, first_key : first_key + key_side**2]
        shape = (query_side, query_side, key_side, key_side)
        np.testing.assert_allclose(found[kind], expected.reshape(shape), atol=1e-6)

    assert np.ptp(found["S-to-T"]) > 1e-3
    expect("S-to-T", of_search, 0, search_side, template_keys)
    expect("S-to-S", of_search, (1 + online) * per_slot, search_side, search_keys)
    if online == 0:
        assert set(found) == {"S-to-T", "S-to-S"} and "online" not in maps.views
        return
    # Slot 0 is the initial template, 1 the copy of it, and the renewal on the second frame went to the other slot.
    newest = 1 + 1 % online
    np.testing.assert_array_equal(maps.views["online"].pixels, np.asarray(state.templates)[0, newest])
    expect("S-to-OT", of_search, newest * per_slot, search_side, template_keys)
    rows = slice(newest * template_side**2, (newest + 1) * template_side**2)
    expect("OT-to-T", of_templates[rows], 0, template_side, template_keys)


def test_empty_slots_get_no_weight():
    """All that a query gives goes to the template, to the one online template that there is, and to the region."""
    tracker, state, frame = make(VIT, 3)
    state = state._replace(filled=np.array([[True, False, True, False]]))
    maps = attention_maps(tracker, state, frame, BOX)
    for block in range(2):
        given = sum(maps.weights[kind][block].sum(axis=(2, 3)) for kind in ("S-to-T", "S-to-OT", "S-to-S"))
        np.testing.assert_allclose(given, 1.0, atol=1e-5)


def test_cross_attention_blocks_see_templates_alone():
    config = dataclasses.replace(VIT, depth=1, mixed_blocks=0, cross_attention_blocks=1)
    tracker, state, frame = make(config, 1)
    maps = attention_maps(tracker, state, frame, BOX)
    assert maps.blocks == ("CAM0",)
    given = sum(maps.weights[kind][0].sum(axis=(2, 3)) for kind in ("S-to-T", "S-to-OT"))
    np.testing.assert_allclose(given, 1.0, atol=1e-5)
    assert maps.weights["S-to-S"] == (None,) and maps.weights["OT-to-T"] == (None,)


def test_views_and_score():
    config = dataclasses.replace(VIT, depth=1, score_heads=3)
    tracker, state, frame = make(config, 1)
    tracker = tracker.with_settings(entropy_margin=0.1)
    state = state._replace(memory=state.memory._replace(usual_entropy=jnp.zeros(1)))
    maps = attention_maps(tracker, state, frame, BOX)
    crops = tracker.search_crops(state, frame)
    prediction = tracker.locate(state, crops, frame)[1]
    np.testing.assert_array_equal(maps.views["search"].pixels, crops.pixels[0])
    np.testing.assert_allclose(
        maps.views["search"].box_xyxy, cxcywh_to_xyxy(np.asarray(prediction.boxes_cxcywh)[0]), atol=1e-5
    )
    assert maps.score == pytest.approx(float(prediction.scores[0]), abs=1e-5)
    # A template factor of 2 leaves the target the middle half of the online template.
    np.testing.assert_allclose(maps.views["online"].box_xyxy, [0.25, 0.25, 0.75, 0.75])


def test_names_and_choice_of_blocks():
    mixcvt = size_config("mixcvt")
    assert block_names(mixcvt)[:6] == ("S0-B0", "S1-B0", "S1-B1", "S1-B2", "S1-B3", "S2-B0")
    # The columns of Fig. 8.
    assert choose_blocks(mixcvt) == tuple(f"S2-B{index}" for index in (0, 2, 4, 6, 8, 10, 12, 14, 15))
    assert choose_blocks(mixcvt, ["all"]) == block_names(mixcvt)
    assert choose_blocks(mixcvt, ["s2-b3", "S0-B0"]) == ("S2-B3", "S0-B0")
    assert choose_blocks(VIT) == block_names(VIT) == ("B0", "B1")
    assert choose_blocks(size_config("sam15_mam6")) == tuple(f"S2-B{index}" for index in range(10, 16))
    assert block_names(size_config("mixvit_b_depth12_d2"))[-3:] == ("S0-B11", "S1-B0", "S1-B1")


def test_blocks_that_do_not_mix_are_refused():
    with pytest.raises(ConfigError, match=r"no blocks 'B2, x' .* expected 'all', or some of B0, B1$"):
        choose_blocks(VIT, ["B1", "B2", "x"])
    with pytest.raises(ConfigError, match=r"no blocks 'S2-B9' .* some of S2-B10, "):
        choose_blocks(size_config("sam15_mam6"), ["S2-B9"])
    with pytest.raises(ConfigError, match="no attention block of 'sam21_transt4' sees both"):
        choose_blocks(size_config("sam21_transt4"))


@given(
    st.integers(1, 9),
    st.tuples(*[st.floats(-0.5, 1.5)] * 2),
    st.tuples(*[st.floats(0.0, 1.2)] * 2),
)
def test_token_mask(side, corner, size):
    box_xyxy = np.array([*corner, corner[0] + size[0], corner[1] + size[1]])
    inside = token_mask(side, box_xyxy)
    assert inside.any()
    if inside.sum() > 1:
        rows, columns = np.nonzero(inside)
        assert box_xyxy[0] <= (columns.min() + 0.5) / side and (columns.max() + 0.5) / side <= box_xyxy[2]
        assert box_xyxy[1] <= (rows.min() + 0.5) / side and (rows.max() + 0.5) / side <= box_xyxy[3]
    whole = token_mask(side, np.array([0.0, 0.0, 1.0, 1.0]))
    assert whole.all()


def test_pictures_of_weights():
    weights = np.zeros((2, 2, 3, 3))
    weights[0, 0, 1, 1], weights[0, 1, 2, 2], weights[1, 1, 1, 1] = 0.5, 0.25, 0.1
    upper_half = np.array([0.0, 0.0, 1.0, 0.5])
    expected = np.zeros((3, 3))
    expected[1, 1], expected[2, 2] = 0.25, 0.125
    np.testing.assert_allclose(looked_at(weights, upper_half), expected)
    middle = np.array([0.4, 0.4, 0.6, 0.6])
    np.testing.assert_allclose(looking_at(weights, middle), [[0.5, 0.0], [0.0, 0.1]])
