"""Table 4: asymmetric mixed attention (the paper, section 4.2.1).

    mixformer train --config table4:asymmetric
    mixformer study run table4 --scale tiny --out runs/studies

The paper's speeds are 25 frames a second with symmetric and 31 with asymmetric attention (RTX 8000).
`symmetric` is row 8 of Table 3.

| row        |                    |  AUC | GFLOP | EFLOP |
|------------|--------------------|------|-------|-------|
| symmetric  | MixCvT, symmetric  | 68.4 | 20.84 |   4.3 |
| asymmetric | MixCvT, asymmetric | 68.1 | 20.40 |   4.2 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan table4`.
"""

from ml_collections import ConfigDict
from rows import CVT_22K, row_config

from mixformer_jax.reports.studies import Study, StudyRow

STUDY = Study(
    "Table 4: asymmetric mixed attention",
    rows={
        "symmetric": StudyRow("MixCvT, symmetric", "mixcvt_symmetric", 68.4, 20.84, 24.06, CVT_22K),
        "asymmetric": StudyRow("MixCvT, asymmetric", "mixcvt", 68.1, 20.40, 23.17, CVT_22K),
    },
    stand_ins={CVT_22K: None},
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "table4", row)
