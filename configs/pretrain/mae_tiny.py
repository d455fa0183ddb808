"""MAE on tracking data, as small as this project's default tracker: model and data of configs/mixvit_nano.py.

    mixformer pretrain --config mae_tiny
    mixformer train --config mixvit_nano --config.train.init=runs/mae_tiny

The single images are the tracker's search regions, 128 pixels and 64 tokens, 16 of them visible.
"""

from ml_collections import ConfigDict
from tiny import tiny_pretraining


def get_config() -> ConfigDict:
    return tiny_pretraining(num_templates=0)
