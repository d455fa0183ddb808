"""The embedded masks: a decoder on the default tracker's frozen backbone, crops of 192 pixels; trains on a CPU.

    mixformer train --config mixvit_tiny_masks

The photographs of the pool with instance masks, every tenth held out; cross entropy and Dice loss, Adam. Boxes are
jittered as a tracker's are off: width and height by exp(0.2 n), the centre by up to an eighth of sqrt(w h).
Scores, hardware and minutes are in the model card, mixformer_jax/assets/mixvit_tiny_masks.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mask_decoder = {"name": "mixvit_tiny_masks", "tracker": "mixvit_tiny"}
    config.data = {"root": "../shared/data/train/images", "min_pixels": 500, "scale_jitter": 0.2, "flip": 0.5}
    config.train = {
        "steps": 1000,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "warmup_steps": 50,
        "weight_decay": 1e-4,
        "clip_norm": 1.0,
        "ema_decay": 0.99,
        "log_every": 25,
        "validate_every": 250,
        "checkpoint_every": 250,
        "validation_pairs": 128,
        "workers": 1,
    }
    return config
