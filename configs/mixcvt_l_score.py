"""MixCvT-L, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixcvt_l_score --config.train.init=runs/mixcvt_l

Official experiment: mixformer_cvt_online/baseline_large.yaml. 40 epochs.
Hardware in the paper: 8 V100; the authors give hours for mixcvt_l.py.
2.4 million samples of 0.23 TFLOP each, 0.54 EFLOP in all (counted, not run).
Expected (the paper, Table 10): LaSOT AUC 70.1, TrackingNet AUC 83.9, UAV123 AUC 69.5.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixcvt_l",
        init="runs/mixcvt_l",
        epochs=40,
        decay_epoch=30,
        batch_size=128,
        search_factor=5.0,
    )
