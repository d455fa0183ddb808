"""Who attends to whom: the softmax weights of the paper's Figs. 8 and 9, as a tracker uses them on one frame, computed
again from the queries and keys that the blocks sow, and averaged over heads.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from mixformer_jax.boxes import cxcywh_to_xyxy
from mixformer_jax.crops import context_crop
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.models.mixformer import MixFormer
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.scores import entropy_limit
from mixformer_jax.tracking.step import TrackState, Variables
from mixformer_jax.tracking.tracker import Tracker

# Kinds of attention in the order of Figs. 8 and 9: the crop whose tokens ask, and the crop whose tokens are asked.
KINDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "S-to-T": ("search", "template"),
        "S-to-OT": ("search", "online"),
        "S-to-S": ("search", "search"),
        "OT-to-T": ("online", "template"),
    }
)
MOST_BLOCKS = 9  # so many does Fig. 8 show

Weights = Float[np.ndarray, "_query_rows _query_columns _key_rows _key_columns"]
Box = Float[np.ndarray, "4"]  # x1, y1, x2, y2, normalised to a crop


class View(NamedTuple):
    """A crop, the target's box in it (x1, y1, x2, y2, normalised), and what it is in words."""

    pixels: UInt8[np.ndarray, "size size 3"]
    box_xyxy: Box
    caption: str


class AttentionMaps(NamedTuple):
    """The attention of one moment: for each of `KINDS` that the tracker has, an array of weights a block, or None where
    a block has no such attention. Summed over all keys that a query sees they are 1."""

    views: dict[str, View]  # `template`, `search`, and `online` where the tracker has online templates
    blocks: tuple[str, ...]  # names
    weights: dict[str, tuple[Weights | None, ...]]
    score: float | None  # the model's confidence in what it found


