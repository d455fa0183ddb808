"""MixCvT on GOT-10k alone, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixcvt_got_score --config.train.init=runs/mixcvt_got

Official experiment: mixformer_cvt_online/baseline_got.yaml. 40 epochs.
Hardware in the paper: 8 V100; the authors give hours for mixcvt.py.
2.4 million samples of 0.04 TFLOP each, 0.09 EFLOP in all (counted, not run).
Expected (the paper, Table 10): GOT-10k AO 70.7.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixcvt",
        init="runs/mixcvt_got",
        name="mixcvt_online_got",
        epochs=40,
        decay_epoch=30,
        search_factor=5.0,
        got10k_alone=True,
    )
