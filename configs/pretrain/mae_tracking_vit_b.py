"""MAE on tracking data alone, encoder of MixViT-B (the paper, section 3.4; Table 7, "MAE, Tracking Data").

    mixformer pretrain --config mae_tracking_vit_b
    mixformer train --config mixvit_b --config.train.init=runs/mae_tracking_vit_b

The single images are the tracker's own search regions. The paper tells neither length nor rate: MAE's optimizer, and
800 times the 60,000 samples that the official trainer calls an epoch, as for TrackMAE.
Not run at this size yet.
"""

from ml_collections import ConfigDict
from recipe import mae_schedule, tracking_data

from mixformer_jax.models.config import size_config


def get_config() -> ConfigDict:
    config = ConfigDict()
    model = size_config("mixvit_b").to_dict() | {"drop_path": 0.0, "dtype": "bfloat16"}
    config.autoencoder = {"model": model}
    config.data = tracking_data(search_factor=4.5)
    config.train = mae_schedule(800 * 60_000, 1024)
    return config
