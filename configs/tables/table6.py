"""Table 6: heads and position embeddings of MixViT (the paper, section 4.2.3).

    mixformer train --config table6:pyramid_v3
    mixformer study run table6 --scale tiny --out runs/studies

All from MAE on ImageNet-1k. V1: MAE's table interpolated and frozen; V2: the same, learned; V3: sin-cos, frozen.
Small ones start from MAE on the pool.

| row        |                           |  AUC | GFLOP | EFLOP |
|------------|---------------------------|------|-------|-------|
| corner_v1  | plain corner head, V1     | 68.4 | 37.86 |   7.9 |
| corner_v2  | plain corner head, V2     | 68.4 | 37.86 |   7.9 |
| corner_v3  | plain corner head, V3     | 68.5 | 37.86 |   7.9 |
| pyramid_v3 | pyramidal corner head, V3 | 69.0 | 40.12 |   8.3 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan table6`.
"""

from ml_collections import ConfigDict
from rows import MAE_B, row_config

from mixformer_jax.reports.studies import Study, StudyRow

STUDY = Study(
    "Table 6: heads and position embeddings of MixViT",
    rows={
        "corner_v1": StudyRow("plain corner head, V1", "mixvit_b_corner_v1", 68.4, 37.86, 43.94, MAE_B),
        "corner_v2": StudyRow("plain corner head, V2", "mixvit_b_corner_v2", 68.4, 37.86, 43.94, MAE_B),
        "corner_v3": StudyRow("plain corner head, V3", "mixvit_b_corner_v3", 68.5, 37.86, 43.94, MAE_B),
        "pyramid_v3": StudyRow("pyramidal corner head, V3", "mixvit_b", 69.0, 40.12, 46.20, MAE_B),
    },
    stand_ins={MAE_B: "mae_tiny"},
    keep=("positions",),
    pretraining_changes={"autoencoder.model.positions": "sincos"},
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "table6", row)
