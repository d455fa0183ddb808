"""Table 3: separate or simultaneous integration, and how many of MixCvT's blocks mix (the paper, section 4.2.1).

    mixformer train --config table3:8
    mixformer study run table3 --scale tiny --out runs/studies

MixCvT's 21 blocks, symmetric attention in rows 4 to 9. All start from CvT-21 on ImageNet-22k (the paper, section 4.1);
small ones from scratch. Where docs/models.md finds the paper's FLOPs to differ from ours, ours are below.

| row |                          |  AUC | GFLOP | EFLOP |
|-----|--------------------------|------|-------|-------|
| 1   | SAM(21), then CAM(1)     | 59.8 | 20.59 |   4.1 |
| 2   | SAM(21), then CAM(3)     | 60.5 | 21.87 |   4.3 |
| 3   | SAM(21), then ECA+CFA(4) | 66.9 | 23.89 |   4.8 |
| 4   | SAM(20)+W-MAM(1)         | 65.8 | 19.96 |   4.0 |
| 5   | SAM(15)+W-MAM(6)         | 66.2 | 20.01 |   4.0 |
| 6   | SAM(10)+W-MAM(11)        | 67.4 | 20.06 |   4.0 |
| 7   | SAM(5)+W-MAM(16)         | 68.1 | 20.11 |   4.0 |
| 8   | W-MAM(21)                | 68.4 | 20.84 |   4.3 |
| 9   | W-MAM(21), query head    | 66.0 | 19.12 |   4.0 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan table3`.
"""

from ml_collections import ConfigDict
from rows import CVT_22K, row_config

from mixformer_jax.reports.studies import Study, StudyRow

STUDY = Study(
    "Table 3: separate or simultaneous integration, and how many of MixCvT's blocks mix",
    rows={
        "1": StudyRow("SAM(21), then CAM(1)", "sam21_cam1", 59.8, 20.59, 22.80, CVT_22K),
        "2": StudyRow("SAM(21), then CAM(3)", "sam21_cam3", 60.5, 21.87, 24.12, CVT_22K),
        "3": StudyRow("SAM(21), then ECA+CFA(4)", "sam21_transt4", 66.9, 23.89, 26.63, CVT_22K),
        "4": StudyRow("SAM(20)+W-MAM(1)", "sam20_mam1", 65.8, 19.96, 22.16, CVT_22K),
        "5": StudyRow("SAM(15)+W-MAM(6)", "sam15_mam6", 66.2, 20.01, 22.26, CVT_22K),
        "6": StudyRow("SAM(10)+W-MAM(11)", "sam10_mam11", 67.4, 20.06, 22.37, CVT_22K),
        "7": StudyRow("SAM(5)+W-MAM(16)", "sam5_mam16", 68.1, 20.11, 22.48, CVT_22K),
        "8": StudyRow("W-MAM(21)", "mixcvt_symmetric", 68.4, 20.84, 24.06, CVT_22K),
        "9": StudyRow("W-MAM(21), query head", "mixcvt_symmetric_query", 66.0, 19.12, 22.34, CVT_22K),
    },
    stand_ins={CVT_22K: None},
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "table3", row)
