"""Finds the result files of several trackers, and scores them in one pass over a benchmark.

Toolkits name some sequences differently:

    OTB       Jogging_1 here and in pytracking, Jogging-1 in pysot, Jogging.1 in the got10k toolkit, which has Human4
              for Human4_2, the only annotated target of that folder; names in lower case are common
    UAV123    bike1 as published, uav_bike1 in pytracking's results
    NfS       Gymnastics as published, nfs_Gymnastics in pytracking's results
"""

import dataclasses
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from mixformer_jax.datasets.records import TrackingSequence, known_fault
from mixformer_jax.evaluation import metrics
from mixformer_jax.evaluation.metrics import Curves, OpeRules
from mixformer_jax.evaluation.results import SIDE_FILES, ResultsError, read_boxes

# By reader: what pytracking puts before the published name.
PREFIXES: Mapping[str, str] = {"nfs": "nfs_", "uav123": "uav_"}
_REPETITION = re.compile(r"(?P<name>.+)_(?P<number>\d+)", re.ASCII)


class SequenceNames:
    """The sequences of a data set by any of their names. Case and the difference between `-`, `.` and `_` are ignored,
    unless they tell two sequences apart: so pass the names of all sequences, also of those that are not scored."""

    def __init__(self, names: Iterable[str], benchmark: str = "") -> None:
        self._names = frozenset(names)
        claims: dict[str, set[str]] = {}
        for name in self._names:
            others = [name, PREFIXES.get(benchmark, "") + name]
            if (benchmark, name) == ("otb100", "Human4_2"):
                others.append("Human4")
            for other in others:
                claims.setdefault(_plain(other), set()).add(name)
        self._by_other_name = {other: min(claimed) for other, claimed in claims.items() if len(claimed) == 1}
        self._side_files = frozenset(name + suffix for name in self._names for suffix in SIDE_FILES)

    def sequence(self, name: str) -> str | None:
        """The data set's own name; None where there is none, or where two are as likely."""
        if name in self._names:
            return name
        return None if name in self._side_files else self._by_other_name.get(_plain(name))


class ResultFolder:
    """One tracker's folder, listed once; a missing one is empty."""

    def __init__(self, path: Path, names: SequenceNames) -> None:
        self.path, self._names = path, names
        self.strangers: list[str] = []  # text files of no sequence
        self._boxes: dict[str, list[Path]] = defaultdict(list)
        self._times: dict[str, list[Path]] = defaultdict(list)
        self._folders: dict[str, list[Path]] = defaultdict(list)
        for entry in sorted(path.iterdir()) if path.is_dir() else ():
            is_text = entry.suffix == ".txt"
            name, _, kind = entry.stem.rpartition("_")
            if is_text and (sequence := names.sequence(entry.stem)) is not None:
                self._boxes[sequence].append(entry)
            elif is_text and kind == "time" and (sequence := names.sequence(name)) is not None:
                self._times[sequence].append(entry)
            elif is_text and f"_{kind}" not in SIDE_FILES:
                self.strangers.append(entry.name)
            elif (sequence := names.sequence(entry.name)) is not None and entry.is_dir():
                self._folders[sequence].append(entry)

    def boxes(self, sequence: str) -> list[Path]:
        """The box files of a sequence, one a repetition; none without a result. ResultsError for two results under two
        names, or in both layouts."""
        flat = self._boxes[sequence]
        nested = [found for folder in self._folders[sequence] if (found := self._repetitions(folder, sequence))]
        _check_one(sequence, [*flat, *(found[0] for found in nested)])
        return flat or (nested[0] if nested else [])

    def times(self, sequence: str) -> list[Path]:
        """Its files of times: one with a column a repetition, or one a repetition; none where no times were kept.
        ResultsError for two files of the same times."""
        shared, single = [], []
        for path in (path for folder in self._folders[sequence] for path in sorted(folder.glob("*_time.txt"))):
            name = path.stem.removesuffix("_time")
            if self._names.sequence(name) == sequence:
                shared.append(path)
            elif self._repetition(name, sequence) is not None:
                single.append(path)
        _check_one(sequence, shared)
        if shared or single:
            return shared or single
        _check_one(sequence, self._times[sequence])
        return self._times[sequence]

    def _repetitions(self, folder: Path, sequence: str) -> list[Path]:
        """<sequence>_001.txt, <sequence>_002.txt, ... in GOT-10k's layout."""
        found: dict[int, list[Path]] = defaultdict(list)
        for path in sorted(folder.glob("*.txt")):
            if (repetition := self._repetition(path.stem, sequence)) is not None:
                found[repetition].append(path)
        for paths in found.values():
            _check_one(sequence, paths)
        return [paths[0] for _, paths in sorted(found.items())]

    def _repetition(self, stem: str, sequence: str) -> int | None:
        match = _REPETITION.fullmatch(stem)
        return int(match["number"]) if match and self._names.sequence(match["name"]) == sequence else None


