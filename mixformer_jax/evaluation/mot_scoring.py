"""From files of MOTChallenge to measures of tracking many objects, by TrackEval's rules (`MotChallenge2DBox`).

    HOTA      Luiten et al., HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking, IJCV 2021
    CLEAR     Bernardin & Stiefelhagen, Evaluating Multiple Object Tracking Performance, 2008
    Identity  Ristani et al., Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking, 2016

All are sums over frames and pairs (`MotCounts`), and those of several sequences are added before anything is divided.
In MOT16, MOT17 and MOT20 pedestrians count, and results on what may or may not be taken for one, such as reflections
and people on vehicles, are left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Float64, Int64

from mixformer_jax.boxes import iou_matrix
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.mot import MotRows, check_frames, read_mot_rows
from mixformer_jax.text_tables import aligned

HOTA_THRESHOLDS = np.arange(0.05, 0.99, 0.05)  # overlaps from which a result may stand for a target
CLEAR_THRESHOLD = 0.5  # the same for CLEAR and Identity
_EPSILON = np.finfo(np.float64).eps
# CLEAR keeps the pairs of the frame before where they are allowed: no sum of overlaps outweighs one of them.
_KEPT = 1000.0
MOSTLY, RARELY = 0.8, 0.2  # shares of its frames on which a target is found


class MotFrame(NamedTuple):
    """Who is on one frame; both kinds of numbers count from 0 over the whole sequence."""

    targets: Int64[np.ndarray, " g"]
    found: Int64[np.ndarray, " f"]  # tracks of the results
    overlaps: Float64[np.ndarray, "g f"]  # IoU


class MotCounts(NamedTuple):
    """What the measures are made of; those of several sequences are added field by field."""

    targets: int = 0  # boxes of the ground truth
    found: int = 0  # boxes of the results
    # HOTA, by threshold: pairs; over pairs, the sums of the association's IoU, recall and precision, and of overlaps.
    paired: Float64[np.ndarray, " t"] = np.zeros(len(HOTA_THRESHOLDS))
    association: Float64[np.ndarray, " t"] = np.zeros(len(HOTA_THRESHOLDS))
    association_recall: Float64[np.ndarray, " t"] = np.zeros(len(HOTA_THRESHOLDS))
    association_precision: Float64[np.ndarray, " t"] = np.zeros(len(HOTA_THRESHOLDS))
    overlap: Float64[np.ndarray, " t"] = np.zeros(len(HOTA_THRESHOLDS))
    # CLEAR
    hits: int = 0
    switches: int = 0
    fragments: int = 0
    clear_overlap: float = 0.0
    mostly: int = 0  # targets that are found on more than `MOSTLY` of their frames, on fewer than `RARELY`, all
    rarely: int = 0
    tracks: int = 0
    # Identity
    identity_hits: int = 0


def total(counts: Sequence[MotCounts]) -> MotCounts:
    """The counts of several sequences together."""
    return cast(MotCounts, jax.tree.map(lambda *each: sum(each), MotCounts(), *counts))


def count(frames: Sequence[MotFrame]) -> MotCounts:
    """The counts of one sequence."""
    sizes = [[len(frame.targets), len(frame.found)] for frame in frames]
    targets, found = np.sum(sizes, axis=0, dtype=int).tolist() if sizes else (0, 0)
    if targets == 0 or found == 0:
        num_tracks = len(np.unique(np.concatenate([frame.targets for frame in frames]))) if targets else 0
        return MotCounts(targets, found, rarely=num_tracks, tracks=num_tracks)
    target_frames, found_frames = (
        np.bincount(np.concatenate(numbers))
        for numbers in zip(*((each.targets, each.found) for each in frames), strict=True)
    )
    # Boxes that overlap enough under the best assignment of whole tracks to whole targets.
    together = np.zeros((len(target_frames), len(found_frames)))
    for frame in frames:
        together[frame.targets[:, None], frame.found] += frame.overlaps >= CLEAR_THRESHOLD
    identity = int(together[_assign(together)].sum())
    hota, clear = _hota(frames, target_frames, found_frames), _clear(frames, target_frames)
    return MotCounts(targets, found, **hota, **clear, identity_hits=identity)


def _assign(values: Float64[np.ndarray, "g f"]) -> tuple[np.ndarray, np.ndarray]:
    """The pairs, one a row and column, of the largest sum."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(values, maximize=True)


