"""MixCvT-L, stage 1: backbone and box head (the paper, Tables 1 and 10).

    mixformer train --config mixcvt_l

Official experiment: mixformer_cvt/baseline_large.yaml. The authors took 3 days and more on 8 V100 (official issue 1).
30 million samples of 0.69 TFLOP each, 20.8 EFLOP in all (counted, not run).
The first stage of the backbone stays frozen, as in the official experiment; of CvT24-W's last stage the first blocks
are taken.
Expected after stage 2 (the paper, Table 10): LaSOT AUC 70.1, TrackingNet AUC 83.9, UAV123 AUC 69.5.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixcvt_l",
        init="pretrained/CvT-w24-384x384-IN-22k.pth",
        batch_size=128,
        learning_rate=1e-4,
        search_factor=5.0,
        iou_loss="giou",
        freeze=("backbone/embed_0/", "backbone/blocks_[01]/"),
    )
