"""Opening a tracker for a benchmark by what the user typed, with a record of which weights it was."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

import mixformer_jax
from mixformer_jax.evaluation.first_box import FirstBoxTracker
from mixformer_jax.evaluation.lane_loop import OneLane
from mixformer_jax.evaluation.peers import PEERS, open_peer
from mixformer_jax.tracking.interface import LanesLike
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.tracker import find_weights

TRACKERS = ("mixformer", "first-box", *PEERS)
# Videos in one step, by JAX's platform; see docs/evaluation.md for what was measured.
DEFAULT_BATCH: Mapping[str, int] = MappingProxyType({"cpu": 1, "gpu": 16, "tpu": 16})


class OpenedTracker(NamedTuple):
    """A tracker, ready.

    Attributes:
        lanes: tracks.
        name: the folder of its results, unless the user gives another.
        settings: what makes its results different from another's, see `results.claim_folder`.
    """

    lanes: LanesLike
    name: str
    settings: dict[str, Any]

    def warm_up(self) -> None:
        """Compiles a model's programs, so that no sequence's times have it in them."""
        if self.settings["tracker"] != "mixformer":
            return
        frame, box_xywh = np.full((64, 64, 3), 127, np.uint8), np.array([24.0, 24.0, 16.0, 16.0])
        state = None
        for _ in range(2):
            state = self.lanes.start(state, 0, frame, box_xywh)
        self.lanes.step(state, {0: frame})


@dataclasses.dataclass(frozen=True)
class TrackerChoice:
    """What the user typed; pickles, so that several processes can open it.

    Attributes:
        kind: one of TRACKERS. "first-box" returns the first box forever; it and the peers take none of the following.
        weights: name, folder or .safetensors file; None is the embedded tracker.
        device: None for JAX's default.
        batch: videos in one step; None for the device's default.
        settings: tracker settings by model, which take the place of the weights' own.
        settings_of: the model whose settings these are; None: the one of the weights.
        changes: further settings, on top.
    """

    kind: str
    weights: str | None = None
    device: Literal["cpu", "gpu"] | None = None
    batch: int | None = None
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    settings_of: str | None = None
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def open(self) -> OpenedTracker:
        """Opens it.

        Raises:
            ValueError: an unknown kind, something without a model with weights or device, weights that cannot be
                loaded, or settings that cannot work.
        """
        if self.kind not in TRACKERS:
            raise ValueError(f"unknown tracker {self.kind!r}; known: {', '.join(TRACKERS)}")
        if self.kind != "mixformer":
            if self.weights is not None or self.device is not None or self.batch not in (None, 1) or self.changes:
                raise ValueError(f"{self.kind} has no model: leave weights, device, batch and tracker settings out")
            tracker, settings = (FirstBoxTracker(), {}) if self.kind == "first-box" else open_peer(self.kind)
            return OpenedTracker(OneLane(tracker), self.kind.replace(":", "-"), {"tracker": self.kind, **settings})
        return self._open_model()

    def _open_model(self) -> OpenedTracker:
        tracker = mixformer_jax.load(self.weights, device=self.device)
        model = self.settings_of or tracker.config.name
        tracker = tracker.with_settings(**{**self.settings.get(model, {}), **self.changes})
        platform = tracker.device.platform
        batch = DEFAULT_BATCH.get(platform, 1) if self.batch is None else self.batch
        name = "default" if self.weights is None else Path(self.weights).name.removesuffix(".safetensors")
        # The device decides the compute type as well, and with it and the batch the last digits of every box.
        settings = {
            "tracker": self.kind,
            "weights": weights_digest(self.weights),
            "device": platform,
            "batch": batch,
            "settings": tracker.settings.to_dict(),
        }
        return OpenedTracker(OneLane(tracker) if batch == 1 else Lanes(tracker, batch), name, settings)


def weights_digest(weights: str | None) -> str:
    """SHA-256 of the weights file: a path may hold other weights tomorrow, and so may a name."""
    with find_weights(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
