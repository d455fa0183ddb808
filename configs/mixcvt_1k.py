"""MixCvT from ImageNet-1k, stage 1: backbone and box head (the paper, Tables 1 and 10).

    mixformer train --config mixcvt_1k

Official experiment: mixformer_cvt/baseline_1k.yaml.
Hardware in the paper: 8 V100; the authors give hours for mixcvt.py.
30 million samples of 0.14 TFLOP each, 4.2 EFLOP in all (counted, not run).
The official experiment trains the backbone at the full rate.
Expected after stage 2 (the paper, Table 10): LaSOT AUC 67.9, TrackingNet AUC 82.6, UAV123 AUC 68.7.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixcvt",
        name="mixcvt_1k",
        init="pretrained/CvT-21-384x384-IN-1k.pth",
        batch_size=64,
        learning_rate=1e-4,
        search_factor=5.0,
        iou_loss="giou",
        backbone_rate=1.0,
    )
