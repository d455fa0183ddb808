"""The samples of an experiment: those to train on, and fixed ones of held-out sequences."""

import dataclasses

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.pipeline import DataConfig, Mix, Pools, TrackingSamples
from mixformer_jax.training.experiment import Experiment


def training_samples(experiment: Experiment) -> TrackingSamples:
    """The samples of `data`, by the run's seed."""
    return TrackingSamples(Pools.load(experiment.data), experiment.data, experiment.train.seed)


def validation_samples(experiment: Experiment) -> TrackingSamples | None:
    """Fixed frame pairs of the held-out sequences (`data.exclude`): the training jitter, nothing else disturbed."""
    data = experiment.data
    if not data.exclude:
        return None
    undisturbed = AugmentConfig(**{field.name: 0.0 for field in dataclasses.fields(AugmentConfig)})
    held_out = DataConfig(
        root=data.root,
        include=data.exclude,
        max_interval=data.max_interval,
        max_target_side=data.max_target_side,
        min_target_side=data.min_target_side,
        mix=Mix(video=1.0, still=0.0, pasted=0.0, region=0.0),
        crops=data.crops,
        augment=undisturbed,
    )
    return TrackingSamples(Pools.load(held_out), held_out, seed=0)
