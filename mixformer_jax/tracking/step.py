"""Tracking as pure functions of an explicit state (the paper, section 3.5, inference): for the host, which cuts crops
itself, `start_from_crops`, `step_from_crops` and `update_templates`; from frames to boxes on the device, each as one
program, `start`, `step`, `scan_frames` and `track_sequence`. Model and settings are static.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Int64, UInt8

from mixformer_jax.boxes import Array as EitherArray
from mixformer_jax.boxes import clip_box_xywh, namespace
from mixformer_jax.crops import context_crop_on_device, crop_box_to_frame
from mixformer_jax.kept_programs import KeptJit
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.models.mixformer import MixFormer, Prediction
from mixformer_jax.pixels import normalise
from mixformer_jax.tracking.scores import (
    Located,
    Redetection,
    ScoreMemory,
    choose_boxes,
    entropy_limit,
    forget_candidates,
    judge_sizes,
    keep_candidates,
    learn_entropy,
    plan_look,
    select,
    start_memory,
    start_redetection,
    watch,
)

Variables = dict[str, Any]
AnyArray = np.ndarray | Array
jit_static = functools.partial(jax.jit, static_argnames=("model", "settings"))
# For the programs that the host calls on every frame: model and settings are the first arguments, or the settings.
kept_static = functools.partial(KeptJit, static=2)
kept_rules = functools.partial(KeptJit, static=1)


class Targets(NamedTuple):
    """Whose the rows of a state are, on the host, once targets have come or gone (`tracking.targets`)."""

    numbers: Int64[np.ndarray, " n"]  # of the targets, which keep theirs; -1 for a free row
    since: Int64[np.ndarray, " n"]  # the frame index at which each was given
    refreshes: Int64[np.ndarray, " n"]  # online templates taken so far
    pinned: Int64[np.ndarray, " n"]  # online slots, the first ones, that hold templates of the user's
    next_number: int  # no number is given twice


class TrackState(NamedTuple):
    """State of `n` targets between two frames. The counters are scalars, or one a target in `lanes`."""

    boxes_xywh: Float[Array, "n 4"]  # on the last frame, pixels
    templates: UInt8[Array, "n slots T T c"]  # crops: the initial template, then the online templates
    filled: Bool[Array, "n slots"]  # slots that hold a template; 0 and, where there is one, 1 always do
    cache: TemplateCache | None  # encoded templates; None for models that encode them with every search region
    memory: ScoreMemory | None  # None for models without a score prediction module
    redetection: Redetection | None  # looking for lost targets; None where nothing is looked for
    clip_margins: Float[Array, " n"]  # pixels by which each box must reach into the frame; see `TrackerConfig`
    mask_targets: Any  # what a `masks.Segmenter` remembers of them, a row a target; None without one
    frame_index: Int32[Array, "*each"]  # frames tracked since the first
    num_refreshes: Int32[Array, "*each"]  # online templates taken so far
    targets: Targets | None = None  # None: every row holds a target of `start`


class TrackPrediction(NamedTuple):
    """Where `n` targets are on one frame; the last three are None for models without a score prediction module."""

    boxes_xywh: Float[Array, "*t n 4"]  # pixels, clipped to the frame
    boxes_cxcywh: Float[Array, "*t n 4"]  # as the model gave them: normalised to the search crops, not clipped
    scores: Float[Array, "*t n"] | None  # confidence in [0, 1]
    is_candidate: Bool[Array, "*t n"] | None  # whether this crop is the best for an online template so far
    lost: Bool[Array, "*t n"] | None  # whether the target counts as lost (not in the paper)


def clip_margins(settings: TrackerConfig, boxes_xywh: Float[EitherArray, "n 4"]) -> Float[EitherArray, " n"]:
    """Pixels by which the boxes of targets must reach into the frame, and their least sides, from the given boxes."""
    xp = namespace(boxes_xywh)
    sides = boxes_xywh[:, 2:].min(axis=1)
    if not settings.clip_share:
        return xp.full_like(sides, settings.clip_margin)
    return xp.clip(settings.clip_share * sides, min(1, settings.clip_margin), settings.clip_margin)


# From crops to boxes.

CutSearch = Callable[[Float[Array, "n 4"]], tuple[UInt8[AnyArray, "n S S c"], Float[AnyArray, " n"]]]
"""Search crops around boxes, and their scales; what it gives for targets that look nowhere does not count."""


def _mask(settings: TrackerConfig, filled: Bool[Array, "n slots"]) -> Bool[Array, "n slots"] | None:
    """With at most one online template every slot is always filled, and a mask would cost for nothing."""
    return filled if settings.num_online_templates > 1 else None


@kept_static
def encode_templates(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    templates: UInt8[Array, "n slots T T c"],
    filled: Bool[Array, "n slots"],
) -> TemplateCache | None:
    """The cache of template crops; None for models that cannot have one."""
    if not model.config.is_cacheable:
        return None
    cache = model.apply(variables, normalise(templates), _mask(settings, filled), method="encode_templates")
    return cast(TemplateCache, cache)


@kept_static
def _first_state(
    model: MixFormer, settings: TrackerConfig, crops: UInt8[Array, "n T T c"], boxes_xywh: Float[Array, "n 4"]
) -> TrackState:
    boxes_xywh, zero = boxes_xywh.astype(jnp.float32), jnp.zeros((), jnp.int32)
    has_scores = model.config.score_heads > 0
    return TrackState(
        boxes_xywh=boxes_xywh,
        templates=jnp.repeat(crops[:, None], settings.num_slots, axis=1),
        filled=jnp.broadcast_to(jnp.arange(settings.num_slots) < 2, (len(crops), settings.num_slots)),
        cache=None,
        memory=start_memory(crops) if has_scores else None,
        redetection=start_redetection(boxes_xywh) if has_scores and settings.look_every else None,
        clip_margins=clip_margins(settings, boxes_xywh),
        mask_targets=None,
        frame_index=zero,
        num_refreshes=zero,
    )


def start_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    crops: UInt8[AnyArray, "n T T c"],
    boxes_xywh: Float[AnyArray, "n 4"],
) -> TrackState:
    """The state after the first frame. The first online slot starts as a copy of the initial template."""
    state = _first_state(model, settings, crops, boxes_xywh)
    return state._replace(cache=encode_templates(model, settings, variables, state.templates, state.filled))


def step_from_crops(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    crops: UInt8[AnyArray, "n S S c"],
    scales: Float[AnyArray, " n"],
    frame_size: Int32[AnyArray, "*each 2"],
    look: CutSearch,
) -> tuple[TrackState, TrackPrediction]:
    """Finds the targets in search crops around their boxes; `update_templates` must follow.

    `scales` are crop pixels per frame pixel; `frame_size` is height and width, a row a target for different videos.
    `look` cuts the crops of lost targets that are looked for elsewhere.
    """
    # What a step does not change stays out of the program's results, which would be copies: the cache is large.
    redetection, parts = state.redetection, (model, settings, variables, state)
    if redetection is None:
        prediction, changed = _find(*parts, crops, scales, frame_size)
    else:
        near, boxes_cxcywh = _locate(*parts, state.boxes_xywh, crops, scales, frame_size)

        def locate_elsewhere(_near: Located) -> Located:
            look_xywh = redetection.look_xywh
            return cast(Located, _locate(*parts, look_xywh, *look(look_xywh), frame_size)[0])

        elsewhere = _when(redetection.is_look.any(), locate_elsewhere, near)
        prediction, changed = _apply_rules(settings, state, near, boxes_cxcywh, elsewhere, frame_size)
    memory = state.memory
    if memory is not None and prediction.lost is not None:
        memory = memory._replace(
            best=changed.best, lost=prediction.lost, streak=changed.streak, usual_entropy=changed.usual_entropy
        )
    return state._replace(
        boxes_xywh=prediction.boxes_xywh,
        memory=memory,
        redetection=changed.redetection,
        frame_index=changed.frame_index,
    ), prediction


class _Changed(NamedTuple):
    """Parts of the next state that are no part of the prediction."""

    frame_index: Int32[Array, "*each"]
    best: Float[Array, " n"] | None = None
    streak: Int32[Array, " n"] | None = None
    usual_entropy: Float[Array, " n"] | None = None
    redetection: Redetection | None = None


@kept_static
def _locate(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    around_xywh: Float[Array, "n 4"],
    crops: UInt8[Array, "n S S c"],
    scales: Float[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
) -> tuple[Located, Float[Array, "n 4"]]:
    """The network on crops around some boxes: what it finds on the frame, and its boxes as it gave them."""
    if state.cache is None:
        templates, mask = normalise(state.templates), _mask(settings, state.filled)
        found = cast(Prediction, model.apply(variables, templates, normalise(crops), mask))
    else:
        found = cast(Prediction, model.apply(variables, state.cache, normalise(crops), method="locate"))
    boxes_xywh = crop_box_to_frame(found.boxes_cxcywh, around_xywh, scales, model.config.search_size)
    boxes_xywh = clip_box_xywh(boxes_xywh, frame_size[..., 0], frame_size[..., 1], state.clip_margins)
    scores = found.scores_within(entropy_limit(settings, state.memory))
    entropy = found.corner_entropy if settings.entropy_margin else None
    return Located(boxes_xywh, scores, entropy), found.boxes_cxcywh


@kept_rules
def _apply_rules(
    settings: TrackerConfig,
    state: TrackState,
    near: Located,
    boxes_cxcywh: Float[Array, "n 4"],
    elsewhere: Located | None,
    frame_size: Int32[Array, "*each 2"],
) -> tuple[TrackPrediction, _Changed]:
    """What follows from what was located: the rules on scores, and where lost targets are looked for next."""
    frame_index, before, redetection, scores = state.frame_index + 1, state.memory, state.redetection, near.scores
    boxes_xywh = _smoothed(settings, state, near.boxes_xywh, frame_size) if settings.size_smoothing else near.boxes_xywh
    if before is None or scores is None:
        return TrackPrediction(boxes_xywh, boxes_cxcywh, scores, None, None), _Changed(frame_index)
    if redetection is not None:
        redetection, scores = judge_sizes(settings, redetection, boxes_xywh, scores, frame_size, state.clip_margins)
    memory, is_candidate = select(settings, before, scores)
    memory = watch(settings, memory, scores)
    if redetection is not None and elsewhere is not None:
        redetection, boxes_xywh, scores, found, tried = choose_boxes(
            *(settings, redetection, state.boxes_xywh, Located(boxes_xywh, scores), elsewhere),
            *(before.lost, frame_size, state.clip_margins),
        )
        lost = (memory.lost | tried) & ~found
        is_candidate &= ~lost
        best = jnp.where(is_candidate, memory.best, before.best * settings.max_score_decay)
        memory = memory._replace(best=best, lost=lost, streak=jnp.where(tried, 0, memory.streak))
        redetection = plan_look(settings, redetection, boxes_xywh, lost, frame_size)
        scores = jnp.where(lost, scores * settings.lost_below, scores) if settings.long_term else scores
    if near.entropy is not None:
        memory = learn_entropy(memory, scores, near.entropy)
    prediction = TrackPrediction(boxes_xywh, boxes_cxcywh, scores, is_candidate, memory.lost)
    return prediction, _Changed(frame_index, memory.best, memory.streak, memory.usual_entropy, redetection)


def _smoothed(
    settings: TrackerConfig, state: TrackState, boxes_xywh: Float[Array, "n 4"], frame_size: Int32[Array, "*each 2"]
) -> Float[Array, "n 4"]:
    """Boxes of targets that are not lost with a size between the last one's and their own."""
    share = settings.size_smoothing
    sides = state.boxes_xywh[:, 2:] ** share * boxes_xywh[:, 2:] ** (1 - share)
    smooth_xywh = jnp.concatenate([boxes_xywh[:, :2] + (boxes_xywh[:, 2:] - sides) / 2, sides], axis=1)
    smooth_xywh = clip_box_xywh(smooth_xywh, frame_size[..., 0], frame_size[..., 1], state.clip_margins)
    return smooth_xywh if state.memory is None else jnp.where(state.memory.lost[:, None], boxes_xywh, smooth_xywh)


