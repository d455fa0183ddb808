"""The report of VOT's short-term measures: accuracy, robustness and EAO, and accuracy without restarts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.vot import (
    EAO_HIGH,
    EAO_LOW,
    SequenceRuns,
    VotSequence,
    accuracy_robustness,
    average_unsupervised,
    eao,
    eao_curve,
    read_run,
    read_sequences,
    score_runs,
    score_unsupervised,
)
from mixformer_jax.evaluation.vot_regions import bounding_box
from mixformer_jax.reports.content import Figure, Line, Panel, Report, Strip, worst_strips
from mixformer_jax.reports.tables import Row, Table, compare

ANCHORS, WHOLE = "baseline", "unsupervised"
HEADER = ("EAO", "A", "R", "A, no restarts")


def vot_report(
    root: str | Path,
    results_dir: str | Path,
    trackers: Sequence[str] | None = None,
    interval: tuple[int, int] = (EAO_LOW, EAO_HIGH),
    sequences: Sequence[TrackingSequence] | None = None,
    worst: int = 3,
    chosen: Sequence[str] | None = None,
) -> Report:
    """Scores the results of a VOT workspace; the experiments are `baseline` and `unsupervised`.

    Args:
        root: the workspace, or its folder of sequences.
        results_dir: holds <tracker>/<experiment>/<sequence>/...
        trackers: default: all that have results of either experiment.
        interval: lengths over which EAO is averaged; VOT2020 to VOT2022 have 115, 755.
        sequences: to draw the worst ones from; None for no pictures.
        worst: how many sequences of each tracker are drawn.
        chosen: names of the sequences that are scored; default: all.

    Raises:
        DatasetError, ResultsError: files that are missing, or are not what VOT has.
        SourceError: a frame of a worst sequence cannot be read.
    """
    results_dir = Path(results_dir)
    annotated = read_sequences(root, chosen)
    names = _list_trackers(results_dir) if trackers is None else list(trackers)
    runs = {
        name: [score_runs(results_dir / name / ANCHORS, sequence) for sequence in annotated]
        for name in names
        if (results_dir / name / ANCHORS).is_dir()
    }
    whole = {
        name: [score_unsupervised(results_dir / name / WHOLE, sequence) for sequence in annotated]
        for name in names
        if (results_dir / name / WHOLE).is_dir()
    }
    lost = [name for name in names if name not in runs and name not in whole]
    if lost:
        expected = f"{results_dir / lost[0] / ANCHORS} or {results_dir / lost[0] / WHOLE}"
        raise ResultsError(f"no results of {', '.join(lost)}: expected {expected}")
    curves = {name: eao_curve(scores, interval[1]) for name, scores in runs.items()}
    headlines = {
        name: _headline(runs.get(name), curves.get(name), whole.get(name), annotated, interval) for name in names
    }
    headlines = dict(sorted(headlines.items(), key=lambda item: -np.nan_to_num(item[1]["EAO"], nan=-1)))
    tables = {name: _by_sequence(runs.get(name), whole.get(name), len(annotated)) for name in headlines}
    strips: tuple[Strip, ...] = ()
    if sequences is not None:
        strips = worst_strips(
            {name: tables[name]["A"] * tables[name]["R"] * 100 for name in runs},
            "100 A R",
            sequences,
            lambda name, position: _run_boxes(results_dir / name / ANCHORS, annotated[position]),
            worst,
        )
    low, high = interval
    return Report(
        title=f"vot, {len(annotated)} sequences",
        notes=(
            f"vot-toolkit: EAO over lengths {low} to {high - 1}; A and R from the runs of every anchor; only pixels "
            "inside the frame count",
            "A, no restarts: mean overlap of one run through each sequence, without its first frame",
        ),
        tables=(
            Table(
                "overall",
                f"vot, {len(annotated)} sequences, fractions",
                ("tracker", *HEADER),
                tuple(Row(name, tuple(numbers.values())) for name, numbers in headlines.items()),
                decimals=3,
                ranked=True,
            ),
            *compare("vot", headlines),
            *_sequence_tables(tables, annotated),
        ),
        figures=_figures(headlines, curves),
        strips=strips,
        numbers={
            "benchmark": "vot",
            "eao_interval": interval,
            "sequences": [sequence.name for sequence in annotated],
            "trackers": {
                name: {
                    **headlines[name],
                    "eao_curve": curves.get(name),
                    "by_sequence": {
                        sequence.name: {key: float(values[i]) for key, values in tables[name].items()}
                        for i, sequence in enumerate(annotated)
                    },
                }
                for name in headlines
            },
        },
    )


def _list_trackers(results_dir: Path) -> list[str]:
    folders = sorted(results_dir.iterdir()) if results_dir.is_dir() else []
    names = [f.name for f in folders if (f / ANCHORS).is_dir() or (f / WHOLE).is_dir()]
    if not names:
        raise ResultsError(f"{results_dir}: no results of VOT; expected <tracker>/{ANCHORS}/<sequence>/...")
    return names


def _headline(
    runs: list[SequenceRuns] | None,
    curve: Float64[np.ndarray, " high"] | None,
    whole: list[float] | None,
    sequences: Sequence[VotSequence],
    interval: tuple[int, int],
) -> dict[str, float]:
    nothing = float("nan")
    accuracy, robustness = accuracy_robustness(runs) if runs else (nothing, nothing)
    expected = nothing if curve is None else eao(curve, *interval)
    alone = nothing if whole is None else average_unsupervised(whole, list(sequences))
    return dict(zip(HEADER, (expected, accuracy, robustness, alone), strict=True))


def _by_sequence(
    runs: list[SequenceRuns] | None, whole: list[float] | None, count: int
) -> dict[str, Float64[np.ndarray, " s"]]:
    nothing = np.full(count, np.nan)
    return {
        "A": np.array([run.accuracy for run in runs]) if runs else nothing,
        "R": np.array([run.robustness for run in runs]) if runs else nothing,
        "A, no restarts": np.array(whole) if whole else nothing,
    }


def _sequence_tables(
    tables: Mapping[str, Mapping[str, Float64[np.ndarray, " s"]]], sequences: Sequence[VotSequence]
) -> list[Table]:
    found = []
    for number, file in (("A", "A"), ("R", "R"), ("A, no restarts", "unsupervised")):
        rows = tuple(
            Row(sequence.name, tuple(float(values[number][i]) for values in tables.values()))
            for i, sequence in enumerate(sequences)
        )
        title = f"{number} by sequence, fractions"
        found.append(Table(f"sequences_{file}", title, ("sequence", *tables), rows, decimals=3, place="more"))
    return found


def _figures(
    headlines: Mapping[str, Mapping[str, float]], curves: Mapping[str, Float64[np.ndarray, " high"]]
) -> tuple[Figure, ...]:
    if not curves:
        return ()
    lines = tuple(
        Line(name, f"{name} [{numbers['EAO']:.3f}]", curves[name][1:])
        for name, numbers in headlines.items()
        if name in curves
    )
    lengths = np.arange(1.0, 1 + len(lines[0].y))
    panel = Panel("vot, expected average overlap [EAO]", "sequence length (frames)", "expected overlap", lengths, lines)
    return (Figure("eao", panel.title, (panel,)),)


def _run_boxes(results: Path, sequence: VotSequence) -> Float64[np.ndarray, "n 4"]:
    """Boxes around the regions of the first anchor's run; NaN where it has none."""
    anchor, backward = sequence.anchors[0]
    boxes = np.full((len(sequence.groundtruth), 4), np.nan)
    frames = sequence.run_frames(anchor, backward)
    regions = read_run(results / sequence.name, f"{sequence.name}_{anchor:08d}", len(frames))
    for frame, region in zip(frames, regions, strict=True):
        boxes[frame] = bounding_box(region)
    return boxes
