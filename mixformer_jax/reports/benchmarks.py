"""The report of each kind of benchmark: one-pass evaluation (OPE), GOT-10k, TrackingNet, VOT.

OPE is for LaSOT, OTB, UAV123, NFS, a folder of one's own, and others. The other three have measures of their own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64
from tqdm import tqdm

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation import evaluation_servers as servers
from mixformer_jax.evaluation import metrics, vot
from mixformer_jax.evaluation.metrics import OpeRules
from mixformer_jax.evaluation.result_looks import warnings
from mixformer_jax.evaluation.results import ResultsError, read_boxes, read_times
from mixformer_jax.evaluation.scoring import OpeScores, TrackerFiles, TrackerScores, score_results
from mixformer_jax.evaluation.vot_regions import bounding_box
from mixformer_jax.reports import report as reports
from mixformer_jax.reports.report import Figure, Panel, Report, Row, Strip, Table, curves

Groups = dict[str, list[int]]  # positions of sequences by attribute


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
        curves_of = tracker.overall._asdict()
        trackers[tracker.name] = reports.tracker_record(scores.sequences, tracker.headline, columns, curves=curves_of)
    return {
        "benchmark": scores.benchmark,
        "rules": dataclasses.asdict(scores.rules),
        "sequences": scores.sequences,
        "thresholds": metrics.curve_thresholds(scores.rules)._asdict(),
        "attributes": {name: [scores.sequences[i] for i in positions] for name, positions in groups.items()},
        "trackers": trackers,
    }


GOT10K_RULES = (
    "got10k toolkit: frames pooled over sequences and repetitions, without the first frame and those of cover 0; "
    "boxes clipped to the frame"
)


def got10k_report(sequences: Sequence[TrackingSequence], files: Sequence[TrackerFiles], worst: int = 3) -> Report:
    """AO, SR0.5, SR0.75 and speed on the val subset (of the test subset, the server alone has the boxes).

    Raises:
        DatasetError: cover.label or meta_info.ini is missing or not what GOT-10k publishes.
        ResultsError: a result file cannot be read or scored.
        SourceError: a frame of a worst sequence cannot be read.
    """
    labels = [servers.read_frame_labels(sequence) for sequence in sequences]
    found = [(tracker.name, _got10k_score(tracker, sequences, labels)) for tracker in files]
    scores = dict(sorted(found, key=lambda item: -np.nan_to_num(item[1].headline["AO"], nan=-1)))
    names = [sequence.name for sequence in sequences]
    headlines = {name: score.headline for name, score in scores.items()}
    by_sequence = {name: score.by_sequence for name, score in scores.items()}
    notes, records = [], {}
    for name, score in scores.items():
        missing = [sequence for sequence, times in zip(names, score.times_s, strict=True) if times is None]
        if missing:
            listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            notes.append(f"{name}: no times for {len(missing)} sequences ({listed}), which have no part in its FPS")
        frames = np.array([len(overlaps) for overlaps in score.overlaps])
        columns = {**by_sequence[name], "toolkit_FPS": score.toolkit_fps, "frames": frames}
        success_curve = {"success": score.success_curve}
        records[name] = reports.tracker_record(names, headlines[name], columns, curves=success_curve)
    success = {name: (headlines[name]["AO"], score.success_curve) for name, score in scores.items()}
    panel = reports.curves("got10k, success [AO]", "overlap threshold", servers.SUCCESS_THRESHOLDS, success)
    title = f"got10k, {len(sequences)} sequences"
    return Report(
        title=title,
        notes=(*warnings(files, sequences), GOT10K_RULES, *notes),
        tables=(
            reports.overall_table(f"{title}; percent, and frames a second", headlines),
            *reports.compare("got10k", headlines),
            *reports.sequence_tables(names, by_sequence, documented=["AO"]),
        ),
        figures=(Figure("success", panel.title, (panel,)),),
        strips=reports.strips_of_files(by_sequence, "AO", sequences, files, worst),
        numbers={
            "benchmark": "got10k",
            "rules": GOT10K_RULES,
            "sequences": names,
            "thresholds": servers.SUCCESS_THRESHOLDS,
            "trackers": records,
        },
    )


def _got10k_score(
    files: TrackerFiles, sequences: Sequence[TrackingSequence], labels: Sequence[servers.FrameLabels]
) -> servers.Got10kScores:
    overlaps, times = [], []
    for sequence, label, paths, clock in zip(sequences, labels, files.boxes, files.times, strict=True):
        runs = []
        for path in paths:
            boxes_xywh = read_boxes(path)
            try:
                runs.append(servers.sequence_overlaps(boxes_xywh, sequence.boxes_xywh, label))
            except ValueError as error:
                raise ResultsError(f"result file {path} on sequence {sequence.name}: {error}") from error
        overlaps.append(np.concatenate(runs))
        # One by one: runs of a tracker may be of different lengths.
        known = [seconds.ravel() for path in clock if (seconds := read_times([path])) is not None]
        times.append(np.concatenate(known) if known else None)
    return servers.Got10kScores(tuple(overlaps), tuple(times))


TRACKINGNET_RULES = (
    "TrackingNet dev kit: areas under the curves, boxes rounded to whole pixels, IoU >= t; first frame counted as "
    "perfect"
)


def trackingnet_report(sequences: Sequence[TrackingSequence], files: Sequence[TrackerFiles], worst: int = 3) -> Report:
    """TrackingNet's measures, where the ground truth is at hand, for trackers with one result for every sequence.

    Raises:
        ResultsError: several results for a sequence, or one that cannot be read or scored.
        SourceError: a frame of a worst sequence cannot be read.
    """
    truth = {sequence.name: sequence.boxes_xywh for sequence in sequences}
    found = [(tracker.name, _trackingnet_score(tracker, truth)) for tracker in files]
    scores = dict(sorted(found, key=lambda item: -item[1].headline["Success"]))
    headlines = {name: score.headline for name, score in scores.items()}
    by_sequence = {name: score.by_sequence for name, score in scores.items()}
    means = {name: score.curves.mean() for name, score in scores.items()}
    numbers = ("Success", "P", "P_norm")
    figures = reports.curve_figures("trackingnet", numbers, headlines, means, servers.THRESHOLDS, ", area")
    title = f"trackingnet, {len(sequences)} sequences"
    return Report(
        title=title,
        notes=(*warnings(files, sequences), TRACKINGNET_RULES),
        tables=(
            reports.overall_table(f"{title}, percent", headlines),
            *reports.compare("trackingnet", headlines),
            *reports.sequence_tables(list(truth), by_sequence, documented=["Success"]),
        ),
        figures=tuple(figures),
        strips=reports.strips_of_files(by_sequence, "Success", sequences, files, worst),
        numbers={
            "benchmark": "trackingnet",
            "rules": TRACKINGNET_RULES,
            "sequences": list(truth),
            "thresholds": servers.THRESHOLDS._asdict(),
            "trackers": {
                name: reports.tracker_record(
                    list(truth), headlines[name], by_sequence[name], curves=means[name]._asdict()
                )
                for name in scores
            },
        },
    )


def _trackingnet_score(files: TrackerFiles, truth: Mapping[str, np.ndarray]) -> servers.TrackingNetScores:
    boxes = {}
    for name, paths in zip(truth, files.boxes, strict=True):
        if len(paths) != 1:
            raise ResultsError(f"{files.name}: {len(paths)} results for {name}; TrackingNet's measures take one")
        boxes[name] = read_boxes(paths[0])
        if len(boxes[name]) > len(truth[name]):
            raise ResultsError(f"result file {paths[0]}: {len(boxes[name])} boxes for {len(truth[name])} frames")
    try:
        return servers.score_sequences(boxes, truth)
    except ValueError as error:
        raise ResultsError(f"results of {files.name}: {error}") from error


ANCHORS, WHOLE = "baseline", "unsupervised"
VOT_NUMBERS = ("EAO", "A", "R", "A, no restarts")


def vot_report(
    root: str | Path,
    results_dir: str | Path,
    trackers: Sequence[str] | None = None,
    interval: tuple[int, int] = (vot.EAO_LOW, vot.EAO_HIGH),
    sequences: Sequence[TrackingSequence] | None = None,
    worst: int = 3,
    chosen: Sequence[str] | None = None,
    benchmark: str = "vot",
) -> Report:
    """VOT's short-term measures of the experiments `baseline` and `unsupervised` of a workspace.

    Args:
        root: the workspace, or its folder of sequences.
        results_dir: holds <tracker>/<experiment>/<sequence>/...; default: all trackers with results of either.
        interval: lengths over which EAO is averaged; VOT2020 to VOT2022 have 115, 755.
        sequences: of which the `worst` ones of each tracker are drawn; None for no pictures.
        chosen: names of the sequences that are scored; default: all.
        benchmark: the reader, which decides the published numbers to compare with.

    Raises:
        DatasetError, ResultsError: files that are missing, or are not what VOT has.
        SourceError: a frame of a worst sequence cannot be read.
    """
    results_dir = Path(results_dir)
    annotated = vot.read_sequences(root, chosen)
    names = [sequence.name for sequence in annotated]
    runs: dict[str, list[vot.SequenceRuns]] = {}
    whole: dict[str, list[float]] = {}
    trackers = reports.trackers_in(results_dir, [ANCHORS, WHOLE], "VOT") if trackers is None else trackers
    for name in trackers:
        anchors, alone = results_dir / name / ANCHORS, results_dir / name / WHOLE
        if anchors.is_dir():
            runs[name] = [vot.score_runs(anchors, sequence) for sequence in annotated]
        if alone.is_dir():
            whole[name] = [vot.score_unsupervised(alone, sequence) for sequence in annotated]
    if lost := [name for name in trackers if name not in runs and name not in whole]:
        expected = f"{results_dir / lost[0] / ANCHORS} or {results_dir / lost[0] / WHOLE}"
        raise ResultsError(f"no results of {', '.join(lost)}: expected {expected}")
    eaos = {name: vot.eao_curve(scores, interval[1]) for name, scores in runs.items()}
    nothing = np.full(len(annotated), np.nan)
    headlines, by_sequence = {}, {}
    for name in trackers:
        accuracy, robustness = vot.accuracy_robustness(runs[name]) if name in runs else (np.nan, np.nan)
        expected_overlap = vot.eao(eaos[name], *interval) if name in runs else np.nan
        whole_overlap = vot.average_unsupervised(whole[name], annotated) if name in whole else np.nan
        numbers = (expected_overlap, accuracy, robustness, whole_overlap)
        headlines[name] = dict(zip(VOT_NUMBERS, numbers, strict=True))
        by_sequence[name] = {
            "A": np.array([run.accuracy for run in runs[name]]) if name in runs else nothing,
            "R": np.array([run.robustness for run in runs[name]]) if name in runs else nothing,
            "A, no restarts": np.array(whole[name]) if name in whole else nothing,
        }
    headlines = dict(sorted(headlines.items(), key=lambda item: -np.nan_to_num(item[1]["EAO"], nan=-1)))
    by_sequence = {name: by_sequence[name] for name in headlines}
    figures: tuple[Figure, ...] = ()
    if eaos:
        lengths = np.arange(1.0, len(next(iter(eaos.values()))))
        ranked = {name: (each["EAO"], eaos[name][1:]) for name, each in headlines.items() if name in eaos}
        title, x_label = f"{benchmark}, expected average overlap [EAO]", "sequence length (frames)"
        panel = reports.curves(title, x_label, lengths, ranked, "expected overlap", decimals=3)
        figures = (Figure("eao", title, (panel,)),)
    strips: tuple[Strip, ...] = ()
    if sequences is not None:
        strips = reports.worst_strips(
            {name: by_sequence[name]["A"] * by_sequence[name]["R"] * 100 for name in runs},
            "100 A R",
            sequences,
            lambda name, position: _run_boxes(results_dir / name / ANCHORS, annotated[position]),
            worst,
        )
    title = f"{benchmark}, {len(annotated)} sequences"
    return Report(
        title=title,
        notes=(
            f"vot-toolkit: EAO over lengths {interval[0]} to {interval[1] - 1}; A and R from the runs of every anchor; "
            "only pixels inside the frame count",
            "A, no restarts: mean overlap of one run through each sequence, without its first frame",
        ),
        tables=(
            reports.overall_table(f"{title}, fractions", headlines, decimals=3),
            *reports.compare(benchmark, headlines),
            *reports.sequence_tables(names, by_sequence, "fractions", VOT_NUMBERS, decimals=3),
        ),
        figures=figures,
        strips=strips,
        numbers={
            "benchmark": benchmark,
            "eao_interval": interval,
            "sequences": names,
            "trackers": {
                name: reports.tracker_record(names, headlines[name], numbers, eao_curve=eaos.get(name))
                for name, numbers in by_sequence.items()
            },
        },
    )


def _run_boxes(results: Path, sequence: vot.VotSequence) -> Float64[np.ndarray, "n 4"]:
    """Boxes around the regions of the first anchor's run; NaN where it has none."""
    anchor, backward = sequence.anchors[0]
    boxes = np.full((len(sequence.groundtruth), 4), np.nan)
    frames = sequence.run_frames(anchor, backward)
    regions = vot.read_run(results / sequence.name, f"{sequence.name}_{anchor:08d}", len(frames))
    for frame, region in zip(frames, regions, strict=True):
        boxes[frame] = bounding_box(region)
    return boxes
