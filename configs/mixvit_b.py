"""MixViT, stage 1: backbone and box head (the paper, Tables 2 and 10).

    mixformer train --config mixvit_b

Official experiment: mixformer_vit/baseline.yaml.
The authors took 50 hours and more on 8 V100 or RTX 2080 Ti (official issue 73).
30 million samples of 0.28 TFLOP each, 8.3 EFLOP in all (counted, not run).
Expected after stage 2 (the paper, Table 10): LaSOT AUC 69.6, TrackingNet AUC 83.5, UAV123 AUC 68.1.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixvit_b",
        init="pretrained/mae_pretrain_vit_base.pth",
        batch_size=256,
        learning_rate=4e-4,
    )
