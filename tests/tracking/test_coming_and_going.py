"""Targets that come and go keep their numbers, their boxes and the programs that were compiled for them."""

import gc
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from mixformer_jax.crops import context_crop
from mixformer_jax.tracking.step import _find, _locate, encode_templates
from mixformer_jax.tracking.targets import live_rows, target_alone

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def loop(golden_loop):
    return golden_loop("vit", "online2")


REDETECTION = {"redetect_every": 2, "lost_below": 0.5, "found_above": 0.6}


@pytest.fixture
def tracker(loop):
    """Online templates are renewed often."""
    return loop.tracker(update_interval=3)


@pytest.fixture(params=["plain", "redetection"])
def either_tracker(request, loop):
    """The same, and one that looks for lost targets."""
    return loop.tracker(update_interval=3, **({} if request.param == "plain" else REDETECTION))


def shifted(loop, x, y):
    return loop.box_xywh + np.array([x, y, 0, 0], np.float64)


def alone(tracker, frames, box_xywh):
    state, boxes = tracker.start(frames[0], box_xywh), []
    for frame in frames[1:]:
        state, tracked = tracker.step(state, frame)
        boxes.append(tracked.box_xywh)
    return np.stack(boxes)


def test_each_goes_where_it_goes_alone(loop, either_tracker):
    """Whoever comes, goes and is corrected beside it."""
    tracker, frames = either_tracker, loop.frames
    state, numbers = tracker.add(None, frames[0], loop.box_xywh)
    found = {0: [], 1: [], 2: []}

    def follow(indices):
        nonlocal state
        for index in indices:
            state, tracked = tracker.step(state, frames[index])
            for number, box_xywh in zip(tracked.numbers.tolist(), tracked.boxes_xywh, strict=True):
                found[number].append(box_xywh)

    follow(range(1, 5))
    state, numbers = tracker.add(state, frames[4], [shifted(loop, 67, -28), shifted(loop, 3, 2)])
    assert numbers.tolist() == [1, 2] and len(state.boxes_xywh) == 4
    follow(range(5, 10))
    state = tracker.remove(state, 1)
    assert len(state.boxes_xywh) == 2, "two rows are enough"
    follow(range(10, 13))
    state = tracker.replace(state, 2, frames[12], shifted(loop, 1, 1))
    follow(range(13, 17))
    state, numbers = tracker.add(state, frames[16], shifted(loop, 0, 0))
    assert numbers.tolist() == [3], "a number is not given again"

    np.testing.assert_allclose(found[0], alone(tracker, frames[:17], loop.box_xywh), atol=1e-2)
    np.testing.assert_allclose(found[1], alone(tracker, frames[4:10], shifted(loop, 67, -28)), atol=1e-2)
    np.testing.assert_allclose(found[2][:8], alone(tracker, frames[4:13], shifted(loop, 3, 2)), atol=1e-2)
    np.testing.assert_allclose(found[2][8:], alone(tracker, frames[12:17], shifted(loop, 1, 1)), atol=1e-2)


def test_a_state_is_a_value(loop, tracker):
    """What is done to one leaves it as it was: a user goes back, and tracks again from there."""
    frames = loop.frames
    state, _ = tracker.add(None, frames[0], [loop.box_xywh, shifted(loop, 67, -28)])
    _, before = tracker.step(state, frames[1])
    tracker.remove(state, 0)
    tracker.replace(state, 0, frames[0], shifted(loop, 5, 5))
    tracker.add_template(state, 0, frames[3], shifted(loop, 5, 5))
    tracker.add(state, frames[0], shifted(loop, 5, 5))
    _, after = tracker.step(state, frames[1])
    np.testing.assert_array_equal(before.boxes_xywh, after.boxes_xywh)


def test_start_is_a_beginning_too(loop, tracker):
    state = tracker.start(loop.frames[0], [loop.box_xywh, shifted(loop, 67, -28), shifted(loop, 3, 2)])
    state, together = tracker.step(state, loop.frames[1])
    assert together.numbers is None
    state = tracker.remove(state, [0])
    state, _ = tracker.add(state, loop.frames[1], loop.box_xywh)
    state, tracked = tracker.step(state, loop.frames[2])
    assert tracked.numbers.tolist() == [1, 2, 3]


