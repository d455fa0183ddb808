"""The report of TrackingNet's measures, for sequences whose ground truth is at hand."""

from collections.abc import Sequence

import numpy as np

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.result_looks import warnings
from mixformer_jax.evaluation.results import ResultsError, read_boxes
from mixformer_jax.evaluation.scoring import TrackerFiles
from mixformer_jax.evaluation.server_scores import (
    DISTANCE_THRESHOLDS,
    NORM_DISTANCE_THRESHOLDS,
    OVERLAP_THRESHOLDS,
    TrackingNetScores,
    score_sequences,
)
from mixformer_jax.reports.content import Figure, Line, Panel, Report, worst_strips
from mixformer_jax.reports.tables import Place, Row, Table, compare

RULES = (
    "TrackingNet dev kit: areas under the curves, boxes rounded to whole pixels, IoU >= t; first frame counted as "
    "perfect"
)


def trackingnet_report(sequences: Sequence[TrackingSequence], files: Sequence[TrackerFiles], worst: int = 3) -> Report:
    """Scores trackers that have one result for every sequence.

    Raises:
        ResultsError: several results for a sequence, or one that cannot be read or scored.
        SourceError: a frame of a worst sequence cannot be read.
    """
    truth = {sequence.name: sequence.boxes_xywh for sequence in sequences}
    scores = {tracker.name: _score(tracker, truth) for tracker in files}
    scores = dict(sorted(scores.items(), key=lambda item: -item[1].numbers["Success"]))
    headlines = {name: score.numbers for name, score in scores.items()}
    by_name = {tracker.name: tracker for tracker in files}
    strips = worst_strips(
        {name: score.areas["Success"] for name, score in scores.items()},
        "Success",
        sequences,
        lambda tracker, position: read_boxes(by_name[tracker].boxes[position][0]),
        worst,
    )
    return Report(
        title=f"trackingnet, {len(sequences)} sequences",
        notes=(
            *warnings(files, sequences),
            RULES,
        ),
        tables=(
            Table(
                "overall",
                f"trackingnet, {len(sequences)} sequences, percent",
                ("tracker", *next(iter(headlines.values()))),
                tuple(Row(name, tuple(numbers.values())) for name, numbers in headlines.items()),
                ranked=True,
            ),
            *compare("trackingnet", headlines),
            *_sequence_tables(scores),
        ),
        figures=_figures(scores),
        strips=strips,
        numbers={
            "benchmark": "trackingnet",
            "rules": RULES,
            "sequences": list(truth),
            "thresholds": {
                "success": OVERLAP_THRESHOLDS,
                "precision": DISTANCE_THRESHOLDS,
                "norm_precision": NORM_DISTANCE_THRESHOLDS,
            },
            "trackers": {name: {**headlines[name], **_details(score)} for name, score in scores.items()},
        },
    )


def _score(files: TrackerFiles, truth: dict[str, np.ndarray]) -> TrackingNetScores:
    boxes = {}
    for name, paths in zip(truth, files.boxes, strict=True):
        if len(paths) != 1:
            raise ResultsError(f"{files.name}: {len(paths)} results for {name}; TrackingNet's measures take one")
        boxes[name] = read_boxes(paths[0])
        if len(boxes[name]) > len(truth[name]):
            raise ResultsError(f"result file {paths[0]}: {len(boxes[name])} boxes for {len(truth[name])} frames")
    try:
        return score_sequences(boxes, truth)
    except ValueError as error:
        raise ResultsError(f"results of {files.name}: {error}") from error


def _sequence_tables(scores: dict[str, TrackingNetScores]) -> list[Table]:
    names = next(iter(scores.values())).sequences
    tables = []
    for number in ("Success", "P", "P_norm"):
        areas = [score.areas[number] for score in scores.values()]
        rows = tuple(Row(name, tuple(float(area[i]) for area in areas)) for i, name in enumerate(names))
        place: Place = "more" if number == "Success" else "detail"
        title = f"{number} by sequence, percent"
        tables.append(Table(f"sequences_{number}", title, ("sequence", *scores), rows, place=place))
    return tables


def _details(score: TrackingNetScores) -> dict[str, object]:
    mean, areas = score.curves.mean(), score.areas
    return {
        "curves": {"success": mean.success, "precision": mean.precision, "norm_precision": mean.norm_precision},
        "by_sequence": {
            name: {number: float(values[i]) for number, values in areas.items()}
            for i, name in enumerate(score.sequences)
        },
    }


def _figures(scores: dict[str, TrackingNetScores]) -> tuple[Figure, ...]:
    shown = (
        ("success", "Success", "overlap threshold", OVERLAP_THRESHOLDS),
        ("precision", "P", "centre error threshold (pixels)", DISTANCE_THRESHOLDS),
        ("norm_precision", "P_norm", "normalised centre error threshold", NORM_DISTANCE_THRESHOLDS),
    )
    figures = []
    for curve, number, x_label, thresholds in shown:
        ranked = sorted(scores.items(), key=lambda item: -item[1].numbers[number])
        lines = tuple(
            Line(name, f"{name} [{score.numbers[number]:.1f}]", getattr(score.curves.mean(), curve))
            for name, score in ranked
        )
        title = f"trackingnet, {curve.replace('norm_', 'normalised ')} [{number}, area]"
        figures.append(Figure(curve, title, (Panel(title, x_label, "share of frames", thresholds, lines),)))
    return tuple(figures)
