"""Table 7: pre-training (the paper, section 4.2.4).

    mixformer train --config table7:trackmae
    mixformer study run table7 --scale tiny --out runs/studies

Plain corner head, asymmetric attention. `mae_tracking` and `trackmae` start from runs of configs/pretrain/, the others
from published files in pretrained/: CvT's, DeiT3's, MAE's (mae_finetuned_vit_base.pth is its classifier), ConvMAE's.
`convmae` is no row of the paper's table: its tracker has the pyramidal head, and 70.4 with online templates (Table 10).
The scratch rows are those of Table 5.

| row           |                                          |  AUC | GFLOP | EFLOP |
|---------------|------------------------------------------|------|-------|-------|
| cvt_scratch   | MixCvT, from scratch                     | 59.0 | 13.07 |   2.7 |
| cvt_1k        | MixCvT, supervised (CvT), ImageNet-1k    | 67.2 | 20.40 |   4.2 |
| cvt_22k       | MixCvT, supervised (CvT), ImageNet-22k   | 68.1 | 20.40 |   4.2 |
| vit_scratch   | MixViT, from scratch                     | 56.2 | 37.86 |   7.9 |
| mae_tracking  | MixViT, MAE, tracking data               | 65.1 | 37.86 |   7.9 |
| trackmae      | MixViT, TrackMAE, tracking data          | 66.0 | 37.86 |   7.9 |
| deit3_1k      | MixViT, supervised (DeiT3), ImageNet-1k  | 66.5 | 37.86 |   7.9 |
| deit3_21k     | MixViT, supervised (DeiT3), ImageNet-21k | 67.7 | 37.86 |   7.9 |
| mae_finetuned | MixViT, MAE fine-tune, ImageNet-1k       | 68.0 | 37.86 |   7.9 |
| mae           | MixViT, MAE pre-train, ImageNet-1k       | 68.5 | 37.86 |   7.9 |
| convmae       | MixViT, ConvMAE, ImageNet-1k             |    - | 51.14 |  10.6 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan table7`.
"""

from ml_collections import ConfigDict
from rows import CVT_1K, CVT_22K, DEIT3_1K, DEIT3_21K, MAE_B, row_config

from mixformer_jax.reports.studies import Study, StudyRow

STUDY = Study(
    "Table 7: pre-training",
    rows={
        "cvt_scratch": StudyRow("MixCvT, from scratch", "scratch_stages_depthwise", 59.0, 13.07, 14.78),
        "cvt_1k": StudyRow("MixCvT, supervised (CvT), ImageNet-1k", "mixcvt", 67.2, 20.40, 23.17, CVT_1K),
        "cvt_22k": StudyRow("MixCvT, supervised (CvT), ImageNet-22k", "mixcvt", 68.1, 20.40, 23.17, CVT_22K),
        "vit_scratch": StudyRow("MixViT, from scratch", "scratch_plain", 56.2, 37.86, 43.94),
        "mae_tracking": StudyRow(
            "MixViT, MAE, tracking data", "mixvit_b_corner_v3", 65.1, 37.86, 43.94, "runs/mae_tracking_vit_b"
        ),
        "trackmae": StudyRow(
            "MixViT, TrackMAE, tracking data", "mixvit_b_corner_v3", 66.0, 37.86, 43.94, "runs/trackmae_vit_b"
        ),
        "deit3_1k": StudyRow(
            "MixViT, supervised (DeiT3), ImageNet-1k", "mixvit_b_deit3_depth12", 66.5, 37.86, 43.94, DEIT3_1K
        ),
        "deit3_21k": StudyRow(
            "MixViT, supervised (DeiT3), ImageNet-21k", "mixvit_b_deit3_depth12", 67.7, 37.86, 43.94, DEIT3_21K
        ),
        "mae_finetuned": StudyRow(
            "MixViT, MAE fine-tune, ImageNet-1k",
            "mixvit_b_corner_v3",
            68.0,
            37.86,
            43.94,
            "pretrained/mae_finetuned_vit_base.pth",
        ),
        "mae": StudyRow("MixViT, MAE pre-train, ImageNet-1k", "mixvit_b_corner_v3", 68.5, 37.86, 43.94, MAE_B),
        "convmae": StudyRow(
            "MixViT, ConvMAE, ImageNet-1k", "mixvit_b_convmae", None, 51.14, 59.02, "pretrained/convmae_base.pth"
        ),
    },
    stand_ins={
        None: None,
        "runs/mae_tracking_vit_b": "mae_tiny",
        "runs/trackmae_vit_b": "trackmae_tiny",
    },
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "table7", row)
