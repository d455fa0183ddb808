"""Annotation files of tracking data sets: one box, or one label, a line; JSON, whose faults have places."""

import contextlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

# Bytes of a well-formed table; with others (nan, a byte order mark, typing errors) it is read line by line.
_PLAIN = b"0123456789.,-+eE \t\n"


class DatasetError(ValueError):
    """Files of a data set are not what the reader expects; the message names the file and the mend."""


class LengthError(DatasetError):
    """Files of a sequence disagree about its number of frames."""


def read_groundtruth(
    path: str | Path, expected_length: int | None = None, published: bool = False
) -> Float64[np.ndarray, "n 4"]:
    """Boxes of one sequence, xywh in pixels, one line a frame; four `nan` where the target is absent.

    Columns are separated by commas, or by tabs or spaces: x,y,w,h, or x,y,w,h,score,lost of `mixformer track`. Negative
    sizes mean no target in a `published` file; in a user's own they are an error, most likely corners.

    Raises DatasetError for a missing or unreadable file, a line that is not four finite numbers or four nan, also a
    blank one before the end, or another length than `expected_length`.
    """
    path = Path(path)
    lines = read_lines(path, "ground truth")
    boxes_xywh = parse_table("\n".join(lines).encode(), (4,))
    if boxes_xywh is None:
        boxes_xywh = np.array([_parse_box(line, f"{path}, line {i}") for i, line in enumerate(lines, 1)], np.float64)
    negative = np.flatnonzero((boxes_xywh[:, 2:] < 0).any(axis=1))
    if len(negative) and not published:
        raise DatasetError(
            f"{path}, line {negative[0] + 1}: negative width or height in {lines[negative[0]]!r}; columns are x,y,w,h "
            "and not corners"
        )
    if expected_length is not None:
        check_length(path, len(boxes_xywh), expected_length)
    return boxes_xywh


