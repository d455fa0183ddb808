"""Who attends to what, measured: the numbers behind the paper's Figs. 8 and 9.

A map lies on the image whose tokens ask (the query image). It shows how much of its attention each position gives to
the target in the other image (the memory): to all memory tokens whose centre lies inside the target's box, together,
as a share of 1, averaged over heads. In the template that box is the given one, in the search region the predicted
one; of an online template only the area is known, so its box is a square. The official drawing takes the single token
in the memory's middle instead; the sum over a target's tokens is less noisy.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mixformer_jax.boxes import cxcywh_to_xyxy
from mixformer_jax.crops import context_crop, normalise
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.tracking.state import TrackState
from mixformer_jax.tracking.tracker import Tracker

SEARCH_TO_TEMPLATE, SEARCH_TO_ONLINE = "search to template", "search to online template"
SEARCH_TO_SEARCH, ONLINE_TO_TEMPLATE = "search to search", "online template to template"
DEFAULT_COLUMNS = 8

Share = Float[np.ndarray, "side side"]
Box = Float[np.ndarray, "4"]  # x1, y1, x2, y2, normalised to a crop


class View(NamedTuple):
    """A crop and the target's box in it: x1, y1, x2, y2, normalised."""

    pixels: UInt8[np.ndarray, "size size 3"]
    box_xyxy: Box


class AttentionMaps(NamedTuple):
    """The maps of one moment.

    Attributes:
        views: `template`, `search`, and `online` where a tracker has online templates (the last filled slot).
        blocks: names of the blocks shown.
        shares: for each kind of attention one map a block; None where a block has no such attention.
        score: the model's confidence in what it found, where it has one.
    """

    views: dict[str, View]
    blocks: tuple[str, ...]
    shares: dict[str, tuple[Share | None, ...]]
    score: float | None


class _Asked(NamedTuple):
    """One block's queries and keys, as the model computed them."""

    queries: Float[np.ndarray, "b heads q d"]
    keys: Float[np.ndarray, "b heads k d"]


def block_names(config: MixFormerConfig) -> tuple[str, ...]:
    """Short names of all blocks that attend: `S2-B4` is block 4 of stage 2, both counted from 0 as in Fig. 8.

    Blocks of a single stage are `B4`; cross-attention blocks behind the backbone `CAM0`.
    """
    early = config.early_depths if config.backbone == "cvt" else ()
    depths = (*early, config.depth, *([config.decoder_blocks] if config.decoder_blocks else []))
    named = [f"S{stage}-B{block}" for stage, depth in enumerate(depths) for block in range(depth)]
    if len(depths) == 1:
        named = [name.partition("-")[2] for name in named]
    return (*named, *(f"CAM{index}" for index in range(config.cross_attention_blocks)))


def mixing_blocks(config: MixFormerConfig) -> tuple[int, ...]:
    """Indices into `block_names` of the blocks in which the search region sees templates."""
    mixed = config.num_blocks if config.mixed_blocks is None else config.mixed_blocks
    return tuple(range(config.num_blocks - mixed, config.num_blocks + config.cross_attention_blocks))


def choose_blocks(config: MixFormerConfig, blocks: Sequence[int] | None) -> tuple[int, ...]:
    """The blocks to show: those asked for, or at most eight, evenly spread over the mixing ones of the last stage.

    Raises:
        ConfigError: a block that does not exist or does not mix, or a model without any.
    """
    mixing = mixing_blocks(config)
    if not mixing:
        raise ConfigError(f"no block of the model {config.name!r} mixes template and search region: nothing to show")
    if blocks is None:
        last_stage = [index for index in mixing if index >= config.num_blocks - config.decoder_blocks - config.depth]
        count = min(DEFAULT_COLUMNS, len(last_stage))
        return tuple(last_stage[round(place)] for place in np.linspace(0, len(last_stage) - 1, count))
    wrong = [index for index in blocks if index not in mixing]
    if wrong or not blocks:
        raise ConfigError(
            f"blocks {', '.join(map(str, wrong))}: expected some of {mixing[0]} to {mixing[-1]}, the blocks of "
            f"{config.name!r} in which template and search region mix"
        )
    return tuple(blocks)


