"""MixCvT on GOT-10k alone, stage 1: backbone and box head (the paper, Tables 1 and 10).

    mixformer train --config mixcvt_got

Official experiment: mixformer_cvt/baseline_got.yaml.
Hardware in the paper: 8 V100; the authors give hours for mixcvt.py.
30 million samples of 0.14 TFLOP each, 4.2 EFLOP in all (counted, not run).
Validation is on sequences of the training set: the protocol allows no others.
Expected after stage 2 (the paper, Table 10): GOT-10k AO 70.7.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixcvt",
        name="mixcvt_got",
        init="pretrained/CvT-21-384x384-IN-22k.pth",
        batch_size=256,
        learning_rate=1e-4,
        search_factor=5.0,
        iou_loss="giou",
        got10k_alone=True,
    )
