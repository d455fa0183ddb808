"""TrackMAE with the encoder of MixViT-L (the paper, section 3.4, Fig. 5; row "TrackMAE" of Table 7).

    mixformer pretrain --config trackmae_vit_l
    mixformer train --config mixvit_l --config.train.init=runs/trackmae_vit_l

Two templates are fully visible, 75% of the search region's patches are hidden, and the decoder reconstructs them with
the same asymmetric mixed attention. The paper tells neither length nor rate: MAE's optimizer, and 800 times the 60,000
samples that the official trainer calls an epoch.
Not run at this size yet.
"""

from ml_collections import ConfigDict
from recipe import KEPT, mae_schedule, tracking_data

from mixformer_jax.models.config import size_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    model = size_config("mixvit_l").to_dict() | {"drop_path": 0.0, "dtype": "bfloat16"}
    config.autoencoder = {"model": model, "num_templates": 2}
    config.data = tracking_data(search_factor=5.0)
    config.train = mae_schedule(800 * 60_000, 1024) | KEPT
    return config
