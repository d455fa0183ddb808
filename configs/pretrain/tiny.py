"""What the tiny pre-trainings share: model, data and crops of configs/mixvit_nano.py, and the length of a run."""

from pathlib import Path

from ml_collections import ConfigDict

from mixformer_jax.config_files import load_config


def tiny_pretraining(num_templates: int) -> ConfigDict:
    """MAE (no templates) or TrackMAE; both see the same search regions in the same order."""
    tracker = load_config(Path(__file__).parents[1] / "mixvit_nano.py")
    config = ConfigDict()
    config.autoencoder = {
        "model": tracker.model.to_dict(),
        "num_templates": num_templates,
        "decoder_depth": 2,
        "decoder_width": 128,
        "decoder_heads": 4,
        # Pixels as they are: the error then compares with that of the image's mean colour.
        "norm_pix_loss": False,
    }
    config.data = tracker.data.to_dict()
    config.data.crops.update({key: tracker.tracker[key] for key in ("template_factor", "search_factor")})
    config.train = {
        "steps": 3000,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "beta2": 0.95,
        "schedule": "cosine",
        "warmup_steps": 150,
        "clip_norm": 1.0,
        "ema_decay": 0.998,
        "log_every": 50,
        "validate_every": 250,
        "checkpoint_every": 250,
        "validation_pairs": 256,
        "workers": 2,
    }
    return config
