"""Walking through a data set on disk, frame by frame, for what would disturb a training or an evaluation."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.known_faults import known_fault
from mixformer_jax.datasets.records import Dataset, Fault, MissingFrames, TrackingSequence
from mixformer_jax.media.images import SourceError

# Sequences that a worker takes at once: videos one by one, stills by the hundred.
VIDEO_CHUNK, STILL_CHUNK = 1, 200


@dataclass
class CheckReport:
    """What a walk has found.

    Attributes:
        sequences: looked at.
        frames: decoded.
        boxes: that are there and right.
        absent: frames without a box, where the data set says that the target is absent, or has no such marks.
        faults: all that is wrong.
    """

    sequences: int = 0
    frames: int = 0
    boxes: int = 0
    absent: int = 0
    faults: tuple[Fault, ...] = ()

    def __add__(self, other: CheckReport) -> CheckReport:
        return CheckReport(
            self.sequences + other.sequences,
            self.frames + other.frames,
            self.boxes + other.boxes,
            self.absent + other.absent,
            self.faults + other.faults,
        )

    def lines(self) -> list[tuple[str, str]]:
        """Names and values for a table."""
        kinds = [fault.kind for fault in self.faults]
        counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        known = sum(fault.known is not None for fault in self.faults)
        return [
            ("sequences", f"{self.sequences:,}"),
            ("frames", f"{self.frames:,}"),
            ("boxes", f"{self.boxes:,}"),
            ("absent", f"{self.absent:,}"),
            ("faults", counted or "none"),
            *([("known", f"{known:,} of them: the data set is published so")] if known else []),
        ]


def check_dataset(dataset: Dataset, workers: int = 1, progress: bool = False) -> CheckReport:
    """Reads every annotation and decodes every frame.

    A box is at fault where it is NaN although the data set marks the target as visible; where it is empty, or lies
    wholly outside the frame, and the target is not marked as absent. Boxes after the first one that a test set keeps to
    itself are no faults. A sequence is at fault whose frames change their size. What the reader found comes first; the
    published faults that `known_faults` has are said to be known.

    Args:
        dataset: an open data set.
        workers: processes.
        progress: show a bar.
    """
    chunk = STILL_CHUNK if len(dataset) > 1 and _is_still(dataset) else VIDEO_CHUNK
    ranges = [(first, min(first + chunk, len(dataset))) for first in range(0, len(dataset), chunk)]
    total = CheckReport()
    with tqdm(total=len(dataset), unit=" sequences", desc="checking", disable=not progress, mininterval=1) as bar:
        for report in _run(functools.partial(_check_range, dataset), ranges, workers):
            total += report
            bar.update(report.sequences)
            bar.set_postfix(frames=total.frames, faults=len(total.faults))
    return total


def _is_still(dataset: Dataset) -> bool:
    try:
        return dataset.read(dataset.keys[0]).is_still
    except (DatasetError, SourceError):
        return False


def _run(job: Any, ranges: list[tuple[int, int]], workers: int) -> Iterator[CheckReport]:
    if workers <= 1 or len(ranges) <= 1:
        yield from map(job, ranges)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(ranges)), mp_context=context) as pool:
        yield from pool.map(job, ranges)


def _check_range(dataset: Dataset, indices: tuple[int, int]) -> CheckReport:
    cv2.setNumThreads(1)
    report = CheckReport()
    decoded: dict[Path, tuple[int, int]] = {}
    for index in range(*indices):
        try:
            sequence = dataset.read(dataset.keys[index])
        except (DatasetError, SourceError) as error:
            report += CheckReport(sequences=1, faults=(Fault("annotations", "", str(error)),))
            continue
        report += _check_sequence(dataset.name, sequence, decoded)
    return report


def _check_sequence(dataset: str, sequence: TrackingSequence, decoded: dict[Path, tuple[int, int]]) -> CheckReport:
    faults = list(sequence.faults)
    # Readers of published data sets name empty boxes by their lines.
    told = {fault.kind for fault in faults} & {"box empty"}
    frames = boxes = absent = 0
    first_size: tuple[int, int] | None = None
    path_of = getattr(sequence.frame, "path", None)
    if isinstance(sequence.frame, MissingFrames):
        faults.append(Fault("image", "", sequence.frame.reason))

    def add(kind: str, where: str, what: str) -> None:
        faults.append(Fault(kind, where, what, known_fault(dataset, sequence.name, kind)))

    for index in range(len(sequence)):
        where = str(path_of(index)) if callable(path_of) else f"{sequence.root}, {sequence.name} frame {index}"
        size = None
        if sequence.has_frames:
            try:
                size, is_new = _frame_size(sequence, index, decoded)
            except (SourceError, DatasetError, IndexError) as error:
                faults.append(Fault("image", "", str(error)))
                continue
            frames += is_new
            first_size = first_size or size
            if size != first_size and "frame size" not in told:
                told.add("frame size")
                (height, width), (first_height, first_width) = size, first_size
                add("frame size", where, f"{width} x {height}, after frames of {first_width} x {first_height}")
        kind = _box_fault(sequence, index, size)
        if kind is None:
            boxes += 1
        elif kind == "absent":
            absent += 1
        elif kind not in told:
            box = ",".join(f"{value:g}" for value in sequence.boxes_xywh[index])
            of = f" in a frame of {size[1]} x {size[0]}" if size else ""
            add(kind, where, f"box {box} of {sequence.name}{of}")
    return CheckReport(1, frames, boxes, absent, tuple(faults))


def _frame_size(
    sequence: TrackingSequence, index: int, decoded: dict[Path, tuple[int, int]]
) -> tuple[tuple[int, int], bool]:
    """Height and width, and whether the frame was decoded for that: targets of one still share theirs."""
    path_of = getattr(sequence.frame, "path", None)
    if not (sequence.is_still and callable(path_of)):
        return sequence.frame(index).shape[:2], not sequence.is_still or index == 0
    path = path_of(index)
    if path in decoded:
        return decoded[path], False
    size = sequence.frame(index).shape[:2]
    decoded.clear()  # objects come by image: only the last one is asked for again
    decoded[path] = size
    return size, True


def _box_fault(sequence: TrackingSequence, index: int, frame_size: tuple[int, int] | None) -> str | None:
    x, y, w, h = sequence.boxes_xywh[index]
    marked_absent = sequence.visible is not None and not sequence.visible[index]
    if np.isnan([x, y, w, h]).any():
        return "box NaN" if sequence.visible is not None and not marked_absent else "absent"
    if marked_absent:
        return "absent"
    if w <= 0 or h <= 0:
        return "box empty"
    if frame_size is None:
        return None
    height, width = frame_size
    return "box outside" if x >= width or y >= height or x + w <= 0 or y + h <= 0 else None
