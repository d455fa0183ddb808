"""VOT's measures as fractions: of the short-term challenges, and of long videos with a confidence a frame.

Short term (VOT2020-2022; report of 2020, section 3.2): accuracy, robustness and EAO. A run starts at an anchor frame
and goes to the sequence's end, forward or backward. Its overlaps are in run order; that of the frame of initialisation
is 0 in every result, and counts, as in vot-toolkit.

Long term (VOT-LT2018 to VOT-LT2022; Lukezic et al. 2018, "Now you see me: evaluating performance in long-term visual
tracking"; vot-toolkit's analyses `average_tpr`, `pr_curve` and `f_curve`): precision, recall and F. One run goes
through each sequence; at a threshold only frames of at least that confidence count as answered.

    sequences/<s>/groundtruth.txt, sequence     see `datasets.vot`
    sequences/<s>/anchor.value                  a number a frame: > 0 an anchor to run forward from, < 0 backward
    results/<tracker>/<experiment>/<s>/<s>_<anchor, 8 digits>.txt       a run from an anchor (or .bin)
    results/<tracker>/<experiment>/<s>/<s>_<repetition, 3 digits>.txt   a run through the sequence
    results/<tracker>/longterm/<s>/<s>_001_confidence.value             a number a frame; the first line is blank
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.datasets.vot import FAILURE, INITIALIZATION, UNKNOWN, Region, Special, read_metadata
from mixformer_jax.evaluation.results import ResultsError, decode_text, read_bytes, read_numbers
from mixformer_jax.evaluation.vot_regions import is_empty, read_regions, region_overlaps
from mixformer_jax.media.images import read_image

FAILURE_THRESHOLD = 0.1  # a frame is lost where the overlap is at most this
GRACE = 10  # so many lost frames in a row are a failure at the first of them
# The interval of sequence lengths over which EAO is averaged: VOT2020, VOT2021 and VOT2022, boxes and masks alike.
EAO_LOW, EAO_HIGH = 115, 755
RESOLUTION = 100  # thresholds of confidence


class Run(NamedTuple):
    overlaps: Float64[np.ndarray, " n"]
    progress: int  # frames before the failure; all of them without one

    @property
    def failed(self) -> bool:
        return self.progress < len(self.overlaps)


@dataclasses.dataclass(frozen=True)
class SequenceRuns:
    """One tracker's runs from every anchor of a sequence."""

    name: str
    length: int  # frames of the sequence
    runs: tuple[Run, ...]

    @property
    def accuracy(self) -> float:
        """Mean overlap before failures; 0 where every run failed at once."""
        frames = self.accuracy_weight
        return sum(float(run.overlaps[: run.progress].sum()) for run in self.runs) / frames if frames else 0.0

    @property
    def robustness(self) -> float:
        """Share of frames before failures."""
        return self.accuracy_weight / sum(len(run.overlaps) for run in self.runs)

    @property
    def accuracy_weight(self) -> int:
        return sum(run.progress for run in self.runs)


def find_progress(overlaps: Float[np.ndarray, " n"], target_present: Bool[np.ndarray, " n"], grace: int = GRACE) -> int:
    """Frames before the first `grace` lost ones in a row, or all; a frame without true target is never lost."""
    lost = (overlaps <= FAILURE_THRESHOLD) & target_present
    index = np.arange(1, len(lost) + 1)
    streak = index - np.maximum.accumulate(np.where(lost, 0, index))
    failures = np.flatnonzero(streak >= grace)
    return int(failures[0]) + 1 - grace if failures.size else len(overlaps)


def accuracy_robustness(sequences: Sequence[SequenceRuns]) -> tuple[float, float]:
    """A, weighted by the frames before failures (NaN if every run failed at once), and R, weighted by lengths."""
    frames, length = sum(s.accuracy_weight for s in sequences), sum(s.length for s in sequences)
    accuracy = sum(s.accuracy * s.accuracy_weight for s in sequences)
    robustness = sum(s.robustness * s.length for s in sequences)
    return accuracy / frames if frames else float("nan"), robustness / length


