"""Scoring result files and printing the tables: text, Markdown and JSON."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mixformer_jax.data.sequences import Sequence as TrackingSequence
from mixformer_jax.evaluation.metrics import (
    CENTER_THRESHOLDS,
    NORM_CENTER_THRESHOLDS,
    OVERLAP_THRESHOLDS,
    Curves,
    frame_errors,
    headline,
    mean_over_sequences,
    sequence_curves,
    stack_curves,
)
from mixformer_jax.evaluation.plots import write_plots
from mixformer_jax.evaluation.results import ResultsError, read_boxes
from mixformer_jax.evaluation.rules import OpeRules, describe_rules
from mixformer_jax.files import write_atomically


@dataclasses.dataclass(frozen=True)
class TrackerScores:
    """One tracker over all sequences, in the report's order."""

    name: str
    rules: OpeRules
    curves: Curves  # first axis: sequences
    average_overlap: Float[np.ndarray, " s"]  # fraction, over valid frames alone; NaN without any

    @property
    def overall(self) -> Curves:
        return mean_over_sequences(self.curves, self.rules)

    @property
    def headline(self) -> dict[str, float]:
        """The numbers that papers print, in percent."""
        return {name: float(value) for name, value in headline(self.overall, self.rules).items()}


@dataclasses.dataclass(frozen=True)
class Report:
    """A benchmark scored: the best AUC first."""

    benchmark: str
    rules: OpeRules
    sequences: tuple[str, ...]
    trackers: tuple[TrackerScores, ...]


class Table(NamedTuple):
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # the first cell names the row, the others are numbers


def list_trackers(results_dir: str | Path, sequence_names: Sequence[str]) -> list[str]:
    """Sub-folders that hold a result for any of the sequences (a report may lie among them).

    Raises:
        ResultsError: there is none.
    """
    results_dir = Path(results_dir)
    if not results_dir.is_dir():
        raise ResultsError(f"{results_dir}: no such folder; expected the results of eval/run.py")
    files = {f"{name}.txt" for name in sequence_names}
    names = sorted({path.parent.name for path in results_dir.glob("*/*.txt") if path.name in files})
    if not names:
        raise ResultsError(f"{results_dir}: no results for these sequences; expected <tracker>/{min(files)}")
    return names


def score_results(
    results_dir: str | Path,
    benchmark: str,
    sequences: Sequence[TrackingSequence],
    rules: OpeRules,
    trackers: Sequence[str] | None = None,
) -> Report:
    """Scores the result files of trackers (default: all that are there) over the sequences.

    Raises:
        ResultsError: result files are missing (all are named), or one cannot be read or scored.
    """
    results_dir = Path(results_dir)
    sequence_names = tuple(sequence.name for sequence in sequences)
    names = list(trackers) if trackers is not None else list_trackers(results_dir, sequence_names)
    missing = [
        str(path)
        for path in (results_dir / name / f"{sequence}.txt" for name in names for sequence in sequence_names)
        if not path.is_file()
    ]
    if missing:
        raise ResultsError(
            f"{len(missing)} result files are missing, and a mean over fewer sequences would not compare: "
            f"{', '.join(missing)}; run the tracker again, or leave it out with --trackers"
        )
    scored = [_score_tracker(results_dir / name, sequences, rules) for name in names]
    scored.sort(key=lambda scores: -scores.headline["AUC"])
    return Report(benchmark, rules, sequence_names, tuple(scored))


def tables(report: Report) -> list[Table]:
    """The headline numbers by tracker, and AUC by sequence; percent."""
    headlines = [(tracker.name, tracker.headline) for tracker in report.trackers]
    auc = [tracker.curves.auc for tracker in report.trackers]
    return [
        Table(
            f"{report.benchmark}, {len(report.sequences)} sequences, percent",
            ("tracker", *headlines[0][1]),
            tuple((name, *map(_percent, numbers.values())) for name, numbers in headlines),
        ),
        Table(
            "AUC by sequence",
            ("sequence", *(name for name, _ in headlines)),
            tuple((name, *(_percent(a[i]) for a in auc)) for i, name in enumerate(report.sequences)),
        ),
    ]


def to_text(report: Report) -> str:
    blocks = []
    for table in tables(report):
        cells = [table.header, *table.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]
        lines = [
            "  ".join(
                cell.rjust(width) if column else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        blocks.append("\n".join([table.title, *lines]))
    return "\n\n".join([*blocks, describe_rules(report.rules)]) + "\n"


def to_markdown(report: Report) -> str:
    blocks = []
    for table in tables(report):
        lines = [
            f"| {' | '.join(table.header)} |",
            "|---" + "|--:" * (len(table.header) - 1) + "|",
            *(f"| {' | '.join(row)} |" for row in table.rows),
        ]
        blocks.append("\n".join([f"### {table.title}", "", *lines]))
    return "\n\n".join([*blocks, describe_rules(report.rules)]) + "\n"


def to_json(report: Report) -> str:
    """Everything at full precision: headline numbers in percent, curves and average overlaps as fractions."""
    record = {
        "benchmark": report.benchmark,
        "rules": {key: _finite(value) for key, value in dataclasses.asdict(report.rules).items()},
        "sequences": report.sequences,
        "thresholds": {
            "success": OVERLAP_THRESHOLDS.tolist(),
            "precision": CENTER_THRESHOLDS.tolist(),
            "norm_precision": NORM_CENTER_THRESHOLDS.tolist(),
        },
        "trackers": {tracker.name: _tracker_record(tracker, report.sequences) for tracker in report.trackers},
    }
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def write_report(report: Report, out_dir: str | Path) -> list[Path]:
    """Writes report.txt, report.md, report.json and the three plots; returns their paths.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    documents = {"report.txt": to_text, "report.md": to_markdown, "report.json": to_json}
    for name, render in documents.items():
        write_atomically(out_dir / name, render(report))
    plots = write_plots({tracker.name: tracker.overall for tracker in report.trackers}, report.benchmark, out_dir)
    return [*(out_dir / name for name in documents), *plots]


def _score_tracker(folder: Path, sequences: Sequence[TrackingSequence], rules: OpeRules) -> TrackerScores:
    curves, average_overlap = [], []
    for sequence in sequences:
        path = folder / f"{sequence.name}.txt"
        boxes_xywh = read_boxes(path, "keep" if rules.unusable_boxes == "repeat" else "error")
        try:
            errors = frame_errors(boxes_xywh, sequence.boxes_xywh, sequence.visible, rules)
            curves.append(sequence_curves(errors, rules))
        except ValueError as error:
            raise ResultsError(f"result file {path} on sequence {sequence.name}: {error}") from error
        average_overlap.append(errors.average_overlap)
    return TrackerScores(folder.name, rules, stack_curves(curves), np.array(average_overlap))


def _tracker_record(tracker: TrackerScores, sequences: Sequence[str]) -> dict[str, object]:
    overall = tracker.overall
    columns = {**headline(tracker.curves, tracker.rules), "average_overlap": tracker.average_overlap}
    by_sequence = {
        name: {column: _finite(float(values[i])) for column, values in columns.items()}
        for i, name in enumerate(sequences)
    }
    return {
        **tracker.headline,
        "curves": {
            "success": overall.success.tolist(),
            "precision": overall.precision.tolist(),
            "norm_precision": overall.norm_precision.tolist(),
        },
        "by_sequence": by_sequence,
    }


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: null and "inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