def _hota(
    frames: Sequence[MotFrame], target_frames: Int64[np.ndarray, " g"], found_frames: Int64[np.ndarray, " f"]
) -> dict[str, Any]:
    """Pairs are those of the largest sum of overlaps, weighted by how well two tracks go together as wholes."""
    together = np.zeros((len(target_frames), len(found_frames)))
    for targets, found, overlaps in frames:
        union = overlaps.sum(axis=0) + overlaps.sum(axis=1)[:, None] - overlaps
        shares = np.divide(overlaps, union, out=np.zeros_like(overlaps), where=union > _EPSILON)
        together[targets[:, None], found] += shares
    alignment = together / (target_frames[:, None] + found_frames - together)
    pairs, overlaps_of_pairs = [], []
    for targets, found, overlaps in frames:
        rows, columns = _assign(alignment[targets[:, None], found] * overlaps)
        pairs.append(targets[rows] * len(found_frames) + found[columns])
        overlaps_of_pairs.append(overlaps[rows, columns])
    pair, overlap = np.concatenate(pairs), np.concatenate(overlaps_of_pairs)
    sums = []
    for threshold in HOTA_THRESHOLDS:
        is_pair = overlap >= threshold - _EPSILON
        tracks, times = np.unique(pair[is_pair], return_counts=True)
        of_target, of_found = target_frames[tracks // len(found_frames)], found_frames[tracks % len(found_frames)]
        over = (of_target + of_found - times, of_target, of_found)
        sums.append([is_pair.sum(), *((times * times / each).sum() for each in over), overlap[is_pair].sum()])
    names = ("paired", "association", "association_recall", "association_precision", "overlap")
    return dict(zip(names, np.array(sums, np.float64).T, strict=True))


def _clear(frames: Sequence[MotFrame], target_frames: Int64[np.ndarray, " g"]) -> dict[str, Any]:
    """Pairs of the frame before stay as long as they overlap enough; the others have the largest sum of overlaps."""
    nobody, num_targets = -1, len(target_frames)
    last = np.full(num_targets, nobody)  # who stood for a target when it was found last
    before = np.full(num_targets, nobody)  # and on the frame before
    times, stretches = np.zeros(num_targets, int), np.zeros(num_targets, int)
    hits, switches, overlap = 0, 0, 0.0
    for targets, found, overlaps in frames:
        if len(targets) == 0 or len(found) == 0:
            continue  # "the frame before" is then an earlier one
        values = np.where(
            overlaps < CLEAR_THRESHOLD - _EPSILON, 0, _KEPT * (found == before[targets][:, None]) + overlaps
        )
        rows, columns = _assign(values)
        is_pair = values[rows, columns] > _EPSILON
        rows, columns = rows[is_pair], columns[is_pair]
        ours, theirs = targets[rows], found[columns]
        switches += int(((last[ours] != nobody) & (last[ours] != theirs)).sum())
        stretches[ours] += before[ours] == nobody
        times[ours] += 1
        last[ours] = theirs
        before[:] = nobody
        before[ours] = theirs
        hits += len(ours)
        overlap += float(overlaps[rows, columns].sum())
    share = times[target_frames > 0] / target_frames[target_frames > 0]
    return {
        "hits": hits,
        "switches": switches,
        "fragments": int(np.maximum(stretches - 1, 0).sum()),
        "clear_overlap": overlap,
        "mostly": int((share > MOSTLY).sum()),
        "rarely": int((share < RARELY).sum()),
        "tracks": len(share),
    }


MEASURES: Mapping[str, str] = {
    "HOTA": "mean over overlaps of the geometric mean of DetA and AssA",
    "DetA": "how well boxes are found",
    "AssA": "how well they keep their numbers",
    "LocA": "how well they lie",
    "MOTA": "1 less the shares of missed boxes, false boxes and switches",
    "IDF1": "F1 of boxes under the best assignment of whole tracks",
    "IDs": "switches of a target's number",
    "FP": "false boxes",
    "FN": "missed boxes",
    "Frag": "targets' interruptions",
    "MT": "targets found on more than 80% of their frames",
    "ML": "on fewer than 20%",
}


def measures(counts: MotCounts) -> dict[str, float]:
    """All measures by name: those of `MEASURES`, and their parts; shares in percent."""
    targets, found, paired = counts.targets, counts.found, counts.paired

    def mean(shares: Float64[np.ndarray, " t"]) -> float:
        return 100 * float(shares.mean())

    some = np.maximum(1, paired)
    detection = paired / np.maximum(1, targets + found - paired)
    association = counts.association / some
    # As TrackEval has it, boxes that nobody found lie perfectly.
    location = np.maximum(1e-10, counts.overlap) / np.maximum(1e-10, paired)
    hits, identity = counts.hits, counts.identity_hits
    return {
        "HOTA": mean(np.sqrt(detection * association)),
        "DetA": mean(detection),
        "AssA": mean(association),
        "DetRe": mean(paired / max(1, targets)),
        "DetPr": mean(paired / max(1, found)),
        "AssRe": mean(counts.association_recall / some),
        "AssPr": mean(counts.association_precision / some),
        "LocA": mean(location),
        "MOTA": 100 * (hits - (found - hits) - counts.switches) / max(1, targets),
        "MOTP": 100 * counts.clear_overlap / max(1, hits),
        "IDF1": 100 * identity / max(1, 0.5 * (targets + found)),
        "IDR": 100 * identity / max(1, targets),
        "IDP": 100 * identity / max(1, found),
        "IDs": counts.switches,
        "FP": found - hits,
        "FN": targets - hits,
        "Frag": counts.fragments,
        "MT": counts.mostly,
        "PT": counts.tracks - counts.mostly - counts.rarely,
        "ML": counts.rarely,
    }


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
    says that they are others; MOT15 has none. DatasetError: as `read_mot_rows`; rows beyond `num_frames`, where that is
    known; classes without a pedestrian.
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
    numbers = np.unique(np.concatenate([rows.frames, results.frames]))
    for of_truth, of_results in zip(*(_by_frame(each.frames, numbers) for each in (rows, results)), strict=True):
        overlaps = iou_matrix(rows.boxes_xywh[of_truth], results.boxes_xywh[of_results])
        kept = np.ones(len(of_results), bool)
        if distractors is not None:
            # Results that stand for one, in the assignment of all of a frame to all boxes of the ground truth.
            values = np.where(overlaps < CLEAR_THRESHOLD - _EPSILON, 0, overlaps)
            at, columns = _assign(values)
            is_distractor = np.isin(rows.classes[of_truth[at]], distractors)
            kept[columns[(values[at, columns] > _EPSILON) & is_distractor]] = False
        counted = counts[of_truth]
        parts.append((of_truth[counted], of_results[kept], overlaps[counted][:, kept]))
    targets, found = (_from_zero(ids, [part[at] for part in parts]) for at, ids in enumerate((rows.ids, results.ids)))
    return [MotFrame(ours, theirs, part[2]) for ours, theirs, part in zip(targets, found, parts, strict=True)]


def _by_frame(frames: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
    """Rows on each of the frames `numbers`, which ascend and hold all of `frames`, in the rows' order."""
    order = np.argsort(frames, kind="stable")
    return np.split(order, np.searchsorted(frames[order], numbers))[1:]


def _from_zero(ids: np.ndarray, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The tracks of rows, by frame, numbered from 0 without gaps."""
    every = np.concatenate([*rows, np.zeros(0, np.int64)])
    numbers = np.unique(ids[every], return_inverse=True)[1].astype(np.int64)
    return np.split(numbers, np.cumsum([len(each) for each in rows])[:-1]) if rows else []


def score_results(
    truths: Mapping[str, MotTruth], results: Mapping[str, MotRows], num_frames: Mapping[str, int | None]
) -> dict[str, MotCounts]:
    """Counts by sequence; DatasetError for results on frames that a sequence does not have, where its number of frames
    is known."""
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
