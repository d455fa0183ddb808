"""Text files of MOTChallenge: a box a line with the number of its frame. Ground truths, detections and results.

    frame,id,x,y,w,h,score,class,visibility

Frames count from 1. Columns behind the sixth may be missing, and mean something else in each kind: the seventh is a
ground truth's flag of whether the row counts, and elsewhere the confidence. Pixels are left as they are in the file:
MOTChallenge's own count from 1, those of most programs from 0; see `has_seqinfo`.
"""

import configparser
import math
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from mixformer_jax.datasets.groundtruth import DatasetError, parse_numbers, parse_table, read_text

GROUNDTRUTH, DETECTIONS, SEQINFO = Path("gt", "gt.txt"), Path("det", "det.txt"), "seqinfo.ini"
LEAST_COLUMNS, MOST_COLUMNS = 6, 10
# Pixels: sides of a box that can be cut out and written, and how far it may lie off.
LEAST_SIDE, MOST_PIXELS = 1e-3, 1e9
_MOST_COUNTED = 2.0**53  # above it floats skip whole numbers
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
    """A file's rows; it may have none.

    Raises:
        DatasetError: a line that is no row of this kind, or a second box of a track on a frame; it names the line.
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
        _check_once(found)
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


def _check_once(rows: MotRows) -> None:
    order = np.lexsort((rows.lines, rows.ids, rows.frames))
    frames, ids = rows.frames[order], rows.ids[order]
    for place in np.flatnonzero((frames[1:] == frames[:-1]) & (ids[1:] == ids[:-1]))[:1].tolist():
        row = int(order[place + 1])
        raise DatasetError(
            f"{rows.where(row)}: a second box of track {rows.ids[row]} on frame {rows.frames[row]}; remove one"
        )


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
