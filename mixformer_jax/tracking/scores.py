"""Rules on scores, target by target: which crops become online templates, and who counts as lost."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.models.config import TrackerConfig

NO_SCORE = -1.0  # below every score: whatever passes `candidate_above` first is the best so far
ENTROPY_ABOVE, ENTROPY_RATE = 0.9, 0.05  # frames with scores above the first change what is usual, at this rate


class ScoreMemory(NamedTuple):
    """What past scores have left behind, for models with a score prediction module."""

    best: Float[Array, " n"]  # since the last refresh, decayed; NO_SCORE before the first candidate
    candidates: UInt8[Array, "n T T c"]  # the crops that were scored so, or the initial templates
    lost: Bool[Array, " n"]  # whether the targets count as lost
    streak: Int32[Array, " n"]  # frames in a row that spoke against `lost`
    usual_entropy: Float[Array, " n"]  # of the corner maps on frames that scored well, nats; infinite before the first


def start_memory(initial_templates: UInt8[Array, "n T T c"]) -> ScoreMemory:
    """Before the first score. The initial template is the candidate until a better one comes."""
    n = len(initial_templates)
    best, lost, streak = jnp.full((n,), NO_SCORE, jnp.float32), jnp.zeros((n,), bool), jnp.zeros((n,), jnp.int32)
    return ScoreMemory(best, initial_templates, lost, streak, usual_entropy=jnp.full((n,), jnp.inf, jnp.float32))


def select(
    settings: TrackerConfig, memory: ScoreMemory, scores: Float[Array, " n"]
) -> tuple[ScoreMemory, Bool[Array, " n"]]:
    """Which targets' crops on this frame become their candidates (the paper, section 3.5).

    A score must be above `candidate_above` and above the best since the last refresh, which first decays by
    `max_score_decay`. The result's `best` counts on the crop: give it to `keep_candidates`.
    """
    best = memory.best * settings.max_score_decay
    is_candidate = (scores > settings.candidate_above) & (scores > best)
    return memory._replace(best=jnp.where(is_candidate, scores, best)), is_candidate


@jax.jit
def keep_candidates(memory: ScoreMemory, crops: UInt8[Array, "n T T c"], is_chosen: Bool[Array, " n"]) -> ScoreMemory:
    """Takes the crops of the targets for which `is_chosen` holds."""
    return memory._replace(candidates=jnp.where(is_chosen[:, None, None, None], crops, memory.candidates))


@jax.jit
def forget_candidates(memory: ScoreMemory, templates: UInt8[Array, "n slots T T c"]) -> ScoreMemory:
    """After a refresh: an interval in which nothing scores above `candidate_above` ends with the initial template."""
    return memory._replace(best=jnp.full_like(memory.best, NO_SCORE), candidates=templates[:, 0])


def watch(settings: TrackerConfig, memory: ScoreMemory, scores: Float[Array, " n"]) -> ScoreMemory:
    """Whether targets count as lost, with hysteresis. Not in the paper.

    `lost_after` frames in a row below `lost_below` lose a target, `found_after` in a row above `found_above` find it.
    """
    against = jnp.where(memory.lost, scores > settings.found_above, scores < settings.lost_below)
    streak = jnp.where(against, memory.streak + 1, 0)
    turns = streak >= jnp.where(memory.lost, settings.found_after, settings.lost_after)
    return memory._replace(lost=memory.lost ^ turns, streak=jnp.where(turns, 0, streak))


def entropy_limit(settings: TrackerConfig, memory: ScoreMemory | None) -> Float[Array, " n"] | None:
    """Of the corner maps, in nats, without loss of score; None where it does not count. Not in the paper."""
    return memory.usual_entropy + settings.entropy_margin if memory is not None and settings.entropy_margin else None


def learn_entropy(memory: ScoreMemory, scores: Float[Array, " n"], entropy: Float[Array, " n"]) -> ScoreMemory:
    """What is usual: the first frame's, and from there on a moving average over frames that score well."""
    usual = memory.usual_entropy
    is_first, scores_well = jnp.isinf(usual), ~memory.lost & (scores > ENTROPY_ABOVE)
    learnt = jnp.where(is_first, entropy, usual + ENTROPY_RATE * (entropy - usual))
    return memory._replace(usual_entropy=jnp.where((is_first | scores_well) & jnp.isfinite(entropy), learnt, usual))
