"""The samples of an experiment: those to train on, and fixed ones of held-out sequences."""

from mixformer_jax.data.config import held_out
from mixformer_jax.data.pool.device import DeviceSamples
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.training.experiment import Experiment


def training_samples(experiment: Experiment) -> TrackingSamples | DeviceSamples:
    """The samples of `data`, by the run's seed, rendered where `data.render` says."""
    kind = DeviceSamples if experiment.data.render == "device" else TrackingSamples
    return kind(Material.load(experiment.data), experiment.data, experiment.train.seed)


def validation_samples(experiment: Experiment) -> TrackingSamples | None:
    """Fixed frame pairs of held-out sequences, None where none are held out."""
    config = held_out(experiment.data)
    return None if config is None else TrackingSamples(Material.load(config), config, seed=0)