def has_target(boxes_xywh: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Rows with a target: w > 0 and h > 0, as in evaluation toolkits; NaN has none."""
    return np.asarray((boxes_xywh[:, 2:] > 0).all(axis=1))


def check_length(path: Path, num_boxes: int, num_frames: int) -> None:
    """Raises LengthError unless there is a box for each frame."""
    if num_boxes != num_frames:
        raise LengthError(
            f"{path}: {num_boxes} boxes for {num_frames} frames; "
            "the file needs one line for every frame (nan,nan,nan,nan where the target is absent)"
        )


def read_labels(path: str | Path, expected_length: int | None = None) -> Int64[np.ndarray, " n"]:
    """One integer a line, as in GOT-10k's `absence.label`, or all in one line, with commas as in LaSOT, tabs or spaces.

    Raises DatasetError for a missing file, no integer, or another length than `expected_length`.
    """
    path = Path(path)
    lines = read_lines(path, "label file")
    words = lines if len(lines) > 1 else lines[0].split("," if "," in lines[0] else None)
    labels = []
    for number, word in enumerate(words, start=1):
        try:
            labels.append(int(word))
        except ValueError:
            where = f"line {number}" if len(lines) > 1 else f"line 1, column {number}"
            raise DatasetError(f"{path}, {where}: expected one integer, found {word!r}") from None
    if expected_length is not None and len(labels) != expected_length:
        raise LengthError(f"{path}: {len(labels)} labels for {expected_length} frames; it needs one a frame")
    return np.array(labels, np.int64)


def read_attributes(path: Path | None, names: Sequence[str], prefix: Sequence[str] = ()) -> tuple[str, ...] | None:
    """The challenges of a sequence: one 0 or 1 for each of `names`, with commas or blanks. None without a file.

    Extra flags before them that equal `prefix` are skipped.

    Raises DatasetError for another number of flags, or something else than 0 and 1.
    """
    if path is None or not path.is_file():
        return None
    text = read_text(path, "attribute file").strip()
    flags = re.split(r"\s*,\s*|\s+", text)
    if len(flags) == len(prefix) + len(names) and flags[: len(prefix)] == list(prefix):
        flags = flags[len(prefix) :]
    if len(flags) != len(names) or not set(flags) <= {"0", "1"}:
        raise DatasetError(f"{path}: expected {len(names)} times 0 or 1 ({', '.join(names)}), found {text!r}")
    return tuple(name for name, flag in zip(names, flags, strict=True) if flag == "1")


def read_names(path: Path) -> list[str]:
    """Names of sequences, one a line; DatasetError for a missing or empty file, or a name that is there twice."""
    names = [line.strip() for line in read_text(path, "list").splitlines() if line.strip()]
    if not names:
        raise DatasetError(f"{path}: the list is empty; expected the names of sequences, one a line")
    (most, count), *_ = Counter(names).most_common(1)
    if count > 1:
        raise DatasetError(f"{path}: {most} is listed twice")
    return names


def read_text(path: Path, kind: str) -> str:
    """A text file, stripped at the end; DatasetError names its `kind` where it is missing or no text."""
    try:
        # utf-8-sig: annotation tools on Windows put a byte order mark before the first number.
        return path.read_text(encoding="utf-8-sig").rstrip()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; expected the {kind}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot read the {kind} as text: {error}") from error


def read_lines(path: Path, kind: str) -> list[str]:
    """The stripped lines of a text file; errors as `read_text`, and for an empty file."""
    lines = [line.strip() for line in read_text(path, kind).splitlines()]
    if not lines:
        raise DatasetError(f"{path}: the {kind} is empty; expected one line for every frame")
    return lines


def shortened(text: str) -> str:
    """What messages show of a text."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_numbers(line: str, separator: str | None = None) -> list[float]:
    """Numbers separated by commas or, without those, by `separator` (white space); ValueError for anything else."""
    if "_" in line or not line.isascii():  # float() would read 1_0 as 10, and digits of other scripts
        raise ValueError(line)
    return [float(cell) for cell in line.split("," if "," in line else separator)]


def parse_table(content: bytes, widths: tuple[int, ...]) -> Float64[np.ndarray, "n k"] | None:
    """All lines of numbers at once; None where reading line by line might find something else.

    `widths` are the numbers of columns that there may be; any, if it is empty.
    """
    content = content.replace(b"\r\n", b"\n").rstrip()
    if not content or content.translate(None, _PLAIN):
        return None
    delimiter = "," if b"," in content else None
    try:
        numbers = np.loadtxt(io.BytesIO(content), delimiter=delimiter, comments=None, ndmin=2)
    except ValueError:
        return None
    # loadtxt skips blank lines.
    exact = len(numbers) == content.count(b"\n") + 1 and (not widths or numbers.shape[1] in widths)
    return numbers if exact and np.isfinite(numbers).all() else None


def _parse_box(line: str, where: str) -> list[float]:
    columns = line.split(",") if "," in line else line.split()
    if len(columns) == 6 and columns[5].strip() in ("0", "1"):
        with contextlib.suppress(ValueError):
            # x,y,w,h,score,lost; files of others may begin with the frame's number.
            columns = columns[:4] if 0 <= float(columns[4]) <= 1 else columns
    if len(columns) != 4:
        hint = "; polygons must be turned into boxes first" if len(columns) == 8 else ""
        raise DatasetError(f"{where}: expected 4 columns x,y,w,h, found {len(columns)} in {line!r}{hint}")
    try:
        box_xywh = parse_numbers(line)[:4]
    except ValueError:
        raise DatasetError(f"{where}: expected four numbers x,y,w,h, found {line!r}") from None
    if 0 < sum(map(math.isnan, box_xywh)) < 4:
        raise DatasetError(f"{where}: NaN in part, {line!r}; a target is absent with four nan, or has four numbers")
    if any(map(math.isinf, box_xywh)):
        raise DatasetError(f"{where}: infinite value in {line!r}")
    return box_xywh


@dataclass(frozen=True)
class Place:
    """A value in a JSON file, and where it stands."""

    file: Path
    path: str
    value: Any

    def __getitem__(self, key: str) -> "Place":
        """A field that must be there."""
        found = self.get(key)
        if found is None:
            raise self.error(f"an object with {key!r}")
        return found

    def get(self, key: str) -> "Place | None":
        """A field; None where it is missing or null."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        path = f"{self.path}.{key}" if self.path else key
        return None if self.value.get(key) is None else Place(self.file, path, self.value[key])

    def items(self) -> Iterator["Place"]:
        """The members of a list."""
        if not isinstance(self.value, list):
            raise self.error("a list")
        return (Place(self.file, f"{self.path}[{index}]", value) for index, value in enumerate(self.value))

    def number(self, least: float = -math.inf) -> float:
        """A finite number of at least so much."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < least:
            raise self.error("a number" if least == -math.inf else f"a number from {least:g} on")
        return float(value)

    def whole(self, least: float = -math.inf) -> int:
        """A whole number of at least so much."""
        value = self.number(least)
        if value != int(value):
            raise self.error("a whole number")
        return int(value)

    def text(self) -> str:
        """A text that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            raise self.error("a text")
        return self.value

    def error(self, expected: str) -> DatasetError:
        """What to raise where something else is expected here."""
        where, found = f"{self.file}, {self.path or 'top'}", shortened(json.dumps(self.value))
        return DatasetError(f"{where}: expected {expected}, found {found}; export anew, or mend it")


def read_json(path: Path) -> Place:
    """The content of a file; DatasetError, with the line, where it is no JSON."""
    try:
        return Place(path, "", json.loads(read_text(path, "annotation file")))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}: no JSON ({error.msg}); export anew") from error
    except RecursionError as error:
        raise DatasetError(f"{path}: its lists and objects are nested too deep; export anew") from error
