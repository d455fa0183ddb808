"""Annotation files of tracking data sets: one box, or one label, a line."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64


class DatasetError(ValueError):
    """A data set on disk is not what its reader expects; the message names the file and the mend."""


def read_groundtruth(path: str | Path, expected_length: int | None = None) -> Float64[np.ndarray, "n 4"]:
    """Boxes of one sequence, xywh in pixels, one line a frame.

    Columns are separated by commas, or by tabs or spaces. A line of four `nan` says that the target is
    absent. Blank lines are allowed at the end only: one in the middle would shift every box after it.

    Args:
        path: the text file.
        expected_length: the number of frames that the boxes belong to, where it is known.

    Raises:
        DatasetError: missing or unreadable file; a line which is not four numbers, is NaN in part, infinite,
            or has a negative size (file and line are named); a length other than `expected_length` (both are
            named).
    """
    path = Path(path)
    lines = _read_lines(path, "ground truth")
    boxes_xywh = np.array([_parse_box(line, path, i) for i, line in enumerate(lines, start=1)], np.float64)
    if expected_length is not None:
        check_length(path, len(boxes_xywh), expected_length)
    return boxes_xywh


def check_length(path: Path, num_boxes: int, num_frames: int) -> None:
    """Refuse a ground truth of another length than its video; the message names both."""
    if num_boxes != num_frames:
        raise DatasetError(
            f"{path}: {num_boxes} boxes for {num_frames} frames; "
            "the file needs one line for every frame (nan,nan,nan,nan where the target is absent)"
        )


def read_labels(path: str | Path, expected_length: int | None = None) -> Int64[np.ndarray, " n"]:
    """One integer a line, as in GOT-10k's `absence.label`.

    Raises:
        DatasetError: missing file, a line which is not one integer, or a length other than `expected_length`.
    """
    path = Path(path)
    labels = []
    for number, line in enumerate(_read_lines(path, "label file"), start=1):
        try:
            labels.append(int(line))
        except ValueError:
            raise DatasetError(f"{path}, line {number}: expected one integer, found {line!r}") from None
    if expected_length is not None and len(labels) != expected_length:
        raise DatasetError(f"{path}: {len(labels)} labels for {expected_length} frames; it needs one a frame")
    return np.array(labels, np.int64)


def _read_lines(path: Path, kind: str) -> list[str]:
    """Stripped lines without the blank ones at the end; refuses an empty file."""
    try:
        # utf-8-sig: annotation tools on Windows put a byte order mark before the first number.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; the {kind} is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot read the {kind} as text: {error}") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise DatasetError(f"{path}: the {kind} is empty; expected one line for every frame")
    return lines


def _parse_box(line: str, path: Path, number: int) -> list[float]:
    where = f"{path}, line {number}"
    # Splitting at commas alone keeps "1,,3,4" an error instead of three numbers.
    columns = line.split(",") if "," in line else line.split()
    if len(columns) != 4:
        hint = "; polygons must be turned into boxes first" if len(columns) == 8 else ""
        raise DatasetError(f"{where}: expected 4 columns x,y,w,h, found {len(columns)} in {line!r}{hint}")
    try:
        # float() would read 1_0 as 10, and digits of other scripts.
        if "_" in line or not line.isascii():
            raise ValueError(line)
        box_xywh = [float(column) for column in columns]
    except ValueError:
        raise DatasetError(f"{where}: expected four numbers x,y,w,h, found {line!r}") from None
    num_nan = sum(math.isnan(value) for value in box_xywh)
    if num_nan == 4:
        return box_xywh
    if num_nan:
        raise DatasetError(f"{where}: NaN in part, {line!r}; a target is absent with four nan, or has four numbers")
    if any(math.isinf(value) for value in box_xywh):
        raise DatasetError(f"{where}: infinite value in {line!r}")
    if box_xywh[2] < 0 or box_xywh[3] < 0:
        raise DatasetError(f"{where}: negative width or height in {line!r}; columns are x,y,w,h and not corners")
    return box_xywh
