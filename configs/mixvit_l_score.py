"""MixViT-L, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixvit_l_score --config.train.init=runs/mixvit_l

Official experiment: mixformer_vit_online/baseline_large.yaml. 50 epochs; the paper says 40.
Hardware in the paper: 8 V100; the authors give hours for mixvit_l.py.
3 million samples of 0.55 TFLOP each, 1.64 EFLOP in all (counted, not run).
Expected (the paper, Table 10): LaSOT AUC 72.4, TrackingNet AUC 85.4, UAV123 AUC 68.7.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixvit_l",
        init="runs/mixvit_l",
        decay_epoch=30,
    )
