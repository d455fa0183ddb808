"""Table 8: online templates and the score module (the paper, section 4.2.5).

    mixformer train --config table8:online
    mixformer study run table8 --scale tiny --out runs/studies

The same backbone and head under three settings: `fixed` and `online` track with the weights of one training,
configs/mixcvt.py's, and `online_score` goes on from them with stage 2, configs/mixcvt_score.py's (1.8 million
samples, a fiftieth of stage 1). Intervals are those of configs/benchmarks.toml,
and 25 frames for small models.

| row          |                                             |  AUC | GFLOP | EFLOP |
|--------------|---------------------------------------------|------|-------|-------|
| online       | MixCvT, online templates at fixed intervals | 66.6 | 23.17 |   4.2 |
| fixed        | MixCvT, the first template alone            | 68.1 | 20.40 |   4.2 |
| online_score | MixCvT, online templates chosen by score    | 69.2 | 23.20 |   4.2 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan table8`.
"""

from ml_collections import ConfigDict
from rows import CVT_22K, row_config

from mixformer_jax.reports.studies import Study, StudyRow

STUDY = Study(
    "Table 8: online templates and the score module",
    rows={
        "online": StudyRow(
            "MixCvT, online templates at fixed intervals", "mixcvt", 66.6, 23.17, 23.17, CVT_22K, online=True
        ),
        "fixed": StudyRow(
            "MixCvT, the first template alone", "mixcvt", 68.1, 20.40, 23.17, CVT_22K, weights_of="online"
        ),
        "online_score": StudyRow(
            "MixCvT, online templates chosen by score",
            "mixcvt_online",
            69.2,
            23.20,
            23.17,
            CVT_22K,
            online=True,
            weights_of="online",
            scores=True,
        ),
    },
    stand_ins={CVT_22K: None},
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "table8", row)
