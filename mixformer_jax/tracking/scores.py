"""Rules on scores, target by target: which crops become online templates, who counts as lost, and where those who are
lost are looked for: on a ladder of regions over the whole frame, one at a time (docs/tracking.md, "Coming back").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.models.config import TrackerConfig

NO_SCORE = -1.0  # below every score: whatever passes `candidate_above` first is the best so far
ENTROPY_ABOVE, ENTROPY_RATE = 0.9, 0.05  # frames with scores above the first change what is usual, at this rate
NEAR_FACTORS = (4.0, 6.0)  # search factors around the last good box
# The grid's regions: their side at least this share of the frame's shorter side, their step this share of their side.
LEAST_SIDE, STEP = 0.5, 0.6
MOST_COLUMNS, MOST_ROWS = 5, 4
# A box is not the target's if its size (square root of its area) differs from the last good one's by more than this
# factor, which grows with every frame since then.
SIZE_CHANGE, SIZE_CHANGE_A_FRAME = 1.6, 1.005
# Unless so many frames in a row have scored well, with at most so many others between them and the last good one; or,
# whatever came before, as many as the last number says.
BELIEVED_AFTER, MOST_BETWEEN, BELIEVED_IN_ANY_CASE = 4, 2, 8


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


class Redetection(NamedTuple):
    """State of looking for `n` targets, between two frames. A find counts once the next frame confirms it."""

    look_xywh: Float[Array, "n 4"]  # what to cut crops around that look elsewhere on the next frame
    is_look: Bool[Array, " n"]  # for which targets
    good_xywh: Float[Array, "n 4"]  # the last box that was not lost and scored well
    return_xywh: Float[Array, "n 4"]  # where to go back to if a find is not confirmed
    frames: Int32[Array, " n"]  # lost frames so far; 0 for targets that are not lost
    since_good: Int32[Array, " n"]  # frames since `good_xywh`
    in_a_row: Int32[Array, " n"]  # of these, the last ones that scored well whatever their boxes' sizes
    is_pending: Bool[Array, " n"]  # whether a find is to be confirmed by the next frame


def start_redetection(boxes_xywh: Float[Array, "n 4"]) -> Redetection:
    """Before the first frame after the given one."""
    nobody = jnp.zeros(len(boxes_xywh), bool)
    zero = nobody.astype(jnp.int32)
    return Redetection(boxes_xywh, nobody, boxes_xywh, boxes_xywh, zero, zero, zero, nobody)


class Located(NamedTuple):
    """What a network found in search crops: boxes in pixels of the frame, clipped to it, and their scores."""

    boxes_xywh: Float[Array, "n 4"]
    scores: Float[Array, " n"] | None  # None for models without a score prediction module
    entropy: Float[Array, " n"] | None = None  # of their corner maps, in nats; None for query heads


def plausible_scores(
    redetection: Redetection,
    boxes_xywh: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
    margins: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The scores, 0 for boxes whose size cannot be the target's, judged by its last good box.

    A box that the frame's border cuts shows a part of the target: the side that is cut may be shorter. `margins` are
    the least sides of boxes.
    """
    good_sides = jnp.maximum(redetection.good_xywh[:, 2:], margins[:, None])
    ratios = boxes_xywh[:, 2:] / good_sides
    most = SIZE_CHANGE * SIZE_CHANGE_A_FRAME ** redetection.since_good.astype(jnp.float32)
    whole = jnp.sqrt(ratios.prod(axis=1))
    cut_x, cut_y = _cut(boxes_xywh, frame_size).T
    seen = jnp.select([cut_x & cut_y, cut_x, cut_y], [jnp.ones_like(whole), ratios[:, 1], ratios[:, 0]], whole)
    return jnp.where((whole < most) & (seen > 1 / most), scores, 0.0)


def judge_sizes(
    settings: TrackerConfig,
    redetection: Redetection,
    boxes_xywh: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
    margins: Float[Array, " n"],
) -> tuple[Redetection, Float[Array, " n"]]:
    """The scores of what was found around the last boxes, by `plausible_scores` unless their sizes are believed."""
    in_a_row = jnp.where(scores > settings.redetect_above, redetection.in_a_row + 1, 0)
    believed = (in_a_row >= BELIEVED_AFTER) & (redetection.since_good + 1 - in_a_row <= MOST_BETWEEN)
    believed |= in_a_row >= BELIEVED_IN_ANY_CASE
    plausible = plausible_scores(redetection, boxes_xywh, scores, frame_size, margins)
    return redetection._replace(in_a_row=in_a_row), jnp.where(believed, scores, plausible)


def _cut(boxes_xywh: Float[Array, "n 4"], frame_size: Int32[Array, "*each 2"]) -> Bool[Array, "n 2"]:
    """Whether boxes reach to within a pixel of the frame's border, by axis."""
    width_height = jnp.broadcast_to(frame_size, (len(boxes_xywh), 2))[:, ::-1]
    return (boxes_xywh[:, :2] < 1) | (boxes_xywh[:, :2] + boxes_xywh[:, 2:] > width_height - 1)


