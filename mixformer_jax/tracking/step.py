"""Tracking as pure functions (the paper, section 3.5, inference).

`start`, `step` and `refresh_templates` go from frames to boxes on the device, each as one program; `sequence.py` scans
`step` over a video. `start_from_crops`, `step_from_crops`, `keep_candidates` and `refresh_from_crops` are the same
after the cropping, for a host that cuts the crops itself: they share the program of `encode_templates`, so that the
first renewal of a template, in the middle of a video, has nothing large to compile.

The model and the settings are static. One compilation serves every target and every number of filled slots; another
number of targets, and on the device another size of frame, is another one.

Online templates are picked by score where the model gives one. Models without a score prediction module take the crop
around the current box, as the official trackers of both kinds do.
"""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.boxes import Array as EitherArray
from mixformer_jax.boxes import clip_box_xywh, namespace
from mixformer_jax.crops import context_crop_on_device, crop_box_to_frame, normalise
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.models.mixformer import MixFormer, Prediction
from mixformer_jax.tracking import scores as score_rules
from mixformer_jax.tracking.state import TrackPrediction, TrackState

Variables = dict[str, Any]
# Of the host or of the device.
AnyArray = np.ndarray | Array
jit_static = functools.partial(jax.jit, static_argnames=("model", "settings"))


def _crops(
    frame: UInt8[Array, "H W 3"], boxes_xywh: Float[Array, "n 4"], factor: float, size: int
) -> tuple[UInt8[Array, "n size size 3"], Float[Array, " n"]]:
    return jax.vmap(lambda box_xywh: context_crop_on_device(frame, box_xywh, factor, size))(boxes_xywh)


def _mask(settings: TrackerConfig, filled: Bool[Array, "n slots"]) -> Bool[Array, "n slots"] | None:
    """With at most one online template every slot is always filled, and a mask would cost for nothing."""
    return filled if settings.num_online_templates > 1 else None


@jit_static
def encode_templates(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    templates: UInt8[Array, "n slots T T 3"],
    filled: Bool[Array, "n slots"],
) -> TemplateCache | None:
    """The cache of template crops; None for models that cannot have one."""
    if not model.config.is_cacheable:
        return None
    cache = model.apply(variables, normalise(templates), _mask(settings, filled), method="encode_templates")
    return cast(TemplateCache, cache)


def _locate(
    model: MixFormer, settings: TrackerConfig, variables: Variables, state: TrackState, crops: UInt8[Array, "n S S 3"]
) -> Prediction:
    if state.cache is None:
        templates, mask = normalise(state.templates), _mask(settings, state.filled)
        return cast(Prediction, model.apply(variables, templates, normalise(crops), mask))
    return cast(Prediction, model.apply(variables, state.cache, normalise(crops), method="locate"))


def clip_margins(settings: TrackerConfig, boxes_xywh: Float[EitherArray, "n 4"]) -> Float[EitherArray, " n"]:
    """Pixels by which the boxes of targets must reach into the frame, and their least sides, from the given boxes."""
    xp = namespace(boxes_xywh)
    sides = boxes_xywh[:, 2:].min(axis=1)
    if not settings.clip_share:
        return xp.full_like(sides, settings.clip_margin)
    return xp.clip(settings.clip_share * sides, min(1, settings.clip_margin), settings.clip_margin)


@jit_static
def _first_state(
    model: MixFormer, settings: TrackerConfig, crops: UInt8[Array, "n T T 3"], boxes_xywh: Float[Array, "n 4"]
) -> TrackState:
    zero = jnp.zeros((), jnp.int32)
    return TrackState(
        boxes_xywh=boxes_xywh.astype(jnp.float32),
        templates=jnp.repeat(crops[:, None], settings.num_slots, axis=1),
        filled=jnp.broadcast_to(jnp.arange(settings.num_slots) < 2, (len(crops), settings.num_slots)),
        cache=None,
        memory=score_rules.start_memory(crops) if model.config.score_heads else None,
        clip_margins=clip_margins(settings, boxes_xywh.astype(jnp.float32)),
        frame_index=zero,
        num_refreshes=zero,
    )


def start_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    crops: UInt8[AnyArray, "n T T 3"],
    boxes_xywh: Float[AnyArray, "n 4"],
) -> TrackState:
    """The state after the first frame. The first online slot starts as a copy of the initial template."""
    state = _first_state(model, settings, crops, boxes_xywh)
    cache = encode_templates(model, settings, variables, state.templates, state.filled)
    return state._replace(cache=cache)