@kept_static
def _find(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    crops: UInt8[Array, "n S S c"],
    scales: Float[Array, " n"],
    frame_size: Int32[Array, "*each 2"],
) -> tuple[TrackPrediction, _Changed]:
    """Both as one program, for trackers that look nowhere else."""
    near, boxes_cxcywh = _locate(model, settings, variables, state, state.boxes_xywh, crops, scales, frame_size)
    return cast(tuple[TrackPrediction, _Changed], _apply_rules(settings, state, near, boxes_cxcywh, None, frame_size))


# Online templates.

CutTemplates = Callable[[Any], UInt8[AnyArray, "n T T c"]]
"""Template crops around the current boxes of the targets that a mask chooses (None: all); others' hold anything."""


def update_templates(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    is_candidate: Bool[AnyArray, " n"] | None,
    cut: CutTemplates,
) -> TrackState:
    """The policy of online templates, after each step, on the host and on the device alike.

    The crops of new candidates are kept; every `update_interval` frames the candidates become online templates. Models
    without scores take the crops around the current boxes instead, as the official trackers of both kinds do.
    """
    state, frame_index = keep_new_candidates(settings, state, is_candidate, cut), state.frame_index
    # On the host a number of its own: arithmetic on the device would cost each frame.
    due = is_refresh_due(settings, frame_index if isinstance(frame_index, jax.core.Tracer) else int(frame_index))
    return _when(due, lambda state: refresh_templates(model, settings, variables, state, cut), state)


