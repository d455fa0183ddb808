"""Fig. 7: number of layers under two pre-trainings, and borrowed decoder blocks (the paper, section 4.2.4).

    mixformer train --config fig7:mae8
    mixformer study run fig7 --scale tiny --out runs/studies

Plain corner head. MAE and DeiT3 are those of Table 7 (ImageNet-1k, ImageNet-21k); of deeper ones the first layers are
taken. "+DN" puts N blocks of MAE's decoder behind the encoder, for which MAE's full checkpoint is needed: the paper
does not give its N. It is a picture: numbers are those that the text says (8 layers of MAE are 2.6 below 12; 4 of DeiT3
have 63.4) and Table 7 has.

| row      |                     |  AUC | GFLOP | EFLOP |
|----------|---------------------|------|-------|-------|
| mae4     | MAE, 4 layers       |    - | 14.30 |   2.9 |
| mae5     | MAE, 5 layers       |    - | 17.24 |   3.6 |
| mae6     | MAE, 6 layers       |    - | 20.19 |   4.2 |
| mae7     | MAE, 7 layers       |    - | 23.13 |   4.8 |
| mae8     | MAE, 8 layers       | 65.9 | 26.08 |   5.4 |
| mae9     | MAE, 9 layers       |    - | 29.02 |   6.0 |
| mae10    | MAE, 10 layers      |    - | 31.97 |   6.7 |
| mae11    | MAE, 11 layers      |    - | 34.91 |   7.3 |
| mae12    | MAE, 12 layers      | 68.5 | 37.86 |   7.9 |
| mae12_d1 | MAE, 12 layers + D1 |    - | 38.79 |   8.1 |
| mae12_d2 | MAE, 12 layers + D2 |    - | 40.15 |   8.4 |
| mae12_d4 | MAE, 12 layers + D4 |    - | 42.85 |   9.0 |
| deit4    | DeiT3, 4 layers     | 63.4 | 14.30 |   2.9 |
| deit5    | DeiT3, 5 layers     |    - | 17.24 |   3.6 |
| deit6    | DeiT3, 6 layers     |    - | 20.19 |   4.2 |
| deit7    | DeiT3, 7 layers     |    - | 23.13 |   4.8 |
| deit8    | DeiT3, 8 layers     |    - | 26.08 |   5.4 |
| deit9    | DeiT3, 9 layers     |    - | 29.02 |   6.0 |
| deit10   | DeiT3, 10 layers    |    - | 31.97 |   6.7 |
| deit11   | DeiT3, 11 layers    |    - | 34.91 |   7.3 |
| deit12   | DeiT3, 12 layers    | 67.7 | 37.86 |   7.9 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan fig7`.
"""

from ml_collections import ConfigDict
from rows import DEIT3_21K, MAE_B, row_config

from mixformer_jax.reports.studies import Study, StudyRow

MAE_DECODER = "pretrained/mae_visualize_vit_base.pth"

STUDY = Study(
    "Fig. 7: number of layers under two pre-trainings, and borrowed decoder blocks",
    rows={
        "mae4": StudyRow("MAE, 4 layers", "mixvit_b_depth4", None, 14.30, 16.35, MAE_B),
        "mae5": StudyRow("MAE, 5 layers", "mixvit_b_depth5", None, 17.24, 19.80, MAE_B),
        "mae6": StudyRow("MAE, 6 layers", "mixvit_b_depth6", None, 20.19, 23.25, MAE_B),
        "mae7": StudyRow("MAE, 7 layers", "mixvit_b_depth7", None, 23.13, 26.70, MAE_B),
        "mae8": StudyRow("MAE, 8 layers", "mixvit_b_depth8", 65.9, 26.08, 30.15, MAE_B),
        "mae9": StudyRow("MAE, 9 layers", "mixvit_b_depth9", None, 29.02, 33.59, MAE_B),
        "mae10": StudyRow("MAE, 10 layers", "mixvit_b_depth10", None, 31.97, 37.04, MAE_B),
        "mae11": StudyRow("MAE, 11 layers", "mixvit_b_depth11", None, 34.91, 40.49, MAE_B),
        "mae12": StudyRow("MAE, 12 layers", "mixvit_b_depth12", 68.5, 37.86, 43.94, MAE_B),
        "mae12_d1": StudyRow("MAE, 12 layers + D1", "mixvit_b_depth12_d1", None, 38.79, 45.14, MAE_DECODER),
        "mae12_d2": StudyRow("MAE, 12 layers + D2", "mixvit_b_depth12_d2", None, 40.15, 46.72, MAE_DECODER),
        "mae12_d4": StudyRow("MAE, 12 layers + D4", "mixvit_b_depth12_d4", None, 42.85, 49.90, MAE_DECODER),
        "deit4": StudyRow("DeiT3, 4 layers", "mixvit_b_deit3_depth4", 63.4, 14.30, 16.35, DEIT3_21K),
        "deit5": StudyRow("DeiT3, 5 layers", "mixvit_b_deit3_depth5", None, 17.24, 19.80, DEIT3_21K),
        "deit6": StudyRow("DeiT3, 6 layers", "mixvit_b_deit3_depth6", None, 20.19, 23.25, DEIT3_21K),
        "deit7": StudyRow("DeiT3, 7 layers", "mixvit_b_deit3_depth7", None, 23.13, 26.70, DEIT3_21K),
        "deit8": StudyRow("DeiT3, 8 layers", "mixvit_b_deit3_depth8", None, 26.08, 30.15, DEIT3_21K),
        "deit9": StudyRow("DeiT3, 9 layers", "mixvit_b_deit3_depth9", None, 29.02, 33.59, DEIT3_21K),
        "deit10": StudyRow("DeiT3, 10 layers", "mixvit_b_deit3_depth10", None, 31.97, 37.04, DEIT3_21K),
        "deit11": StudyRow("DeiT3, 11 layers", "mixvit_b_deit3_depth11", None, 34.91, 40.49, DEIT3_21K),
        "deit12": StudyRow("DeiT3, 12 layers", "mixvit_b_deit3_depth12", 67.7, 37.86, 43.94, DEIT3_21K),
    },
    stand_ins={MAE_B: "mae_tiny", MAE_DECODER: "mae_tiny"},
    keep=("depth",),
    pretraining_changes={
        "autoencoder.model.depth": 12,
        "autoencoder.decoder_depth": 4,
        "autoencoder.decoder_width": 512,
        "autoencoder.decoder_heads": 16,
    },
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "fig7", row)
