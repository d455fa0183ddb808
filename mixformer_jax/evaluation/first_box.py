"""The tracker without a model."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, UInt8


class BoxPrediction(NamedTuple):
    """What a tracker that is not ours says about a frame."""

    box_xywh: Float64[np.ndarray, " 4"]
    score: float | None = None


class FirstBoxTracker:
    """Says forever what it was told first: tests the harness with no model, and is the floor of a table."""

    def start(self, frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float[np.ndarray, " 4"]) -> Float64[np.ndarray, " 4"]:
        return np.array(box_xywh, np.float64)

    def step(
        self, state: Float64[np.ndarray, " 4"], frame: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[Float64[np.ndarray, " 4"], BoxPrediction]:
        return state, BoxPrediction(state.copy())