def test_nobody_is_left(loop, tracker):
    state = tracker.start(loop.frames[0], [loop.box_xywh, loop.box_xywh])
    state = tracker.remove(state, [1, 0])
    state, tracked = tracker.step(state, loop.frames[1])
    assert tracked.boxes_xywh.shape == (0, 4) and tracked.numbers.shape == tracked.scores.shape == (0,)
    state, numbers = tracker.add(state, loop.frames[1], loop.box_xywh)
    assert numbers.tolist() == [2] and tracker.step(state, loop.frames[2])[1].numbers.tolist() == [2]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_template_of_the_users_stays(loop, slots):
    tracker = loop.tracker(num_online_templates=slots, update_interval=1)
    frames, factor, size = loop.frames, tracker.settings.template_factor, tracker.config.template_size
    state, _ = tracker.add(None, frames[0], [shifted(loop, 67, -28), loop.box_xywh])
    box_xywh = shifted(loop, 4, 3)
    state = tracker.add_template(state, 1, frames[5], box_xywh)
    expected = context_crop(frames[5], box_xywh, factor, size).pixels
    for frame in frames[1:6]:
        state, _ = tracker.step(state, frame)
    given, other = target_alone(state, 1), target_alone(state, 0)
    np.testing.assert_array_equal(given.templates[0, 1], expected)
    assert int(other.num_refreshes) == 5 and int(given.num_refreshes) == (0 if slots == 1 else 5)
    assert (np.asarray(other.templates[0, 1]) != expected).any()
    cache = encode_templates(tracker.model, tracker.settings, tracker.variables, given.templates, given.filled)
    for kept, fresh in zip(jax.tree.leaves(given.cache), jax.tree.leaves(cache), strict=True):
        np.testing.assert_allclose(kept, fresh, atol=1e-5)


def test_what_cannot_be_done_is_told(loop):
    tracker = loop.tracker(num_online_templates=0)
    state, _ = tracker.add(None, loop.frames[0], loop.box_xywh)
    with pytest.raises(ValueError, match="no target 1 is followed; there are: 0"):
        tracker.remove(state, [1])
    with pytest.raises(ValueError, match="no target -1 is followed; there are: none"):
        tracker.replace(tracker.remove(state, 0), -1, loop.frames[0], loop.box_xywh)
    with pytest.raises(ValueError, match="num_online_templates=1"):
        tracker.add_template(state, 0, loop.frames[0], loop.box_xywh)
    with pytest.raises(ValueError, match="target 2"):
        tracker.add(state, loop.frames[0], [loop.box_xywh, [0, 0, -1, 5]])


def test_eight_at_random_take_five_programs_and_no_more_memory(loop, either_tracker):
    """Programs with the network in them: a step for 1, 2, 4 and 8 rows, and the encoding of one target's templates."""
    tracker, rng, frames = either_tracker, np.random.default_rng(0), loop.frames
    network = _find if tracker.settings.redetect_every == 0 else _locate
    compiled = [program.jitted._cache_size() for program in (network, encode_templates)]
    state, held = None, []
    for turn in range(60):
        frame = frames[turn % len(frames)]
        live = 0 if state is None else len(live_rows(state))
        if live < 8 and rng.random() < 0.5:
            count = int(rng.integers(1, 9 - live))
            state, _ = tracker.add(state, frame, [shifted(loop, *rng.uniform(-10, 10, 2)) for _ in range(count)])
        elif live and rng.random() < 0.6:
            numbers = state.targets.numbers[live_rows(state)]
            state = tracker.remove(state, rng.choice(numbers, int(rng.integers(1, live + 1)), replace=False))
        if state is not None:
            assert len(state.boxes_xywh) in (1, 2, 4, 8)
            state, tracked = tracker.step(state, frame)
            assert tracked.numbers.tolist() == sorted(state.targets.numbers[live_rows(state)].tolist())
        if turn % 10 == 9:
            gc.collect()
            held.append(len(jax.live_arrays()))
    steps, encodings = (
        program.jitted._cache_size() - before
        for program, before in zip((network, encode_templates), compiled, strict=True)
    )
    assert steps <= 4 and encodings <= 1
    assert max(held) - min(held) < 5, "arrays that somebody still holds"


def test_threads_share_a_tracker(loop, tracker):
    """Each with a state of its own: the boxes are those of one after the other."""
    boxes_xywh = [shifted(loop, x, 0) for x in (0, 3, 6, 9)]
    expected = [alone(tracker, loop.frames[:12], box_xywh) for box_xywh in boxes_xywh]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda box_xywh: alone(tracker, loop.frames[:12], box_xywh), boxes_xywh))
    np.testing.assert_array_equal(found, expected)