def keep_new_candidates(
    settings: TrackerConfig, state: TrackState, is_candidate: Bool[AnyArray, " n"] | None, cut: CutTemplates
) -> TrackState:
    """The first half of the policy. Crops are cut only on frames on which a target has a new candidate."""
    if settings.num_online_templates == 0 or is_candidate is None:
        return state

    # Not the whole state: what goes through a branch may be copied on every frame, and the cache is large.
    def keep(memory: ScoreMemory) -> ScoreMemory:
        return keep_candidates(memory, cut(is_candidate), is_candidate)

    return state._replace(memory=_when(is_candidate.any(), keep, state.memory))


def is_refresh_due(settings: TrackerConfig, frame_index: EitherArray | int) -> EitherArray | bool:
    """Whether online templates are refreshed after the frame of this index (the first frame is 0)."""
    return settings.num_online_templates > 0 and frame_index % settings.update_interval == 0


def refresh_templates(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    state: TrackState,
    cut: CutTemplates,
    pinned: int = 0,
) -> TrackState:
    """The second half of the policy: one online template of each target is replaced, and all are encoded anew.

    Empty slots are filled first, then the oldest online template goes: first the copy of the initial one. Targets that
    are lost and looked for keep theirs. A new interval begins: the best score is forgotten, and the initial template is
    the candidate. The first `pinned` online slots are left alone.

    Raises ValueError: the tracker has no online slots.
    """
    if settings.num_online_templates == 0:
        raise ValueError("this tracker has no online template slots (num_online_templates is 0)")
    memory, crops = state.memory, cut(None) if state.memory is None else state.memory.candidates
    kept = None if state.redetection is None or memory is None else memory.lost
    templates, filled, num_refreshes = _replace_template(
        settings, state.templates, state.filled, state.num_refreshes, crops, kept, pinned
    )
    cache = encode_templates(model, settings, variables, templates, filled)
    memory = None if memory is None else forget_candidates(memory, templates)
    return state._replace(templates=templates, filled=filled, cache=cache, memory=memory, num_refreshes=num_refreshes)