def sequence_eao(runs: Sequence[Run], high: int) -> tuple[Float64[np.ndarray, " high"], Float64[np.ndarray, " high"]]:
    """Expected overlap of a sequence by length 0 .. high - 1, and how many runs contribute to each.

    A run contributes the mean over its first frames, without that of initialisation. From a failure on, overlaps are 0,
    also beyond the run's end, where a run without failure does not contribute. Raises ValueError for a run that failed
    and is shorter than two frames.
    """
    total, active = np.zeros(high), np.zeros(high)
    for run in runs:
        if run.failed and len(run.overlaps) < 2:
            raise ValueError(f"a run of {len(run.overlaps)} frames cannot fail")
        overlaps = np.where(np.arange(len(run.overlaps)) < run.progress, run.overlaps, 0.0)
        sums = np.cumsum(overlaps[1:high])
        total[1 : len(sums) + 1] += sums / np.arange(1, len(sums) + 1)
        active[1 : len(sums) + 1] += 1
        beyond = np.arange(len(overlaps), high)
        if run.failed and beyond.size:
            # The toolkit divides by one frame less here than within the run.
            total[beyond] += sums[-1] / (beyond - 1)
            active[beyond] += 1
    return np.divide(total, active, out=np.zeros(high), where=active > 0), active


def eao_curve(sequences: Sequence[SequenceRuns], high: int = EAO_HIGH) -> Float64[np.ndarray, " high"]:
    """Expected overlap by length over all sequences, weighted by their contributing runs; 0 where there are none."""
    total, active = np.zeros(high), np.zeros(high)
    for sequence in sequences:
        expected, contributing = sequence_eao(sequence.runs, high)
        total += expected * contributing
        active += contributing
    return np.divide(total, active, out=np.zeros(high), where=active > 0)


def eao(curve: Float64[np.ndarray, " high"], low: int = EAO_LOW, high: int = EAO_HIGH) -> float:
    """EAO: the mean of the curve over the lengths low .. high - 1."""
    return float(curve[low:high].mean())


def unsupervised_accuracy(
    overlaps: Float64[np.ndarray, " n"], predicted: Sequence[Region], groundtruth: Sequence[Region], burn_in: int = 1
) -> float:
    """Mean overlap of one run through a whole sequence; NaN where no frame counts. Left out are frames of unknown
    truth, unknown or failed predictions, and `burn_in` frames from an initialisation on."""
    counted = np.ones(len(overlaps), bool)
    for index, (region, truth) in enumerate(zip(predicted, groundtruth, strict=True)):
        if truth == Special(UNKNOWN) or region in (Special(UNKNOWN), Special(FAILURE)):
            counted[index] = False
        elif region == Special(INITIALIZATION):
            counted[index : index + burn_in] = False
    return float(overlaps[counted].mean()) if counted.any() else float("nan")


class VotSequence(NamedTuple):
    """A sequence with its ground truth regions, one a frame."""

    name: str
    groundtruth: tuple[Region, ...]
    anchors: tuple[tuple[int, bool], ...]  # frame, and whether the run goes backward
    size: tuple[int, int]  # width and height of the frames

    def run_frames(self, anchor: int, backward: bool) -> range:
        """The frames of a run in its own order."""
        return range(anchor, -1, -1) if backward else range(anchor, len(self.groundtruth))


def read_sequences(root: str | Path, chosen: Sequence[str] | None = None) -> list[VotSequence]:
    """The chosen sequences of a workspace, or of a folder of them, in this order; by default all. DatasetError or
    ResultsError for sequences that are not there, or files that cannot be read."""
    root = Path(root)
    folder = root / "sequences" if (root / "sequences").is_dir() else root
    return [_read_sequence(folder / name) for name in (open_dataset("vot", root).keys if chosen is None else chosen)]


def score_runs(results: str | Path, sequence: VotSequence, bounded: bool = True) -> SequenceRuns:
    """All runs of one tracker, in `results/<tracker>/<experiment>`, on a sequence: forward anchors first. Where
    `bounded`, only pixels inside the frame count.

    Raises ResultsError where the sequence has no anchors, or a run is missing, unreadable or of another length.
    """
    if not sequence.anchors:
        raise ResultsError(f"sequence {sequence.name} has no anchors, from which runs would start")
    runs = []
    for anchor, backward in sequence.anchors:
        frames = sequence.run_frames(anchor, backward)
        truth = [sequence.groundtruth[frame] for frame in frames]
        predicted = read_run(Path(results) / sequence.name, f"{sequence.name}_{anchor:08d}", len(frames))
        overlaps = region_overlaps(predicted, truth, sequence.size if bounded else None)
        present = np.array([not is_empty(region) for region in truth])
        runs.append(Run(overlaps, find_progress(overlaps, present)))
    return SequenceRuns(sequence.name, len(sequence.groundtruth), tuple(runs))