def _plain(name: str) -> str:
    return re.sub(r"[-.]", "_", name).casefold()


def _check_one(sequence: str, paths: list[Path]) -> None:
    if len(paths) > 1:
        raise ResultsError(f"{paths[0]} and {paths[1]} are both results of {sequence}; remove one")


@dataclasses.dataclass(frozen=True)
class TrackerScores:
    """One tracker over all sequences, in the benchmark's order."""

    name: str
    rules: OpeRules
    curves: Curves  # first axis: sequences
    average_overlap: Float[np.ndarray, " s"]  # fraction, over valid frames alone; NaN without any

    @cached_property
    def overall(self) -> Curves:
        return metrics.mean_over_sequences(self.curves, self.rules)

    @cached_property
    def headline(self) -> dict[str, float]:
        """Percent."""
        return {name: float(value) for name, value in metrics.headline(self.overall, self.rules).items()}

    @cached_property
    def by_sequence(self) -> dict[str, Float[np.ndarray, " s"]]:
        """The headline numbers by sequence, percent."""
        return metrics.headline(self.curves, self.rules)

    def subset(self, chosen: Sequence[int]) -> "TrackerScores":
        """The tracker on some of the sequences."""
        index = np.array(chosen, np.intp)
        part = Curves(*(curve[index] for curve in self.curves))
        return TrackerScores(self.name, self.rules, part, self.average_overlap[index])


@dataclasses.dataclass(frozen=True)
class OpeScores:
    """Trackers on a benchmark under one set of rules, the best AUC first."""

    benchmark: str
    rules: OpeRules
    sequences: tuple[str, ...]
    trackers: tuple[TrackerScores, ...]


class TrackerFiles(NamedTuple):
    """A tracker's result files."""

    name: str
    folders: tuple[Path, ...]  # <name>, or those of its runs: <name>_000, <name>_001, ...
    boxes: tuple[tuple[Path, ...], ...]  # by sequence: of all runs and repetitions
    times: tuple[tuple[Path, ...], ...] = ()  # likewise, as far as they were kept


def list_trackers(
    results_dir: str | Path, sequence_names: Sequence[str], known_names: SequenceNames | None = None
) -> list[str]:
    """Names of sub-folders that hold a result for any of the sequences; ResultsError without any."""
    results_dir, known_names = Path(results_dir), known_names or SequenceNames(sequence_names)
    if not results_dir.is_dir():
        raise ResultsError(f"{results_dir}: no such folder; expected the results of mixformer evaluate")
    folders = [ResultFolder(path, known_names) for path in sorted(results_dir.iterdir()) if path.is_dir()]
    names = [folder.path.name for folder in folders if any(map(folder.boxes, sequence_names))]
    if not names:
        raise ResultsError(f"{results_dir}: no results for these sequences; expected <tracker>/{sequence_names[0]}.txt")
    return names


def find_results(
    results_dir: str | Path,
    sequence_names: Sequence[str],
    trackers: Sequence[str] | None = None,
    separate_runs: bool = False,
    known_names: SequenceNames | None = None,
) -> list[TrackerFiles]:
    """The result files of trackers: of the folders of these names, by default of all.

    Folders `<name>_000`, `<name>_001`, ... are runs of one tracker, unless `separate_runs`. `known_names` are those of
    all sequences of the data set, to tell other sequences' files; default: those that are scored. Raises ResultsError
    for no trackers, sequences without result (all are named), or one with two.
    """
    results_dir, known_names = Path(results_dir), known_names or SequenceNames(sequence_names)
    names = list(trackers) if trackers is not None else list_trackers(results_dir, sequence_names, known_names)
    found: list[TrackerFiles] = []
    missing: list[str] = []
    strangers: list[str] = []
    for name, numbered in _group_runs(results_dir, names, separate_runs).items():
        folders = [ResultFolder(results_dir / folder, known_names) for folder in numbered]
        paths = {sequence: [folder.boxes(sequence) for folder in folders] for sequence in sequence_names}
        lacking = [
            str(folder.path / f"{sequence}.txt")
            for sequence, by_folder in paths.items()
            for folder, files in zip(folders, by_folder, strict=True)
            if not files
        ]
        missing += lacking
        if lacking:
            strangers += [str(folder.path / file) for folder in folders for file in folder.strangers]
        boxes = tuple(tuple(itertools.chain(*by_folder)) for by_folder in paths.values())
        times = tuple(tuple(path for folder in folders for path in folder.times(each)) for each in sequence_names)
        found.append(TrackerFiles(name, tuple(folder.path for folder in folders), boxes, times))
    if missing:
        others = f" ({len(strangers)} files there belong to no sequence, such as {strangers[0]})" if strangers else ""
        raise ResultsError(
            f"{len(missing)} result files are missing, and means over fewer sequences are not comparable: "
            f"{', '.join(missing)}{others}; run the tracker again, or leave it out with --trackers"
        )
    return found


