"""Checks a data set on disk, frame by frame, for what would disturb training or evaluation."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
from tqdm import tqdm

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, Fault, MissingFrames, TrackingSequence, known_fault
from mixformer_jax.media.images import SourceError

STILL_CHUNK = 200  # sequences that a worker takes at once, where videos go one by one

Size = tuple[int, int]  # height and width


@dataclass
class CheckReport:
    sequences: int = 0
    frames: int = 0  # decoded
    boxes: int = 0  # without fault
    absent: int = 0  # frames without a box, where the target is marked as absent, or nothing is marked
    faults: tuple[Fault, ...] = ()

    def __add__(self, other: CheckReport) -> CheckReport:
        return CheckReport(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def lines(self) -> list[tuple[str, str]]:
        """Rows of a table."""
        kinds = [fault.kind for fault in self.faults]
        counted = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        known = sum(fault.known is not None for fault in self.faults)
        return [
            *((name, f"{getattr(self, name):,}") for name in ("sequences", "frames", "boxes", "absent")),
            ("faults", counted or "none"),
            *([("known", f"{known:,} of them: the data set is published so")] if known else []),
        ]


def check_dataset(dataset: Dataset, workers: int = 1, progress: bool = False) -> CheckReport:
    """Reads every annotation and decodes every frame, in `workers` processes.

    Faults are: what the reader finds; a box of NaN where the target is marked as visible; one that is empty or outside
    the frame where the target is not marked as absent (but for the hidden boxes of test sets); frames that change their
    size. Those of `known_faults.tsv` are marked as known.
    """
    chunk = 1
    with contextlib.suppress(DatasetError, SourceError):
        chunk = STILL_CHUNK if len(dataset) > 1 and dataset.read(dataset.keys[0]).is_still else 1
    ranges = [range(first, min(first + chunk, len(dataset))) for first in range(0, len(dataset), chunk)]
    total, run = CheckReport(), cast(Any, map)
    bar = tqdm(total=len(dataset), unit=" sequences", desc="checking", disable=not progress or None, mininterval=1)
    with bar, contextlib.ExitStack() as stack:
        if workers > 1 and len(ranges) > 1:
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(min(workers, len(ranges)), mp_context=context)).map
        for report in run(functools.partial(_check_range, dataset), ranges):
            total += report
            bar.update(report.sequences)
            bar.set_postfix(frames=total.frames, faults=len(total.faults))
    return total


def _check_range(dataset: Dataset, indices: range) -> CheckReport:
    cv2.setNumThreads(1)
    report = CheckReport()
    decoded: dict[str, Size] = {}
    for index in indices:
        try:
            sequence = dataset.read(dataset.keys[index])
        except (DatasetError, SourceError) as error:
            report += CheckReport(sequences=1, faults=(Fault("annotations", "", str(error)),))
        else:
            report += _check_sequence(dataset.name, sequence, decoded)
    return report


def _check_sequence(dataset: str, sequence: TrackingSequence, decoded: dict[str, Size]) -> CheckReport:
    """`decoded` keeps the size of the last frame: targets of one still share it."""
    faults = list(sequence.faults)
    # Readers of published data sets tell empty boxes themselves, with their lines.
    reported = {fault.kind for fault in faults} & {"box empty"}
    frames = boxes = absent = 0
    first_size: Size | None = None
    path_of: Any = getattr(sequence.frame, "path", None)
    has_paths = callable(path_of)  # of videos, `path` is the file
    if isinstance(sequence.frame, MissingFrames):
        faults.append(Fault("image", "", sequence.frame.reason))

    def add(kind: str, what: str) -> None:
        faults.append(Fault(kind, where, what, known_fault(dataset, sequence.name, kind)))

    for index in range(len(sequence)):
        size = None
        where = str(path_of(index)) if has_paths else f"{sequence.root}, {sequence.name} frame {index}"
        if sequence.has_frames:
            image = where if has_paths or not sequence.is_still else sequence.name
            try:
                if image not in decoded:
                    decoded.clear()  # objects are sorted by image: only the last one is needed
                    decoded[image] = sequence.frame(index).shape[:2]
                    frames += 1
            except (SourceError, DatasetError, IndexError) as error:
                faults.append(Fault("image", "", str(error)))
                continue
            size = decoded[image]
            first_size = first_size or size
            if size != first_size and "frame size" not in reported:
                reported.add("frame size")
                add("frame size", f"{size[1]} x {size[0]}, after frames of {first_size[1]} x {first_size[0]}")
        kind = _box_kind(sequence, index, size)
        boxes += kind == "right"
        absent += kind == "absent"
        if kind not in ("right", "absent", *reported):
            box = ",".join(f"{value:g}" for value in sequence.boxes_xywh[index])
            of = f" in a frame of {size[1]} x {size[0]}" if size else ""
            add(kind, f"box {box} of {sequence.name}{of}")
    return CheckReport(1, frames, boxes, absent, tuple(faults))


def _box_kind(sequence: TrackingSequence, index: int, frame_size: Size | None) -> str:
    """`right`, `absent`, or the kind of fault."""
    x, y, w, h = sequence.boxes_xywh[index]
    if np.isnan([x, y, w, h]).any():
        return "box NaN" if sequence.visible is not None and sequence.visible[index] else "absent"
    if sequence.visible is not None and not sequence.visible[index]:
        return "absent"
    if w <= 0 or h <= 0:
        return "box empty"
    if frame_size is None:
        return "right"
    height, width = frame_size
    return "box outside" if x >= width or y >= height or x + w <= 0 or y + h <= 0 else "right"
