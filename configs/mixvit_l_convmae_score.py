"""MixViT-L (ConvMAE), stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixvit_l_convmae_score --config.train.init=runs/mixvit_l_convmae

Official experiment: mixformer_convmae_online/baseline_large.yaml. 50 epochs; the paper says 40.
Hardware in the paper: 8 V100; the authors give hours for mixvit_l_convmae.py.
3 million samples of 0.64 TFLOP each, 1.91 EFLOP in all (counted, not run).
Expected (the paper, Table 10): LaSOT AUC 73.3, TrackingNet AUC 86.1, UAV123 AUC 70.0.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixvit_l_convmae",
        init="runs/mixvit_l_convmae",
        decay_epoch=30,
    )
