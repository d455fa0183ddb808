"""Opening a tracker for a benchmark by what the user typed, with a record of which weights it was."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mixformer_jax
from mixformer_jax.evaluation.runner import FirstBoxTracker
from mixformer_jax.tracking.interface import TrackerLike
from mixformer_jax.tracking.tracker import find_weights

TRACKERS = ("mixformer", "first-box")


class OpenedTracker(NamedTuple):
    tracker: TrackerLike
    name: str  # the folder of its results, unless the user gives another
    settings: dict[str, Any]  # what makes its results different from another's, see results.claim_folder


def open_tracker(
    kind: str,
    weights: str | None = None,
    device: Literal["cpu", "gpu"] | None = None,
    settings_of: Callable[[str], Mapping[str, Any]] = lambda model: {},
) -> OpenedTracker:
    """A tracker of one of the TRACKERS.

    Args:
        kind: "mixformer", or "first-box", which returns the first box forever and takes neither weights nor
            device.
        weights: name, folder or .safetensors file; None is the embedded tracker.
        device: None for JAX's default.
        settings_of: from the model's name to tracker settings that take the place of the weights' own.

    Raises:
        ValueError: an unknown kind, first-box with weights or device, weights that cannot be loaded, or settings that
            cannot work.
    """
    if kind == "first-box":
        if weights is not None or device is not None:
            raise ValueError("the first-box tracker has no model: leave weights and device out")
        return OpenedTracker(FirstBoxTracker(), kind, {"tracker": kind})
    if kind != "mixformer":
        raise ValueError(f"unknown tracker {kind!r}; known: {', '.join(TRACKERS)}")
    tracker = mixformer_jax.load(weights, device=device)
    tracker = tracker.with_settings(**settings_of(tracker.config.name))
    name = "default" if weights is None else Path(weights).name.removesuffix(".safetensors")
    # The device decides the compute type as well, and with it the last digits of every box.
    settings = {
        "tracker": kind,
        "weights": weights_digest(weights),
        "device": tracker.device.platform,
        "settings": tracker.settings.to_dict(),
    }
    return OpenedTracker(tracker, name, settings)


def weights_digest(weights: str | None) -> str:
    """SHA-256 of the weights file: a path may hold other weights tomorrow, and so may a name."""
    with find_weights(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