def attention_maps(
    tracker: Tracker,
    state: TrackState,
    frame: UInt8[np.ndarray, "H W 3"],
    template_xyxy: Box,
    blocks: Sequence[int] | None = None,
) -> AttentionMaps:
    """The maps for a frame, given the state after the frame before.

    Args:
        tracker: model and settings.
        state: of a single target.
        frame: RGB.
        template_xyxy: the target's box in the initial template, normalised.
        blocks: indices into `block_names`; None for a choice.

    Raises:
        ConfigError: as `choose_blocks`.
    """
    config = tracker.config
    chosen = choose_blocks(config, blocks)
    names = block_names(config)
    modules = [
        f"blocks_{index}" if index < config.num_blocks else f"cross_blocks_{index - config.num_blocks}"
        for index in chosen
    ]
    box_xywh = np.asarray(state.boxes_xywh, np.float64)[0]
    crop = context_crop(frame, box_xywh, tracker.settings.search_factor, config.search_size).pixels
    filled = np.asarray(state.filled)[0]

    def run(variables: dict, templates: jax.Array, search: jax.Array, filled: jax.Array) -> tuple[Any, Any, Any]:
        prediction, captured = tracker.model.apply(
            variables, normalise(templates), normalise(search), filled, mutable=["intermediates"]
        )
        found = captured["intermediates"]["backbone"]
        asked = {name: found[name]["attention"] for name in modules}
        return prediction.boxes_cxcywh, prediction.scores, asked

    boxes_cxcywh, scores, asked = jax.device_get(
        jax.jit(run)(tracker.variables, state.templates, crop[None], filled[None])
    )
    views = {"template": View(np.asarray(state.templates)[0, 0], template_xyxy)}
    slot = int(np.flatnonzero(filled)[-1])
    if slot:
        margin = 0.5 - 0.5 / tracker.settings.template_factor
        square = np.array([margin, margin, 1 - margin, 1 - margin])
        views["online"] = View(np.asarray(state.templates)[0, slot], square)
    views["search"] = View(crop, cxcywh_to_xyxy(np.asarray(boxes_cxcywh, np.float64)[0]))

    scales = _scales(tracker, modules)
    columns = []
    for name, scale in zip(modules, scales, strict=True):
        steps = [_Asked(*step) for step in zip(asked[name]["queries"], asked[name]["keys"], strict=True)]
        columns.append(_shares(config, steps, scale, filled, slot, views))
    shares = {kind: tuple(column.get(kind) for column in columns) for kind in _kinds(slot)}
    score = None if scores is None else float(scores[0])
    return AttentionMaps(views, tuple(names[index] for index in chosen), shares, score)


def _kinds(slot: int) -> tuple[str, ...]:
    if not slot:
        return SEARCH_TO_TEMPLATE, SEARCH_TO_SEARCH
    return SEARCH_TO_TEMPLATE, SEARCH_TO_ONLINE, SEARCH_TO_SEARCH, ONLINE_TO_TEMPLATE


def _scales(tracker: Tracker, modules: Sequence[str]) -> list[float]:
    backbone = tracker.model.bind(tracker.variables).backbone
    found = []
    for module in modules:
        blocks, _, index = module.rpartition("_")
        found.append(getattr(backbone, blocks)[int(index)].attention.scale)
    return found


def _shares(
    config: MixFormerConfig,
    steps: Sequence[_Asked],
    scale: float,
    filled: Bool[np.ndarray, " slots"],
    slot: int,
    views: dict[str, View],
) -> dict[str, Share]:
    """One block's maps, by kind. `steps` are its calls: the template stream (but for cross attention), the search."""
    search = steps[-1]
    has_own_keys = len(steps) == 2
    grid = math.isqrt(search.queries.shape[2])  # a regression token stands behind the grid
    own_side = (grid + 1) // 2 if config.projection == "depthwise" else grid
    own_keys = has_own_keys * (own_side**2 + search.queries.shape[2] - grid**2)
    slot_keys = (search.keys.shape[2] - own_keys) // len(filled)

    def to_template(weights: Float[np.ndarray, "q k"], which: int, view: str) -> Share:
        given = weights[:, which * slot_keys : (which + 1) * slot_keys]
        return _given_to(given, views[view].box_xyxy)

    weights = _weights(search, scale, filled, slot_keys)
    shares = {SEARCH_TO_TEMPLATE: to_template(weights, 0, "template")}
    if slot:
        shares[SEARCH_TO_ONLINE] = to_template(weights, slot, "online")
    if has_own_keys:
        start = len(filled) * slot_keys
        shares[SEARCH_TO_SEARCH] = _given_to(weights[:, start : start + own_side**2], views["search"].box_xyxy)
    if slot and has_own_keys:
        rows = steps[0].queries.shape[2] // len(filled)
        online = steps[0].queries[:, :, slot * rows : (slot + 1) * rows]
        weights = _weights(_Asked(online, steps[0].keys), scale, filled, slot_keys)
        shares[ONLINE_TO_TEMPLATE] = to_template(weights, 0, "template")
    return shares


def _weights(
    asked: _Asked, scale: float, filled: Bool[np.ndarray, " slots"], slot_keys: int
) -> Float[np.ndarray, "q k"]:
    """Softmax weights of one block, averaged over its heads; keys of empty slots get none."""
    queries, keys = (np.asarray(array, np.float32)[0] for array in asked)
    logits = queries @ keys.swapaxes(1, 2) * scale
    visible = np.concatenate([np.repeat(filled, slot_keys), np.ones(keys.shape[1] - len(filled) * slot_keys, bool)])
    logits[:, :, ~visible] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=0)


def _given_to(weights: Float[np.ndarray, "q k"], box_xyxy: Box) -> Share:
    """What every query of a square grid gives to the keys inside a box; keys lie on a square grid of their own."""
    key_side, query_side = math.isqrt(weights.shape[1]), math.isqrt(len(weights))
    centres = (np.arange(key_side) + 0.5) / key_side
    x1, y1, x2, y2 = box_xyxy
    inside = ((centres >= y1) & (centres <= y2))[:, None] & ((centres >= x1) & (centres <= x2))
    if not inside.any():  # a target smaller than a token: the token in which its centre lies
        row, column = (np.clip(int(c * key_side), 0, key_side - 1) for c in ((y1 + y2) / 2, (x1 + x2) / 2))
        inside[row, column] = True
    return weights[: query_side**2, inside.ravel()].sum(axis=1).reshape(query_side, query_side)
