"""Several videos at once, one target in each, in the places (lanes) of one batched step: for benchmarks on an
accelerator, which a single search crop leaves idle.
"""

import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt8

from mixformer_jax.crops import context_crop
from mixformer_jax.media.video import Frame
from mixformer_jax.pixels import checked_frame
from mixformer_jax.tracking.step import (
    TrackState,
    is_refresh_due,
    keep_new_candidates,
    refresh_templates,
    step_from_crops,
)
from mixformer_jax.tracking.tracker import Crops, Tracked, Tracker

# Of the frame that an empty lane seems to show: any size will do.
EMPTY_SIZE = (1000, 1000)


@runtime_checkable
class PredictionLike(Protocol):
    """What a tracker says about its only target on a frame."""

    @property
    def box_xywh(self) -> Float[np.ndarray, "4"]: ...

    @property
    def score(self) -> float | None: ...


@runtime_checkable
class TrackerLike(Protocol):
    """Anything that follows one target: state in, state out."""

    def start(self, frame: Frame, box_xywh: Any) -> Any: ...

    def step(self, state: Any, frame: Frame) -> tuple[Any, PredictionLike]: ...


@runtime_checkable
class LanesLike(Protocol):
    """Anything that follows one target in each of several videos at once, as `Lanes` does."""

    num_lanes: int

    def start(self, state: Any, lane: int, frame: Frame, box_xywh: Any) -> Any: ...

    def step(self, state: Any, frames: Mapping[int, Frame]) -> tuple[Any, Mapping[int, PredictionLike]]: ...


class LaneError(ValueError):
    """What went wrong in one lane; the others are not concerned. The reason is `__cause__`."""

    def __init__(self, lane: int) -> None:
        super().__init__(f"lane {lane}")
        self.lane = lane


class OneLane:
    """A tracker of one target as a single lane."""

    num_lanes = 1

    def __init__(self, tracker: TrackerLike) -> None:
        self.tracker = tracker

    def start(self, state: object, lane: int, frame: Frame, box_xywh: Any) -> Any:
        return self.tracker.start(frame, box_xywh)

    def step(self, state: Any, frames: Mapping[int, Frame]) -> tuple[Any, dict[int, PredictionLike]]:
        state, prediction = self.tracker.step(state, frames[0])
        return state, {0: prediction}


class Lanes:
    """Tracks in `num_lanes` videos at once; holds nothing that changes from frame to frame.

        state = lanes.start(None, 0, frame_of_a, box_of_a)
        state = lanes.start(state, 3, frame_of_b, box_of_b)
        state, found = lanes.step(state, {0: frame_of_a, 3: frame_of_b})

    The state is a `TrackState` with a target, and counters, for each lane. A state that was handed in is used up: its
    arrays may be those of the next one. One program serves the whole run: videos start and end at any time, and what an
    empty lane computes nobody reads. The boxes are those of `Tracker.step` up to rounding, which depends on the number
    of lanes, and not on the neighbours.
    """

    def __init__(self, tracker: Tracker, num_lanes: int) -> None:
        if num_lanes < 1:
            raise ValueError(f"{num_lanes} lanes; expected at least 1")
        self.tracker, self.num_lanes = tracker, num_lanes

    def start(self, state: TrackState | None, lane: int, frame: Any, box_xywh: Any) -> TrackState:
        """Begins a video in a lane, whatever was there before, as `Tracker.start`; the first `state` is None."""
        single = self.tracker.start(frame, box_xywh)
        if state is None:
            return jax.tree.map(lambda x: jnp.repeat(x, self.num_lanes, axis=0), _counters_by_lane(single))
        return _put(state, lane, single)

    def step(self, state: TrackState, frames: Mapping[int, Any]) -> tuple[TrackState, dict[int, Tracked]]:
        """Finds the targets on the next frames of some lanes; a lane without a frame must be started anew.

        Raises LaneError: a frame that is no RGB image of bytes; nothing was tracked in any lane.
        """
        tracker, model, settings, variables = self.tracker, *self.tracker.parts
        config, size = tracker.config, tracker.config.search_size
        crops = np.zeros((self.num_lanes, size, size, config.channels), np.uint8)
        scales = np.ones(self.num_lanes, np.float32)
        sizes = np.tile(np.array(EMPTY_SIZE, np.int32), (self.num_lanes, 1))
        before_xywh = np.asarray(state.boxes_xywh, np.float64)
        checked: dict[int, Frame] = {}
        for lane, given in frames.items():
            try:
                frame = checked[lane] = checked_frame(given, config.streams)
                crop = context_crop(frame, before_xywh[lane], settings.search_factor, size)
            except ValueError as error:
                raise LaneError(lane) from error
            crops[lane], scales[lane], sizes[lane] = crop.pixels, crop.scale, frame.shape[:2]

        def look(boxes_xywh: Any) -> Crops:
            return tracker.crops_around(checked, boxes_xywh)

        state, prediction = step_from_crops(model, settings, variables, state, crops, scales, sizes, look)
        # One wait for all that the host reads of this step.
        boxes_xywh, scores, lost, is_candidate, frame_index = jax.device_get(
            (state.boxes_xywh, prediction.scores, prediction.lost, prediction.is_candidate, state.frame_index)
        )
        boxes_xywh = np.asarray(boxes_xywh, np.float64)

        def cut(wanted: Bool[np.ndarray, " lanes"] | None) -> UInt8[np.ndarray, "lanes T T c"]:
            chosen = {lane: frame for lane, frame in checked.items() if wanted is None or wanted[lane]}
            return tracker.template_crops(chosen, boxes_xywh)

        all_lanes = np.arange(self.num_lanes)
        if is_candidate is not None:
            is_candidate = is_candidate & np.isin(all_lanes, list(checked))
        state = keep_new_candidates(settings, state, is_candidate, cut)
        found = {}
        for lane, frame in checked.items():
            own = slice(lane, lane + 1)
            if is_refresh_due(settings, int(frame_index[lane])):
                # As for a single target, so that templates do not depend on which other lanes are due.
                cut_own = functools.partial(lambda own, _all: cut(all_lanes == own.start)[own], own)
                single = refresh_templates(model, settings, variables, _take(state, lane), cut_own)
                state = _put(state, lane, single)
            of_scores, of_lost = (None if x is None else x[own] for x in (scores, lost))
            single = state._replace(mask_targets=jax.tree.map(lambda many, own=own: many[own], state.mask_targets))
            masks = tracker.segment(single, frame, boxes_xywh[own])
            found[lane] = Tracked(boxes_xywh[own], of_scores, of_lost, masks=masks)
        return state, found


@functools.partial(jax.jit, donate_argnums=0)
def _put(state: TrackState, lane: Int32[Array, ""] | int, single: TrackState) -> TrackState:
    """Takes the state of a single target into a lane."""
    return jax.tree.map(lambda many, one: many.at[lane].set(one[0]), state, _counters_by_lane(single))


@jax.jit
def _take(state: TrackState, lane: Int32[Array, ""] | int) -> TrackState:
    """The state of one lane, as of a single target."""
    single = jax.tree.map(lambda many: many[lane][None], state)
    return single._replace(frame_index=single.frame_index[0], num_refreshes=single.num_refreshes[0])


def _counters_by_lane(single: TrackState) -> TrackState:
    return single._replace(frame_index=single.frame_index[None], num_refreshes=single.num_refreshes[None])
