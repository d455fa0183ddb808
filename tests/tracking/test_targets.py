"""Many targets in one frame, slots that fill up, models without a cache, and one program for all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.crops import context_crop
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.step import (
    _find,
    encode_templates,
    refresh_templates,
    scan_frames,
    start,
    step,
    track_sequence,
)
from mixformer_jax.tracking.tracker import Tracker

pytestmark = pytest.mark.usefixtures("quick_compilation")

JOINT = MixFormerConfig(
    name="joint",
    search_size=64,
    template_size=32,
    width=24,
    depth=1,
    num_heads=2,
    head="corner",
    head_width=16,
    attention="symmetric",
    score_heads=2,
)


@pytest.fixture(scope="module")
def loop(golden_loop):
    return golden_loop("vit", "online2")


@pytest.fixture(scope="module")
def boxes_xywh(loop):
    """The target; the same with other margins; and a piece of background."""
    shifts = np.array([[0, 0, 0, 0], [3, 2, -4, -4], [67, -28, 0, 0]], np.float64)
    return loop.box_xywh + shifts


def follow(tracker, frames, boxes_xywh):
    """Boxes and scores of every frame, [t, n, ...], and the last state."""
    state, found = tracker.start(frames[0], boxes_xywh), []
    for frame in frames[1:]:
        state, tracked = tracker.step(state, frame)
        found.append(tracked)
    return np.stack([t.boxes_xywh for t in found]), np.stack([t.scores for t in found]), state


def test_targets_together_go_where_each_goes_alone(loop, boxes_xywh):
    frames = loop.frames[:26]
    together, scores, state = follow(loop.tracker(), frames, boxes_xywh)
    assert together.shape == (25, 3, 4) and scores.shape == (25, 3)
    assert np.abs(together[:, 0] - together[:, 2]).max() > 5 and np.abs(scores[:, 0] - scores[:, 2]).max() > 0.01
    for index in range(3):
        alone, its_scores, its_state = follow(loop.tracker(), frames, boxes_xywh[index])
        np.testing.assert_allclose(together[:, index], alone[:, 0], atol=1e-2)
        np.testing.assert_allclose(scores[:, index], its_scores[:, 0], atol=1e-3)
        np.testing.assert_allclose(state.memory.best[index], its_state.memory.best[0], atol=1e-3)
        np.testing.assert_array_equal(state.templates[index], its_state.templates[0])
        np.testing.assert_array_equal(state.memory.candidates[index], its_state.memory.candidates[0])


def test_several_targets_and_a_scan_in_pieces_give_the_boxes_of_the_host(loop, boxes_xywh):
    tracker, frames = loop.tracker(), loop.frames[:25]
    hosts, scores, _ = follow(tracker, frames, boxes_xywh)
    found = track_sequence(
        tracker.model, tracker.settings, tracker.variables, jnp.asarray(frames), jnp.asarray(boxes_xywh, jnp.float32)
    )
    np.testing.assert_allclose(found.boxes_xywh[0], boxes_xywh, rtol=1e-6)
    np.testing.assert_allclose(found.boxes_xywh[1:], hosts, atol=1e-2)
    np.testing.assert_array_equal(found.scores[0], [1, 1, 1])
    np.testing.assert_allclose(found.scores[1:], scores, atol=1e-3)
    assert not found.is_candidate[0].any() and not found.lost[0].any() and found.lost.shape == (25, 3)

    parts = (tracker.model, tracker.settings, tracker.variables)
    state = tracker.start(frames[0], boxes_xywh)
    pieces = []
    for first in (1, 13):
        state, piece = scan_frames(*parts, state, jnp.asarray(frames[first : first + 12]))
        pieces.append(piece.boxes_xywh)
    np.testing.assert_allclose(np.concatenate(pieces), hosts, atol=1e-2)
    assert int(state.frame_index) == 24 and int(state.num_refreshes) == 2


def test_a_step_copies_nothing_that_it_does_not_change(loop, boxes_xywh):
    """The cache is large: 28 MB a target of MixViT-L."""
    tracker = loop.tracker(num_online_templates=1, update_interval=1000)
    before = tracker.start(loop.frames[0], boxes_xywh[0])
    after, _ = tracker.step(before, loop.frames[1])
    for part in ("templates", "filled", "cache", "clip_margins", "num_refreshes"):
        for old, new in zip(*(jax.tree.leaves(getattr(state, part)) for state in (before, after)), strict=True):
            assert new is old, part
    assert int(after.frame_index) == 1 and int(before.frame_index) == 0


def test_nothing_is_compiled_again(loop, boxes_xywh):
    """Whatever the target, the size of the frame, and the number of filled slots."""
    tracker = loop.tracker(num_online_templates=3, update_interval=2)
    compiled = [program.jitted._cache_size() for program in (_find, encode_templates)]
    for box_xywh, frames in ((boxes_xywh[0], loop.frames[:10]), (boxes_xywh[2], loop.frames[:3, :80, :100])):
        state = tracker.start(frames[0], box_xywh)
        for frame in frames[1:]:
            state, _ = tracker.step(state, frame)
    assert state.filled.tolist() == [[True, True, True, False]], "1, 2 and 3 slots were in use"
    more = [program.jitted._cache_size() for program in (_find, encode_templates)]
    assert more == [compiled[0] + 1, compiled[1] + 1]
    state, _ = tracker.step(tracker.start(loop.frames[0], boxes_xywh[:2]), loop.frames[1])
    assert _find.jitted._cache_size() == more[0] + 1, "two targets are another program"


def test_slots_fill_up_then_the_oldest_goes(golden_loop):
    loop = golden_loop("vit", "plain")
    tracker = loop.tracker(num_online_templates=3, update_interval=1)
    state = tracker.start(loop.frames[0], loop.box_xywh)
    assert state.filled.tolist() == [[True, True, False, False]]
    for frame, expected_slot in zip(loop.frames[1:5], (2, 3, 1, 2), strict=True):
        before = np.asarray(state.templates[0])
        state, tracked = tracker.step(state, frame)
        after = np.asarray(state.templates[0])
        assert np.flatnonzero((before != after).any(axis=(1, 2, 3))).tolist() == [expected_slot]
        # Without scores: the crop around the box, whatever it shows.
        crop = context_crop(frame, tracked.box_xywh, tracker.settings.template_factor, tracker.config.template_size)
        np.testing.assert_array_equal(after[expected_slot], crop.pixels)
    assert state.filled.all()


def test_an_interval_without_a_candidate_brings_the_initial_template_back(loop):
    tracker = loop.tracker(update_interval=1)
    state = tracker.start(loop.frames[0], loop.box_xywh)
    initial = np.asarray(state.templates[0, 0])
    noise = np.full_like(state.templates, 77)
    state = state._replace(templates=jnp.asarray(noise).at[0, 0].set(initial))
    blank = np.zeros_like(loop.frames[0])
    state, tracked = tracker.step(state, blank)
    assert tracked.score < 0.5
    np.testing.assert_array_equal(state.templates[0, 2], initial)
    np.testing.assert_array_equal(state.templates[0, 1], noise[0, 1])


def test_without_online_slots_nothing_is_renewed(loop):
    tracker = loop.tracker(num_online_templates=0, update_interval=1)
    state = tracker.start(loop.frames[0], loop.box_xywh)
    templates = np.asarray(state.templates)
    for frame in loop.frames[1:4]:
        state, tracked = tracker.step(state, frame)
    np.testing.assert_array_equal(state.templates, templates)
    assert tracked.score is not None and int(state.num_refreshes) == 0
    with pytest.raises(ValueError, match="num_online_templates is 0"):
        refresh_templates(tracker.model, tracker.settings, tracker.variables, state, lambda wanted: None)


def test_the_lost_flag_changes_no_box(loop):
    eager = {"lost_below": 0.99, "found_above": 0.99, "lost_after": 1}
    calm, scores, _ = follow(loop.tracker(), loop.frames[:15], loop.box_xywh)
    nervous, same_scores, state = follow(loop.tracker(**eager), loop.frames[:15], loop.box_xywh)
    assert state.memory.lost.all()
    np.testing.assert_array_equal(calm, nervous)
    np.testing.assert_array_equal(scores, same_scores)


@pytest.fixture(scope="module")
def joint():
    return Tracker(
        JOINT,
        TrackerConfig(num_online_templates=2, update_interval=2),
        init_variables(build_model(JOINT), jax.random.key(3)),
    )


def test_a_model_without_a_cache_sees_its_templates_on_every_frame(joint, loop, boxes_xywh):
    state = joint.start(loop.frames[0], boxes_xywh[:2])
    assert state.cache is None
    apply = jax.jit(joint.model.apply)
    for index, frame in enumerate(loop.frames[1:4], 1):
        crops = joint.search_crops(state, frame)
        pixels = jnp.asarray(normalise(crops.pixels))
        expected = apply(joint.variables, normalise(state.templates), pixels, state.filled)
        state, tracked = joint.step(state, frame)
        assert state.cache is None and state.filled[:, 2].all() == (index >= 2)
        np.testing.assert_allclose(tracked.scores, expected.scores, atol=1e-5)
    parts = (joint.model, joint.settings, joint.variables)
    device = start(*parts, jnp.asarray(loop.frames[0]), jnp.asarray(boxes_xywh[:2], jnp.float32))
    for frame in loop.frames[1:4]:
        device, found = step(*parts, device, jnp.asarray(frame))
    np.testing.assert_allclose(found.boxes_xywh, tracked.boxes_xywh, atol=1e-2)
    np.testing.assert_allclose(found.scores, tracked.scores, atol=1e-4)


def test_one_target_has_shorthands_and_several_have_none(loop, boxes_xywh):
    tracker, frames = loop.tracker(), loop.frames
    _, one = tracker.step(tracker.start(frames[0], boxes_xywh[0]), frames[1])
    np.testing.assert_array_equal(one.box_xywh, one.boxes_xywh[0])
    assert one.score == one.scores[0] and one.is_lost is False
    _, listed = tracker.step(tracker.start(frames[0], [boxes_xywh[0].tolist()]), frames[1])
    np.testing.assert_array_equal(one.boxes_xywh, listed.boxes_xywh)
    _, three = tracker.step(tracker.start(frames[0], boxes_xywh), frames[1])
    for shorthand, instead in (("box_xywh", "boxes_xywh"), ("score", "scores"), ("is_lost", "lost")):
        with pytest.raises(ValueError, match=f"{shorthand} is for a single target and there are 3; use {instead}"):
            getattr(three, shorthand)


def test_bad_input_is_met_at_the_door(loop):
    tracker, frame = loop.tracker(), loop.frames[0]
    for boxes, message in (
        ((10, 10, 0, 5), "no area"),
        ((1000, 10, 5, 5), "outside the frame"),
        ((1, float("nan"), 5, 5), "NaN"),
        ((1, 2, 3), "not four numbers"),
        ([(1, 2, 30, 40), (1, 2, 3)], "not four numbers"),
        ([(1, 2, 30, 40), (5, 6, 0, 8)], "target 2: .*no area"),
        (np.zeros((0, 4)), "no boxes"),
        (np.ones((1, 1, 4)), "not four numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            tracker.start(frame, boxes)


def test_other_settings_for_the_same_weights(loop):
    tracker = loop.tracker()
    wider = tracker.with_settings(search_factor=5.05, num_online_templates=3)
    assert (wider.settings.search_factor, wider.settings.num_slots) == (5.05, 4)
    assert wider.settings.update_interval == tracker.settings.update_interval and wider.config == tracker.config
    assert tracker.settings.search_factor == 4.5
    with pytest.raises(ConfigError, match="did you mean 'search_factor'"):
        tracker.with_settings(search_faktor=5.05)
