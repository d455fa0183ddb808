"""MixCvT, stage 1: backbone and box head (the paper, Tables 1 and 10).

    mixformer train --config mixcvt

Official experiment: mixformer_cvt/baseline.yaml.
The authors took about 40 hours on 8 V100, 92 on 8 RTX 2080 Ti (official issue 1).
30 million samples of 0.14 TFLOP each, 4.2 EFLOP in all (counted, not run).
Expected after stage 2 (the paper, Table 10): LaSOT AUC 69.2, TrackingNet AUC 83.1, UAV123 AUC 70.4.
"""

from ml_collections import ConfigDict
from paper import box_stage


def get_config() -> ConfigDict:
    return box_stage(
        "mixcvt",
        init="pretrained/CvT-21-384x384-IN-22k.pth",
        batch_size=64,
        learning_rate=1e-4,
        search_factor=5.0,
        iou_loss="giou",
    )
