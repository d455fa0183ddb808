"""Trackers of OpenCV, to be measured beside ours in the same run.

MIL is in every build of OpenCV. CSRT and KCF are in opencv-contrib-python-headless, which installs the same module
`cv2` as opencv-python-headless: with both in one environment, the one that was installed last is there.
"""

import ctypes
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

from mixformer_jax.evaluation.first_box import BoxPrediction

PEERS: Mapping[str, str] = MappingProxyType(
    {"opencv:CSRT": "TrackerCSRT", "opencv:KCF": "TrackerKCF", "opencv:MIL": "TrackerMIL"}
)
"""Classes of OpenCV by what the user types."""

MEND = (
    "it is in opencv-contrib-python-headless, which takes the place of opencv-python-headless:\n"
    "    pip install --no-deps --target contrib opencv-contrib-python-headless\n"
    "    PYTHONPATH=contrib mixformer evaluate ..."
)


class PeerState(NamedTuple):
    """OpenCV's tracker, which changes with every frame, and the last box that it found."""

    tracker: Any
    box_xywh: Float64[np.ndarray, "4"]


class OpenCVTracker:
    """One of OpenCV's trackers. Where it reports that it lost the target, its last box stands.

    MIL draws from the C library's `rand`, which is seeded anew for each video: its boxes do not depend on what was
    tracked before.
    """

    def __init__(self, class_name: str) -> None:
        self._class = getattr(cv2, class_name)

    def start(self, frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float[np.ndarray, "4"]) -> PeerState:
        _seed_c_library()
        tracker = self._class.create()
        tracker.init(_bgr(frame), [round(value) for value in box_xywh.tolist()])
        return PeerState(tracker, np.array(box_xywh, np.float64))

    def step(self, state: PeerState, frame: UInt8[np.ndarray, "h w 3"]) -> tuple[PeerState, BoxPrediction]:
        is_found, box_xywh = state.tracker.update(_bgr(frame))
        if is_found:
            state = state._replace(box_xywh=np.array(box_xywh, np.float64))
        return state, BoxPrediction(state.box_xywh)


def open_peer(kind: str) -> tuple[OpenCVTracker, dict[str, Any]]:
    """A tracker of OpenCV, and what its results depend on.

    Raises:
        ValueError: this build of OpenCV does not have it.
    """
    if not hasattr(cv2, PEERS[kind]):
        raise ValueError(f"this OpenCV ({cv2.__version__}) has no {PEERS[kind]}: {MEND}")
    return OpenCVTracker(PEERS[kind]), {"opencv": cv2.__version__}


def _seed_c_library() -> None:
    if os.name == "posix":
        ctypes.CDLL(None).srand(1)


def _bgr(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
