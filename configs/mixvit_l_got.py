"""MixViT-L on GOT-10k alone, stage 1: backbone and box head (the paper, Tables 2 and 10).

    mixformer train --config mixvit_l_got

Hardware in the paper: 8 V100; the authors give hours for mixvit_l.py.
7.5 million samples of 1.68 TFLOP each, 12.6 EFLOP in all (counted, not run).
Validation is on sequences of the training set: the protocol allows no others.
No official experiment: MixViT-L's, with the data and epochs of MixViT's.
Expected after stage 2 (the paper, Table 10): GOT-10k AO 75.7.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixvit_l",
        name="mixvit_l_got",
        init="pretrained/mae_pretrain_vit_large.pth",
        batch_size=288,
        learning_rate=4e-4,
        accumulate=3,
        freeze=("backbone/patch_embed/", "backbone/blocks_[0-5]/"),
        got10k_alone=True,
        samples_per_epoch=15_000,
    )
