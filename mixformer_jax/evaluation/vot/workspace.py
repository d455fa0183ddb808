"""A VOT workspace on disk: its sequences with anchors, and the results of its experiments.

sequences/list.txt                  one sequence folder a line (a data set's root may be given instead)
sequences/<s>/sequence              key=value: width, height, length, channels.color, ...
sequences/<s>/groundtruth.txt       one region a line
sequences/<s>/anchor.value          one number a frame: > 0 an anchor to run forward from, < 0 backward
results/<tracker>/<experiment>/<s>/<s>_<anchor, 8 digits>.txt     a run from an anchor, in run order (or .bin)
results/<tracker>/<experiment>/<s>/<s>_<repetition, 3 digits>.txt a run through the sequence (unsupervised)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.vot import find_groundtruth, frame_pattern, read_settings, read_vot
from mixformer_jax.evaluation.number_files import ResultsError, read_numbers
from mixformer_jax.evaluation.vot.measures import Run, SequenceRuns, find_progress, unsupervised_accuracy
from mixformer_jax.evaluation.vot.overlaps import region_overlaps
from mixformer_jax.evaluation.vot.regions import UNKNOWN, Region, Special, is_empty, read_regions
from mixformer_jax.media.images import read_image


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
    """The sequences of a workspace, or of a folder of them: those that `read_vot` names.

    Args:
        root: the workspace or the folder.
        chosen: names of those to read, in this order; default: all.

    Raises:
        DatasetError, ResultsError: no sequences, one that is not there, or one of its files that cannot be read.
    """
    root = Path(root)
    folder = root / "sequences" if (root / "sequences").is_dir() else root
    return [_read_sequence(folder / name) for name in (read_vot(root).keys if chosen is None else chosen)]


def score_runs(results: str | Path, sequence: VotSequence, bounded: bool = True) -> SequenceRuns:
    """All runs of one tracker on a sequence: forward anchors first, as in the toolkit.

    Args:
        results: the folder `results/<tracker>/<experiment>`.
        bounded: whether only pixels inside the frame count.

    Raises:
        ResultsError: the sequence has no anchors, or the result of one is missing, unreadable or of another length.
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


def score_unsupervised(results: str | Path, sequence: VotSequence, burn_in: int = 1) -> float:
    """Mean accuracy of the repetitions <s>_001, <s>_002, ... of one tracker through a sequence.

    A repetition without a frame that counts has accuracy 0, as in the toolkit.

    Raises:
        ResultsError: no repetition is there, or one is unreadable or of another length.
    """
    folder = Path(results) / sequence.name
    accuracies = []
    for repetition in _repetitions(folder, sequence.name):
        predicted = read_run(folder, repetition, len(sequence.groundtruth))
        overlaps = region_overlaps(predicted, sequence.groundtruth, sequence.size)
        accuracy = unsupervised_accuracy(overlaps, predicted, sequence.groundtruth, burn_in)
        accuracies.append(np.nan_to_num(accuracy))
    return float(np.mean(accuracies))


def average_unsupervised(accuracies: list[float], sequences: list[VotSequence]) -> float:
    """Mean over sequences, weighted by their lengths."""
    return float(np.average(accuracies, weights=[len(sequence.groundtruth) for sequence in sequences]))


def read_run(folder: Path, name: str, length: int) -> list[Region]:
    """The regions of one run, from `<name>.txt` or `<name>.bin`.

    Raises:
        ResultsError: neither is there, or it is unreadable or of another length.
    """
    # The toolkit prefers text where both are there.
    path = next((p for p in (folder / f"{name}.txt", folder / f"{name}.bin") if p.is_file()), None)
    if path is None:
        raise ResultsError(f"{folder / name}.txt (or .bin): no such file; run the tracker on this sequence again")
    regions = read_regions(path)
    if len(regions) != length:
        raise ResultsError(f"region file {path}: {len(regions)} regions for a run of {length} frames")
    return regions


def _repetitions(folder: Path, name: str) -> Iterator[str]:
    for number in range(1, 1000):
        repetition = f"{name}_{number:03d}"
        if not any((folder / f"{repetition}{suffix}").is_file() for suffix in (".txt", ".bin")):
            if number == 1:
                raise ResultsError(f"{folder / repetition}.txt (or .bin): no such file; run the tracker again")
            return
        yield repetition


def _read_sequence(folder: Path) -> VotSequence:
    settings = read_settings(folder / "sequence")
    path = find_groundtruth(folder, settings)
    groundtruth = read_regions(path)
    pattern = frame_pattern(folder, settings)
    length = _whole_number(settings.get("length"), folder / "sequence", "length")
    if length is None:
        # None are there where annotations are kept without frames.
        length = sum(1 for _ in _frame_paths(folder, pattern)) or len(groundtruth)
    if len(groundtruth) > length:
        raise DatasetError(f"{path}: {len(groundtruth)} regions for {length} frames")
    groundtruth += [Special(UNKNOWN)] * (length - len(groundtruth))
    width, height = (_whole_number(settings.get(key), folder / "sequence", key) for key in ("width", "height"))
    if width is None or height is None:
        first = next(_frame_paths(folder, pattern), None)
        if first is None:
            raise DatasetError(
                f"{folder}: neither width and height in the file `sequence` nor a first frame to measure"
            )
        height, width = read_image(first).shape[:2]
    return VotSequence(folder.name, tuple(groundtruth), _read_anchors(folder / "anchor.value", length), (width, height))


def _read_anchors(path: Path, length: int) -> tuple[tuple[int, bool], ...]:
    if not path.is_file():
        return ()
    values = read_numbers(path, "anchor")[:, 0]
    if len(values) > length:
        raise DatasetError(f"{path}: {len(values)} values for {length} frames")
    forward, backward = np.flatnonzero(values > 0), np.flatnonzero(values < 0)
    return (*((int(frame), False) for frame in forward), *((int(frame), True) for frame in backward))


def _whole_number(text: str | None, path: Path, key: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise DatasetError(f"{path}: {key}={text}; expected a whole number from 1 on")
    return int(text)


def _frame_paths(folder: Path, pattern: str) -> Iterator[Path]:
    number = 1
    while (path := folder / (pattern % number)).is_file():
        yield path
        number += 1
