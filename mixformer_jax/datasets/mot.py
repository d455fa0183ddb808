"""MOTChallenge (MOT 1.1, https://motchallenge.net/instructions), also as CVAT writes it: its text files, sequences in
its layout, and targets to train on.
"""

import configparser
import functools
import itertools
import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from mixformer_jax.datasets.groundtruth import DatasetError, parse_numbers, parse_table, read_text
from mixformer_jax.datasets.layout import image_names
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.datasets.tracks import (
    Footage,
    Target,
    Track,
    dataset_of,
    find_video,
    footage_of,
    plain_name,
    sequence_of,
)
from mixformer_jax.media.sources import FrameSource
from mixformer_jax.media.video import open_source

GROUNDTRUTH, DETECTIONS, SEQINFO = Path("gt", "gt.txt"), Path("det", "det.txt"), "seqinfo.ini"
LEAST_COLUMNS, MOST_COLUMNS = 6, 10
# Pixels: sides of a box that can be cut out and written, and how far it may lie off.
LEAST_SIDE, MOST_PIXELS = 1e-3, 1e9
_MOST_COUNTED = 2.0**53  # above it floats skip whole numbers
# A box a line. Frames count from 1; columns behind the sixth may be missing.
COLUMNS = {
    "ground truth": "frame,track,x,y,w,h,considered,class,visibility",
    "detections": "frame,-1,x,y,w,h,score",
    "results": "frame,id,x,y,w,h,score,-1,-1,-1",
}
Kind = Literal["ground truth", "detections", "results"]


