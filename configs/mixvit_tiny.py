"""The embedded default tracker: MixViT-Tiny, stage 1 of 2, on a small set of videos and photographs.

    mixformer train --config mixvit_tiny --config.train.init=runs/trackmae_tiny

Without `init` it trains from scratch; `make default-tracker` runs all stages. 3.6 M parameters, search crops of 128
and templates of 64 pixels, one template and one online template. The recipe departs from the paper's (section 4.1),
which fine-tunes pre-trained backbones for 500 epochs: one rate for backbone and head, cosine decay, a moving average,
mimetic initialisation, position tables that start at random, and the corner maps' cross entropy beside the paper's
losses.
Scores, hardware and hours are in the model card, mixformer_jax/assets/mixvit_tiny.md.
"""

from ml_collections import ConfigDict

from mixformer_jax.models.sizes import size_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = size_config("mixvit_tiny").to_dict()
    config.tracker = {"template_factor": 2.0, "search_factor": 4.0, "num_online_templates": 1, "clip_share": 0.5}
    config.data = {
        "root": "../shared/data/train",
        # Held out to validate on: six scenes, none of them in the rest.
        "exclude": (
            "uav123__car16_1",
            "uav123__car16_2",
            "davis16__libby",
            "tinytlp__Drone1",
            "vot15__car1",
            "davis16__dance-twirl",
            "uav123__wakeboard7",
        ),
        # Sequences of one video or place.
        "groups": (
            ("uav123__truck4_1", "uav123__truck4_2"),
            ("uav123__wakeboard3", "uav123__wakeboard4", "uav123__wakeboard5"),
            ("uav123__person12_1", "uav123__group1_4"),
        ),
        "mix": {"video": 0.35, "still": 0.2, "pasted": 0.35, "region": 0.1},
        "crops": {"scale_jitter": 0.3, "centre_jitter": 2.5},
    }
    config.train = {
        "steps": 10000,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "backbone_rate": 1.0,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_steps": 100,
        "clip_norm": 1.0,
        "ema_decay": 0.998,
        "corner_weight": 0.2,
        "validate_every": 500,
        "checkpoint_every": 500,
    }
    return config
