"""The tracker that users hold: weights, a device, and the host side of the per-frame loop."""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from mixformer_jax.boxes import check_box_xywh
from mixformer_jax.convert.weights import WeightsError, load_weights
from mixformer_jax.crops import Crop, context_crop
from mixformer_jax.models.config import ComputeDtype, MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.models.sizes import size_config
from mixformer_jax.tracking.state import TrackState
from mixformer_jax.tracking.step import (
    is_refresh_due,
    refresh_from_crops,
    start_from_crops,
    step_from_crops,
)

Device = Literal["cpu", "gpu", "tpu"]
DEFAULT_WEIGHTS = "mixvit_tiny"


class Tracked(NamedTuple):
    """The target on one frame: its box in pixels, and the model's confidence in [0, 1] where it has one."""

    box_xywh: Float[np.ndarray, "4"]
    score: float | None


class Tracker:
    """Tracks one target through a video; holds nothing that changes from frame to frame.

        state = tracker.start(frame, box_xywh)
        state, prediction = tracker.step(state, frame)

    Crops are cut on the host, bit for bit as the official code cuts them, so that one compiled program serves videos
    of every size. `mixformer_jax.tracking.step` has the same steps from frame to box on the device.
    """

    def __init__(
        self,
        model: MixFormerConfig,
        settings: TrackerConfig,
        variables: dict[str, Any],
        device: jax.Device | None = None,
    ) -> None:
        self.settings = settings
        self.device = jax.devices()[0] if device is None else device
        self._model = build_model(model)
        self._variables = jax.device_put(variables, self.device)

    @property
    def config(self) -> MixFormerConfig:
        """The model's settings."""
        return self._model.config

    @classmethod
    def random(cls, name: str, device: Device | None = None, seed: int = 0) -> "Tracker":
        """A tracker of a size in the table with random weights: for measuring speed, not for tracking."""
        config = size_config(name)
        variables = init_variables(build_model(config), jax.random.key(seed))
        return cls(config, TrackerConfig(), variables, _find_device(device))

    def start(self, frame: np.ndarray, box_xywh: Any) -> TrackState:
        """Begins to track the target that a box marks on a frame.

        Args:
            frame: RGB, uint8 [height, width, 3].
            box_xywh: x, y, w, h in pixels; must overlap the frame.

        Raises:
            ValueError: the frame is no RGB image of bytes, or the box is unusable.
        """
        _check_frame(frame)
        box = check_box_xywh(box_xywh, frame.shape)
        crop = context_crop(frame, box, self.settings.template_factor, self.config.template_size)
        boxes_xywh = box[None].astype(np.float32)
        return start_from_crops(self._model, self.settings, self._variables, crop.pixels[None], boxes_xywh)

    def step(self, state: TrackState, frame: np.ndarray) -> tuple[TrackState, Tracked]:
        """Finds the target on the next frame, which is RGB, uint8 [height, width, 3].

        Raises:
            ValueError: the frame is no RGB image of bytes.
        """
        _check_frame(frame)
        state, tracked = self.locate_crop(state, self.search_crop(state, frame), frame.shape[:2])
        if is_refresh_due(self.settings, int(state.frame_index)):
            state = self._refresh(state, frame)
        return state, tracked

    def search_crop(self, state: TrackState, frame: UInt8[np.ndarray, "H W 3"]) -> Crop:
        """The first half of a step: the search crop around the last box."""
        box_xywh = np.asarray(state.boxes_xywh, np.float64)[0]
        return context_crop(frame, box_xywh, self.settings.search_factor, self.config.search_size)

    def locate_crop(self, state: TrackState, crop: Crop, frame_size: tuple[int, int]) -> tuple[TrackState, Tracked]:
        """The second half of a step: from the search crop to the box on a frame of (height, width) pixels."""
        state, prediction = step_from_crops(
            self._model,
            self.settings,
            self._variables,
            state,
            crop.pixels[None],
            np.asarray([crop.scale], np.float32),
            np.asarray(frame_size, np.int32),
        )
        box_xywh = np.asarray(prediction.boxes_xywh, np.float64)[0]
        score = None if prediction.scores is None else float(prediction.scores[0])
        return state, Tracked(box_xywh, score)

    def _refresh(self, state: TrackState, frame: UInt8[np.ndarray, "H W 3"]) -> TrackState:
        box_xywh = np.asarray(state.boxes_xywh, np.float64)[0]
        crop = context_crop(frame, box_xywh, self.settings.template_factor, self.config.template_size)
        return refresh_from_crops(self._model, self.settings, self._variables, state, crop.pixels[None])


def load(weights: str | Path | None = None, device: Device | None = None, dtype: ComputeDtype | None = None) -> Tracker:
    """A tracker with trained weights.

    Args:
        weights: None for the embedded default; the name of an embedded file; a `.safetensors` file written by this
            project; or the folder of a training run.
        device: kind of device to run on; None for JAX's default.
        dtype: compute type; None for float32 on a CPU and bfloat16 elsewhere.

    Raises:
        WeightsError: no such weights, an unreadable file, or weights of another model.
        ValueError: no such device.
    """
    found = _find_device(device)
    file = load_weights(find_weights(weights))
    if dtype is None:
        dtype = "float32" if found.platform == "cpu" else "bfloat16"
    return Tracker(dataclasses.replace(file.model, dtype=dtype), file.tracker, file.variables, found)


def find_weights(weights: str | Path | None) -> Path:
    """The file that `load` reads for what the user gave.

    Raises:
        WeightsError: neither a file nor a run's folder nor the name of embedded weights.
    """
    assets = Path(str(resources.files("mixformer_jax") / "assets"))
    path = Path(DEFAULT_WEIGHTS if weights is None else weights)
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise WeightsError(f"{path}: a folder without model.safetensors; expected the folder of a training run")
        return path / "model.safetensors"
    if path.is_file():
        return path
    embedded = assets / f"{path}.safetensors"
    if not embedded.is_file():
        known = ", ".join(sorted(file.stem for file in assets.glob("*.safetensors")))
        raise WeightsError(f"{path}: no such file, folder or embedded weights; embedded: {known}")
    return embedded


def _find_device(kind: Device | None) -> jax.Device:
    if kind is None:
        return jax.devices()[0]
    try:
        return jax.devices(kind)[0]
    except RuntimeError as error:
        have = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(f"no device of kind {kind!r} here; JAX sees: {have}") from error


def _check_frame(frame: np.ndarray) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(
            f"a frame of type {frame.dtype} and shape {frame.shape}; expected uint8 RGB of shape (height, width, 3)"
        )