def score_unsupervised(results: str | Path, sequence: VotSequence) -> float:
    """Mean accuracy of the repetitions <s>_001, <s>_002, ... of one tracker; 0 where no frame counts. ResultsError
    where there is no repetition, or one is unreadable or of another length."""
    folder = Path(results) / sequence.name
    accuracies: list[float] = []
    for number in itertools.count(1):
        repetition = f"{sequence.name}_{number:03d}"
        if accuracies and _run_file(folder, repetition) is None:
            break
        predicted = read_run(folder, repetition, len(sequence.groundtruth))
        overlaps = region_overlaps(predicted, sequence.groundtruth, sequence.size)
        accuracy = unsupervised_accuracy(overlaps, predicted, sequence.groundtruth)
        accuracies.append(float(np.nan_to_num(accuracy)))
    return float(np.mean(accuracies))


def average_unsupervised(accuracies: list[float], sequences: list[VotSequence]) -> float:
    """Mean over sequences, weighted by their lengths."""
    return float(np.average(accuracies, weights=[len(sequence.groundtruth) for sequence in sequences]))


def read_anchors(folder: Path, length: int) -> tuple[tuple[int, bool], ...]:
    """The anchors of a sequence: frame, and whether the run goes backward; none without `anchor.value`. ResultsError or
    DatasetError where that is no list of numbers, or longer than the sequence."""
    path = folder / "anchor.value"
    if not path.is_file():
        return ()
    values = read_numbers(path, "anchor")[:, 0]
    if len(values) > length:
        raise DatasetError(f"{path}: {len(values)} values for {length} frames")
    forward, backward = np.flatnonzero(values > 0).tolist(), np.flatnonzero(values < 0).tolist()
    return (*((frame, False) for frame in forward), *((frame, True) for frame in backward))


def read_run(folder: Path, name: str, length: int) -> list[Region]:
    """The regions of one run, from `<name>.txt` or `<name>.bin`; ResultsError where neither is there, or it is
    unreadable or of another length."""
    path = _run_file(folder, name)
    if path is None:
        raise ResultsError(f"{folder / name}.txt (or .bin): no such file; run the tracker on this sequence again")
    regions = read_regions(path)
    if len(regions) != length:
        raise ResultsError(f"region file {path}: {len(regions)} regions for a run of {length} frames")
    return regions


def _run_file(folder: Path, name: str) -> Path | None:
    # Text first, as in the toolkit.
    return next((path for end in (".txt", ".bin") if (path := folder / f"{name}{end}").is_file()), None)


def _read_sequence(folder: Path) -> VotSequence:
    metadata = read_metadata(folder)
    groundtruth = read_regions(metadata.groundtruth)
    # Annotations may be kept without the frames.
    length = metadata.length or sum(1 for _ in _frame_paths(folder, metadata.frames)) or len(groundtruth)
    if len(groundtruth) > length:
        raise DatasetError(f"{metadata.groundtruth}: {len(groundtruth)} regions for {length} frames")
    groundtruth += [Special(UNKNOWN)] * (length - len(groundtruth))
    width, height = metadata.width, metadata.height
    if width is None or height is None:
        first = next(_frame_paths(folder, metadata.frames), None)
        if first is None:
            raise DatasetError(
                f"{folder}: neither width and height in the file `sequence` nor a first frame to measure"
            )
        height, width = read_image(first).shape[:2]
    return VotSequence(folder.name, tuple(groundtruth), read_anchors(folder, length), (width, height))


def _frame_paths(folder: Path, pattern: str) -> Iterator[Path]:
    return itertools.takewhile(Path.is_file, (folder / (pattern % number) for number in itertools.count(1)))


class LongTermRun(NamedTuple):
    """A tracker's run through a sequence."""

    overlaps: Float64[np.ndarray, " n"]  # 0 on the frame of initialisation, and where there is no target to overlap
    confidences: Float64[np.ndarray, " n"]
    num_present: int  # frames with a target


