"""The samples of an experiment: those to train on, and fixed ones of held-out sequences."""

from collections.abc import Sequence
from typing import Any

from mixformer_jax.data.config import held_out
from mixformer_jax.data.pool.device import DeviceSamples
from mixformer_jax.data.samples import Material, TrackingSamples


def training_samples(experiment: Any, names: Sequence[str] | None = None) -> TrackingSamples | DeviceSamples:
    """The samples of `data`, by the run's seed, rendered where `data.render` says; all arrays, or those named."""
    kind = DeviceSamples if experiment.data.render == "device" else TrackingSamples
    return kind(Material.load(experiment.data), experiment.data, experiment.train.seed, names)


def validation_samples(experiment: Any, names: Sequence[str] | None = None) -> TrackingSamples | None:
    """Fixed frame pairs of held-out sequences, None where none are held out."""
    config = held_out(experiment.data)
    return None if config is None else TrackingSamples(Material.load(config), config, 0, names)
