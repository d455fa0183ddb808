"""What a tracker does with scores: it picks online templates, and says when it lost a target.

Both are rules about numbers, target by target; crops and boxes play no part in them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt8

from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.tracking.state import ScoreMemory

# The paper, section 3.5: only what scores above this may become an online template.
CANDIDATE_SCORE = 0.5
# Below every score: whatever passes CANDIDATE_SCORE first is the best so far.
NO_SCORE = -1.0


def start_memory(initial_templates: UInt8[Array, "n T T 3"]) -> ScoreMemory:
    """Before the first score. The initial template is the candidate until a better one comes."""
    n = len(initial_templates)
    return ScoreMemory(
        best=jnp.full((n,), NO_SCORE, jnp.float32),
        candidates=initial_templates,
        lost=jnp.zeros((n,), bool),
        streak=jnp.zeros((n,), jnp.int32),
    )


def select(
    settings: TrackerConfig, memory: ScoreMemory, scores: Float[Array, " n"]
) -> tuple[ScoreMemory, Bool[Array, " n"]]:
    """Which targets' crops on this frame become their candidates (the paper, section 3.5).

    A score must be above 0.5 and strictly above the best since the last renewal, which first decays by
    `max_score_decay`. The result's `best` counts on the crop: give it to `keep_candidates`.
    """
    best = memory.best * settings.max_score_decay
    is_candidate = (scores > CANDIDATE_SCORE) & (scores > best)
    return memory._replace(best=jnp.where(is_candidate, scores, best)), is_candidate


@jax.jit
def keep_candidates(
    memory: ScoreMemory, crops: UInt8[Array, "n T T 3"], is_candidate: Bool[Array, " n"]
) -> ScoreMemory:
    """Takes the crops of the targets for which `is_candidate` holds."""
    return memory._replace(candidates=jnp.where(is_candidate[:, None, None, None], crops, memory.candidates))


@jax.jit
def forget_candidates(memory: ScoreMemory, templates: UInt8[Array, "n slots T T 3"]) -> ScoreMemory:
    """After a renewal. An interval in which nothing scores above 0.5 ends with the initial template once more."""
    return memory._replace(best=jnp.full_like(memory.best, NO_SCORE), candidates=templates[:, 0])


def watch(settings: TrackerConfig, memory: ScoreMemory, scores: Float[Array, " n"]) -> ScoreMemory:
    """Whether targets count as lost, with hysteresis. Not in the paper.

    `lost_after` frames in a row below `lost_below` lose a target, `found_after` in a row above `found_above` find it.
    One frame of the other kind starts the count anew, so a score that flickers changes nothing.
    """
    against = jnp.where(memory.lost, scores > settings.found_above, scores < settings.lost_below)
    streak = jnp.where(against, memory.streak + 1, 0)
    turns = streak >= jnp.where(memory.lost, settings.found_after, settings.lost_after)
    return memory._replace(lost=memory.lost ^ turns, streak=jnp.where(turns, 0, streak))
