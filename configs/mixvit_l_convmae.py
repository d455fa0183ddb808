"""MixViT-L (ConvMAE), stage 1: backbone and box head (the paper, Tables 2 and 10).

    mixformer train --config mixvit_l_convmae

Official experiment: mixformer_convmae/baseline_large.yaml.
The authors took 4 days and more on 8 V100 or RTX 8000 (official issue 73).
30 million samples of 1.95 TFLOP each, 58.4 EFLOP in all (counted, not run).
A batch goes through in three parts, as in the official experiment.
Expected after stage 2 (the paper, Table 10): LaSOT AUC 73.3, TrackingNet AUC 86.1, UAV123 AUC 70.0.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixvit_l_convmae",
        init="pretrained/convmae_large.pth",
        batch_size=288,
        learning_rate=4e-4,
        accumulate=3,
    )
