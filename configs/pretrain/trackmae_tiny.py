"""TrackMAE, as small as this project's default tracker: MixViT-Tiny, data of configs/mixvit_tiny.py.

    python pretrain/run.py --config configs/pretrain/trackmae_tiny.py
    mixformer train --config configs/mixvit_tiny.py --config.train.init=runs/trackmae_tiny

One visible template of 64 pixels; of the 64 tokens of the search region, 16 are visible.
"""

from ml_collections import ConfigDict
from tiny import tiny_pretraining


def get_config() -> ConfigDict:
    return tiny_pretraining(num_templates=1)
