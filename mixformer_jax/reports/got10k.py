"""The report of GOT-10k's own measures: AO, SR0.5, SR0.75 and speed."""

from collections.abc import Sequence

import numpy as np

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.result_looks import warnings
from mixformer_jax.evaluation.results import ResultsError, read_boxes, read_times
from mixformer_jax.evaluation.scoring import TrackerFiles
from mixformer_jax.evaluation.server_scores import (
    SUCCESS_THRESHOLDS,
    FrameLabels,
    Got10kScores,
    read_frame_labels,
    sequence_overlaps,
)
from mixformer_jax.reports.content import Figure, Line, Panel, Report, worst_strips
from mixformer_jax.reports.tables import Place, Row, Table, compare

RULES = (
    "got10k toolkit: frames pooled over sequences and repetitions, without the first frame and those of cover 0; "
    "boxes clipped to the frame"
)
HEADER = ("AO", "SR0.5", "SR0.75", "FPS")


def got10k_report(sequences: Sequence[TrackingSequence], files: Sequence[TrackerFiles], worst: int = 3) -> Report:
    """Scores trackers on the val subset (of the test subset, the server alone has the boxes).

    Raises:
        DatasetError: cover.label or meta_info.ini is missing or not what GOT-10k publishes.
        ResultsError: a result file cannot be read or scored.
        SourceError: a frame of a worst sequence cannot be read.
    """
    labels = [read_frame_labels(sequence) for sequence in sequences]
    scores = {tracker.name: _score(tracker, sequences, labels) for tracker in files}
    scores = dict(sorted(scores.items(), key=lambda item: -np.nan_to_num(item[1].ao, nan=-1)))
    headlines = {name: _headline(score) for name, score in scores.items()}
    by_name = {tracker.name: tracker for tracker in files}
    strips = worst_strips(
        {name: 100 * score.ao_by_sequence for name, score in scores.items()},
        "AO",
        sequences,
        lambda tracker, position: read_boxes(by_name[tracker].boxes[position][0]),
        worst,
    )
    return Report(
        title=f"got10k, {len(sequences)} sequences",
        notes=(*warnings(files, sequences), RULES, *_speed_notes(scores)),
        tables=(
            Table(
                "overall",
                f"got10k, {len(sequences)} sequences; percent, and frames a second",
                ("tracker", *HEADER),
                tuple(Row(name, tuple(numbers.values())) for name, numbers in headlines.items()),
                ranked=True,
            ),
            *compare("got10k", headlines),
            *_sequence_tables(scores),
        ),
        figures=(_figure(scores),),
        strips=strips,
        numbers={
            "benchmark": "got10k",
            "rules": RULES,
            "sequences": [sequence.name for sequence in sequences],
            "thresholds": SUCCESS_THRESHOLDS,
            "trackers": {name: {**headlines[name], **_details(score)} for name, score in scores.items()},
        },
    )


def _score(files: TrackerFiles, sequences: Sequence[TrackingSequence], labels: Sequence[FrameLabels]) -> Got10kScores:
    overlaps, times = [], []
    for sequence, label, paths, clock in zip(sequences, labels, files.boxes, files.times, strict=True):
        runs = []
        for path in paths:
            try:
                runs.append(sequence_overlaps(read_boxes(path), sequence.boxes_xywh, label))
            except ResultsError:
                raise
            except ValueError as error:
                raise ResultsError(f"result file {path} on sequence {sequence.name}: {error}") from error
        overlaps.append(np.concatenate(runs))
        # One by one: runs of a tracker may be of different lengths.
        known = [seconds.ravel() for path in clock if (seconds := read_times([path])) is not None]
        times.append(np.concatenate(known) if known else None)
    return Got10kScores(tuple(sequence.name for sequence in sequences), tuple(overlaps), tuple(times))


def _headline(score: Got10kScores) -> dict[str, float]:
    values = (100 * score.ao, 100 * score.sr(0.5), 100 * score.sr(0.75), score.speed_fps)
    return dict(zip(HEADER, values, strict=True))


def _by_sequence(score: Got10kScores) -> dict[str, np.ndarray]:
    values = (100 * score.ao_by_sequence, 100 * score.sr_by_sequence(0.5), 100 * score.sr_by_sequence(0.75))
    return dict(zip(HEADER, (*values, score.speed_by_sequence), strict=True))


def _details(score: Got10kScores) -> dict[str, object]:
    # The toolkit gives a sequence without times the speed of the one before it.
    columns = {**_by_sequence(score), "toolkit_FPS": score.toolkit_speed_by_sequence}
    return {
        "curves": {"success": score.success_curve},
        "by_sequence": {
            name: {**{key: float(column[i]) for key, column in columns.items()}, "frames": len(score.overlaps[i])}
            for i, name in enumerate(score.sequences)
        },
    }


def _sequence_tables(scores: dict[str, Got10kScores]) -> list[Table]:
    names = next(iter(scores.values())).sequences
    columns = {tracker: _by_sequence(score) for tracker, score in scores.items()}
    tables = []
    for number in HEADER:
        rows = tuple(Row(name, tuple(float(c[number][i]) for c in columns.values())) for i, name in enumerate(names))
        unit = "frames a second" if number == "FPS" else "percent"
        header = ("sequence", *scores)
        place: Place = "more" if number == "AO" else "detail"
        tables.append(Table(f"sequences_{number}", f"{number} by sequence, {unit}", header, rows, place=place))
    return tables


def _figure(scores: dict[str, Got10kScores]) -> Figure:
    lines = tuple(Line(name, f"{name} [{100 * score.ao:.1f}]", score.success_curve) for name, score in scores.items())
    panel = Panel("got10k, success [AO]", "overlap threshold", "share of frames", SUCCESS_THRESHOLDS, lines)
    return Figure("success", panel.title, (panel,))


def _speed_notes(scores: dict[str, Got10kScores]) -> list[str]:
    notes = []
    for name, score in scores.items():
        missing = [sequence for sequence, times in zip(score.sequences, score.times_s, strict=True) if times is None]
        if missing:
            listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            notes.append(f"{name}: no times for {len(missing)} sequences ({listed}), which have no part in its FPS")
    return notes