def score_results(
    files: Sequence[TrackerFiles],
    benchmark: str,
    sequences: Sequence[TrackingSequence],
    rules: OpeRules,
    progress: bool = False,
) -> OpeScores:
    """Scores trackers; runs and repetitions are averaged in each sequence. ResultsError for a result file that cannot
    be read or scored names file, line and reason."""
    names = tuple(sequence.name for sequence in sequences)
    total = len(files) * len(names)
    with tqdm(total=total, unit="sequence", desc=f"scoring, {rules.rule_set}", disable=not progress or None) as bar:
        scored = []
        for tracker in files:
            curves, overlaps = [], []
            for sequence, paths in zip(sequences, tracker.boxes, strict=True):
                runs = [_score_file(path, benchmark, sequence, rules) for path in paths]
                curves.append(metrics.stack_curves([run for run, _ in runs]).mean())
                overlaps.append(np.mean([overlap for _, overlap in runs]))
                bar.update()
            scored.append(TrackerScores(tracker.name, rules, metrics.stack_curves(curves), np.array(overlaps)))
    scored.sort(key=lambda scores: -scores.headline["AUC"])
    return OpeScores(benchmark, rules, names, tuple(scored))


def _group_runs(results_dir: Path, names: Sequence[str], separate_runs: bool) -> dict[str, list[str]]:
    """Folders by tracker: one without a folder of its name, but with <name>_000 and so on, has several."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, _, number = name.rpartition("_")
        is_run = re.fullmatch(r"\d{3}", number, re.ASCII) and not (results_dir / stem).is_dir()
        if is_run and not separate_runs and runs_of(results_dir, stem):
            groups.setdefault(stem, []).append(name)
        elif (results_dir / name).is_dir():
            groups[name] = [name]
        else:
            groups[name] = runs_of(results_dir, name) or [name]
    return groups


def runs_of(results_dir: Path, name: str) -> list[str]:
    """<name>_000, <name>_001, ... where there are two or more."""
    runs: list[str] = []
    while (results_dir / f"{name}_{len(runs):03d}").is_dir():
        runs.append(f"{name}_{len(runs):03d}")
    return runs if len(runs) > 1 else []


def known_length(benchmark: str, sequence: TrackingSequence, num_rows: int) -> str:
    """What is known of a published sequence for which results have another length; mostly "", nothing."""
    known = known_fault(benchmark, sequence.name, "length") if num_rows != len(sequence) else None
    return f"; {known}" if known else ""


def _score_file(path: Path, benchmark: str, sequence: TrackingSequence, rules: OpeRules) -> tuple[Curves, float]:
    boxes_xywh = read_boxes(path, "keep" if rules.unusable_boxes == "repeat" else "error")
    try:
        errors = metrics.frame_errors(boxes_xywh, sequence.boxes_xywh, sequence.visible, rules)
        if rules.better_of_two:
            if sequence.thermal_xywh is None:
                raise ValueError("no thermal annotation, which these rules need: infrared.txt beside visible.txt")
            thermal = metrics.frame_errors(boxes_xywh, sequence.thermal_xywh, sequence.visible, rules)
            errors = metrics.better_errors(errors, thermal)
        return metrics.sequence_curves(errors, rules), errors.average_overlap
    except ValueError as error:
        known = known_length(benchmark, sequence, len(boxes_xywh))
        raise ResultsError(f"result file {path} on sequence {sequence.name}: {error}{known}") from error
