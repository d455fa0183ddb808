"""Several videos at once, one target in each: their crops go through one batched step.

For benchmarks on an accelerator, which a single search crop leaves idle. A lane is a place in the batch. Videos start
and end in it when they like: an empty lane computes something that nobody reads, so that one program serves the whole
run and the boxes of a video do not depend on its neighbours.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Int32

from mixformer_jax.crops import context_crop
from mixformer_jax.tracking.interface import Frame
from mixformer_jax.tracking.state import Tracked, TrackState
from mixformer_jax.tracking.step import is_refresh_due, keep_candidates, refresh_from_crops, step_from_crops
from mixformer_jax.tracking.tracker import Tracker, checked_frame

# Of the frame that an empty lane seems to show: any size will do.
EMPTY_SIZE = (1000, 1000)


class LaneError(ValueError):
    """What went wrong in one lane; the others are not concerned. The reason is `__cause__`."""

    def __init__(self, lane: int) -> None:
        super().__init__(f"lane {lane}")
        self.lane = lane


class LanesState(NamedTuple):
    """State of the lanes.

    Attributes:
        targets: one a lane, on the leading axis; its two counters are those of no video.
        frame_index: frames tracked since the first, by lane.
        num_refreshes: online templates taken so far, by lane.
    """

    targets: TrackState
    frame_index: Int32[np.ndarray, " lanes"]
    num_refreshes: Int32[np.ndarray, " lanes"]


class Lanes:
    """Tracks in `num_lanes` videos at once; holds nothing that changes from frame to frame.

        state = lanes.start(None, 0, frame_of_a, box_of_a)
        state = lanes.start(state, 3, frame_of_b, box_of_b)
        state, found = lanes.step(state, {0: frame_of_a, 3: frame_of_b})

    The boxes are those of `Tracker.step` up to rounding, which depends on the number of lanes.
    """

    def __init__(self, tracker: Tracker, num_lanes: int) -> None:
        if num_lanes < 1:
            raise ValueError(f"{num_lanes} lanes; expected at least 1")
        self.tracker, self.num_lanes = tracker, num_lanes

    def start(self, state: LanesState | None, lane: int, frame: Any, box_xywh: Any) -> LanesState:
        """Begins a video in a lane, whatever was there before. `state` is None before the first video.

        Raises:
            ValueError: the frame is no RGB image of bytes, or the box is unusable.
        """
        single = self.tracker.start(frame, box_xywh)
        if state is None:
            everywhere = jax.tree.map(lambda x: jnp.repeat(x, self.num_lanes, axis=0) if x.ndim else x, single)
            zeros = np.zeros(self.num_lanes, np.int32)
            return LanesState(everywhere, zeros, zeros)
        zero = np.int32(0)
        return LanesState(
            _put(state.targets, lane, single),
            _replaced(state.frame_index, lane, zero),
            _replaced(state.num_refreshes, lane, zero),
        )

    def step(self, state: LanesState, frames: Mapping[int, Any]) -> tuple[LanesState, dict[int, Tracked]]:
        """Finds the targets on the next frames of the videos in some lanes, RGB, uint8 [height, width, 3] each, as for
        `Tracker.start`.

        A lane without a frame must be started before it gets one again.

        Raises:
            LaneError: a frame that is no RGB image of bytes; nothing was tracked in any lane.
        """
        tracker, config, settings = self.tracker, self.tracker.config, self.tracker.settings
        shape = (self.num_lanes, config.search_size, config.search_size, 3)
        crops, scales = np.zeros(shape, np.uint8), np.ones(self.num_lanes, np.float32)
        sizes = np.tile(np.array(EMPTY_SIZE, np.int32), (self.num_lanes, 1))
        before_xywh = np.asarray(state.targets.boxes_xywh, np.float64)
        checked: dict[int, Frame] = {}
        for lane, given in frames.items():
            try:
                frame = checked[lane] = checked_frame(given)
                crop = context_crop(frame, before_xywh[lane], settings.search_factor, config.search_size)
            except ValueError as error:
                raise LaneError(lane) from error
            crops[lane], scales[lane], sizes[lane] = crop.pixels, crop.scale, frame.shape[:2]

        targets, prediction = step_from_crops(
            tracker.model, settings, tracker.variables, state.targets, crops, scales, sizes
        )
        # One wait for all that the host reads of this step.
        boxes_xywh, scores, lost, is_candidate = jax.device_get(
            (targets.boxes_xywh, prediction.scores, prediction.lost, prediction.is_candidate)
        )
        boxes_xywh = np.asarray(boxes_xywh, np.float64)
        active = np.isin(np.arange(self.num_lanes), list(checked))
        state = LanesState(targets, state.frame_index + active.astype(np.int32), state.num_refreshes)
        if settings.num_online_templates > 0:
            if is_candidate is not None:
                state = self._keep_candidates(state, checked, boxes_xywh, is_candidate & active)
            for lane, frame in checked.items():
                if is_refresh_due(settings, int(state.frame_index[lane])):
                    state = self._refresh(state, lane, frame, boxes_xywh[lane])
        found = {
            lane: Tracked(
                boxes_xywh[lane : lane + 1],
                None if scores is None else scores[lane : lane + 1],
                None if lost is None else lost[lane : lane + 1],
            )
            for lane in checked
        }
        return state, found

    def _keep_candidates(
        self,
        state: LanesState,
        frames: Mapping[int, Frame],
        boxes_xywh: Float64[np.ndarray, "lanes 4"],
        is_candidate: Bool[np.ndarray, " lanes"],
    ) -> LanesState:
        if not is_candidate.any():
            return state
        size = self.tracker.config.template_size
        crops = np.zeros((self.num_lanes, size, size, 3), np.uint8)
        for lane in np.flatnonzero(is_candidate).tolist():
            crops[lane] = self._template_crop(frames[lane], boxes_xywh[lane])
        return state._replace(targets=keep_candidates(state.targets, crops, is_candidate))

    def _refresh(self, state: LanesState, lane: int, frame: Frame, box_xywh: Float64[np.ndarray, "4"]) -> LanesState:
        tracker = self.tracker
        single = _take(state.targets, lane)._replace(num_refreshes=jnp.int32(state.num_refreshes[lane]))
        crops = self._template_crop(frame, box_xywh)[None] if single.memory is None else single.memory.candidates
        single = refresh_from_crops(tracker.model, tracker.settings, tracker.variables, single, crops)
        refreshes = _replaced(state.num_refreshes, lane, state.num_refreshes[lane] + 1)
        return state._replace(targets=_put(state.targets, lane, single), num_refreshes=refreshes)

    def _template_crop(self, frame: Frame, box_xywh: Float64[np.ndarray, "4"]) -> np.ndarray:
        tracker = self.tracker
        return context_crop(frame, box_xywh, tracker.settings.template_factor, tracker.config.template_size).pixels


@jax.jit
def _put(targets: TrackState, lane: Int32[Array, ""] | int, single: TrackState) -> TrackState:
    """Takes one target of another state into a lane."""
    return jax.tree.map(lambda many, one: many.at[lane].set(one[0]) if many.ndim else many, targets, single)


@jax.jit
def _take(targets: TrackState, lane: Int32[Array, ""] | int) -> TrackState:
    """The state of one lane, as of a single target."""
    return jax.tree.map(lambda many: many[lane][None] if many.ndim else many, targets)


def _replaced(values: Int32[np.ndarray, " lanes"], lane: int, value: np.int32) -> Int32[np.ndarray, " lanes"]:
    values = values.copy()
    values[lane] = value
    return values