def block_names(config: MixFormerConfig) -> tuple[str, ...]:
    """Names of all blocks that attend: `S2-B4` is block 4 of stage 2, both counted from 0 as in Fig. 8.

    Blocks of a single stage are `B4`; cross-attention blocks behind the backbone `CAM0`.
    """
    early = config.early_depths if config.backbone == "cvt" else ()
    depths = (*early, config.depth, *([config.decoder_blocks] if config.decoder_blocks else []))
    named = [f"S{stage}-B{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    if len(depths) == 1:
        named = [name.partition("-")[2] for name in named]
    return (*named, *(f"CAM{index}" for index in range(config.cross_attention_blocks)))


def mixing_blocks(config: MixFormerConfig) -> tuple[str, ...]:
    """Names of the blocks in which the search region sees templates."""
    mixed = config.num_blocks if config.mixed_blocks is None else config.mixed_blocks
    return block_names(config)[config.num_blocks - mixed :]


def choose_blocks(config: MixFormerConfig, blocks: Sequence[str] | None = None) -> tuple[str, ...]:
    """The blocks to show: those asked for; for `["all"]` every mixing one; for None at most `MOST_BLOCKS`.

    These are every k-th and the last mixing block of the last stage and after: for MixCvT those of Fig. 8.

    Raises ConfigError: a block that does not exist or does not mix, or a model without any.
    """
    mixing = mixing_blocks(config)
    if not mixing:
        raise ConfigError(
            f"no attention block of {config.name!r} sees both template and search region: there is nothing to show"
        )
    if blocks is None:
        names = block_names(config)[config.num_blocks - config.decoder_blocks - config.depth :]
        last = [name for name in mixing if name in names]
        step = max(1, math.ceil((len(last) - 1) / (MOST_BLOCKS - 1)))
        return tuple(dict.fromkeys([*last[::step], last[-1]]))
    if [name.lower() for name in blocks] == ["all"]:
        return mixing
    known = {name.lower(): name for name in mixing}
    wrong = [name for name in blocks if name.lower() not in known]
    if wrong or not blocks:
        raise ConfigError(
            f"no blocks {', '.join(wrong)!r} in which template and search region of {config.name!r} mix; expected "
            f"'all', or some of {', '.join(mixing)}"
        )
    return tuple(known[name.lower()] for name in blocks)


def attention_maps(
    tracker: Tracker,
    state: TrackState,
    frame: UInt8[np.ndarray, "H W 3"],
    template_xyxy: Box,
    blocks: Sequence[str] | None = None,
) -> AttentionMaps:
    """The attention with which a tracker looks at a frame, for the single target of the state before it.

    Of several online templates the newest is taken. Only the area of its box in its crop is known: the box given with
    its view is a square in the middle.

    `template_xyxy` is the target's box in the initial template, normalised. `blocks` and ConfigError: `choose_blocks`.
    """
    config, settings = tracker.config, tracker.settings
    chosen = choose_blocks(config, blocks)
    backbone, modules = tracker.model.bind(tracker.variables).backbone, []
    for name in chosen:
        index = block_names(config).index(name)
        is_cross = index >= config.num_blocks
        kind, index = ("cross_blocks", index - config.num_blocks) if is_cross else ("blocks", index)
        modules.append((name, f"{kind}_{index}", float(getattr(backbone, kind)[index].attention.scale)))
    box_xywh = np.asarray(state.boxes_xywh, np.float64)[0]
    crop = context_crop(frame, box_xywh, settings.search_factor, config.search_size).pixels
    boxes_cxcywh, scores, weights = jax.device_get(
        _attend(
            *(tracker.model, tuple(modules), tracker.variables, state.templates, crop[None], state.filled),
            entropy_limit(settings, state.memory),
        )
    )
    templates = np.asarray(state.templates)[0]
    views = {"template": View(templates[0], template_xyxy, "template")}
    newest = 0
    if settings.num_online_templates:
        newest = 1 + int(state.num_refreshes) % settings.num_online_templates
        margin = 0.5 - 0.5 / settings.template_factor
        square = np.array([margin, margin, 1 - margin, 1 - margin])
        caption = "online template" if int(state.num_refreshes) else "online: still the first"
        views["online"] = View(templates[newest], square, caption)
    views["search"] = View(crop, cxcywh_to_xyxy(np.asarray(boxes_cxcywh, np.float64)[0]), "search region")

    split = [_split(config, weights[name], len(templates), newest) for name in chosen]
    kinds = [kind for kind, crops in KINDS.items() if views.keys() >= set(crops)]
    by_kind = {kind: tuple(of_block.get(kind) for of_block in split) for kind in kinds}
    return AttentionMaps(views, chosen, by_kind, None if scores is None else float(scores[0]))


@functools.partial(jax.jit, static_argnames=("model", "modules"))
def _attend(
    model: MixFormer,
    modules: tuple[tuple[str, str, float], ...],
    variables: Variables,
    templates: UInt8[Array, "1 slots T T 3"],
    search: UInt8[Array, "1 S S 3"],
    filled: Bool[Array, "1 slots"],
    limit: Float[Array, "1"] | None,
) -> tuple[Any, ...]:
    """Boxes, scores, and weights by block; `modules` are the blocks' names, their modules and scales."""
    found, sown = model.apply(variables, normalise(templates), normalise(search), filled, mutable=["intermediates"])
    weights = {}
    for name, module, scale in modules:
        asked = sown["intermediates"]["backbone"][module]["attention"]
        # The template stream's, then the search stream's; cross-attention blocks have the second alone.
        steps = list(zip(asked["queries"], asked["keys"], strict=True))
        shape = (steps[-1][0].shape[2], steps[-1][1].shape[2])
        _side, slot_keys, _own = _layout(model.config, shape, filled.shape[1], is_cross=len(steps) == 1)
        mask = jnp.repeat(filled[0], slot_keys)
        weights[name] = [_mean_weights(queries, keys, scale, mask) for queries, keys in steps]
    return found.boxes_cxcywh, found.scores_within(limit), weights


def template_box_xyxy(tracker: Tracker, box_xywh: Float[np.ndarray, "4"]) -> Box:
    """Where a given box lies in the template that was cut around it: in its middle."""
    size = box_xywh[2:] / math.ceil(math.sqrt(box_xywh[2] * box_xywh[3]) * tracker.settings.template_factor)
    return np.concatenate([0.5 - size / 2, 0.5 + size / 2])


def token_mask(side: int, box_xyxy: Box) -> Bool[np.ndarray, "{side} {side}"]:
    """The tokens of a crop whose centre lies in a box; where there is none, the one in which the box's centre lies."""
    x1, y1, x2, y2 = box_xyxy
    centres = (np.arange(side) + 0.5) / side
    inside = ((centres >= y1) & (centres <= y2))[:, None] & ((centres >= x1) & (centres <= x2))
    if not inside.any():
        row, column = (min(max(int(c * side), 0), side - 1) for c in ((y1 + y2) / 2, (x1 + x2) / 2))
        inside[row, column] = True
    return inside


def looked_at(weights: Weights, query_xyxy: Box) -> Float[np.ndarray, "key_rows key_columns"]:
    """Where the tokens in a box look: the mean of their weights, on the grid of the keys."""
    return weights[token_mask(len(weights), query_xyxy)].mean(axis=0)


def looking_at(weights: Weights, key_xyxy: Box) -> Float[np.ndarray, "query_rows query_columns"]:
    """Who looks at the tokens in a box: the share of its attention that each query gives to all of them together."""
    return weights[:, :, token_mask(weights.shape[2], key_xyxy)].sum(axis=-1)


def _layout(config: MixFormerConfig, search_shape: tuple[int, ...], slots: int, is_cross: bool) -> tuple[int, int, int]:
    """How tokens lie in a block: the side of the search region's queries, the keys of a slot, the side of its own keys.

    The keys of the slots come first; a cross-attention block has no others. The regression token stands behind the
    square of the queries and behind that of the own keys.
    """
    num_queries, num_keys = search_shape
    side = math.isqrt(num_queries)
    if is_cross:
        return side, num_keys // slots, 0
    own_side = (side + 1) // 2 if config.projection == "depthwise" else side
    own = own_side**2 + num_queries - side**2
    return side, (num_keys - own) // slots, own_side


def _mean_weights(
    queries: Float[Array, "1 heads q d"], keys: Float[Array, "1 heads k d"], scale: float, filled: Bool[Array, " t"]
) -> Float[Array, "q k"]:
    """Softmax weights as `models.attention.attend` has them, averaged over heads; `filled` masks the first keys."""
    queries = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
    logits = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    mask = jnp.pad(filled, (0, keys.shape[2] - len(filled)), constant_values=True)
    return jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1).mean(axis=(0, 1))


def _split(
    config: MixFormerConfig, steps: Sequence[Float[np.ndarray, "_q _k"]], slots: int, newest: int
) -> dict[str, Weights]:
    """One block's weights by kind. `steps` are those of the template stream, if it has one, and of the search."""
    search = steps[-1]
    side, slot_keys, own_side = _layout(config, search.shape, slots, is_cross=len(steps) == 1)

    def part(weights: Float[np.ndarray, "q k"], first_key: int, key_side: int) -> Weights:
        of_keys = weights[:, first_key : first_key + key_side**2]
        query_side = math.isqrt(len(weights))
        return of_keys.reshape(query_side, query_side, key_side, key_side)

    queries, key_side = search[: side**2], math.isqrt(slot_keys)
    found = {"S-to-T": part(queries, 0, key_side)}
    if newest:
        found["S-to-OT"] = part(queries, newest * slot_keys, key_side)
    if own_side:
        found["S-to-S"] = part(queries, slots * slot_keys, own_side)
    if newest and len(steps) == 2:
        rows = len(steps[0]) // slots
        found["OT-to-T"] = part(steps[0][newest * rows : (newest + 1) * rows], 0, key_side)
    return found