@dataclasses.dataclass(frozen=True)
class LongTermScores:
    """A tracker on all sequences: curves over thresholds from high to low."""

    thresholds: Float64[np.ndarray, " t"]
    precisions: Float64[np.ndarray, "s t"]  # by sequence
    recalls: Float64[np.ndarray, "s t"]

    @cached_property
    def precision(self) -> Float64[np.ndarray, " t"]:
        """Mean over sequences."""
        return self.precisions.mean(0)

    @cached_property
    def recall(self) -> Float64[np.ndarray, " t"]:
        """Mean over sequences."""
        return self.recalls.mean(0)

    @cached_property
    def f_score(self) -> Float64[np.ndarray, " t"]:
        """Of the mean precision and the mean recall."""
        return f_score(self.precision, self.recall)

    @property
    def best(self) -> int:
        """The threshold at which F is largest, the highest of several."""
        return int(self.f_score.argmax())

    @property
    def headline(self) -> dict[str, float]:
        """What the challenges print, at the best threshold."""
        curves = {"F": self.f_score, "Pr": self.precision, "Re": self.recall}
        return {name: float(curve[self.best]) for name, curve in curves.items()}

    @property
    def by_sequence(self) -> dict[str, Float64[np.ndarray, " s"]]:
        """The same of each sequence, at the threshold that is best for all of them."""
        precisions, recalls = self.precisions[:, self.best], self.recalls[:, self.best]
        return {"F": f_score(precisions, recalls), "Pr": precisions, "Re": recalls}


def f_score(precision: Float64[np.ndarray, " n"], recall: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Harmonic mean; 0 where both are 0."""
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def confidence_thresholds(confidences: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " t"]:
    """Infinity, confidences that part all frames of all sequences into equal shares, and minus infinity. Of fewer than
    `RESOLUTION` - 1 frames every confidence is a threshold."""
    ranked, inner = np.sort(confidences)[::-1], RESOLUTION - 2
    if len(ranked) > inner:
        step = len(ranked) // inner
        ranked = ranked[np.round(np.linspace(step, len(ranked) - step, num=inner)).astype(int)]
    return np.concatenate([[np.inf], ranked, [-np.inf]])


def precision_recall(
    run: LongTermRun, thresholds: Float64[np.ndarray, " t"]
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """Precision and recall of a run: the overlaps of answered frames over their number, and over that of targets. Where
    no frame is answered, precision is 1. Frames without target count as answered wrongly."""
    order = np.argsort(-run.confidences, kind="stable")
    answered = len(order) - np.searchsorted(run.confidences[order][::-1], thresholds, side="left")
    overlap = np.concatenate([[0.0], np.cumsum(run.overlaps[order])])[answered]
    precision = np.divide(overlap, answered, out=np.ones(len(thresholds)), where=answered > 0)
    return precision, overlap / run.num_present


def score_long_runs(runs: Sequence[LongTermRun]) -> LongTermScores:
    """One tracker's runs, one a sequence."""
    thresholds = confidence_thresholds(np.concatenate([run.confidences for run in runs]))
    precisions, recalls = zip(*(precision_recall(run, thresholds) for run in runs), strict=True)
    return LongTermScores(thresholds, np.stack(precisions), np.stack(recalls))


def score_long_term(results: str | Path, sequences: Sequence[VotSequence]) -> LongTermScores:
    """One tracker, whose results are in `results/<tracker>/longterm`; DatasetError where a sequence has no target in
    any frame, ResultsError where a run is missing, unreadable or of another length."""
    return score_long_runs([read_long_term_run(Path(results), sequence) for sequence in sequences])


def read_long_term_run(results: Path, sequence: VotSequence) -> LongTermRun:
    """A run and its overlaps with the ground truth inside the frame; errors as in `score_long_term`."""
    truth, folder, name = sequence.groundtruth, results / sequence.name, f"{sequence.name}_001"
    num_present = sum(not isinstance(region, Special) for region in truth)
    if num_present == 0:
        raise DatasetError(f"sequence {sequence.name}: no frame has a target, so that recall is not defined")
    overlaps = region_overlaps(read_run(folder, name, len(truth)), truth, sequence.size)
    return LongTermRun(overlaps, read_confidences(folder / f"{name}_confidence.value", len(truth)), num_present)


def read_confidences(path: Path, length: int) -> Float64[np.ndarray, " n"]:
    """A confidence a frame; 0 on blank lines, and on all frames where there is no file, as in the toolkit. ResultsError
    for another number of lines than `length`, or, with the line, what is no finite number."""
    if not path.is_file():
        return np.zeros(length)
    content = read_bytes(path, "confidence file")
    lines = decode_text(path, content, "confidence file", "one number a frame").splitlines()
    lines += [""] * (content.count(b"\n") - len(lines))
    if len(lines) != length:
        raise ResultsError(f"confidence file {path}: {len(lines)} values for {length} frames")
    confidences = np.zeros(length)
    for index, line in enumerate(lines):
        try:
            confidences[index] = float(line.strip() or 0)
        except ValueError:
            confidences[index] = math.nan
        if not math.isfinite(confidences[index]):
            raise ResultsError(f"confidence file {path}, line {index + 1}: expected a finite number, found {line!r}")
    return confidences
