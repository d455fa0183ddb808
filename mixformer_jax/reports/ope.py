"""The report of a one-pass evaluation (OPE): LaSOT, OTB, UAV123, NFS, a folder of one's own, and others."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from tqdm import tqdm

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation import metrics
from mixformer_jax.evaluation.metrics import OpeRules
from mixformer_jax.evaluation.result_looks import warnings
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.scoring import OpeScores, TrackerFiles, TrackerScores, score_results
from mixformer_jax.reports import report as reports
from mixformer_jax.reports.report import Figure, Panel, Report, Row, Table, curves

Groups = dict[str, list[int]]
"""Positions of sequences by attribute."""


def ope_report(
    benchmark: str,
    sequences: Sequence[TrackingSequence],
    files: Sequence[TrackerFiles],
    rules: OpeRules,
    worst: int = 3,
    progress: bool = False,
) -> Report:
    """Scores trackers under `rules`, and their headline numbers under every other named rule set.

    `files` are the trackers' results, from `scoring.find_results`; the `worst` sequences of each are drawn.

    Raises:
        ResultsError: a result file cannot be read or scored.
        SourceError: a frame of a worst sequence cannot be read.
    """
    scores = score_results(files, benchmark, sequences, rules, progress)
    groups: Groups = {}  # empty where the data set has no files of attributes
    for position, sequence in enumerate(sequences):
        for attribute in sequence.attributes or ():
            groups.setdefault(attribute, []).append(position)
    groups = dict(sorted(groups.items()))
    unusable: Literal["error", "keep"] = "keep" if rules.unusable_boxes == "repeat" else "error"
    headlines = {tracker.name: tracker.headline for tracker in scores.trackers}
    by_sequence = {
        tracker.name: {**tracker.by_sequence, "average overlap of valid frames": 100 * tracker.average_overlap}
        for tracker in scores.trackers
    }
    rules_table, refusals = _rules_table(benchmark, sequences, files, rules, scores, progress)
    overall = {tracker.name: tracker.overall for tracker in scores.trackers}
    thresholds = metrics.curve_thresholds(rules)
    figures = reports.curve_figures(benchmark, ("AUC", "P", "P_norm"), headlines, overall, thresholds)
    title = f"{benchmark}, {len(scores.sequences)} sequences"
    runs = [f"{tracker.name}: mean of {len(tracker.folders)} runs" for tracker in files if len(tracker.folders) > 1]
    return Report(
        title=title,
        notes=(*warnings(files, sequences, unusable, benchmark), metrics.describe_rules(rules), *runs, *refusals),
        tables=(
            reports.overall_table(f"{title}, percent", headlines),
            *([_attribute_table(scores, groups)] if groups else []),
            rules_table,
            *reports.compare(benchmark, headlines),
            *reports.sequence_tables(scores.sequences, by_sequence, documented=["AUC"]),
        ),
        figures=(*figures, *([_attribute_figure(scores, groups)] if groups else [])),
        strips=reports.strips_of_files(by_sequence, "AUC", sequences, files, worst, unusable),
        numbers=_numbers(scores, groups),
    )


def _success_panel(scores: OpeScores, trackers: Sequence[TrackerScores], title: str) -> Panel:
    found = {each.name: (each.headline["AUC"], each.overall.success) for each in trackers}
    return curves(title, "overlap threshold", metrics.curve_thresholds(scores.rules).success, found)


def _attribute_table(scores: OpeScores, groups: Groups) -> Table:
    rows = []
    for tracker in scores.trackers:
        parts = [tracker.subset(positions).headline["AUC"] for positions in groups.values()]
        rows.append(Row(tracker.name, (tracker.headline["AUC"], *parts)))
    header = ("tracker", "all", *(f"{name} ({len(positions)})" for name, positions in groups.items()))
    return Table("attributes", "AUC by attribute (number of sequences), percent", header, tuple(rows), ranked=True)


def _attribute_figure(scores: OpeScores, groups: Groups) -> Figure:
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
    """The headline numbers under every rule set; and which trackers have none, since a set does not apply to them."""
    rows = []
    refusals: dict[tuple[str, ...], list[str]] = {}  # by trackers and reason: rule sets
    by_name = {tracker.name: tracker for tracker in files}
    everybody = _all_rules(benchmark)
    bar = tqdm(total=len(everybody) * len(files), unit="tracker", desc="other rules", disable=not progress)
    for label, other in everybody.items():
        refused: dict[str, str] = {}
        for tracker in scores.trackers:
            values: tuple[float | None, ...] = tuple(tracker.headline.values())
            if other != rules:
                try:
                    alone = score_results([by_name[tracker.name]], benchmark, sequences, other)
                    values = tuple(alone.trackers[0].headline.values())
                except ResultsError as error:
                    # Such as NaN in the ground truth, for which that toolkit has no rule.
                    values, refused[tracker.name] = (None,) * len(values), str(error)
            rows.append(Row(f"{tracker.name}, {label}", values))
            bar.update()
        if refused:
            refusals.setdefault((*refused, next(iter(refused.values()))), []).append(label)
    bar.close()
    header = ("tracker, rules", *scores.trackers[0].headline)
    title = "The same results under the rules of every toolkit, percent"
    return Table("rules", title, header, tuple(rows), place="more"), [
        f"no numbers of {', '.join(names)} under the rules of {'; '.join(labels)}: {reason}"
        for (*names, reason), labels in refusals.items()
    ]


def _all_rules(benchmark: str) -> dict[str, OpeRules]:
    return {
        f"{rule_set}, valid frames" if exclude else rule_set: metrics.benchmark_rules(benchmark, rule_set, exclude)
        for rule_set in get_args(metrics.RuleSet)
        for exclude in ((False, True) if rule_set in ("mixformer", "pytracking") else (False,))
    }


def _numbers(scores: OpeScores, groups: Groups) -> dict[str, object]:
    trackers = {}
    for tracker in scores.trackers:
        columns = {**tracker.by_sequence, "average_overlap": tracker.average_overlap}
        by_sequence = reports.numbers_by_sequence(scores.sequences, columns)
        trackers[tracker.name] = {**tracker.headline, "curves": tracker.overall._asdict(), "by_sequence": by_sequence}
    return {
        "benchmark": scores.benchmark,
        "rules": dataclasses.asdict(scores.rules),
        "sequences": scores.sequences,
        "thresholds": metrics.curve_thresholds(scores.rules)._asdict(),
        "attributes": {name: [scores.sequences[i] for i in positions] for name, positions in groups.items()},
        "trackers": trackers,
    }
