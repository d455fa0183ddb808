"""MixViT (ConvMAE), stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixvit_b_convmae_score --config.train.init=runs/mixvit_b_convmae

Official experiment: mixformer_convmae_online/baseline.yaml. 50 epochs; the paper says 40.
Hardware in the paper: 8 V100; the authors give hours for mixvit_b_convmae.py.
3 million samples of 0.11 TFLOP each, 0.33 EFLOP in all (counted, not run).
Expected (the paper, Table 10): LaSOT AUC 70.4, TrackingNet AUC 84.5, UAV123 AUC 69.0.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixvit_b_convmae",
        init="runs/mixvit_b_convmae",
    )
