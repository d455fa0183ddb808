"""Annotations as in MOTChallenge (MOT 1.1): gt/gt.txt and img1/; https://motchallenge.net/instructions, and CVAT's."""

import configparser
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, parse_numbers, read_text
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

GROUNDTRUTH = Path("gt", "gt.txt")
LEAST_COLUMNS = 6
COLUMNS = "frame,track,x,y,w,h,considered,class,visibility"


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
    path = folder / GROUNDTRUTH
    is_challenge = (folder / "seqinfo.ini").is_file()
    origin = 1.0 if is_challenge else 0.0
    tracks: dict[int, _Rows] = {}
    for line, text in enumerate(read_text(path, "ground truth").splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        try:
            values = parse_numbers(text.strip())
        except ValueError:
            values = []
        if len(values) < LEAST_COLUMNS or not all(map(math.isfinite, values)):
            raise DatasetError(f"{where}: expected the numbers {COLUMNS} (6 to 10 of them), found {text.strip()!r}")
        frame, track, x, y, w, h, *rest = values
        if frame < 1 or frame != int(frame):
            raise DatasetError(f"{where}: the first column is the frame, counted from 1; found {frame:g}")
        if track < 0 or track != int(track):
            raise DatasetError(
                f"{where}: the second column is the number of the track, found {track:g}; det.txt has none"
            )
        if w < 0 or h < 0:
            raise DatasetError(f"{where}: negative width or height in {text.strip()!r}; columns are {COLUMNS}")
        if rest and rest[0] == 0:
            continue
        rows = tracks.setdefault(int(track), _Rows(line, {}, set()))
        if int(frame) - 1 in rows.boxes_xywh:
            raise DatasetError(f"{where}: a second box of track {track:g} on frame {frame:g}; remove one")
        rows.boxes_xywh[int(frame) - 1] = [x - origin, y - origin, w, h]
        if is_challenge and len(rest) > 2 and rest[2] == 0:
            rows.hidden.add(int(frame) - 1)
    if not tracks:
        raise DatasetError(f"{path}: no row with a target; expected {COLUMNS} a line")
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
    info, path = configparser.ConfigParser(), folder / "seqinfo.ini"
    try:
        info.read(path, encoding="utf-8-sig")
        images = info.get("Sequence", "imDir", fallback="img1")
        fps = info.getfloat("Sequence", "frameRate", fallback=math.nan)
        length = info.getint("Sequence", "seqLength", fallback=None)
        width, height = (info.getint("Sequence", name, fallback=0) for name in ("imWidth", "imHeight"))
    except (configparser.Error, ValueError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise DatasetError(f"{path}: {said}; expected [Sequence] with imDir, frameRate and seqLength") from error
    if fps <= 0:
        raise DatasetError(f"{path}: frameRate is {fps:g}; expected frames a second, or no such line")
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
            f"{path}: seqLength is {length}, but {footage.place} has {len(footage.numbers)} frames; unpack it anew, or "
            "mend seqLength"
        )
    footage.require_size((height, width) if height and width else None, f"{path}, imWidth and imHeight")
    return footage if math.isnan(fps) else footage._replace(fps=fps)
