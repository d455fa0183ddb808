"""Targets followed by frame index: what is gone back to is what was there."""

import numpy as np
import pytest

from mixformer_jax.serving import following as module
from mixformer_jax.serving.following import Following

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def following(tracker, timed, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 4)
    return Following(tracker, lambda index: timed[index])


def boxes(following):
    return {index: found.boxes_xywh for index, found in following.found.items()}


def follow(following, timed, stop):
    while following.last < stop:
        following.step(timed[following.last + 1])


def moved(box, x, y):
    return box + np.array([x, y, 0, 0])


def test_what_a_change_forgets_is_tracked_again_to_the_same_boxes(following, timed, box):
    assert following.add(timed[0], box) == 0
    follow(following, timed, 20)
    before = boxes(following)
    assert following.add(timed[10], moved(box, 67, -28)) == 1
    assert sorted(following.found) == list(range(11)) and following.last == 10
    assert following.found[10].scores.tolist()[1] == 1.0
    follow(following, timed, 20)
    for index in range(21):
        np.testing.assert_allclose(following.found[index].boxes_xywh[0], before[index][0], atol=1e-2)
    following.remove(timed[10], 1)
    follow(following, timed, 20)
    for index in range(21):
        np.testing.assert_allclose(following.found[index].boxes_xywh, before[index], atol=1e-2)


def test_a_change_before_the_first_one(following, timed, box):
    following.add(timed[8], box)
    follow(following, timed, 12)
    following.add(timed[3], box)
    assert sorted(following.found) == [3] and following.targets == [0]


def test_a_change_further_on_finds_the_others_there_first(following, timed, box):
    """Frames between are left out, as they were when the user jumped over them."""
    following.add(timed[0], box)
    following.add(timed[5], moved(box, 67, -28))
    assert sorted(following.found) == [0, 5] and following.found[5].numbers.tolist() == [0, 1]


def test_corrections_and_what_was_given(following, timed, box):
    following.add(timed[0], box)
    follow(following, timed, 8)
    corrected = moved(box, 2, 1)
    following.replace(timed[6], 0, corrected)
    np.testing.assert_allclose(following.found[6].boxes_xywh[0], corrected)
    follow(following, timed, 9)
    np.testing.assert_allclose(following.box_given(0, 5), box)
    np.testing.assert_allclose(following.box_given(0, 9), corrected)
    assert following.box_given(0, 6) is None, "nothing was searched there"
    following.add_template(timed[8], 0, moved(box, 1, 0))
    assert following.last == 8
    with pytest.raises(ValueError, match="no target 3"):
        following.remove(timed[8], 3)
    with pytest.raises(ValueError, match="frame"):
        following.add(timed[8], np.array([5000.0, 0, 10, 10]))
    assert following.targets == [0]


def test_states_are_few_and_those_after_changes_stay(following, timed, box, monkeypatch):
    monkeypatch.setattr(module, "MOST_STATES", 3)
    monkeypatch.setattr(module, "MOST_CHANGES", 3)
    following.add(timed[0], box)
    follow(following, timed, 5)
    following.replace(timed[5], 0, moved(box, 1, 1))
    follow(following, timed, len(timed) - 1)
    assert {0, 5} <= following._kept.keys() and len(following._kept) <= 6
    before, last = boxes(following), following.last
    following.add(timed[7], moved(box, 67, -28))
    np.testing.assert_allclose(following.found[7].boxes_xywh[0], before[7][0], atol=1e-3)
    follow(following, timed, last)
    with pytest.raises(ValueError, match="as many as can be gone back to"):
        following.remove(timed[last], 0)