@jit_static
def step_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    crops: UInt8[Array, "n S S 3"],
    scales: Float[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
) -> tuple[TrackState, TrackPrediction]:
    """Finds the targets in search crops taken around `state.boxes_xywh`.

    Where the result's `is_candidate` holds, the caller cuts a template crop around the new box and gives it to
    `keep_candidates`.

    Args:
        model, settings, variables: the tracker.
        state: after the previous frame.
        crops: search crops.
        scales: of the crops (crop pixels per frame pixel).
        frame_size: height and width of the frame, pixels; a row a target where they are in different videos.
    """
    prediction = _locate(model, settings, variables, state, crops)
    boxes_xywh = crop_box_to_frame(prediction.boxes_cxcywh, state.boxes_xywh, scales, model.config.search_size)
    boxes_xywh = clip_box_xywh(boxes_xywh, frame_size[..., 0], frame_size[..., 1], state.clip_margins)
    memory, scores, is_candidate = state.memory, prediction.scores, None
    if memory is not None and scores is not None:
        memory, is_candidate = score_rules.select(settings, memory, scores)
        memory = score_rules.watch(settings, memory, scores)
    state = state._replace(boxes_xywh=boxes_xywh, memory=memory, frame_index=state.frame_index + 1)
    lost = None if memory is None else memory.lost
    return state, TrackPrediction(boxes_xywh, prediction.boxes_cxcywh, scores, is_candidate, lost)


def keep_candidates(
    state: TrackState, crops: UInt8[AnyArray, "n T T 3"], is_candidate: Bool[AnyArray, " n"]
) -> TrackState:
    """Takes template crops around the current boxes as candidates, for the targets for which `is_candidate` holds.

    Raises:
        ValueError: the model gives no scores.
    """
    if state.memory is None:
        raise ValueError("candidates are picked by score, and this model has no score prediction module")
    return state._replace(memory=score_rules.keep_candidates(state.memory, crops, is_candidate))


@functools.partial(jax.jit, static_argnames="settings")
def _replace_template(
    settings: TrackerConfig,
    templates: UInt8[Array, "n slots T T 3"],
    filled: Bool[Array, "n slots"],
    num_refreshes: Int32[Array, ""],
    crops: UInt8[Array, "n T T 3"],
) -> tuple[UInt8[Array, "n slots T T 3"], Bool[Array, "n slots"], Int32[Array, ""]]:
    slot = 1 + (num_refreshes + 1) % settings.num_online_templates
    return templates.at[:, slot].set(crops), filled.at[:, slot].set(True), num_refreshes + 1


def refresh_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    crops: UInt8[AnyArray, "n T T 3"],
) -> TrackState:
    """Takes crops (`state.memory.candidates`, where there are) as online templates, and encodes the templates anew.

    Empty slots are filled first, then the oldest online template is replaced: the copy of the initial one goes first.
    A new interval begins: the best score is forgotten, and the initial template is the candidate.

    Raises:
        ValueError: if the tracker has no online slots.
    """
    if settings.num_online_templates == 0:
        raise ValueError("this tracker has no online template slots (num_online_templates is 0)")
    templates, filled, num_refreshes = _replace_template(
        settings, state.templates, state.filled, state.num_refreshes, crops
    )
    cache = encode_templates(model, settings, variables, templates, filled)
    memory = None if state.memory is None else score_rules.forget_candidates(state.memory, templates)
    return state._replace(templates=templates, filled=filled, cache=cache, memory=memory, num_refreshes=num_refreshes)


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


def _cut_templates(
    model: MixFormer, settings: TrackerConfig, state: TrackState, frame: UInt8[Array, "H W 3"]
) -> UInt8[Array, "n T T 3"]:
    crops, _scales = _crops(frame, state.boxes_xywh, settings.template_factor, model.config.template_size)
    return crops


@jit_static
def refresh_templates(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    frame: UInt8[Array, "H W 3"],
) -> TrackState:
    """Renews one online template of each target, after `frame` was tracked: see `refresh_from_crops`."""
    crops = _cut_templates(model, settings, state, frame) if state.memory is None else state.memory.candidates
    return refresh_from_crops(model, settings, variables, state, crops)


@jit_static
def step(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    frame: UInt8[Array, "H W 3"],
) -> tuple[TrackState, TrackPrediction]:
    """From the next frame to boxes, and to new online templates where they are due. May be scanned over frames.

    Template crops are cut only on frames on which a target has a new candidate or, without scores, a renewal is due.
    """
    crops, scales = _crops(frame, state.boxes_xywh, settings.search_factor, model.config.search_size)
    frame_size = jnp.asarray(frame.shape[:2], jnp.int32)
    state, prediction = step_from_crops(model, settings, variables, state, crops, scales, frame_size)
    if settings.num_online_templates == 0:
        return state, prediction
    if state.memory is not None:
        # Not the whole state: what goes through the branches may be copied on every frame, and the cache is large.
        memory = jax.lax.cond(
            prediction.is_candidate.any(),
            lambda memory: score_rules.keep_candidates(
                memory, _cut_templates(model, settings, state, frame), prediction.is_candidate
            ),
            lambda memory: memory,
            state.memory,
        )
        state = state._replace(memory=memory)
    state = jax.lax.cond(
        is_refresh_due(settings, state.frame_index),
        lambda state: refresh_templates(model, settings, variables, state, frame),
        lambda state: state,
        state,
    )
    return state, prediction
