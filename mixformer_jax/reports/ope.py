"""The report of a one-pass evaluation: LaSOT, OTB, UAV123, NFS, a folder, or any other benchmark under these rules."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float64
from tqdm import tqdm

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import (
    CENTER_THRESHOLDS,
    OpeRules,
    RuleSet,
    benchmark_rules,
    describe_rules,
    norm_thresholds,
    overlap_thresholds,
)
from mixformer_jax.evaluation.result_looks import warnings
from mixformer_jax.evaluation.results import ResultsError, read_boxes
from mixformer_jax.evaluation.scoring import OpeScores, TrackerFiles, TrackerScores, score_results
from mixformer_jax.reports.content import Figure, Line, Panel, Report, worst_strips
from mixformer_jax.reports.tables import Place, Row, Table, compare


def ope_report(
    benchmark: str,
    sequences: Sequence[TrackingSequence],
    files: Sequence[TrackerFiles],
    rules: OpeRules,
    worst: int = 3,
    progress: bool = False,
) -> Report:
    """Scores trackers under `rules`, and their headline numbers under every other named rule set.

    Args:
        benchmark: name of the data set.
        sequences: its sequences.
        files: results of the trackers, from `scoring.find_results`.
        rules: of the tables and plots.
        worst: how many of each tracker's worst sequences are shown.
        progress: whether a bar is drawn.

    Raises:
        ResultsError: a result file cannot be read or scored.
        SourceError: a frame of a worst sequence cannot be read.
    """
    scores = score_results(files, benchmark, sequences, rules, progress)
    groups = _attributes(sequences)
    by_name = {tracker.name: tracker for tracker in files}
    unusable: Literal["error", "keep"] = "keep" if rules.unusable_boxes == "repeat" else "error"
    strips = worst_strips(
        {tracker.name: tracker.by_sequence["AUC"] for tracker in scores.trackers},
        "AUC",
        sequences,
        lambda tracker, position: np.nan_to_num(read_boxes(by_name[tracker].boxes[position][0], unusable)),
        worst,
    )
    headlines = {tracker.name: tracker.headline for tracker in scores.trackers}
    rules_table, refusals = _rules_table(benchmark, sequences, files, rules, scores, progress)
    return Report(
        title=f"{benchmark}, {len(scores.sequences)} sequences",
        notes=(*warnings(files, sequences, unusable, benchmark), *_notes(files, rules), *refusals),
        tables=(
            overall_table(scores),
            *([_attribute_table(scores, groups)] if groups else []),
            rules_table,
            *compare(benchmark, headlines),
            *sequence_tables(scores),
        ),
        figures=(*curve_figures(scores), *([_attribute_figure(scores, groups)] if groups else [])),
        strips=strips,
        numbers=_numbers(scores, groups),
    )


def overall_table(scores: OpeScores) -> Table:
    """The numbers that papers print."""
    return Table(
        "overall",
        f"{scores.benchmark}, {len(scores.sequences)} sequences, percent",
        ("tracker", *scores.trackers[0].headline),
        tuple(Row(tracker.name, tuple(tracker.headline.values())) for tracker in scores.trackers),
        ranked=True,
    )


def sequence_tables(scores: OpeScores) -> list[Table]:
    """Each of the numbers by sequence and tracker, and the average overlap over valid frames."""
    tables = []
    columns = {
        **{name: [tracker.by_sequence[name] for tracker in scores.trackers] for name in scores.trackers[0].headline},
        "average overlap of valid frames": [100 * tracker.average_overlap for tracker in scores.trackers],
    }
    for name, values in columns.items():
        rows = tuple(
            Row(sequence, tuple(float(value[i]) for value in values)) for i, sequence in enumerate(scores.sequences)
        )
        header = ("sequence", *(tracker.name for tracker in scores.trackers))
        place: Place = "more" if name == "AUC" else "detail"
        file = f"sequences_{name.partition(' ')[0]}"
        tables.append(Table(file, f"{name} by sequence, percent", header, rows, place=place))
    return tables


def curve_figures(scores: OpeScores) -> tuple[Figure, ...]:
    """Success, precision and normalised-precision plots, as Figs. 11 and 12."""
    norm_x = norm_thresholds(scores.rules)
    return (
        _figure("success", _success_panel(scores, scores.trackers, f"{scores.benchmark}, success [AUC]")),
        _figure(
            "precision",
            Panel(
                f"{scores.benchmark}, precision [P]",
                "centre error threshold (pixels)",
                "share of frames",
                CENTER_THRESHOLDS,
                _lines(scores.trackers, "P", [tracker.overall.precision for tracker in scores.trackers]),
            ),
        ),
        _figure(
            "norm_precision",
            Panel(
                f"{scores.benchmark}, normalised precision [P_norm]",
                "normalised centre error threshold",
                "share of frames",
                norm_x,
                _lines(scores.trackers, "P_norm", [tracker.overall.norm_precision for tracker in scores.trackers]),
            ),
        ),
    )


def _figure(name: str, panel: Panel) -> Figure:
    return Figure(name, panel.title, (panel,))


def _success_panel(scores: OpeScores, trackers: Sequence[TrackerScores], title: str) -> Panel:
    curves = [tracker.overall.success for tracker in trackers]
    return Panel(
        title, "overlap threshold", "share of frames", overlap_thresholds(scores.rules), _lines(trackers, "AUC", curves)
    )


def _lines(
    trackers: Sequence[TrackerScores], number: str, curves: Sequence[Float64[np.ndarray, " n"]]
) -> tuple[Line, ...]:
    lines = [
        (tracker.headline[number], Line(tracker.name, f"{tracker.name} [{tracker.headline[number]:.1f}]", curve))
        for tracker, curve in zip(trackers, curves, strict=True)
    ]
    return tuple(line for _, line in sorted(lines, key=lambda pair: -pair[0]))


def _attributes(sequences: Sequence[TrackingSequence]) -> dict[str, list[int]]:
    """Positions of the sequences by attribute; empty where the data set has no such files."""
    groups: dict[str, list[int]] = {}
    for position, sequence in enumerate(sequences):
        for attribute in sequence.attributes or ():
            groups.setdefault(attribute, []).append(position)
    return dict(sorted(groups.items()))


def _attribute_table(scores: OpeScores, groups: dict[str, list[int]]) -> Table:
    rows = []
    for tracker in scores.trackers:
        parts = [tracker.subset(positions).headline["AUC"] for positions in groups.values()]
        rows.append(Row(tracker.name, (tracker.headline["AUC"], *parts)))
    header = ("tracker", "all", *(f"{name} ({len(positions)})" for name, positions in groups.items()))
    return Table("attributes", "AUC by attribute (number of sequences), percent", header, tuple(rows), ranked=True)


def _attribute_figure(scores: OpeScores, groups: dict[str, list[int]]) -> Figure:
    """A success plot for each attribute, as Fig. 10."""
    panels = tuple(
        _success_panel(scores, [t.subset(positions) for t in scores.trackers], f"{name} ({len(positions)} sequences)")
        for name, positions in groups.items()
    )
    return Figure("attributes", f"{scores.benchmark}, success by attribute [AUC]", panels)


def _rules_table(
    benchmark: str,
    sequences: Sequence[TrackingSequence],
    files: Sequence[TrackerFiles],
    rules: OpeRules,
    scores: OpeScores,
    progress: bool,
) -> tuple[Table, list[str]]:
    """The headline numbers under every rule set; and why a tracker has none under a set that does not apply to it."""
    rows = []
    refusals: dict[tuple[str, ...], list[str]] = {}  # by trackers and reason: rule sets
    by_name = {tracker.name: tracker for tracker in files}
    bar = tqdm(total=len(_all_rules(benchmark)) * len(files), unit="tracker", desc="other rules", disable=not progress)
    for label, other in _all_rules(benchmark):
        refused: dict[str, str] = {}
        for tracker in scores.trackers:
            values: tuple[float | None, ...] = tuple(tracker.headline.values())
            if other != rules:
                try:
                    alone = score_results([by_name[tracker.name]], benchmark, sequences, other)
                    values = tuple(alone.trackers[0].headline.values())
                except ResultsError as error:
                    # Such as NaN in a ground truth for which that toolkit has no rule.
                    values, refused[tracker.name] = (None,) * len(values), str(error)
            rows.append(Row(f"{tracker.name}, {label}", values))
            bar.update()
        if refused:
            refusals.setdefault((*refused, next(iter(refused.values()))), []).append(label)
    bar.close()
    header = ("tracker, rules", *scores.trackers[0].headline)
    table = Table(
        "rules", "The same results under the rules of every toolkit, percent", header, tuple(rows), place="more"
    )
    return table, [
        f"no numbers of {', '.join(names)} under the rules of {'; '.join(labels)}: {reason}"
        for (*names, reason), labels in refusals.items()
    ]


def _all_rules(benchmark: str) -> list[tuple[str, OpeRules]]:
    found = []
    for rule_set in get_args(RuleSet):
        choices = (False, True) if rule_set in ("mixformer", "pytracking") else (False,)
        for exclude in choices:
            label = f"{rule_set}, valid frames" if exclude else rule_set
            found.append((label, benchmark_rules(benchmark, rule_set, exclude)))
    return found


def _notes(files: Sequence[TrackerFiles], rules: OpeRules) -> tuple[str, ...]:
    runs = [f"{tracker.name}: mean of {len(tracker.folders)} runs" for tracker in files if len(tracker.folders) > 1]
    return (describe_rules(rules), *runs)


def _numbers(scores: OpeScores, groups: dict[str, list[int]]) -> dict[str, object]:
    return {
        "benchmark": scores.benchmark,
        "rules": dataclasses.asdict(scores.rules),
        "sequences": scores.sequences,
        "thresholds": {
            "success": overlap_thresholds(scores.rules),
            "precision": CENTER_THRESHOLDS,
            "norm_precision": norm_thresholds(scores.rules),
        },
        "attributes": {name: [scores.sequences[i] for i in positions] for name, positions in groups.items()},
        "trackers": {
            tracker.name: {
                **tracker.headline,
                "curves": tracker.overall._asdict(),
                "by_sequence": _by_sequence(tracker, scores.sequences),
            }
            for tracker in scores.trackers
        },
    }


def _by_sequence(tracker: TrackerScores, sequences: Sequence[str]) -> dict[str, dict[str, float]]:
    columns: dict[str, Float[np.ndarray, " s"]] = {**tracker.by_sequence, "average_overlap": tracker.average_overlap}
    return {name: {column: float(values[i]) for column, values in columns.items()} for i, name in enumerate(sequences)}