@kept_rules
def _replace_template(
    settings: TrackerConfig,
    templates: UInt8[Array, "n slots T T c"],
    filled: Bool[Array, "n slots"],
    num_refreshes: Int32[Array, ""],
    crops: UInt8[Array, "n T T c"],
    kept: Bool[Array, " n"] | None,
    pinned: Int32[Array, ""] | int,
) -> tuple[UInt8[Array, "n slots T T c"], Bool[Array, "n slots"], Int32[Array, ""]]:
    slot = 1 + pinned + (num_refreshes + 1) % (settings.num_online_templates - pinned)
    if kept is not None:  # lost targets are looked for by the templates that they had
        crops = jnp.where(kept[:, None, None, None], templates[:, slot], crops)
    return templates.at[:, slot].set(crops), filled.at[:, slot].set(True), num_refreshes + 1


def _when(condition: Any, change: Callable[[Any], Any], value: Any) -> Any:
    """`change(value)` where the condition holds, else `value`; a `lax.cond` inside a traced program."""
    if isinstance(condition, jax.core.Tracer):
        return jax.lax.cond(condition, change, lambda value: value, value)
    return change(value) if condition else value


# From frames to boxes on the device.


def _crops(
    frame: UInt8[Array, "H W c"], boxes_xywh: Float[Array, "n 4"], factor: float, size: int
) -> tuple[UInt8[Array, "n size size c"], Float[Array, " n"]]:
    return jax.vmap(lambda box_xywh: context_crop_on_device(frame, box_xywh, factor, size))(boxes_xywh)


