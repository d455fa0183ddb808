"""The report of each kind of benchmark: one-pass evaluation (OPE), GOT-10k, TrackingNet, VOT, long videos.

OPE is for LaSOT, OTB, UAV123, NFS, a folder of one's own, and others. The other four have measures of their own.
"""

import dataclasses
from collections.abc import Sequence
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
from mixformer_jax.evaluation.results import EXPERIMENTS, LAYOUTS, ResultsError, read_boxes, read_times
from mixformer_jax.evaluation.scoring import OpeScores, TrackerFiles, score_results
from mixformer_jax.evaluation.vot_regions import bounding_box
from mixformer_jax.reports import report as reports
from mixformer_jax.reports.report import Figure, Report, Row, Table

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

    `files` are the trackers' results, from `scoring.find_results`; the `worst` sequences of each are drawn. Raises
    ResultsError for a result file that cannot be read or scored, SourceError for a frame of a worst sequence.
    """
    scores = score_results(files, benchmark, sequences, rules, progress)
    unusable: Literal["error", "keep"] = "keep" if rules.unusable_boxes == "repeat" else "error"
    headlines = {tracker.name: tracker.headline for tracker in scores.trackers}
    by_sequence, records = {}, {}
    for tracker in scores.trackers:
        name, overlap, numbers = tracker.name, tracker.average_overlap, tracker.by_sequence
        by_sequence[name] = {**numbers, "average overlap of valid frames": 100 * overlap}
        columns, curves = {**numbers, "average_overlap": overlap}, tracker.overall._asdict()
        records[name] = reports.tracker_record(scores.sequences, tracker.headline, columns, curves=curves)
    rules_table, refusals = _rules_table(sequences, files, scores, progress)
    overall = {tracker.name: tracker.overall for tracker in scores.trackers}
    thresholds = metrics.curve_thresholds(rules)
    tables = [rules_table]
    figures = reports.curve_figures(benchmark, ("AUC", "P", "P_norm"), headlines, overall, thresholds)
    groups: Groups = {}  # empty where the data set has no files of attributes
    for position, sequence in enumerate(sequences):
        for attribute in sequence.attributes or ():
            groups.setdefault(attribute, []).append(position)
    groups = dict(sorted(groups.items()))
    if groups:
        table, figure = _by_attribute(scores, groups)
        tables, figures = [table, *tables], [*figures, figure]
    runs = [f"{tracker.name}: mean of {len(tracker.folders)} runs" for tracker in files if len(tracker.folders) > 1]
    return reports.assemble(
        benchmark,
        headlines,
        by_sequence,
        notes=(*warnings(files, sequences, unusable, benchmark), metrics.describe_rules(rules), *runs, *refusals),
        tables=tables,
        figures=figures,
        strips=reports.strips_of_files(by_sequence, "AUC", sequences, files, worst, unusable),
        documented=["AUC"],
        numbers={
            "rules": dataclasses.asdict(rules),
            "sequences": scores.sequences,
            "thresholds": thresholds._asdict(),
            "attributes": {name: [scores.sequences[i] for i in positions] for name, positions in groups.items()},
            "trackers": records,
        },
    )


def _by_attribute(scores: OpeScores, groups: Groups) -> tuple[Table, Figure]:
    """AUC by attribute, and a success plot for each, as Fig. 10."""
    x = metrics.curve_thresholds(scores.rules).success
    names = {name: f"{name} ({len(positions)})" for name, positions in groups.items()}
    parts = {name: [tracker.subset(positions) for tracker in scores.trackers] for name, positions in groups.items()}
    panels = []
    for name, trackers in parts.items():
        found = {each.name: (each.headline["AUC"], each.overall.success) for each in trackers}
        panels.append(reports.curves(f"{name} ({len(groups[name])} sequences)", "overlap threshold", x, found))
    rows = [
        Row(tracker.name, (tracker.headline["AUC"], *(each[i].headline["AUC"] for each in parts.values())))
        for i, tracker in enumerate(scores.trackers)
    ]
    title, header = "AUC by attribute (number of sequences), percent", ("tracker", "all", *names.values())
    table = Table("attributes", title, header, tuple(rows), ranked=True)
    return table, Figure("attributes", f"{scores.benchmark}, success by attribute [AUC]", tuple(panels))


def _rules_table(
    sequences: Sequence[TrackingSequence], files: Sequence[TrackerFiles], scores: OpeScores, progress: bool
) -> tuple[Table, list[str]]:
    """The headline numbers under every rule set; and which trackers have none, since a set does not apply to them."""
    rows = []
    refusals: dict[tuple[str, ...], list[str]] = {}  # by trackers and reason: rule sets
    by_name = {tracker.name: tracker for tracker in files}
    everybody = {
        f"{name}, valid frames" if exclude else name: metrics.benchmark_rules(scores.benchmark, name, exclude)
        for name in get_args(metrics.RuleSet)
        for exclude in ((False, True) if name in ("mixformer", "pytracking") else (False,))
    }
    with tqdm(total=len(everybody) * len(files), unit="tracker", desc="other rules", disable=not progress) as bar:
        for label, rules in everybody.items():
            refused: dict[str, str] = {}
            for tracker in scores.trackers:
                values: tuple[float | None, ...] = tuple(tracker.headline.values())
                if rules != scores.rules:
                    try:
                        alone = score_results([by_name[tracker.name]], scores.benchmark, sequences, rules)
                        values = tuple(alone.trackers[0].headline.values())
                    except ResultsError as error:
                        # Such as NaN in the ground truth, for which that toolkit has no rule.
                        values, refused[tracker.name] = (None,) * len(values), str(error)
                rows.append(Row(f"{tracker.name}, {label}", values))
                bar.update()
            if refused:
                refusals.setdefault((*refused, next(iter(refused.values()))), []).append(label)
    header = ("tracker, rules", *scores.trackers[0].headline)
    title = "The same results under the rules of every toolkit, percent"
    return Table("rules", title, header, tuple(rows), place="more"), [
        f"no numbers of {', '.join(names)} under the rules of {'; '.join(labels)}: {reason}"
        for (*names, reason), labels in refusals.items()
    ]


GOT10K_RULES = (
    "got10k toolkit: frames pooled over sequences and repetitions, without the first frame and those of cover 0; "
    "boxes clipped to the frame"
)


def got10k_report(sequences: Sequence[TrackingSequence], files: Sequence[TrackerFiles], worst: int = 3) -> Report:
    """AO, SR0.5, SR0.75 and speed on the val subset (of the test subset, the server alone has the boxes). Errors are
    those of `ope_report`; DatasetError where cover.label or meta_info.ini is missing or not what GOT-10k publishes."""
    labels = [servers.read_frame_labels(sequence) for sequence in sequences]
    scores = reports.best_first({each.name: _got10k_score(each, sequences, labels) for each in files}, "AO")
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
    return reports.assemble(
        "got10k",
        headlines,
        by_sequence,
        notes=(*warnings(files, sequences), GOT10K_RULES, *notes),
        figures=[Figure("success", panel.title, (panel,))],
        strips=reports.strips_of_files(by_sequence, "AO", sequences, files, worst),
        documented=["AO"],
        numbers={
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
    """TrackingNet's measures, where the ground truth is at hand. Errors are those of `ope_report`; ResultsError also
    for several results for a sequence."""
    scores = reports.best_first({tracker.name: _trackingnet_score(tracker, sequences) for tracker in files}, "Success")
    names = [sequence.name for sequence in sequences]
    headlines = {name: score.headline for name, score in scores.items()}
    by_sequence = {name: score.by_sequence for name, score in scores.items()}
    means = {name: score.curves.mean() for name, score in scores.items()}
    numbers = ("Success", "P", "P_norm")
    return reports.assemble(
        "trackingnet",
        headlines,
        by_sequence,
        notes=(*warnings(files, sequences), TRACKINGNET_RULES),
        figures=reports.curve_figures("trackingnet", numbers, headlines, means, servers.THRESHOLDS, ", area"),
        strips=reports.strips_of_files(by_sequence, "Success", sequences, files, worst),
        documented=["Success"],
        numbers={
            "rules": TRACKINGNET_RULES,
            "sequences": names,
            "thresholds": servers.THRESHOLDS._asdict(),
            "trackers": {
                name: reports.tracker_record(names, headlines[name], by_sequence[name], curves=mean._asdict())
                for name, mean in means.items()
            },
        },
    )


def _trackingnet_score(files: TrackerFiles, sequences: Sequence[TrackingSequence]) -> servers.TrackingNetScores:
    boxes, truth = {}, {sequence.name: sequence.boxes_xywh for sequence in sequences}
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
    trackers = _trackers_in(results_dir, (ANCHORS, WHOLE), "VOT") if trackers is None else trackers
    lost = [name for name in trackers if not any((results_dir / name / each).is_dir() for each in (ANCHORS, WHOLE))]
    if lost:
        expected = f"{results_dir / lost[0] / ANCHORS} or {results_dir / lost[0] / WHOLE}"
        raise ResultsError(f"no results of {', '.join(lost)}: expected {expected}")
    headlines: dict[str, dict[str, float]] = {}
    by_sequence: dict[str, dict[str, Float64[np.ndarray, " s"]]] = {}
    eaos: dict[str, Float64[np.ndarray, " high"]] = {}
    for name in trackers:
        anchors, whole = results_dir / name / ANCHORS, results_dir / name / WHOLE
        headline = headlines[name] = dict.fromkeys(VOT_NUMBERS, np.nan)
        columns = by_sequence[name] = dict.fromkeys(VOT_NUMBERS[1:], np.full(len(annotated), np.nan))
        if anchors.is_dir():
            runs = [vot.score_runs(anchors, sequence) for sequence in annotated]
            eaos[name] = vot.eao_curve(runs, interval[1])
            headline["EAO"] = vot.eao(eaos[name], *interval)
            headline["A"], headline["R"] = vot.accuracy_robustness(runs)
            columns["A"], columns["R"] = np.array([(run.accuracy, run.robustness) for run in runs]).T
        if whole.is_dir():
            accuracies = [vot.score_unsupervised(whole, sequence) for sequence in annotated]
            headline[VOT_NUMBERS[-1]] = vot.average_unsupervised(accuracies, annotated)
            columns[VOT_NUMBERS[-1]] = np.array(accuracies)
    figures: list[Figure] = []
    if eaos:
        lengths = np.arange(1.0, len(next(iter(eaos.values()))))
        ranked = {name: (headlines[name]["EAO"], curve[1:]) for name, curve in eaos.items()}
        title, x_label = f"{benchmark}, expected average overlap [EAO]", "sequence length (frames)"
        panel = reports.curves(title, x_label, lengths, ranked, "expected overlap", decimals=3)
        figures = [Figure("eao", title, (panel,))]

    def boxes_of(name: str, position: int) -> Float64[np.ndarray, "n 4"]:
        """Boxes around the regions of the first anchor's run; NaN where it has none."""
        sequence = annotated[position]
        anchor, backward = sequence.anchors[0]
        frames = sequence.run_frames(anchor, backward)
        folder = results_dir / name / ANCHORS / sequence.name
        regions = vot.read_run(folder, f"{sequence.name}_{anchor:08d}", len(frames))
        boxes = np.full((len(sequence.groundtruth), 4), np.nan)
        boxes[list(frames)] = [bounding_box(region) for region in regions]
        return boxes

    products = {name: by_sequence[name]["A"] * by_sequence[name]["R"] * 100 for name in eaos}
    strips = reports.worst_strips(products, "100 A R", sequences or (), boxes_of, worst if sequences else 0)
    names = [sequence.name for sequence in annotated]
    headlines = dict(sorted(headlines.items(), key=lambda item: -np.nan_to_num(item[1]["EAO"], nan=-1)))
    by_sequence = {name: by_sequence[name] for name in headlines}
    return reports.assemble(
        benchmark,
        headlines,
        by_sequence,
        notes=(
            f"vot-toolkit: EAO over lengths {interval[0]} to {interval[1] - 1}; A and R from the runs of every anchor; "
            "only pixels inside the frame count",
            "A, no restarts: mean overlap of one run through each sequence, without its first frame",
        ),
        figures=figures,
        strips=strips,
        documented=VOT_NUMBERS,
        unit="fractions",
        numbers={
            "eao_interval": interval,
            "sequences": names,
            "trackers": {
                name: reports.tracker_record(names, headlines[name], numbers, eao_curve=eaos.get(name))
                for name, numbers in by_sequence.items()
            },
        },
    )


