"""TrackMAE, as small as this project's default tracker: model and data of configs/mixvit_nano.py.

    mixformer pretrain --config trackmae_tiny
    mixformer train --config mixvit_nano --config.train.init=runs/trackmae_tiny

One visible template of 64 pixels; of the 64 tokens of the search region, 16 are visible.
"""

from ml_collections import ConfigDict
from tiny import tiny_pretraining


def get_config() -> ConfigDict:
    return tiny_pretraining(num_templates=1)
