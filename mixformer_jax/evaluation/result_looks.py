"""Tells of result files in another format than x,y,w,h in pixels, one row a frame, beginning with the given box.

Nothing is corrected: reports warn. Slight differences are ignored: trackers write whole pixels, or cut the given box
to the frame.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from mixformer_jax.boxes import cxcywh_to_xywh, xywh_to_cxcywh, xywh_to_xyxy, xyxy_to_xywh
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import continuous_overlap
from mixformer_jax.evaluation.results import read_boxes
from mixformer_jax.evaluation.scoring import TrackerFiles, known_length

Boxes = Float64[np.ndarray, "n 4"]

# A first row is another box where a coordinate differs by more pixels, or by a larger share of the given box's longer
# side, and the overlap is lower.
SLIGHT_PX, SLIGHT_SHARE, SLIGHT_OVERLAP = 1.0, 0.05, 0.75
# Another format is recognised by its overlap with the ground truth, and its gain over x,y,w,h; in fewer frames that may
# be chance.
MIN_OVERLAP, MIN_GAIN, MIN_FRAMES = 0.5, 0.3, 3
# The share of a tracker's files, two at least, for which an offset of one pixel is reported.
OFFSET_SHARE = 0.9
# Normalised boxes are at most so large, beside ground truth of at least so many pixels.
MAX_FRACTION, MIN_SIDE = 1.5, 3.0


class _Format(NamedTuple):
    """Conversions from and to x,y,w,h."""

    write: Callable[[Boxes], Boxes]
    read: Callable[[Boxes], Boxes]


def _swapped(boxes: Boxes) -> Boxes:
    return boxes[:, [1, 0, 3, 2]]


FORMATS: Mapping[str, _Format] = {
    "corners x1,y1,x2,y2": _Format(xywh_to_xyxy, xyxy_to_xywh),
    "centres cx,cy,w,h": _Format(xywh_to_cxcywh, cxcywh_to_xywh),
    "y,x,h,w": _Format(_swapped, _swapped),
}
FRACTIONS = "normalised boxes (fractions of the frame's size)"
OTHER = "another box"
LONGER = "have more rows than the video has frames: the last ones are cut"
SHORTER = "lack rows at the end, which count as frames without a box"
OFFSETS = ((1, "right of and below", "1-based beside 0-based"), (-1, "left of and above", "0-based beside 1-based"))
Offset = Literal[-1, 0, 1]


class FileLook(NamedTuple):
    format: str | None  # a key of FORMATS, FRACTIONS or OTHER; None where there is nothing to tell
    offset: Offset  # of the first row from the given box: 1 is one pixel right and down, -1 left and up


def look_at(boxes_xywh: Float[np.ndarray, "m 4"], truth_xywh: Float[np.ndarray, "n 4"]) -> FileLook:
    """The format of a result file, recognised by the ground truth, whose first row is the given box. Boxes may be NaN
    or of negative size; true boxes of NaN or without area tell nothing."""
    count = min(len(boxes_xywh), len(truth_xywh))
    boxes, truth = boxes_xywh[:count].astype(np.float64), truth_xywh[:count].astype(np.float64)
    known = _has_area(truth)
    if not known.any():
        return FileLook(None, 0)
    given = boxes[1:] if count > 1 else boxes
    given = given[_has_area(given)]
    are_fractions = len(given) and np.abs(given).max() <= MAX_FRACTION and (given % 1 != 0).any()
    if are_fractions and np.median(truth[known, 2:]) >= MIN_SIDE:
        return FileLook(FRACTIONS, 0)
    offset: Offset = 0
    first = None
    if known[0]:
        first, offset = _look_at_first(boxes[:1], truth[:1])
        if first not in (None, OTHER):
            return FileLook(first, 0)
    known[0] = False  # often a copy of the given box, in whatever format the others are
    by_overlap = _format_by_overlap(boxes[known], truth[known]) if known.sum() >= MIN_FRAMES else None
    return FileLook(by_overlap or first, offset)


def warnings(
    files: Sequence[TrackerFiles],
    sequences: Sequence[TrackingSequence],
    unusable_boxes: Literal["error", "keep"] = "error",
    benchmark: str = "",
) -> tuple[str, ...]:
    """One line for each tracker with suspicious files; ResultsError for one that cannot be read. `benchmark` names the
    reader, for known faults of lengths."""
    found = [(tracker.name, _findings(tracker, sequences, unusable_boxes, benchmark)) for tracker in files]
    return tuple(f"warning: {name}: {'; '.join(findings)}" for name, findings in found if findings)


def _findings(
    tracker: TrackerFiles,
    sequences: Sequence[TrackingSequence],
    unusable_boxes: Literal["error", "keep"],
    benchmark: str,
) -> list[str]:
    looks: dict[str, list[str]] = defaultdict(list)
    lengths: dict[str, list[str]] = {LONGER: [], SHORTER: []}
    offsets: Counter[int] = Counter()
    total = sum(map(len, tracker.boxes))
    for sequence, paths in zip(sequences, tracker.boxes, strict=True):
        truth = sequence.boxes_xywh
        for path in paths:
            boxes = read_boxes(path, unusable_boxes)
            look = look_at(boxes, truth)
            offsets[look.offset] += 1
            if look.format is not None:
                row, given = (",".join(f"{value:g}" for value in box) for box in (boxes[0], truth[0]))
                looks[look.format].append(f"{path}: first row {row}, given box {given}")
            if len(boxes) != len(truth):
                examples = lengths[LONGER if len(boxes) > len(truth) else SHORTER]
                known = known_length(benchmark, sequence, len(boxes))
                example = f"{path}: {len(boxes)} rows for {len(truth)} frames{known}"
                # The first one is shown: a known fault goes first.
                examples.insert(0 if known else len(examples), example)
    findings = []
    for form, examples in looks.items():
        some = f"{len(examples)} of {total} result files"
        what = f"{some} look like {form} and not like x,y,w,h in pixels"
        what = f"the first row of {some} is not the given box" if form == OTHER else what
        findings.append(f"{what} ({examples[0]})")
    for offset, where, base in OFFSETS:
        if offsets[offset] >= max(2, OFFSET_SHARE * total):
            findings.append(
                f"the first row of {offsets[offset]} of {total} result files is a pixel {where} the given box: they "
                f"look {base} ground truth"
            )
    for what, examples in lengths.items():
        if examples:
            findings.append(f"{len(examples)} of {total} result files {what} ({examples[0]})")
    return findings


def _look_at_first(row: Float64[np.ndarray, "1 4"], given: Float64[np.ndarray, "1 4"]) -> tuple[str | None, Offset]:
    moved = (row - given)[0]
    for offset in (1, -1):
        if np.allclose(moved, (offset, offset, 0, 0), rtol=0, atol=0.01):
            return None, 1 if offset == 1 else -1
    slight = max(SLIGHT_PX, SLIGHT_SHARE * given[0, 2:].max())
    if np.abs(moved).max() <= slight or _overlaps(row, given)[0] >= SLIGHT_OVERLAP:
        return None, 0
    distances = {form: np.abs(row - FORMATS[form].write(given)).max() for form in FORMATS}
    nearest = min(distances, key=distances.__getitem__)
    return (nearest if distances[nearest] <= slight else OTHER), 0


def _format_by_overlap(boxes: Boxes, truth: Boxes) -> str | None:
    usual = _overlaps(boxes, truth).mean()
    if usual + MIN_GAIN > 1:
        return None
    overlaps = {form: _overlaps(FORMATS[form].read(boxes), truth).mean() for form in FORMATS}
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= max(MIN_OVERLAP, usual + MIN_GAIN) else None


def _overlaps(boxes: Boxes, truth: Boxes) -> Float64[np.ndarray, " n"]:
    """IoU; 0 for boxes without area."""
    usable = _has_area(boxes)
    overlaps = np.zeros(len(boxes))
    overlaps[usable] = continuous_overlap(boxes[usable], truth[usable])
    return overlaps


def _has_area(boxes: Boxes) -> np.ndarray:
    return np.asarray(np.isfinite(boxes).all(1) & (boxes[:, 2:] > 0).all(1))
