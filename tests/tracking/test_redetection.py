"""Lost targets are looked for over the whole frame."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixformer_jax.models.config import ConfigError, TrackerConfig, size_config
from mixformer_jax.tracking import scores as score_rules
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.scores import (
    Located,
    choose_boxes,
    judge_sizes,
    ladder,
    plan_look,
    plausible_scores,
    start_redetection,
)
from mixformer_jax.tracking.step import scan_frames
from mixformer_jax.tracking.tracker import Tracker

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = TrackerConfig(search_factor=4.0, redetect_every=2, redetect_above=0.6)
BOXES_XYWH = jnp.array([[100.0, 80.0, 40.0, 40.0], [500.0, 20.0, 100.0, 80.0]])
SIZE, LOST = jnp.array([360, 640]), jnp.array([True, False])
MARGINS = jnp.array([10.0, 10.0])
settled = jax.jit(functools.partial(choose_boxes, CONFIG))
sized = jax.jit(functools.partial(judge_sizes, CONFIG))
looked = jax.jit(functools.partial(plan_look, CONFIG))


def follow(scores_elsewhere, scores_near=()):
    """The states and boxes of two targets, of which the first is lost, frame by frame."""
    state, boxes_xywh, steps, lost = (
        looked(start_redetection(BOXES_XYWH), BOXES_XYWH, LOST, SIZE),
        BOXES_XYWH,
        [],
        LOST,
    )
    for index, score in enumerate(scores_elsewhere):
        near = Located(boxes_xywh, jnp.array([scores_near[index] if index < len(scores_near) else 0.2, 0.9]))
        elsewhere = Located(state.look_xywh + 5.0, jnp.array([score, 1.0]))
        state, boxes_xywh, scores, found, _ = settled(state, boxes_xywh, near, elsewhere, lost, SIZE, MARGINS)
        lost = lost & ~found
        state = looked(state, boxes_xywh, lost, SIZE)
        steps.append((state, np.asarray(boxes_xywh[0]), float(scores[0]), bool(found[0])))
        np.testing.assert_array_equal(boxes_xywh[1], BOXES_XYWH[1])
    return steps


def test_every_rung_is_looked_at_once_a_round():
    steps = follow([0.1] * 60)
    _, count = ladder(BOXES_XYWH, SIZE)
    looks = [tuple(np.asarray(state.look_xywh[0]).tolist()) for state, *_ in steps if bool(state.is_look[0])]
    assert len(looks) == 30, "every second frame"
    rungs = int(count[0])
    assert len(set(looks)) == rungs and looks[:rungs] == looks[rungs : 2 * rungs]
    assert not any(bool(state.is_look[1]) or found for state, *_, found in steps)
    for _, box_xywh, score, _ in steps:
        np.testing.assert_array_equal(box_xywh, BOXES_XYWH[0])
        assert score == pytest.approx(0.2)


def test_what_is_found_elsewhere_must_be_confirmed():
    state, box_xywh, score, found = follow([0.9])[-1]
    assert bool(state.is_pending[0]) and not bool(state.is_look[0]) and not found and score == pytest.approx(0.9)
    assert np.abs(box_xywh - BOXES_XYWH[0]).max() >= 5
    state, confirmed, _, found = follow([0.9, 0.1], [0.2, 0.8])[-1]
    assert found and int(state.frames[0]) == 0 and not bool(state.is_look[0])
    np.testing.assert_array_equal(confirmed, box_xywh)
    *_, refused, _, found = follow([0.9, 0.1], [0.2, 0.3])[-1]
    assert not found
    np.testing.assert_array_equal(refused, BOXES_XYWH[0])
    assert not bool(follow([0.9], [0.95])[-1][0].is_pending[0]), "better where the target was last seen"


def test_a_box_of_another_size_is_not_the_target():
    state = start_redetection(BOXES_XYWH)
    scores = jnp.array([0.9, 0.8])

    def scored(*times):
        return np.asarray(plausible_scores(state, BOXES_XYWH * jnp.array([1.0, 1.0, *times]), scores, SIZE, MARGINS))

    np.testing.assert_array_equal(scored(1.0, 1.0), scores)
    np.testing.assert_array_equal(scored(1.3, 0.7), scores)  # deformed, of about the same size
    for factor in (2.0, 0.5):
        np.testing.assert_array_equal(scored(factor, factor), [0, 0])
    state = state._replace(since_good=jnp.array([100, 0]))  # it may have come closer in the meantime
    np.testing.assert_allclose(scored(2.0, 2.0), [0.9, 0])


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize(
    ("scores", "believed_at"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.9], 3),  # followed from the first frame on
        ([0.1, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9], 5),  # two frames until the crop suits the new size
        ([0.9, 0.9, 0.9, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9], None),  # not in a row
        ([0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], None),  # found only after it had been lost
        ([0.1, 0.1, 0.1] + [0.9] * 9, 10),  # ... unless it is followed for long
    ],
)
def test_a_size_that_is_found_at_once_and_stays_is_believed(scores, believed_at, is_lost):
    doubled, lost = BOXES_XYWH * jnp.array([1.0, 1.0, 2.5, 2.5]), jnp.array([is_lost, False])
    state, judged = start_redetection(BOXES_XYWH), []
    for score in scores:
        raw = jnp.array([score, 0.1])
        state, plausible = sized(state, doubled, raw, SIZE, MARGINS)
        judged.append(float(plausible[0]))
        near = Located(doubled, plausible)
        state, *_ = settled(state, doubled, near, near, lost, SIZE, MARGINS)
    count = len(scores) if believed_at is None else believed_at
    np.testing.assert_allclose(judged, [0] * count + scores[count:])
    is_good = believed_at is not None and not is_lost  # a lost target is good once it counts as found
    np.testing.assert_array_equal(state.good_xywh[0], doubled[0] if is_good else BOXES_XYWH[0])
    np.testing.assert_array_equal(state.good_xywh[1], BOXES_XYWH[1])


def test_the_size_at_the_border_is_that_of_a_part():
    whole = jnp.array([[60.0, 80.0, 120.0, 120.0]])
    part, back = jnp.array([[0.0, 80.0, 30.0, 120.0]]), jnp.array([[40.0, 80.0, 120.0, 120.0]])
    high, nobody, margins = jnp.array([0.9]), jnp.array([False]), MARGINS[:1]
    state = start_redetection(whole)
    for boxes_xywh in (part, back):
        scores = plausible_scores(state, boxes_xywh, high, SIZE, margins)
        np.testing.assert_array_equal(scores, high)
        near = Located(boxes_xywh, scores)
        state, *_ = settled(state, boxes_xywh, near, near, nobody, SIZE, margins)
    np.testing.assert_array_equal(state.good_xywh, back)
    given_outside = start_redetection(jnp.array([[-90.0, 150.0, 120.0, 120.0]]))
    np.testing.assert_array_equal(plausible_scores(given_outside, part, high, SIZE, margins), high)


def test_boxes_as_small_as_they_can_be_are_judged_by_the_least_side():
    state = start_redetection(jnp.array([[100.0, 80.0, 2.0, 2.0]]))
    least = jnp.array([[95.0, 75.0, 10.0, 10.0]])
    assert float(plausible_scores(state, least, jnp.array([0.9]), SIZE, MARGINS[:1])[0]) > 0.5
    assert float(plausible_scores(state, least, jnp.array([0.9]), SIZE, MARGINS[:1] / 5)[0]) == 0


def test_nothing_found_elsewhere_has_another_size():
    state = looked(start_redetection(BOXES_XYWH), BOXES_XYWH, LOST, SIZE)
    near = Located(BOXES_XYWH, jnp.array([0.1, 0.9]))
    for times, is_found in ((1.0, True), (2.0, False)):
        elsewhere = Located(BOXES_XYWH * times, jnp.array([0.95, 1.0]))
        assert bool(settled(state, BOXES_XYWH, near, elsewhere, LOST, SIZE, MARGINS)[0].is_pending[0]) == is_found


def test_the_last_good_box_is_one_that_scored_well():
    state = start_redetection(BOXES_XYWH)
    nobody = jnp.array([False, False])
    for score, count in ((0.3, 1), (0.3, 2), (0.9, 0)):
        near = Located(BOXES_XYWH + score, jnp.array([score, 0.9]))
        state, *_ = settled(state, BOXES_XYWH, near, near, nobody, SIZE, MARGINS)
        np.testing.assert_array_equal(state.since_good, [count, 0])
    np.testing.assert_array_equal(state.good_xywh[0], BOXES_XYWH[0] + 0.9)


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(40, 2000), st.integers(40, 2000)),
    side=st.floats(2, 400),
    centre=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_the_ladder_covers_the_frame(size, side, centre):
    height, width = size
    box_xywh = jnp.array([[centre[0] * width - side / 2, centre[1] * height - side / 2, side, side]])
    rungs, count = ladder(box_xywh, jnp.array([height, width]))
    cells = np.asarray(rungs[0, 2 : int(count[0])])
    assert np.isfinite(cells).all() and not np.isfinite(np.asarray(rungs[0, int(count[0]) :])[:, :2]).all(axis=1).any()
    reach = cells[0, 2] * side / 2
    wide_enough = 2 * reach * (1 + 4 * 0.6) >= width and 2 * reach * (1 + 3 * 0.6) >= height
    if wide_enough:  # the grid is bounded: very small targets in very wide frames are not everywhere looked for
        points = np.stack(np.meshgrid(np.linspace(0, width, 9), np.linspace(0, height, 9)), axis=-1).reshape(-1, 1, 2)
        assert (np.abs(points - cells[None, :, :2]).max(axis=2).min(axis=1) <= reach + 1e-2).all()


@pytest.fixture(scope="module")
def loop(golden_loop):
    return golden_loop("vit", "online2")


ALWAYS_LOST = {
    "candidate_above": 1.0,
    "lost_below": 1.0,
    "found_above": 1.0,
    "lost_after": 1,
    "redetect_every": 2,
    "redetect_above": 0.45,
}


def test_host_device_and_lanes_look_alike(loop):
    tracker, frames = loop.tracker(update_interval=4, **ALWAYS_LOST), loop.frames[:16]
    box_xywh = loop.box_xywh + np.array([67, -28, 0, 0])  # of the background: elsewhere scores are higher
    state, hosts, looks = tracker.start(frames[0], box_xywh), [], 0
    for frame in frames[1:]:
        state, tracked = tracker.step(state, frame)
        looks += int(np.asarray(state.redetection.is_look)[0])
        hosts.append(tracked.box_xywh)
    assert looks >= 4 and bool(state.memory.lost[0]) and bool(tracked.is_lost)
    assert np.abs(np.diff(np.stack(hosts), axis=0)).max() > 5
    np.testing.assert_array_equal(state.memory.candidates, tracker.start(frames[0], box_xywh).memory.candidates)
    start = tracker.start(frames[0], box_xywh)
    _, found = scan_frames(tracker.model, tracker.settings, tracker.variables, start, jnp.asarray(frames[1:]))
    np.testing.assert_allclose(found.boxes_xywh[:, 0], hosts, atol=0.1)
    lanes, of_lane = Lanes(tracker, 2), []
    state = lanes.start(None, 1, frames[0], box_xywh)
    for frame in frames[1:]:
        state, tracked = lanes.step(state, {1: frame})
        of_lane.append(tracked[1].box_xywh)
    np.testing.assert_allclose(of_lane, hosts, atol=0.1)


def test_nothing_changes_for_targets_that_are_never_lost(loop):
    frames, found = loop.frames[:12], []
    for changes in ({}, {"redetect_every": 2}):
        tracker = loop.tracker(update_interval=4, lost_below=0.0, **changes)
        state = tracker.start(frames[0], loop.box_xywh)
        for frame in frames[1:]:
            state, tracked = tracker.step(state, frame)
            found.append((tracked.box_xywh, tracked.score))
        assert (state.redetection is None) == (not changes)
    for off, on in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
        np.testing.assert_allclose(off[0], on[0], atol=1e-3)
        np.testing.assert_allclose(off[1], on[1], atol=1e-4)


def test_smoothed_sizes_lie_between(loop):
    frames = loop.frames[:2]
    sides = []
    for share in (0.0, 0.5):
        tracker = loop.tracker(size_smoothing=share)
        _, tracked = tracker.step(tracker.start(frames[0], loop.box_xywh), frames[1])
        sides.append(np.asarray(tracked.box_xywh))
    np.testing.assert_allclose(sides[1][2:], np.sqrt(sides[0][2:] * loop.box_xywh[2:]), rtol=1e-4)
    np.testing.assert_allclose(sides[1][:2] + sides[1][2:] / 2, sides[0][:2] + sides[0][2:] / 2, atol=1e-2)


def test_widely_spread_corners_lower_the_score(loop):
    odds = []
    for entropy_margin in (0.0, 1.0, 1.5, 100.0):
        tracker = loop.tracker(entropy_margin=entropy_margin)
        state = tracker.start(loop.frames[0], loop.box_xywh)
        state = state._replace(memory=state.memory._replace(usual_entropy=jnp.zeros(1)))
        score = tracker.step(state, loop.frames[1])[1].score
        odds.append(score / (1 - score))
    assert odds[0] == odds[3] > odds[2]
    np.testing.assert_allclose(odds[2] / odds[1], np.exp(0.5), rtol=1e-3)


def test_what_is_usual_comes_with_the_first_frame_and_follows_good_ones(loop, monkeypatch):
    monkeypatch.setattr(score_rules, "ENTROPY_ABOVE", 0.0)
    tracker = loop.tracker(entropy_margin=0.5)
    state, tracked = tracker.step(tracker.start(loop.frames[0], loop.box_xywh), loop.frames[1])
    plain = loop.tracker().step(loop.tracker().start(loop.frames[0], loop.box_xywh), loop.frames[1])[1]
    assert tracked.score == plain.score and np.isfinite(state.memory.usual_entropy).all()
    low = state._replace(memory=state.memory._replace(usual_entropy=jnp.ones(1)))
    after = float(tracker.step(low, loop.frames[2])[0].memory.usual_entropy[0])
    assert 1 < after < 1 + 0.05 * 2 * np.log(tracker.config.search_size**2)
    lost = low._replace(memory=low.memory._replace(lost=jnp.ones(1, bool)))
    assert float(tracker.step(lost, loop.frames[2])[0].memory.usual_entropy[0]) == 1


@pytest.mark.parametrize("redetect_every", [0, 1])
def test_lost_targets_that_are_looked_for_keep_their_templates(loop, redetect_every):
    tracker = loop.tracker(update_interval=3, **(ALWAYS_LOST | {"redetect_every": redetect_every}))
    other = loop.box_xywh + np.array([3, 2, -4, -4])
    before = tracker.start(loop.frames[0], loop.box_xywh)
    # An online template that is not the initial one, so that replacing it by the candidate can be seen.
    templates = before.templates.at[:, 1:].set(tracker.start(loop.frames[0], other).templates[:, 1:])
    state = before._replace(templates=templates)
    for frame in loop.frames[1:4]:
        state, _ = tracker.step(state, frame)
    assert bool(state.memory.lost[0]) and int(state.num_refreshes) == 1
    assert (np.asarray(state.templates) == np.asarray(templates)).all() == (redetect_every == 1)


@pytest.mark.parametrize("family", ["vit", "cvt"])
def test_any_model_with_scores_follows_long_videos(golden_loop, family):
    loop, found = golden_loop(family, "online2"), []
    lost_below = 0.9
    for changes in ({"redetect_every": 1}, {"redetect_every": 0, "long_term": True}):
        tracker = loop.tracker(**(ALWAYS_LOST | {"lost_below": lost_below} | changes))
        state = tracker.start(loop.frames[0], loop.box_xywh)
        steps = []
        for frame in loop.frames[1:5]:
            state, tracked = tracker.step(state, frame)
            steps.append((tracked.box_xywh, tracked.score, tracked.is_lost, bool(state.redetection.is_look[0])))
        found.append(list(zip(*steps, strict=True)))
    (boxes, scores, lost, looks), (long_boxes, long_scores, long_lost, long_looks) = found
    np.testing.assert_array_equal(boxes, long_boxes)
    assert lost == long_lost and any(lost) and looks == long_looks and any(looks)
    np.testing.assert_allclose(long_scores, np.where(lost, lost_below, 1.0) * scores, rtol=1e-6)


def test_a_query_head_has_no_corners():
    config = dataclasses.replace(size_config("mixvit_tiny_online"), head="query")
    with pytest.raises(ConfigError, match="entropy_margin is 1, and mixvit_tiny_online has a query head"):
        Tracker(config, TrackerConfig(entropy_margin=1.0), {})


def test_what_scores_decide_needs_a_model_that_gives_them(golden_loop):
    plain = golden_loop("vit", "plain")
    for change in ({"long_term": True}, {"redetect_every": 2}, {"entropy_margin": 1.5}):
        with pytest.raises(ConfigError, match=f"{next(iter(change))}: for models that give scores"):
            plain.tracker(**change)