class MotRows(NamedTuple):
    """The rows of a file, in its order."""

    path: Path
    lines: Int64[np.ndarray, " n"]  # where they stand, from 1
    frames: Int64[np.ndarray, " n"]  # from 1
    ids: Int64[np.ndarray, " n"]  # of tracks; what detections have there means nothing
    boxes_xywh: Float64[np.ndarray, "n 4"]  # pixels of the file
    scores: Float64[np.ndarray, " n"]  # confidence, or whether the row counts; 1 where the file does not say
    classes: Int64[np.ndarray, " n"]  # 0 where it does not say
    visibility: Float64[np.ndarray, " n"]  # share of the box that is in view; 1 where it does not say

    def where(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_mot_rows(path: Path, kind: Kind) -> MotRows:
    """A file's rows; it may have none. Pixels are left as they are: see `has_seqinfo` for whether they count from 1.

    Raises DatasetError: a line that is no row of this kind, or a second box of a track on a frame; it names the line.
    """
    text = read_text(path, kind)
    table = parse_table(text.encode(), tuple(range(LEAST_COLUMNS, MOST_COLUMNS + 1)))
    if table is None:  # faults, blank lines, or rows of different lengths
        table, lines = _line_by_line(path, text, kind)
    else:
        lines = np.arange(1, len(table) + 1)
        table = np.pad(table, ((0, 0), (0, MOST_COLUMNS - table.shape[1])), constant_values=np.nan)
    score, label, visibility = (
        np.where(np.isnan(column), default, column) for column, default in zip(table[:, 6:9].T, (1, 0, 1), strict=True)
    )
    _check(path, table, lines, kind)
    if kind != "ground truth" or (label != np.floor(label)).any():  # places in the world, of MOT15
        label = np.zeros(len(table))
    ids = table[:, 1] if kind != "detections" else np.full(len(table), -1)
    frames, ids, classes = (column.astype(np.int64) for column in (table[:, 0], ids, label))
    found = MotRows(path, lines, frames, ids, table[:, 2:6], score, classes, visibility)
    if kind != "detections":
        order = np.lexsort((lines, ids, frames))
        for place in np.flatnonzero((np.diff(frames[order]) == 0) & (np.diff(ids[order]) == 0))[:1].tolist():
            row = int(order[place + 1])
            raise DatasetError(
                f"{found.where(row)}: a second box of track {ids[row]} on frame {frames[row]}; remove one"
            )
    return found


def _line_by_line(path: Path, text: str, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    table, lines = [], []
    for line, row in enumerate(text.splitlines(), start=1):
        if not row.strip():
            continue
        try:
            values = parse_numbers(row.strip())
        except ValueError:
            values = []
        if not (LEAST_COLUMNS <= len(values) <= MOST_COLUMNS and all(map(math.isfinite, values))):
            raise DatasetError(
                f"{path}, line {line}: expected the numbers {COLUMNS[kind]} ({LEAST_COLUMNS} to {MOST_COLUMNS} of "
                f"them), found {row.strip()!r}"
            )
        table.append(values + [math.nan] * (MOST_COLUMNS - len(values)))
        lines.append(line)
    return np.array(table, np.float64).reshape(-1, MOST_COLUMNS), np.array(lines, np.int64)


def _check(path: Path, table: np.ndarray, lines: np.ndarray, kind: Kind) -> None:
    """Raises DatasetError for the first row that cannot be one."""
    frames, ids, extents = table[:, 0], table[:, 1], table[:, 4:6]
    has_ids = kind != "detections"
    no_frame = (frames < 1) | _uncounted(frames)
    no_id = has_ids & ((ids < 0) | _uncounted(ids))
    no_extent = (extents < 0).any(axis=1) if has_ids else (extents < LEAST_SIDE).any(axis=1)
    too_far = (np.abs(table[:, 2:6]) > MOST_PIXELS).any(axis=1)
    # Of ten columns the eighth may be a place in the world.
    no_class = (kind == "ground truth") & np.isnan(table[:, 9]) & ~np.isnan(table[:, 7]) & _uncounted(table[:, 7])
    for row in np.flatnonzero(no_frame | no_id | no_extent | too_far | no_class)[:1].tolist():
        where, shown = f"{path}, line {lines[row]}", ",".join(f"{value:g}" for value in table[row, :6])
        if no_frame[row]:
            raise DatasetError(f"{where}: the first column is the frame, counted from 1; found {frames[row]:g}")
        if no_id[row]:
            raise DatasetError(
                f"{where}: the second column is the number of the track, found {ids[row]:g}; det.txt has none"
            )
        if no_class[row]:
            raise DatasetError(f"{where}: the eighth column is the number of the class, found {table[row, 7]:g}")
        what = "negative width or height" if has_ids else "a detection without width or height"
        if too_far[row]:
            what = f"more than {MOST_PIXELS:g} pixels"
        raise DatasetError(f"{where}: {what} in {shown}; columns are {COLUMNS[kind]}")


def _uncounted(values: np.ndarray) -> np.ndarray:
    """Which are no whole numbers, or too large to tell from the next one."""
    return np.asarray((values != np.floor(values)) | (np.abs(values) > _MOST_COUNTED))


def check_frames(rows: MotRows, num_frames: int, place: str) -> None:
    """Raises DatasetError for a row on a frame that `place`, a video of so many, does not have."""
    for row in np.flatnonzero(rows.frames > num_frames)[:1].tolist():
        raise DatasetError(
            f"{rows.where(row)}: a box on frame {rows.frames[row]}, but {place} has {num_frames} frames; are they of "
            "the same video, whole and with its own frame rate?"
        )


class SeqInfo(NamedTuple):
    """What seqinfo.ini says of a sequence."""

    images: str = "img1"  # folder
    fps: float | None = None
    length: int | None = None  # frames
    size: tuple[int, int] | None = None  # height and width

    def frames_at(self, folder: Path) -> Path | None:
        """The folder of the sequence's images, or its video; None where neither is there."""
        images = folder / self.images
        return images if image_names(images) else find_video(folder, f"{folder.resolve().name}.mp4", True)

    def check_length(self, folder: Path, num_frames: int | None, place: Path) -> None:
        """Raises DatasetError unless `place` has as many frames as the file in the sequence's folder says."""
        if self.length is not None and num_frames != self.length:
            raise DatasetError(
                f"{folder / SEQINFO}: seqLength is {self.length}, but {place} has {num_frames} frames; "
                "unpack it anew, or mend seqLength"
            )


def read_seqinfo(folder: Path) -> SeqInfo:
    """The seqinfo.ini of a sequence; the defaults where there is none. DatasetError where it cannot be read."""
    info, path = configparser.ConfigParser(), folder / SEQINFO
    try:
        info.read(path, encoding="utf-8-sig")
        images = info.get("Sequence", "imDir", fallback="img1")
        fps = info.getfloat("Sequence", "frameRate", fallback=math.nan)
        length = info.getint("Sequence", "seqLength", fallback=None)
        width, height = (info.getint("Sequence", name, fallback=0) for name in ("imWidth", "imHeight"))
    except (configparser.Error, ValueError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise DatasetError(f"{path}: {said}; expected [Sequence] with imDir, frameRate and seqLength") from error
    if fps <= 0 or fps == math.inf:
        raise DatasetError(f"{path}: frameRate is {fps:g}; expected frames a second, or no such line")
    return SeqInfo(images, None if math.isnan(fps) else fps, length, (height, width) if height and width else None)


def has_seqinfo(folder: Path) -> bool:
    """Whether a sequence is in MOTChallenge's own form, in which pixels count from 1."""
    return (folder / SEQINFO).is_file()


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
        rows = read_mot_rows(folder / GROUNDTRUTH, "ground truth")
        tracks = dict.fromkeys(rows.ids[rows.scores != 0].tolist())
        if not tracks:
            raise DatasetError(f"{rows.path}: no row with a target; expected {COLUMNS['ground truth']} a line")
        video = plain_name(folder.resolve().name)
        targets += [Target(video, str(number), functools.partial(_read, folder, rows, number)) for number in tracks]
    return dataset_of("mot", root, targets)


def mot_folders(root: Path, file: Path = GROUNDTRUTH) -> list[Path]:
    """Folders that hold a file: the root, and up to two below it."""
    paths = [path for depth in ("", "*/", "*/*/") for path in sorted(root.glob(f"{depth}{file}"))]
    return [path.parents[len(file.parts) - 1] for path in paths]


def _read(folder: Path, rows: MotRows, number: int, name: str, video: str) -> TrackingSequence:
    mine = np.flatnonzero((rows.ids == number) & (rows.scores != 0))
    where = f"{rows.where(mine[0])}, track {number}"
    footage = _footage(folder, rows.frames[mine].max())
    origin = 0.0
    if has_seqinfo(folder):
        origin, mine = 1.0, mine[rows.visibility[mine] != 0]
        if not len(mine):
            raise DatasetError(f"{where}: its visibility is 0 on all frames; leave the target out of the export")
    track = Track.of_frames(rows.frames[mine] - 1, rows.boxes_xywh[mine] - (origin, origin, 0, 0))
    return sequence_of(name, video, footage, track, where)


def _footage(folder: Path, least: int) -> Footage:
    """The frames of a sequence; as many as annotated, `least` or more, where they are missing."""
    info = read_seqinfo(folder)
    place = info.frames_at(folder)
    if place is None:
        reason = f"{folder}: neither {info.images}/ with images nor the annotated video; put one of them there"
        return Footage(folder, MissingFrames(reason), np.arange(max(least, info.length or 0)))
    footage = footage_of(place)
    if isinstance(footage.frame, ImageFrames):
        for before, after in itertools.pairwise(footage.frame.names):
            numbers = [Path(name).stem for name in (before, after)]
            # Images behind a gap would be taken for earlier frames.
            if all(map(str.isdecimal, numbers)) and int(numbers[1]) != int(numbers[0]) + 1:
                raise DatasetError(
                    f"{place}: no image between {before} and {after}; lay the missing ones there, or number images and "
                    "frames without gaps"
                )
    info.check_length(folder, len(footage.numbers), place)
    footage.require_size(info.size, f"{folder / SEQINFO}, imWidth and imHeight")
    return footage if info.fps is None else footage._replace(fps=info.fps)


class MotSequence(NamedTuple):
    """A sequence; what it lacks is None."""

    name: str
    folder: Path
    detections: Path | None
    groundtruth: Path | None

    @property
    def origin(self) -> float:
        """From which its pixels count: 1 in MOTChallenge's own form, else 0."""
        return 1.0 if has_seqinfo(self.folder) else 0.0

    def open(self) -> FrameSource:
        """Its frames, at the rate of its seqinfo.ini.

        Raises:
            DatasetError: no frames, or not as many or as large as seqinfo.ini says.
            SourceError: they cannot be read.
        """
        info = read_seqinfo(self.folder)
        place = info.frames_at(self.folder)
        if place is None:
            raise DatasetError(f"{self.folder}: neither {info.images}/ with images nor a video; put it there")
        source = open_source(place)
        source.name, source.fps = self.name, info.fps or source.fps
        info.check_length(self.folder, source.num_frames, place)
        if info.size is not None and source.size != info.size:
            (height, width), (told_height, told_width) = source.size, info.size
            raise DatasetError(
                f"{self.folder / SEQINFO}: imWidth and imHeight are {told_width}x{told_height}, but the frames of "
                f"{place} have {width}x{height}"
            )
        return source


def mot_sequences(root: Path) -> list[MotSequence]:
    """The sequences at a folder or up to two below it, such as those of MOT17 or of its `train`.

        train/SEQUENCE/img1/000001.jpg, ...     or a video
        train/SEQUENCE/det/det.txt              frame,-1,x,y,w,h,score
        train/SEQUENCE/gt/gt.txt                frame,track,x,y,w,h,considered,class,visibility; none in `test`
        train/SEQUENCE/seqinfo.ini              may be missing; with it pixels count from 1

    They come by name; none where the folder is of another kind. DatasetError for two of one name.
    """
    folders = {folder for mark in (DETECTIONS, GROUNDTRUTH, Path(SEQINFO)) for folder in mot_folders(root, mark)}
    found: dict[str, MotSequence] = {}
    for folder in sorted(folders):
        files = (path if (path := folder / mark).is_file() else None for mark in (DETECTIONS, GROUNDTRUTH))
        name = folder.resolve().name
        if name in found:
            raise DatasetError(f"{root}: two sequences are called {name}: {found[name].folder} and {folder}")
        found[name] = MotSequence(name, folder, *files)
    return [found[name] for name in sorted(found)]
