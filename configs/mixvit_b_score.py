"""MixViT, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixvit_b_score --config.train.init=runs/mixvit_b

Official experiment: mixformer_vit_online/baseline.yaml. 50 epochs; the paper says 40.
Hardware in the paper: 8 V100; the authors give hours for mixvit_b.py.
3 million samples of 0.08 TFLOP each, 0.25 EFLOP in all (counted, not run).
Expected (the paper, Table 10): LaSOT AUC 69.6, TrackingNet AUC 83.5, UAV123 AUC 68.1.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixvit_b",
        init="runs/mixvit_b",
    )
