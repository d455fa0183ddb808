"""Several videos in one batched step: each goes where it goes alone, whatever starts and ends beside it."""

import numpy as np
import pytest

from mixformer_jax.tracking.lanes import LaneError, Lanes
from mixformer_jax.tracking.step import _find

pytestmark = pytest.mark.usefixtures("quick_compilation")


def follow_alone(tracker, frames, box_xywh):
    state, found = tracker.start(frames[0], box_xywh), []
    for frame in frames[1:]:
        state, tracked = tracker.step(state, frame)
        found.append(tracked)
    return found


def follow_in_lanes(lanes, videos):
    """Tracked targets by video; videos enter a free lane one step after another and leave it when they end."""
    waiting, running, found = list(range(len(videos))), {}, [[] for _ in videos]
    state = None
    while waiting or running:
        free = [lane for lane in range(lanes.num_lanes) if lane not in running]
        if waiting and free:
            video = waiting.pop(0)
            frames, box_xywh = videos[video]
            state = lanes.start(state, free[-1], frames[0], box_xywh)
            running[free[-1]] = (video, 1)
        state, tracked = lanes.step(state, {lane: videos[video][0][at] for lane, (video, at) in running.items()})
        for lane, (video, at) in list(running.items()):
            found[video].append(tracked[lane])
            running[lane] = (video, at + 1)
            if at + 1 == len(videos[video][0]):
                del running[lane]
    return found


@pytest.mark.parametrize(("family", "name"), [("vit", "online2"), ("vit", "plain")])
def test_videos_in_lanes_go_where_each_goes_alone(golden_loop, family, name):
    loop = golden_loop(family, name)
    tracker = loop.tracker(update_interval=5)
    shifted = loop.box_xywh + np.array([3, 2, -4, -4])
    # Of different lengths and sizes, so that lanes are renewed on different frames and stand empty in between.
    videos = [
        (loop.frames[:14], loop.box_xywh),
        (loop.frames[5:12, :80, :100], loop.box_xywh),
        (loop.frames[3:20], shifted),
        (loop.frames[:3], shifted),
    ]
    compiled = _find.jitted._cache_size()
    together = follow_in_lanes(Lanes(tracker, 3), videos)
    assert _find.jitted._cache_size() == compiled + 1, "one program for the whole run"
    for video, found in zip(videos, together, strict=True):
        alone = follow_alone(tracker, *video)
        assert len(found) == len(alone)
        for ours, theirs in zip(found, alone, strict=True):
            np.testing.assert_allclose(ours.box_xywh, theirs.box_xywh, atol=1e-2)
            if name == "plain":
                assert ours.score is None
            else:
                assert ours.score == pytest.approx(theirs.score, abs=1e-3) and ours.is_lost == theirs.is_lost


def test_boxes_do_not_depend_on_the_neighbours(golden_loop):
    loop = golden_loop("vit", "online2")
    lanes = Lanes(loop.tracker(update_interval=4), 3)
    video = (loop.frames[:8], loop.box_xywh)
    alone = follow_in_lanes(lanes, [video])[0]
    others = [(loop.frames[4:9], loop.box_xywh + 5), (loop.frames[:4], loop.box_xywh)]
    among_others = follow_in_lanes(lanes, [others[0], video, others[1]])[1]
    for ours, theirs in zip(alone, among_others, strict=True):
        np.testing.assert_array_equal(ours.box_xywh, theirs.box_xywh)
        assert ours.score == theirs.score


def test_a_bad_frame_concerns_its_lane_alone(golden_loop):
    loop = golden_loop("vit", "online2")
    lanes = Lanes(loop.tracker(), 2)
    state = lanes.start(None, 0, loop.frames[0], loop.box_xywh)
    state = lanes.start(state, 1, loop.frames[0], loop.box_xywh)
    with pytest.raises(LaneError) as caught:
        lanes.step(state, {0: loop.frames[1], 1: loop.frames[1].astype(np.float32)})
    assert caught.value.lane == 1 and "uint8 RGB" in str(caught.value.__cause__)
    _, found = lanes.step(state, {0: loop.frames[1]})
    assert list(found) == [0] and np.isfinite(found[0].boxes_xywh).all()
    with pytest.raises(ValueError, match="0 lanes"):
        Lanes(loop.tracker(), 0)
