"""MixViT on GOT-10k alone, stage 2: the score module alone (the paper, Fig. 6 and Table 10).

    mixformer train --config mixvit_b_got_score --config.train.init=runs/mixvit_b_got

Official experiment: mixformer_vit_online/baseline_got.yaml. 50 epochs; the paper says 40.
Hardware in the paper: 8 V100; the authors give hours for mixvit_b.py.
3 million samples of 0.08 TFLOP each, 0.25 EFLOP in all (counted, not run).
Expected (the paper, Table 10): GOT-10k AO 72.5.
"""

from ml_collections import ConfigDict
from paper import score_stage


def get_config() -> ConfigDict:
    return score_stage(
        "mixvit_b",
        init="runs/mixvit_b_got",
        name="mixvit_b_online_got",
        got10k_alone=True,
    )