@jit_static
def start(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    frame: UInt8[Array, "H W c"],
    boxes_xywh: Float[Array, "n 4"],
) -> TrackState:
    """The state after the first frame, on which `boxes_xywh` mark the targets."""
    crops, _ = _crops(frame, boxes_xywh, settings.template_factor, model.config.template_size)
    return start_from_crops(model, settings, variables, crops, boxes_xywh)


@jit_static
def step(
    model: MixFormer, settings: TrackerConfig, variables: Variables, state: TrackState, frame: UInt8[Array, "H W c"]
) -> tuple[TrackState, TrackPrediction]:
    """From the next frame to boxes, and to new online templates where they are due. May be scanned over frames."""

    def look(boxes_xywh: Float[Array, "n 4"]) -> tuple[UInt8[Array, "n S S c"], Float[Array, " n"]]:
        return _crops(frame, boxes_xywh, settings.search_factor, model.config.search_size)

    frame_size = jnp.asarray(frame.shape[:2], jnp.int32)
    state, prediction = step_from_crops(model, settings, variables, state, *look(state.boxes_xywh), frame_size, look)

    def cut(_wanted: Bool[Array, " n"] | None) -> UInt8[Array, "n T T c"]:
        return _crops(frame, prediction.boxes_xywh, settings.template_factor, model.config.template_size)[0]

    return update_templates(model, settings, variables, state, prediction.is_candidate, cut), prediction


@jit_static
def scan_frames(
    model: MixFormer, settings: TrackerConfig, variables: Variables, state: TrackState, frames: UInt8[Array, "t H W c"]
) -> tuple[TrackState, TrackPrediction]:
    """Goes on from a state over `t` frames; the prediction has them on a leading axis.

    For a video that does not fit on the device: call it again with the state that it returns.
    """
    return jax.lax.scan(lambda state, frame: step(model, settings, variables, state, frame), state, frames)


@jit_static
def track_sequence(
    model: MixFormer,
    settings: TrackerConfig,
    variables: Variables,
    frames: UInt8[Array, "t H W c"],
    boxes_xywh: Float[Array, "n 4"],
) -> TrackPrediction:
    """Tracks `n` targets that `boxes_xywh` mark on the first of `t` RGB frames; row i of the result is frame i.

    The first row is what was given: score 1, and NaN for `boxes_cxcywh`. A traced box cannot be refused: check it with
    `boxes.check_box_xywh` first. Boxes are those of the host loop up to float32 rounding: on the rare frame where the
    host's float64 rounds to a crop one pixel apart, they differ by a fraction of a pixel.
    """
    state = start(model, settings, variables, frames[0], boxes_xywh)
    _state, found = scan_frames(model, settings, variables, state, frames[1:])
    nobody = jnp.zeros(len(boxes_xywh), bool)
    given = TrackPrediction(
        boxes_xywh=state.boxes_xywh,
        boxes_cxcywh=jnp.full_like(state.boxes_xywh, jnp.nan),
        scores=None if found.scores is None else jnp.ones_like(found.scores, shape=nobody.shape),
        is_candidate=None if found.is_candidate is None else nobody,
        lost=None if found.lost is None else nobody,
    )
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), given, found)
