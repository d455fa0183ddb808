"""Table 5: from MixViT to MixCvT, trained from scratch (the paper, section 4.2.2).

    mixformer train --config table5:plain
    mixformer study run table5 --scale tiny --out runs/studies

Twelve blocks, plain corner head, 500 epochs on the tracking data alone, no ImageNet. Layer norm stands for the batch
norms of CvT's projections, with which the paper says "the performance is extremely poor". The paper says
"for fair comparison" and no recipe: MixViT's for all three, and the backbone at the full rate, since it has
nothing to keep. Blocks and widths of the stages are our choice (docs/models.md).

| row              |                         |  AUC | GFLOP | EFLOP |
|------------------|-------------------------|------|-------|-------|
| plain            | S-MAM(12), one stage    | 56.2 | 37.86 |   7.9 |
| stages           | S-MAM(12), three stages | 58.8 | 21.60 |   4.5 |
| stages_depthwise | W-MAM(12), three stages | 59.0 | 13.07 |   2.7 |

AUC: expected on LaSOT, the paper's. GFLOP: 10^9 multiply-accumulates of a frame and the templates that it is tracked
with, as the paper counts. EFLOP: 10^18 operations of stage 1, 30 million samples; counted, not run. Hours of chips:
`mixformer study plan table5`.
"""

from ml_collections import ConfigDict
from rows import row_config

from mixformer_jax.reports.studies import Study, StudyRow

STUDY = Study(
    "Table 5: from MixViT to MixCvT, trained from scratch",
    rows={
        "plain": StudyRow("S-MAM(12), one stage", "scratch_plain", 56.2, 37.86, 43.94),
        "stages": StudyRow("S-MAM(12), three stages", "scratch_stages", 58.8, 21.60, 24.94),
        "stages_depthwise": StudyRow("W-MAM(12), three stages", "scratch_stages_depthwise", 59.0, 13.07, 14.78),
    },
)


def get_config(row: str) -> ConfigDict:
    return row_config(STUDY, "table5", row)
