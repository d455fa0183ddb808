"""Labelled samples on the device: what `labelled` draws on the host, for one sample."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mixformer_jax.boxes import cxcywh_to_xyxy, iou
from mixformer_jax.data.labelled import MAX_IOU, MIN_SEEN, SIZE_JITTER
from mixformer_jax.data.pool.device_views import seen_share
from mixformer_jax.data.pool.drafts import Draft, serves
from mixformer_jax.data.pool.draws import Draws
from mixformer_jax.views import CropConfig

# Drawn at once, where the host draws up to 50, one after the other.
OTHERS = 4  # for each candidate
BOXES = 32


class Kind(NamedTuple):
    """What the box of a sample holds, see `labelled.LabelledPairs`; one of them, or none for `elsewhere`."""

    target: Bool[Array, ""]
    other: Bool[Array, ""]
    beside: Bool[Array, ""]


def draw_kind(draws: Draws, positive_share: float | None, is_video: Bool[Array, ""]) -> Kind:
    """What the box of a sample shall hold; without a share the target."""
    if positive_share is None:
        return Kind(jnp.asarray(True), jnp.asarray(False), jnp.asarray(False))
    target, other, beside = draws.chance(positive_share), draws.chance(0.5), draws.chance(0.5)
    return Kind(target, ~target & other, ~target & ~other & beside & is_video)


def negative(draws: Draws, kind: Kind, draft: Draft, others: Draft, crops: CropConfig) -> Draft:
    """The draft as its kind wants it, usable if it can be.

    Args:
        draws: random numbers.
        kind: what the box shall hold.
        draft: of the pair.
        others: drafts of the same source, on a first axis, to take the search and its box from.
        crops: sizes and limits.
    """
    is_other = others.usable & (others.origin != draft.origin)
    other = jax.tree.map(lambda leaves: leaves[jnp.argmax(is_other)], others)
    of_templates = ("template_base", "template_target", "origin")
    changed = other._replace(**{name: getattr(draft, name) for name in of_templates})
    taken = jax.tree.map(lambda a, b: jnp.where(kind.other, a, b), changed, draft)
    box_cxcywh, is_found = _other_box(draws, draft, crops)
    stays = kind.target | kind.other
    return taken._replace(
        usable=draft.usable & jnp.where(kind.other, is_other.any(), stays | is_found),
        box_cxcywh=jnp.where(stays, taken.box_cxcywh, box_cxcywh),
    )


def _other_box(draws: Draws, draft: Draft, crops: CropConfig) -> tuple[Float[Array, "4"], Bool[Array, ""]]:
    """A box where the target is not, on a distractor where there is one; and whether it serves."""
    sides = draft.box_cxcywh[2:] * jnp.exp(draws.signed(SIZE_JITTER, (BOXES, 2)))
    boxes = jnp.concatenate([draws.uniform(shape=(BOXES, 2)), sides], axis=1)
    rank = draws.uniform(shape=(BOXES,))
    if draft.distractors_cxcywh is not None:
        boxes = jnp.concatenate([boxes, draft.distractors_cxcywh])
        rank = jnp.concatenate([rank, 1 + draws.uniform(shape=(len(draft.distractors_cxcywh),))])
    overlap = iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(jnp.broadcast_to(draft.box_cxcywh, boxes.shape)))
    serving = jax.vmap(lambda box: serves(box, crops) & _is_seen(draft, box, crops))(boxes) & (overlap < MAX_IOU)
    best = jnp.argmax(jnp.where(serving, rank, -1.0))
    return boxes[best], serving.any()


def _is_seen(draft: Draft, box_cxcywh: Float[Array, "4"], crops: CropConfig) -> Bool[Array, ""]:
    """Whether enough of a box shows the picture and not its black surroundings."""
    # A box of no size is no box; what is made of it is not looked at.
    sides = jnp.maximum(box_cxcywh[2:], 1e-3)
    matrix = draft.search_base.matrix / crops.search_size
    matrix = matrix.at[:, 2].add(box_cxcywh[2:] / 2 - box_cxcywh[:2]) / sides[:, None]
    whole = (draft.seen_width_height == 0).all()
    return whole | (seen_share(matrix, 1, draft.seen_width_height) >= MIN_SEEN)
