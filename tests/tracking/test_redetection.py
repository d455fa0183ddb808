"""Lost targets are looked for over the whole frame."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.redetection import ladder, look_on, settle, start_search
from mixformer_jax.tracking.step import scan_frames

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = TrackerConfig(search_factor=4.0, redetect_every=2, redetect_above=0.6)
BOXES_XYWH = jnp.array([[100.0, 80.0, 40.0, 40.0], [500.0, 20.0, 100.0, 80.0]])
SIZE, LOST = jnp.array([360, 640]), jnp.array([True, False])
settled = jax.jit(functools.partial(settle, CONFIG))
looked = jax.jit(functools.partial(look_on, CONFIG))


def follow(first_scores, found_shift=5.0):
    """The states and boxes of two targets, of which the first is lost, frame by frame."""
    search, boxes_xywh, steps = start_search(BOXES_XYWH), BOXES_XYWH, []
    lost = LOST
    for score in first_scores:
        search, boxes_xywh, found = settled(
            search, boxes_xywh, search.look_xywh + found_shift, jnp.array([score, 0.9]), lost
        )
        lost = lost & ~found
        search = looked(search, boxes_xywh, lost, SIZE)
        steps.append((search, np.asarray(boxes_xywh[0]), bool(found[0])))
    return steps


def test_every_rung_is_looked_at_once_a_round():
    steps = follow([0.1] * 60)
    _, count = ladder(BOXES_XYWH, SIZE)
    looks = [tuple(np.asarray(search.look_xywh[0]).tolist()) for search, *_ in steps if bool(search.is_look[0])]
    assert len(set(looks)) == int(count[0]) and looks[: int(count[0])] == looks[int(count[0]) : 2 * int(count[0])]
    assert len(looks) == 30, "every second frame"
    assert not any(bool(search.is_look[1]) or found for search, _, found in steps)


def test_what_is_found_elsewhere_must_be_confirmed():
    steps = follow([0.1] * 60)
    first = next(index for index, (search, *_) in enumerate(steps) if bool(search.is_look[0]))
    before = steps[first][1]
    confirmed = follow([0.1] * (first + 1) + [0.9, 0.9])
    search, box_xywh, found = confirmed[first + 1]
    assert bool(search.is_pending[0]) and not bool(search.is_look[0]) and not found
    np.testing.assert_allclose(box_xywh, np.asarray(steps[first][0].look_xywh[0]) + 5, rtol=1e-6)
    search, _, found = confirmed[-1]
    assert found and int(search.frames[0]) == 0 and not bool(search.is_look[0])
    refused = follow([0.1] * (first + 1) + [0.9, 0.2])
    assert not refused[-1][2]
    np.testing.assert_allclose(refused[-1][1], before)


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
    state, hosts, looks = tracker.start(frames[0], loop.box_xywh), [], 0
    for frame in frames[1:]:
        looks += int(np.asarray(state.search.is_look)[0])
        state, tracked = tracker.step(state, frame)
        hosts.append(tracked.box_xywh)
    assert looks >= 4 and bool(state.memory.lost[0]) and bool(tracked.is_lost)
    assert np.abs(np.diff(np.stack(hosts), axis=0)).max() > 5
    np.testing.assert_array_equal(state.memory.candidates, tracker.start(frames[0], loop.box_xywh).memory.candidates)
    start = tracker.start(frames[0], loop.box_xywh)
    _, found = scan_frames(tracker.model, tracker.settings, tracker.variables, start, jnp.asarray(frames[1:]))
    np.testing.assert_allclose(found.boxes_xywh[:, 0], hosts, atol=0.1)
    lanes, of_lane = Lanes(tracker, 2), []
    state = lanes.start(None, 1, frames[0], loop.box_xywh)
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
        assert (state.search is None) == (not changes)
    for off, on in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
        np.testing.assert_allclose(off[0], on[0], atol=1e-3)
        np.testing.assert_allclose(off[1], on[1], atol=1e-4)
