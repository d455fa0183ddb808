"""MixCvT, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixcvt_score --config.train.init=runs/mixcvt

Official experiment: mixformer_cvt_online/baseline.yaml. 30 epochs; the paper says 40.
Hardware in the paper: 8 V100; the authors give hours for mixcvt.py.
1.8 million samples of 0.04 TFLOP each, 0.07 EFLOP in all (counted, not run).
Expected (the paper, Table 10): LaSOT AUC 69.2, TrackingNet AUC 83.1, UAV123 AUC 70.4.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixcvt",
        init="runs/mixcvt",
        epochs=30,
        decay_epoch=20,
        search_factor=5.0,
    )
