"""From files of MOTChallenge to measures: what of a ground truth counts, and which results do.

The rules of MOT16, MOT17 and MOT20, by TrackEval (`MotChallenge2DBox`): pedestrians count, and results on what may or
may not be taken for one, such as reflections and people on vehicles, are left out.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixformer_jax.boxes import iou_matrix
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.mot_files import MotRows, check_frames, read_mot_rows
from mixformer_jax.evaluation.mot_metrics import CLEAR_THRESHOLD, MEASURES, MotCounts, MotFrame, count, measures, total
from mixformer_jax.text_tables import aligned

PEDESTRIAN = 1
# On a vehicle, static, "distractor", reflection; in MOT20 also vehicles.
DISTRACTORS, MOT20_DISTRACTORS = (2, 7, 8, 12), (2, 6, 7, 8, 12)


class MotTruth(NamedTuple):
    """A ground truth, and whether it has MOTChallenge's classes."""

    rows: MotRows
    distractors: tuple[int, ...] | None  # None: rows that are flagged count, whatever their class


def read_truth(path: Path, sequence: str, num_frames: int | None = None) -> MotTruth:
    """The ground truth of a sequence.

    Its classes are those of MOTChallenge where there are any from 1 on, unless a labels.txt beside it, as CVAT writes,
    says that they are others; MOT15 has none.

    Raises:
        DatasetError: as `read_mot_rows`; rows beyond `num_frames`, where that is known; classes without a pedestrian.
    """
    rows = read_mot_rows(path, "ground truth")
    if num_frames is not None:
        check_frames(rows, num_frames, sequence)
    has_classes = bool((rows.classes >= 1).any()) and not path.with_name("labels.txt").exists()
    if has_classes and not (rows.classes == PEDESTRIAN).any():
        found = ", ".join(map(str, np.unique(rows.classes).tolist()))
        raise DatasetError(
            f"{path}: of its classes ({found}) none is {PEDESTRIAN}, MOTChallenge's pedestrians, so that no object "
            "counts; if they are classes of your own, put a labels.txt beside it, and all count"
        )
    return MotTruth(rows, (MOT20_DISTRACTORS if "MOT20" in sequence else DISTRACTORS) if has_classes else None)


def frames_of(truth: MotTruth, results: MotRows) -> list[MotFrame]:
    """Who is on each frame, with what does not count left out."""
    rows, distractors = truth
    counts = (rows.scores != 0) & ((rows.classes == PEDESTRIAN) if distractors is not None else True)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for of_truth, of_results in _by_frame(rows.frames, results.frames):
        overlaps = iou_matrix(rows.boxes_xywh[of_truth], results.boxes_xywh[of_results])
        kept = np.ones(len(of_results), bool)
        if distractors is not None:
            kept[_on_distractors(overlaps, np.isin(rows.classes[of_truth], distractors))] = False
        counted = counts[of_truth]
        parts.append((of_truth[counted], of_results[kept], overlaps[counted][:, kept]))
    targets, found = (
        _from_zero(ids, [part[side] for part in parts]) for side, ids in enumerate((rows.ids, results.ids))
    )
    return [MotFrame(ours, theirs, part[2]) for ours, theirs, part in zip(targets, found, parts, strict=True)]


def _on_distractors(overlaps: np.ndarray, is_distractor: np.ndarray) -> np.ndarray:
    """Results that stand for a distractor, in the assignment of all of a frame to all boxes of the ground truth."""
    from scipy.optimize import linear_sum_assignment

    epsilon = np.finfo(np.float64).eps
    values = np.where(overlaps < CLEAR_THRESHOLD - epsilon, 0, overlaps)
    rows, columns = linear_sum_assignment(values, maximize=True)
    return np.asarray(columns[(values[rows, columns] > epsilon) & is_distractor[rows]])


def _by_frame(*frames: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """Rows of each file on each frame that has any, in their order."""
    numbers = np.unique(np.concatenate(frames))
    orders = [np.argsort(each, kind="stable") for each in frames]
    ends = [
        [*np.searchsorted(each[order], numbers).tolist(), len(each)] for each, order in zip(frames, orders, strict=True)
    ]
    parts = [
        [order[first:end] for first, end in itertools.pairwise(end_of)]
        for order, end_of in zip(orders, ends, strict=True)
    ]
    return list(zip(*parts, strict=True))


def _from_zero(ids: np.ndarray, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tracks of rows, by frame, numbered from 0 without gaps."""
    every = np.concatenate([*rows, np.zeros(0, np.int64)])
    numbers = np.unique(ids[every], return_inverse=True)[1].astype(np.int64)
    return np.split(numbers, np.cumsum([len(each) for each in rows])[:-1]) if rows else []


def score_results(
    truths: Mapping[str, MotTruth], results: Mapping[str, MotRows], num_frames: Mapping[str, int | None]
) -> dict[str, MotCounts]:
    """Counts by sequence.

    Raises:
        DatasetError: results on frames that a sequence does not have, where its number of frames is known.
    """
    counts = {}
    for name, truth in truths.items():
        length = num_frames.get(name)
        if length is not None:
            check_frames(results[name], length, name)
        counts[name] = count(frames_of(truth, results[name]))
    return counts


def score_table(counts: Mapping[str, MotCounts]) -> str:
    """The measures of each sequence, and of several together."""
    named = dict(counts)
    if len(counts) > 1:
        named["all"] = total(list(counts.values()))
    rows = [["sequence", *MEASURES]]
    for name, each in named.items():
        found = measures(each)
        rows.append(
            [name, *(f"{found[key]:.1f}" if isinstance(found[key], float) else f"{found[key]}" for key in MEASURES)]
        )
    return aligned(rows)
