"""A mask network an eighth as wide, on crops of 128 pixels: what a CPU trains in an hour.

    mixformer train --config alpha_refine_tiny

0.34 M parameters, the sizes of the network whose official numbers the tests hold. It starts at random, on the pool's
photographs with instance masks alone. No weights of it are shipped.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.alpha_refine = {
        "name": "alpha_refine_tiny",
        "pool_size": 4,
        "depths": (2, 2, 3, 2),
        "stem_width": 8,
        "head_width": 12,
    }
    config.data = {"root": "../shared/data/train/images"}
    config.train = {
        "steps": 3000,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "log_every": 20,
        "validate_every": 200,
        "checkpoint_every": 200,
        "validation_pairs": 256,
    }
    return config
