"""The attention of Figs. 8 and 9 over a frame: who looks at the target, on the search region's place in the frame."""

import math
from typing import Any

import numpy as np

from mixformer_jax.media.sources import TimedFrame
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.serving.following import Following
from mixformer_jax.tracking.attention_maps import (
    KINDS,
    attention_maps,
    choose_blocks,
    looking_at,
    template_box_xyxy,
)
from mixformer_jax.tracking.targets import live_numbers, target_alone

# The kinds whose queries lie in the search region, and so in the frame.
ON_FRAMES = tuple(kind for kind, (queries, _keys) in KINDS.items() if queries == "search")


def overlay_choices(config: MixFormerConfig, num_online_templates: int) -> dict[str, list[str]]:
    """The kinds and blocks of which there are overlays; none for models in which nothing mixes."""
    try:
        blocks = list(choose_blocks(config))
    except ConfigError:
        return {"kinds": [], "blocks": []}
    return {"kinds": [kind for kind in ON_FRAMES if num_online_templates or kind != "S-to-OT"], "blocks": blocks}


def overlay(following: Following, frame: TimedFrame, target: int, kind: str, block: str) -> dict[str, Any] | None:
    """What share of its attention each part of the search region gives to the target; None where there is none.

    Args:
        following: the target, which was searched on the frame, or not.
        frame: the frame.
        target: its number.
        kind: of `overlay_choices`, as the block.
        block: all of them are computed at once, by one program.

    Returns:
        `x`, `y` and `side` of the search region in pixels of the frame; `levels`, rows of whole numbers up to 255, the
        `most` of which stands for 255.
    """
    tracker, index = following.tracker, frame.number - 1
    state, given_xywh = following.state_before(index), following.box_given(target, index)
    if state is None or given_xywh is None or target not in live_numbers(state):
        return None
    alone = target_alone(state, target)
    maps = attention_maps(tracker, alone, frame.pixels, template_box_xyxy(tracker, given_xywh))
    weights = maps.weights[kind][maps.blocks.index(block)]
    if weights is None:  # cross-attention blocks have no search to search
        return None
    levels = looking_at(weights, maps.views[KINDS[kind][1]].box_xyxy)
    most = max(float(levels.max()), 1e-12)
    x, y, w, h = np.asarray(alone.boxes_xywh, np.float64)[0].tolist()
    side = math.ceil(math.sqrt(w * h) * tracker.settings.search_factor)
    return {
        "target": target,
        "x": round(x + 0.5 * w - side * 0.5),
        "y": round(y + 0.5 * h - side * 0.5),
        "side": side,
        "levels": np.rint(255 * levels / most).astype(int).tolist(),
        "most": round(most, 4),
    }