def _trackers_in(results_dir: Path, experiments: Sequence[str], benchmark: str) -> list[str]:
    """The trackers of a VOT workspace with results of any of these experiments; ResultsError without one."""
    folders = sorted(results_dir.iterdir()) if results_dir.is_dir() else []
    names = [folder.name for folder in folders if any((folder / each).is_dir() for each in experiments)]
    if not names:
        expected = f"<tracker>/{experiments[0]}/<sequence>/..."
        raise ResultsError(f"{results_dir}: no results of {benchmark}; expected {expected}")
    return names


LONG_TERM_RULES = (
    f"vot-toolkit: Pr and Re at the threshold of confidence at which F is largest, of {vot.RESOLUTION} that "
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
    """F, precision and recall of the long-term experiment of a workspace, `longterm` or `rgbd-unsupervised`: of VOT's
    long-term challenges, and of DepthTrack, which is scored as they are. Arguments and errors: `vot_report`."""
    results_dir, annotated = Path(results_dir), vot.read_sequences(root, chosen)
    experiment = EXPERIMENTS[LAYOUTS[benchmark]]
    names = [sequence.name for sequence in annotated]
    trackers = _trackers_in(results_dir, [experiment], "long videos") if trackers is None else trackers
    found = {name: vot.score_long_term(results_dir / name / experiment, annotated) for name in trackers}
    scores = reports.best_first(found, "F")
    headlines = {name: score.headline for name, score in scores.items()}
    by_sequence = {name: score.by_sequence for name, score in scores.items()}
    curves = {name: {"F": each.f_score, "Pr": each.precision, "Re": each.recall} for name, each in scores.items()}
    panels = []
    for number, words in (("F", "F"), ("Pr", "precision"), ("Re", "recall")):
        ranked = {name: (headlines[name]["F"], each[number]) for name, each in curves.items()}
        # By their rank, from the highest threshold (0) to the lowest (1).
        ranks = np.linspace(0, 1, len(next(iter(scores.values())).thresholds))
        title = f"{benchmark}, {words} [F]"
        panels.append(reports.curves(title, "threshold by rank", ranks, ranked, words, decimals=3))

    def boxes_of(name: str, position: int) -> Float64[np.ndarray, "n 4"]:
        folder, length = results_dir / name / experiment / names[position], len(annotated[position].groundtruth)
        return np.stack([bounding_box(each) for each in vot.read_run(folder, f"{names[position]}_001", length)])

    hundredfold = {name: 100 * numbers["F"] for name, numbers in by_sequence.items()}
    strips = reports.worst_strips(hundredfold, "100 F", sequences or (), boxes_of, worst if sequences else 0)
    return reports.assemble(
        benchmark,
        headlines,
        by_sequence,
        notes=LONG_TERM_RULES,
        figures=[Figure("long_term", f"{benchmark}, precision, recall and F over confidence", tuple(panels))],
        strips=strips,
        documented=["F"],
        unit="fractions",
        numbers={
            "rules": LONG_TERM_RULES,
            "sequences": names,
            "trackers": {
                name: reports.tracker_record(
                    names, headlines[name], by_sequence[name], thresholds=score.thresholds, curves=curves[name]
                )
                for name, score in scores.items()
            },
        },
    )
