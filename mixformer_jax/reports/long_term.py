"""The report of VOT's long-term challenges, and of DepthTrack, which is scored as they are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation import vot_longterm
from mixformer_jax.evaluation.results import EXPERIMENTS, LAYOUTS
from mixformer_jax.evaluation.vot import read_run, read_sequences
from mixformer_jax.evaluation.vot_regions import bounding_box
from mixformer_jax.reports import report as reports
from mixformer_jax.reports.report import Figure, Report, Strip

RULES = (
    f"vot-toolkit: Pr and Re at the threshold of confidence at which F is largest, of {vot_longterm.RESOLUTION} that "
    "part the frames of all sequences evenly; means over sequences, and F of these means",
    "the frame of initialisation and frames without target count as answered wrongly where the confidence is as high; "
    "without a file of confidences it is 0",
)


def long_term_report(
    benchmark: str,
    root: str | Path,
    results_dir: str | Path,
    trackers: Sequence[str] | None = None,
    sequences: Sequence[TrackingSequence] | None = None,
    worst: int = 3,
    chosen: Sequence[str] | None = None,
) -> Report:
    """F, precision and recall of the long-term experiment of a workspace, `longterm` or `rgbd-unsupervised`.

    Arguments and errors are those of `benchmarks.vot_report`.
    """
    results_dir, annotated = Path(results_dir), read_sequences(root, chosen)
    experiment = EXPERIMENTS[LAYOUTS[benchmark]]
    names = [sequence.name for sequence in annotated]
    trackers = reports.trackers_in(results_dir, [experiment], "long videos") if trackers is None else trackers
    scores = {name: vot_longterm.score_long_term(results_dir / name / experiment, annotated) for name in trackers}
    scores = dict(sorted(scores.items(), key=lambda item: -item[1].headline["F"]))
    headlines = {name: score.headline for name, score in scores.items()}
    by_sequence = {name: score.by_sequence for name, score in scores.items()}
    strips: tuple[Strip, ...] = ()
    if sequences is not None:

        def boxes_of(name: str, position: int) -> np.ndarray:
            truth, folder = annotated[position], results_dir / name / experiment / names[position]
            regions = read_run(folder, f"{truth.name}_001", len(truth.groundtruth))
            return np.stack([bounding_box(region) for region in regions])

        ranked = {name: 100 * numbers["F"] for name, numbers in by_sequence.items()}
        strips = reports.worst_strips(ranked, "100 F", sequences, boxes_of, worst)
    title = f"{benchmark}, {len(names)} sequences"
    return Report(
        title=title,
        notes=RULES,
        tables=(
            reports.overall_table(f"{title}, fractions", headlines, decimals=3),
            *reports.sequence_tables(names, by_sequence, "fractions", ["F"], decimals=3),
        ),
        figures=(_figure(benchmark, scores),),
        strips=strips,
        numbers={
            "benchmark": benchmark,
            "rules": RULES,
            "sequences": names,
            "trackers": {
                name: reports.tracker_record(
                    names,
                    headlines[name],
                    by_sequence[name],
                    thresholds=score.thresholds,
                    curves={"F": score.f_score, "Pr": score.precision, "Re": score.recall},
                )
                for name, score in scores.items()
            },
        },
    )


def _figure(benchmark: str, scores: dict[str, vot_longterm.LongTermScores]) -> Figure:
    """All three curves over thresholds by their rank, from the highest (0) to the lowest (1)."""
    ranks = np.linspace(0, 1, len(next(iter(scores.values())).thresholds))
    panels = []
    for number, words in (("f_score", "F"), ("precision", "precision"), ("recall", "recall")):
        found = {name: (score.headline["F"], getattr(score, number)) for name, score in scores.items()}
        title = f"{benchmark}, {words} [F]"
        panels.append(reports.curves(title, "threshold by rank", ranks, found, words, decimals=3))
    return Figure("long_term", f"{benchmark}, precision, recall and F over confidence", tuple(panels))
