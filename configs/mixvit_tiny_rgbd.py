"""MixViT-Tiny with depth beside colour, stage 1, on DepthTrack; from the embedded tracker of colour alone.

    mixformer train --config mixvit_tiny_rgbd --config.data.datasets.depthtrack.root=data/depthtrack/train

Depth's tokens are added to RGB's (docs/depth.md), times factors that start at zero: training begins with the boxes of
the embedded tracker. `--config.model.second_stream=concatenated` or `alone` are the other ways. No code or recipe of
the paper's MixForRGBD is public: rates and length are guesses of ours, and nothing was trained with them to the end.
"""

import dataclasses

from ml_collections import ConfigDict

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.models.config import size_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    model = dataclasses.replace(size_config("mixvit_tiny"), name="mixvit_tiny_rgbd", second_stream="added")
    config.model = model.to_dict()
    config.tracker = {"template_factor": 2.0, "search_factor": 4.0, "num_online_templates": 1, "clip_share": 0.5}
    config.data = {
        "datasets": {"depthtrack": {"root": "data/depthtrack/train"}},
        "max_interval": 200,
        "crops": {"scale_jitter": 0.4, "centre_jitter": 3.0},
        # Light and image quality change colour alone; occluders would come from a pool, which has no depth.
        "augment": {**AugmentConfig().to_dict(), "occluder_probability": 0.0},
    }
    config.train = {
        "init": "mixvit_tiny",
        "steps": 10000,
        "batch_size": 32,
        "learning_rate": 2e-4,
        "backbone_rate": 1.0,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_steps": 100,
        "clip_norm": 1.0,
        "ema_decay": 0.998,
        "corner_weight": 0.2,
    }
    return config
