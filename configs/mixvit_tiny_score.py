"""MixViT-Tiny, stage 2: the score module alone (the paper, section 3.5), on the data of stage 1.

    mixformer train --config mixvit_tiny_score --config.train.init=runs/mixvit_tiny

Half of the samples are negative: their box holds something else than the templates do, see docs/data.md. Far fewer
samples than the paper's, and a higher rate with cosine decay: the module is small, and all else is frozen.
"""

from mixvit_tiny import get_config as stage_one
from ml_collections import ConfigDict

from mixformer_jax.models.config import size_config, with_score


def get_config() -> ConfigDict:
    config = stage_one()
    config.model = with_score(size_config("mixvit_tiny")).to_dict()
    config.data.positive_share = 0.5
    # Held out, and one scene: it is no negative sample for itself.
    config.data.groups += (("uav123__car16_1", "uav123__car16_2"),)
    config.train = {
        "stage": "score",
        "steps": 600,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_steps": 50,
        "clip_norm": 1.0,
        "ema_decay": 0.99,
        "init": "runs/mixvit_tiny",
        "validate_every": 100,
        "checkpoint_every": 100,
    }
    return config
