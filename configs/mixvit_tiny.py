"""The embedded default tracker: MixViT-Tiny, stage 1, on a small set of videos and photographs.

    mixformer train --config mixvit_tiny --config.train.init=runs/mixvit_nano --config.data.render=device

It goes on from MixViT-Nano on larger crops (search 192, templates 96 pixels; position tables are resized), and is made
for an accelerator: 3.6 million samples, rendered there, 6 minutes on an H200 with --config.model.dtype=bfloat16.
`make default-tracker` runs all stages; the scores are trained by pretrain/mined_scores.py afterwards.
Scores, hardware and hours are in the model card, mixformer_jax/assets/mixvit_tiny.md.
"""

from mixvit_nano import get_config as nano
from ml_collections import ConfigDict

from mixformer_jax.models.config import size_config


def get_config() -> ConfigDict:
    config = nano()
    config.model = size_config("mixvit_tiny").to_dict()
    config.data.max_target_side = 80.0
    config.data.crops = {"scale_jitter": 0.4, "centre_jitter": 3.0}
    config.data.mix = {"video": 0.45, "still": 0.2, "pasted": 0.27, "region": 0.08}
    config.train.update(
        {"batch_size": 256, "steps": 14000, "learning_rate": 1.2e-3, "warmup_steps": 300, "ema_decay": 0.999}
    )
    config.train.log_every = 200
    return config
