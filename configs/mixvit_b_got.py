"""MixViT on GOT-10k alone, stage 1: backbone and box head (the paper, Tables 2 and 10).

    mixformer train --config mixvit_b_got

Official experiment: mixformer_vit/baseline_got.yaml.
Hardware in the paper: 8 V100; the authors give hours for mixvit_b.py.
7.5 million samples of 0.28 TFLOP each, 2.1 EFLOP in all (counted, not run).
Validation is on sequences of the training set: the protocol allows no others.
An epoch has 15,000 samples here, as in the official experiment.
Expected after stage 2 (the paper, Table 10): GOT-10k AO 72.5.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixvit_b",
        name="mixvit_b_got",
        init="pretrained/mae_pretrain_vit_base.pth",
        batch_size=256,
        learning_rate=4e-4,
        got10k_alone=True,
        samples_per_epoch=15_000,
    )
