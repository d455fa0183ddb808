"""Which crops become candidates, and when a target counts as lost: rules about numbers alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models.config import ConfigError, TrackerConfig
from mixformer_jax.tracking.scores import (
    forget_candidates,
    keep_candidates,
    learn_entropy,
    select,
    start_memory,
    watch,
)


def crops(*values):
    return jnp.stack([jnp.full((2, 2, 3), value, jnp.uint8) for value in values])


def picked(scores, settings=None):
    """For one target: on which frames of an interval its crop becomes the candidate."""
    settings, memory, result = settings or TrackerConfig(), start_memory(crops(0)), []
    for score in scores:
        memory, is_candidate = select(settings, memory, jnp.array([score], jnp.float32))
        result.append(bool(is_candidate[0]))
    return result


def lost(scores, **settings):
    """For one target: on which frames it counts as lost."""
    memory, result = start_memory(crops(0)), []
    for score in scores:
        memory = watch(TrackerConfig(**settings), memory, jnp.array([score], jnp.float32))
        result.append(bool(memory.lost[0]))
    return result


def test_a_candidate_is_above_a_half_and_above_the_best_so_far():
    assert picked([0.5, 0.51, 0.51, 0.6, 0.55, 0.61]) == [False, True, False, True, False, True]
    assert picked([0.1, 0.4999, 0.0]) == [False] * 3


def test_the_best_score_decays_on_every_frame():
    scores = [0.8, 0.7, 0.7, 0.6]
    assert picked(scores) == [True, False, False, False]
    # 0.8 * 0.9 = 0.72, then 0.648; then 0.7 * 0.9 = 0.63.
    assert picked(scores, TrackerConfig(max_score_decay=0.9)) == [True, False, True, False]
    # A decayed best below a half does not let worse crops in.
    assert picked([0.8, 0.1, 0.1, 0.49], TrackerConfig(max_score_decay=0.5)) == [True, False, False, False]


def test_every_target_has_its_own_best_and_its_own_candidate():
    settings, memory = TrackerConfig(), start_memory(crops(0, 100))
    memory, first = select(settings, memory, jnp.array([0.9, 0.4]))
    memory = keep_candidates(memory, crops(1, 101), first)
    memory, second = select(settings, memory, jnp.array([0.8, 0.6]))
    memory = keep_candidates(memory, crops(2, 102), second)
    assert first.tolist() == [True, False] and second.tolist() == [False, True]
    np.testing.assert_allclose(memory.best, [0.9, 0.6])
    np.testing.assert_array_equal(memory.candidates, crops(1, 102))


def test_after_a_renewal_the_initial_template_is_the_candidate():
    memory, _ = select(TrackerConfig(), start_memory(crops(0, 100)), jnp.array([0.9, 0.9]))
    memory = memory._replace(lost=jnp.array([True, False]), streak=jnp.array([1, 3], jnp.int32))
    slots = jnp.stack([crops(0, 100), crops(7, 8)], axis=1)
    after = forget_candidates(memory, slots)
    np.testing.assert_array_equal(after.best, [-1, -1])
    np.testing.assert_array_equal(after.candidates, crops(0, 100))
    assert after.lost.tolist() == [True, False] and after.streak.tolist() == [1, 3], "no business of a renewal"


def test_lost_after_some_low_scores_in_a_row_and_found_after_some_high_ones():
    settings = {"lost_below": 0.2, "lost_after": 3, "found_above": 0.6, "found_after": 2}
    low, middle, high = 0.1, 0.4, 0.9
    assert lost([high, low, low, low, low], **settings) == [False, False, False, True, True]
    assert lost([low, low, middle, low, low, high, low], **settings) == [False] * 7
    assert lost([low] * 3 + [middle] * 4, **settings) == [False, False] + [True] * 5
    assert lost([low] * 3 + [high, middle, high, high], **settings) == [False, False, True, True, True, True, False]
    assert lost([low] * 3 + [high, high, low, low, low], **settings) == [False, False, True, True] + [False] * 3 + [
        True
    ]
    # Scores on the thresholds count for neither side.
    assert lost([0.25] * 9, lost_below=0.25, lost_after=1) == [False] * 9
    assert lost([0.0, 0.5, 0.5], found_above=0.5, lost_after=1, found_after=1) == [True] * 3


def test_an_entropy_that_is_not_finite_is_not_learnt():
    memory = start_memory(jnp.zeros((2, 4, 4, 3), jnp.uint8))
    for score, entropy in ((0.5, [jnp.nan, 3.0]), (0.5, [4.0, 9.0]), (0.95, [jnp.nan, jnp.inf])):
        memory = learn_entropy(memory, jnp.full(2, score), jnp.array(entropy))
    np.testing.assert_array_equal(memory.usual_entropy, [4.0, 3.0])


def test_thresholds_that_cannot_work():
    for settings, message in (
        ({"max_score_decay": 0.0}, "max_score_decay is 0"),
        ({"max_score_decay": 1.01}, "max_score_decay is 1.01"),
        ({"lost_below": 0.6, "found_above": 0.5}, "lost_below is 0.6 and found_above 0.5"),
        ({"found_above": 1.5}, "found_above is 1.5"),
        ({"lost_after": 0}, "lost_after is 0"),
        ({"found_after": 0}, "found_after is 0"),
        ({"update_interval": 0}, "update_interval is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            TrackerConfig(**settings)
