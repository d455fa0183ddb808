"""Tracking as pure functions (the paper, section 3.5, inference; the update rule of the tracker without scores).

`start`, `step` and `refresh_templates` go from frames to boxes on the device; `start_from_crops`, `step_from_crops`
and `refresh_from_crops` are the same after the cropping, for a host that cuts the crops itself. All are jitted, with
the model and the settings static; compile once per shape, whatever the target or the number of filled slots.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.boxes import clip_box_xywh
from mixformer_jax.crops import context_crop_on_device, crop_box_to_frame, normalise
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.models.mixformer import MixFormer, Prediction
from mixformer_jax.tracking.state import TrackPrediction, TrackState

Variables = dict[str, Any]
jit_static = functools.partial(jax.jit, static_argnames=("model", "settings"))


def _crops(
    frame: UInt8[Array, "H W 3"], boxes_xywh: Float[Array, "n 4"], factor: float, size: int
) -> tuple[UInt8[Array, "n size size 3"], Float[Array, " n"]]:
    return jax.vmap(lambda box_xywh: context_crop_on_device(frame, box_xywh, factor, size))(boxes_xywh)


def _encode(
    model: MixFormer, settings: TrackerConfig, variables: Variables, templates: Array, filled: Array
) -> TemplateCache:
    # With at most one online template every slot is always filled, and the mask would cost for nothing.
    mask: Bool[Array, "n slots"] | None = filled if settings.num_online_templates > 1 else None
    cache = model.apply(variables, normalise(templates), mask, method="encode_templates")
    return cast(TemplateCache, cache)


@jit_static
def start_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    crops: UInt8[Array, "n T T 3"],
    boxes_xywh: Float[Array, "n 4"],
) -> TrackState:
    """The state after the first frame. The first online slot starts as a copy of the initial template."""
    templates = jnp.repeat(crops[:, None], settings.num_slots, axis=1)
    filled = jnp.broadcast_to(jnp.arange(settings.num_slots) < 2, (len(crops), settings.num_slots))
    cache = _encode(model, settings, variables, templates, filled)
    zero = jnp.zeros((), jnp.int32)
    return TrackState(boxes_xywh.astype(jnp.float32), templates, filled, cache, zero, zero)


@jit_static
def step_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    crops: UInt8[Array, "n S S 3"],
    scales: Float[Array, " n"],
    frame_size: Int32[Array, "2"],
) -> tuple[TrackState, TrackPrediction]:
    """Finds the targets in search crops taken around `state.boxes_xywh`.

    Args:
        model, settings, variables: the tracker.
        state: after the previous frame.
        crops: search crops.
        scales: of the crops (crop pixels per frame pixel).
        frame_size: height and width of the frame, pixels.
    """
    prediction = cast(Prediction, model.apply(variables, state.cache, normalise(crops), method="locate"))
    boxes_xywh = crop_box_to_frame(prediction.boxes_cxcywh, state.boxes_xywh, scales, model.config.search_size)
    boxes_xywh = clip_box_xywh(boxes_xywh, frame_size[0], frame_size[1], settings.clip_margin)
    state = state._replace(boxes_xywh=boxes_xywh, frame_index=state.frame_index + 1)
    return state, TrackPrediction(boxes_xywh, prediction.boxes_cxcywh, prediction.scores)


@jit_static
def refresh_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    crops: UInt8[Array, "n T T 3"],
) -> TrackState:
    """Takes crops around the current boxes as online templates, and encodes the templates anew.

    Empty slots are filled first, then the oldest online template is replaced: the copy of the initial one goes first.

    Raises:
        ValueError: if the tracker has no online slots.
    """
    if settings.num_online_templates == 0:
        raise ValueError("this tracker has no online template slots (num_online_templates is 0)")
    slot = 1 + (state.num_refreshes + 1) % settings.num_online_templates
    templates = state.templates.at[:, slot].set(crops)
    filled = state.filled.at[:, slot].set(True)
    cache = _encode(model, settings, variables, templates, filled)
    return state._replace(templates=templates, filled=filled, cache=cache, num_refreshes=state.num_refreshes + 1)


def is_refresh_due(settings: TrackerConfig, frame_index: Array | int) -> Array | bool:
    """Whether online templates are renewed after the frame of this index (the first frame is 0)."""
    return settings.num_online_templates > 0 and frame_index % settings.update_interval == 0


@jit_static
def start(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    frame: UInt8[Array, "H W 3"],
    boxes_xywh: Float[Array, "n 4"],
) -> TrackState:
    """The state after the first frame, on which `boxes_xywh` mark the targets."""
    crops, _ = _crops(frame, boxes_xywh, settings.template_factor, model.config.template_size)
    return start_from_crops(model, settings, variables, crops, boxes_xywh)


@jit_static
def refresh_templates(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    frame: UInt8[Array, "H W 3"],
) -> TrackState:
    """Takes online templates around the current boxes of the frame just tracked."""
    crops, _ = _crops(frame, state.boxes_xywh, settings.template_factor, model.config.template_size)
    return refresh_from_crops(model, settings, variables, state, crops)


@jit_static
def step(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    frame: UInt8[Array, "H W 3"],
) -> tuple[TrackState, TrackPrediction]:
    """From the next frame to boxes, and to new online templates where they are due. May be scanned over frames."""
    crops, scales = _crops(frame, state.boxes_xywh, settings.search_factor, model.config.search_size)
    frame_size = jnp.asarray(frame.shape[:2], jnp.int32)
    state, prediction = step_from_crops(model, settings, variables, state, crops, scales, frame_size)
    if settings.num_online_templates > 0:
        state = jax.lax.cond(
            is_refresh_due(settings, state.frame_index),
            lambda state: refresh_templates(model, settings, variables, state, frame),
            lambda state: state,
            state,
        )
    return state, prediction
