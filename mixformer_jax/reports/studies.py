"""The paper's studies (Tables 3 to 8, Fig. 7): what a row is, and the rows' scores beside the paper's.

The rows themselves stand in `configs/tables/`, each with the config that trains it.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mixformer_jax.text_tables import markdown

SAMPLES = 30_000_000  # of a full training: 500 epochs of 60,000 (the paper, section 4.1)
# Forward pass and both gradients, two operations a multiply-accumulate.
OPERATIONS_PER_MAC = 6


@dataclasses.dataclass(frozen=True)
class StudyRow:
    """One row of a study."""

    title: str  # what sets it apart
    model: str  # size or study model, see `mixformer_jax.models.config`
    auc: float | None  # on LaSOT in the paper, percent; None: the paper has no number
    # 10^9 multiply-accumulates of a search region and the templates it is tracked with, as the paper counts.
    gflops: float
    train_gflops: float  # the same with the two templates of the trainings
    # Weights that the training starts from; None: scratch. `runs/NAME` is what the config NAME pre-trains.
    init: str | None = None
    # It is tracked with online templates; else with the first one alone, whatever it was trained with.
    online: bool = False
    # The row whose trained weights it tracks with, or goes on from; None: its own training.
    weights_of: str | None = None
    scores: bool = False  # the score module is trained on them, as stage 2

    @property
    def tracker(self) -> dict[str, int]:
        """Settings of the tracker that is scored, over those of its weights."""
        return {} if self.online else {"num_online_templates": 0}

    @property
    def eflops(self) -> float:
        """10^18 operations of stage 1, a multiply-add being two."""
        return self.train_gflops * 1e9 * OPERATIONS_PER_MAC * SAMPLES / 1e18


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of the paper."""

    title: str  # for readers
    rows: Mapping[str, StudyRow]  # by the name that `--config TABLE:ROW` takes
    # What small scales start from in the place of a row's `init`: a config of a small pre-training, or None for
    # scratch. A row whose `init` is not here cannot be made small.
    stand_ins: Mapping[str | None, str | None] = dataclasses.field(default_factory=lambda: {None: None})
    # Settings of the model that small scales keep, beside those that they always do, since the study is about them.
    keep: tuple[str, ...] = ()
    # Settings of the small pre-trainings that these rows need.
    pretraining_changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Interval(NamedTuple):
    """A mean over seeds, and half the width of its 95% confidence interval; None with a single seed."""

    mean: float
    half: float | None

    def __format__(self, sign: str) -> str:
        return f"{self.mean:{sign}.1f}" + ("" if self.half is None else f" ± {self.half:.1f}")

    def __str__(self) -> str:
        return f"{self}"


def interval(values: Sequence[float]) -> Interval:
    """Of seeds' values, by Student's t: with three seeds it is 2.5 sample deviations to either side."""
    from scipy.stats import t

    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return Interval(mean, None)
    return Interval(mean, float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)))


def study_markdown(study: Study, aucs: Mapping[str, Sequence[float]], skipped: Mapping[str, str]) -> str:
    """The rows' AUC (percent, a value a seed) beside the paper's in Markdown; `skipped` says why a row has none."""
    first = next(iter(aucs), None)
    header = ["row", "", "AUC here", "by seed", f"against {first}", "AUC in the paper", f"against {first}"]
    reference = study.rows[first].auc if first is not None else None
    lines = [header]
    for name, row in study.rows.items():
        paper = "-" if row.auc is None else f"{row.auc:.1f}"
        beside = "-" if row.auc is None or reference is None or name == first else f"{row.auc - reference:+.1f}"
        if name not in aucs and name not in skipped:
            continue
        if name in aucs:
            values = aucs[name]
            # Seeds are paired: a seed's samples are the same in all rows.
            pairs = [ours - theirs for ours, theirs in zip(values, aucs[first], strict=True)] if first else []
            difference = "-" if name == first else f"{interval(pairs):+}"
            cells = [str(interval(values)), ", ".join(f"{value:.1f}" for value in values), difference]
        else:
            cells = [f"not here: {skipped[name]}", "", ""]
        lines.append([name, row.title, *cells, paper, beside])
    return markdown(lines)


def draw_study(study: Study, aucs: Mapping[str, Sequence[float]]) -> bytes:
    """Two panels with a line a row: the seeds with their interval here, the paper's number there. PNG."""
    from matplotlib.figure import Figure

    names = list(aucs)
    figure = Figure(figsize=(9.0, 1.2 + 0.38 * len(names)), layout="constrained")
    here, paper = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(names):
        found = interval(aucs[name])
        here.errorbar(found.mean, place, xerr=found.half or 0.0, fmt="s", color="C0", capsize=3)
        here.plot(aucs[name], [place] * len(aucs[name]), "o", color="C0", alpha=0.4, markersize=4)
        if (auc := study.rows[name].auc) is not None:
            paper.plot(auc, place, "D", color="C1")
    here.set_yticks(range(len(names)), [f"{name}: {study.rows[name].title}" for name in names])
    here.invert_yaxis()
    here.set_xlabel("AUC here, 95% interval over seeds")
    paper.set_xlabel("LaSOT AUC in the paper")
    for axes in (here, paper):
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
