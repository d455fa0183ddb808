"""Looking for lost targets: a ladder of regions over the whole frame, one at a time. Not in the paper.

While a target is lost, every `redetect_every`-th search crop is not cut around its last box but around the next rung of
a ladder: first wider regions where it was last seen, then a grid that covers the frame, the nearest cells first. The
crops go through the same compiled step as all others: a rung is a box whose search region at `search_factor` is the
region to look at. A box found there counts when its score is above `redetect_above`: it becomes the target's box, and
the target is found when the next frame, searched around it as usual, scores so again; else the box before comes back.

Templates and their cache stay as they are, and a lost target gets no new online template.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from mixformer_jax.models.config import TrackerConfig

NEAR_FACTORS = (4.0, 6.0)  # search factors around the last good box
# The grid's regions: their side at least this share of the frame's shorter side, their step this share of their side.
LEAST_SIDE, STEP = 0.5, 0.6
MOST_COLUMNS, MOST_ROWS = 5, 4


class SearchState(NamedTuple):
    """Of `n` targets, between two frames."""

    look_xywh: Float[Array, "n 4"]  # what to cut the next search crops around
    is_look: Bool[Array, " n"]  # whether that is a rung of the ladder, and not the target's box
    good_xywh: Float[Array, "n 4"]  # the last box that was not lost and scored well
    return_xywh: Float[Array, "n 4"]  # where to go back to if a find is not confirmed
    frames: Int32[Array, " n"]  # lost frames so far; 0 for targets that are not lost
    is_pending: Bool[Array, " n"]  # whether a find is to be confirmed by the next frame


def start_search(boxes_xywh: Float[Array, "n 4"]) -> SearchState:
    """Before the first frame after the given one."""
    nobody = jnp.zeros(len(boxes_xywh), bool)
    return SearchState(boxes_xywh, nobody, boxes_xywh, boxes_xywh, nobody.astype(jnp.int32), nobody)


def settle(
    settings: TrackerConfig,
    search: SearchState,
    boxes_xywh: Float[Array, "n 4"],
    found_xywh: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    lost: Bool[Array, " n"],
) -> tuple[SearchState, Float[Array, "n 4"], Bool[Array, " n"]]:
    """What becomes of the boxes found in crops around `search.look_xywh`; `look_on` must follow.

    Args:
        settings: of the tracker.
        search: before this frame.
        boxes_xywh: the targets' boxes before this frame.
        found_xywh: what was found, clipped to the frame.
        scores: of these.
        lost: which targets counted as lost before this frame.

    Returns:
        The state, the targets' boxes, and which lost targets are found.
    """
    is_high = scores > settings.redetect_above
    found = search.is_pending & is_high
    boxes = jnp.where((search.is_look & ~is_high)[:, None], boxes_xywh, found_xywh)
    boxes = jnp.where((search.is_pending & ~is_high)[:, None], search.return_xywh, boxes)
    is_good = (~lost | found) & ~search.is_look & (scores > settings.candidate_above)
    is_pending = search.is_look & is_high
    search = search._replace(
        good_xywh=jnp.where(is_good[:, None], boxes, search.good_xywh),
        return_xywh=jnp.where(is_pending[:, None], boxes_xywh, search.return_xywh),
        frames=jnp.where(lost & ~found, search.frames + 1, 0),
        is_pending=is_pending,
    )
    return search, boxes, found


def look_on(
    settings: TrackerConfig,
    search: SearchState,
    boxes_xywh: Float[Array, "n 4"],
    lost: Bool[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
) -> SearchState:
    """Decides what the next crops show; `frame_size` is height and width, a row a target for different videos."""
    frames = search.frames + 1
    is_look = lost & ~search.is_pending & (frames % settings.redetect_every == 0)
    rungs, count = ladder(search.good_xywh, frame_size)
    turn = (frames // settings.redetect_every - 1) % count
    rung = jnp.take_along_axis(rungs, turn[:, None, None], axis=1)[:, 0]
    sides = search.good_xywh[:, 2:] * (rung[:, 2:] / settings.search_factor)
    virtual_xywh = jnp.concatenate([rung[:, :2] - sides / 2, sides], axis=-1)
    return search._replace(look_xywh=jnp.where(is_look[:, None], virtual_xywh, boxes_xywh), is_look=is_look)


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
