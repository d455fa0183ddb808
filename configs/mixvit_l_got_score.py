"""MixViT-L on GOT-10k alone, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixvit_l_got_score --config.train.init=runs/mixvit_l_got

50 epochs; the paper says 40. Hardware in the paper: 8 V100; the authors give hours for mixvit_l.py.
3 million samples of 0.55 TFLOP each, 1.64 EFLOP in all (counted, not run).
Expected (the paper, Table 10): GOT-10k AO 75.7.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixvit_l",
        init="runs/mixvit_l_got",
        name="mixvit_l_online_got",
        decay_epoch=30,
        got10k_alone=True,
    )