def choose_boxes(
    settings: TrackerConfig,
    redetection: Redetection,
    before_xywh: Float[Array, "n 4"],
    near: Located,
    elsewhere: Located,
    lost: Bool[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
    margins: Float[Array, " n"],
) -> tuple[Redetection, Float[Array, "n 4"], Float[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
    """Chooses between what was found around the last frame's boxes `before_xywh`, with scores by `judge_sizes`, and
    elsewhere, around `redetection.look_xywh`; `plan_look` must follow. `lost` is from before this frame.

    Returns:
        The state; the targets' boxes and scores; which lost targets are found; and of which a find was seen or tried.
    """
    assert near.scores is not None and elsewhere.scores is not None
    scores_there = plausible_scores(redetection, elsewhere.boxes_xywh, elsewhere.scores, frame_size, margins)
    takes = redetection.is_look & (scores_there > jnp.maximum(near.scores, settings.redetect_above))
    found = redetection.is_pending & (near.scores > settings.redetect_above)
    boxes_xywh = jnp.where((redetection.is_pending & ~found)[:, None], redetection.return_xywh, near.boxes_xywh)
    boxes_xywh = jnp.where(takes[:, None], elsewhere.boxes_xywh, boxes_xywh)
    scores = jnp.where(takes, scores_there, near.scores)
    # At the border the size is that of the part in view.
    is_good = (~lost | found) & (scores > settings.candidate_above) & ~_cut(boxes_xywh, frame_size).any(axis=1)
    after = redetection._replace(
        good_xywh=jnp.where(is_good[:, None], boxes_xywh, redetection.good_xywh),
        return_xywh=jnp.where(takes[:, None], before_xywh, redetection.return_xywh),
        frames=jnp.where(lost & ~found, redetection.frames + 1, 0),
        since_good=jnp.where(is_good, 0, redetection.since_good + 1),
        in_a_row=jnp.where(is_good, 0, redetection.in_a_row),
        is_pending=takes,
    )
    return after, boxes_xywh, scores, found, takes | redetection.is_pending


def plan_look(
    settings: TrackerConfig,
    redetection: Redetection,
    boxes_xywh: Float[Array, "n 4"],
    lost: Bool[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
) -> Redetection:
    """Decides who looks where on the next frame: a rung is a box whose region at `search_factor` is to be looked at."""
    is_look = lost & ~redetection.is_pending & (redetection.frames % settings.look_every == 0)
    rungs, count = ladder(redetection.good_xywh, frame_size)
    turn = (redetection.frames // settings.look_every) % count
    rung = jnp.take_along_axis(rungs, turn[:, None, None], axis=1)[:, 0]
    sides = redetection.good_xywh[:, 2:] * (rung[:, 2:] / settings.search_factor)
    virtual_xywh = jnp.concatenate([rung[:, :2] - sides / 2, sides], axis=-1)
    return redetection._replace(look_xywh=jnp.where(is_look[:, None], virtual_xywh, boxes_xywh), is_look=is_look)


def ladder(
    good_xywh: Float[Array, "n 4"], frame_size: Int32[Array, "*each 2"]
) -> tuple[Float[Array, "n rungs 3"], Int32[Array, " n"]]:
    """Regions as centre x, centre y and search factor, and how many of them there are; what follows is NaN."""
    height, width = (jnp.broadcast_to(frame_size[..., axis], len(good_xywh)).astype(jnp.float32) for axis in (0, 1))
    centres = good_xywh[:, :2] + good_xywh[:, 2:] / 2
    size = jnp.sqrt(good_xywh[:, 2] * good_xywh[:, 3])
    side = jnp.maximum(size * NEAR_FACTORS[-1], LEAST_SIDE * jnp.minimum(height, width))
    columns, xs = _cells(width, side, MOST_COLUMNS)
    rows, ys = _cells(height, side, MOST_ROWS)
    x, y = jnp.repeat(xs, MOST_ROWS, axis=1), jnp.tile(ys, (1, MOST_COLUMNS))
    # Cells that are not there are NaN, and come last.
    order = jnp.argsort(jnp.hypot(x - centres[:, :1], y - centres[:, 1:]), axis=1)
    cells = jnp.stack([x, y, jnp.broadcast_to((side / size)[:, None], x.shape)], axis=-1)
    cells = jnp.take_along_axis(cells, order[..., None], axis=1)
    near = [jnp.concatenate([centres, jnp.full_like(centres[:, :1], factor)], axis=1) for factor in NEAR_FACTORS]
    return jnp.concatenate([jnp.stack(near, axis=1), cells], axis=1), len(near) + columns * rows


def _cells(
    extent: Float[Array, " n"], side: Float[Array, " n"], most: int
) -> tuple[Int32[Array, " n"], Float[Array, "n most"]]:
    """Centres of regions along one axis, from border to border."""
    count = jnp.where(side < extent, jnp.ceil((extent - side) / (STEP * side)) + 1, 1)
    count = jnp.clip(count, 1, most).astype(jnp.int32)
    index = jnp.arange(most)
    spread = side[:, None] / 2 + (extent - side)[:, None] * index / jnp.maximum(count - 1, 1)[:, None]
    centres = jnp.where(count[:, None] > 1, spread, extent[:, None] / 2)
    return count, jnp.where(index < count[:, None], centres, jnp.nan)
