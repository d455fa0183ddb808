"""MixViT-L, stage 1: backbone and box head (the paper, Tables 2 and 10).

    mixformer train --config mixvit_l

Official experiment: mixformer_vit/baseline_large.yaml.
The authors took 4 days and more on 8 V100 or RTX 8000 (official issue 73).
30 million samples of 1.68 TFLOP each, 50.4 EFLOP in all (counted, not run).
Patch embedding and the first six blocks stay frozen, and a batch goes through in three parts, as in the official
experiment.
Expected after stage 2 (the paper, Table 10): LaSOT AUC 72.4, TrackingNet AUC 85.4, UAV123 AUC 68.7.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixvit_l",
        init="pretrained/mae_pretrain_vit_large.pth",
        batch_size=288,
        learning_rate=4e-4,
        accumulate=3,
        freeze=("backbone/patch_embed/", "backbone/blocks_[0-5]/"),
    )
