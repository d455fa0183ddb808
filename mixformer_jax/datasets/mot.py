"""Annotations as in MOTChallenge (MOT 1.1): gt/gt.txt and img1/; https://motchallenge.net/instructions, and CVAT's."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.mot_files import COLUMNS, GROUNDTRUTH, SEQINFO, has_seqinfo, read_mot_rows, read_seqinfo
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.datasets.tracks import (
    Footage,
    Target,
    Track,
    dataset_of,
    find_video,
    image_footage,
    plain_name,
    sequence_of,
    video_footage,
)


def read_mot(root: Path, split: str | None = None) -> Dataset:
    """Tracks of MOT 1.1, of one sequence or of all below the root.

        gt/gt.txt                   frame,track,x,y,w,h,considered,class,visibility
        gt/labels.txt               names of the classes; may be missing
        img1/000001.jpg, ...        or, beside gt, the annotated video
        seqinfo.ini                 may be missing

    Frames count from 1. Rows with `considered` 0 are left out. With a seqinfo.ini, as in MOTChallenge's own sets,
    pixels count from 1, and a target of visibility 0 is not in view. Without, as CVAT and Datumaro write it, pixels
    count from 0, and visibility 0 says that a target is occluded, by a part or wholly: its box stays.
    """
    folders = mot_folders(root)
    if not folders:
        raise DatasetError(f"{root}: no {GROUNDTRUTH}; expected an export as MOT 1.1, unpacked")
    targets = []
    for folder in folders:
        video = plain_name(folder.resolve().name)
        for number, rows in _read_rows(folder).items():
            targets.append(Target(video, str(number), functools.partial(_read, folder, number, rows)))
    return dataset_of("mot", root, targets)


def mot_folders(root: Path) -> list[Path]:
    """Folders below the root that hold gt/gt.txt."""
    return [
        path.parent.parent for pattern in ("", "*/", "*/*/") for path in sorted(root.glob(f"{pattern}{GROUNDTRUTH}"))
    ]


class _Rows(NamedTuple):
    """The rows of one target."""

    line: int  # of the first
    boxes_xywh: dict[int, list[float]]  # by frame, from 0
    hidden: set[int]  # frames on which it is not in view


def _read_rows(folder: Path) -> dict[int, _Rows]:
    is_challenge = has_seqinfo(folder)
    rows = read_mot_rows(folder / GROUNDTRUTH, "ground truth")
    boxes_xywh = rows.boxes_xywh - (1, 1, 0, 0) if is_challenge else rows.boxes_xywh
    tracks: dict[int, _Rows] = {}
    for row in np.flatnonzero(rows.scores != 0).tolist():
        track = tracks.setdefault(int(rows.ids[row]), _Rows(int(rows.lines[row]), {}, set()))
        frame = int(rows.frames[row]) - 1
        track.boxes_xywh[frame] = boxes_xywh[row].tolist()
        if is_challenge and rows.visibility[row] == 0:
            track.hidden.add(frame)
    if not tracks:
        raise DatasetError(f"{rows.path}: no row with a target; expected {COLUMNS['ground truth']} a line")
    return tracks


def _read(folder: Path, number: int, rows: _Rows, name: str, video: str) -> TrackingSequence:
    seen = {frame: box for frame, box in rows.boxes_xywh.items() if frame not in rows.hidden}
    where = f"{folder / GROUNDTRUTH}, line {rows.line}, track {number}"
    if not seen:
        raise DatasetError(f"{where}: its visibility is 0 on all frames; leave the target out of the export")
    return sequence_of(name, video, _footage(folder, max(rows.boxes_xywh)), Track.of_frames(seen), where)


def _check_numbers(folder: Path, names: Sequence[str]) -> None:
    """Raises DatasetError where numbered images have gaps: all behind one would be taken for another frame."""
    for before, after in itertools.pairwise(names):
        numbers = [Path(name).stem for name in (before, after)]
        if all(map(str.isdecimal, numbers)) and int(numbers[1]) != int(numbers[0]) + 1:
            raise DatasetError(
                f"{folder}: no image between {before} and {after}; lay the missing ones there, or number images and "
                "frames without gaps"
            )


def _footage(folder: Path, last: int) -> Footage:
    images, fps, length, size = read_seqinfo(folder)
    footage = image_footage(folder / images)
    if footage is not None:
        assert isinstance(footage.frame, ImageFrames)
        _check_numbers(folder / images, footage.frame.names)
    else:
        found = find_video(folder, f"{folder.resolve().name}.mp4", True)
        if found is None:
            reason = f"{folder}: neither {images}/ with images nor the annotated video; put one of them there"
            return Footage(folder, MissingFrames(reason), np.arange(max(last + 1, length or 0)))
        footage = video_footage(found)
    if length is not None and length != len(footage.numbers):
        raise DatasetError(
            f"{folder / SEQINFO}: seqLength is {length}, but {footage.place} has {len(footage.numbers)} frames; "
            "unpack it anew, or mend seqLength"
        )
    footage.require_size(size, f"{folder / SEQINFO}, imWidth and imHeight")
    return footage if fps is None else footage._replace(fps=fps)
