"""What counts as a tracker, by what it does: state in, state out."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8

Frame = UInt8[np.ndarray, "height width 3"]


@runtime_checkable
class PredictionLike(Protocol):
    """What a tracker says about its only target on a frame."""

    @property
    def box_xywh(self) -> Float[np.ndarray, "4"]: ...

    @property
    def score(self) -> float | None: ...


@runtime_checkable
class TrackerLike(Protocol):
    """Anything that follows one target."""

    def start(self, frame: Frame, box_xywh: Any) -> Any: ...

    def step(self, state: Any, frame: Frame) -> tuple[Any, PredictionLike]: ...


@runtime_checkable
class MultiPredictionLike(Protocol):
    """What a tracker says about each of its targets on a frame; None where the model gives no scores."""

    @property
    def boxes_xywh(self) -> Float[np.ndarray, "n 4"]: ...

    @property
    def scores(self) -> Float[np.ndarray, " n"] | None: ...

    @property
    def lost(self) -> Bool[np.ndarray, " n"] | None: ...


@runtime_checkable
class MultiTrackerLike(Protocol):
    """Anything that follows several targets at once; `has_scores` tells whether its predictions carry scores."""

    @property
    def has_scores(self) -> bool: ...

    def start(self, frame: Frame, boxes_xywh: Any) -> Any: ...

    def step(self, state: Any, frame: Frame) -> tuple[Any, MultiPredictionLike]: ...


@runtime_checkable
class LanesLike(Protocol):
    """Anything that follows one target in each of several videos at once; see `tracking.lanes`."""

    @property
    def num_lanes(self) -> int: ...

    def start(self, state: Any, lane: int, frame: Frame, box_xywh: Any) -> Any: ...

    def step(self, state: Any, frames: Mapping[int, Frame]) -> tuple[Any, Mapping[int, PredictionLike]]: ...
