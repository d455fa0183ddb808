"""Regions of VOT's ground truth and result files: special codes, rectangles, polygons and masks.

    0                       special code: 0 unknown, 1 initialisation, 2 failure
    x,y,w,h                 rectangle, pixels
    x1,y1,x2,y2,x3,y3,...   polygon of three points or more
    mX,Y,W,H,r0,r1,...      mask: run lengths over the window of W x H pixels at X,Y, row by row, starting with zeros;
                            empty where the window has no pixels, whatever the runs

A line with nan is code 0. Numbers are kept in float32, as vot-toolkit keeps them. Binary trajectories (.bin) hold the
same regions.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from mixformer_jax.datasets.vot import MAX_MASK_PIXELS
from mixformer_jax.evaluation.metrics import MAX_COORDINATE
from mixformer_jax.evaluation.number_files import ResultsError

UNKNOWN, INITIALIZATION, FAILURE = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Special:
    """A code in the place of a region."""

    code: int


@dataclasses.dataclass(frozen=True, eq=False)
class Rectangle:
    box_xywh: Float32[np.ndarray, " 4"]


@dataclasses.dataclass(frozen=True, eq=False)
class Polygon:
    points_xy: Float32[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Pixels of a window whose upper left pixel is `offset_xy` in the frame."""

    pixels: Bool[np.ndarray, "h w"]
    offset_xy: tuple[int, int]


Region = Special | Rectangle | Polygon | Mask


def is_empty(region: Region) -> bool:
    """Whether vot-toolkit takes the region for empty: codes, shapes without extent, and masks without pixels.

    A mask whose pixels all lie in the first row or the first column of its window counts as empty as well.
    """
    if isinstance(region, Special):
        return True
    if isinstance(region, Rectangle):
        return not bool((region.box_xywh[2:] > 0).all())
    if isinstance(region, Polygon):
        return bool((np.ptp(region.points_xy, axis=0) == 0).any())
    last_row, last_column = _last_pixels(region.pixels)
    return last_row <= 0 or last_column <= 0


def parse_region(text: str) -> Region:
    """The region on one line of a file.

    Raises:
        ValueError: the line is no region; says what was expected.
    """
    text = text.strip()
    if text.startswith("m"):
        return _parse_mask(text)
    numbers = _parse_numbers(text)
    if len(numbers) == 1:
        if numbers[0] not in (UNKNOWN, INITIALIZATION, FAILURE):
            raise ValueError(f"special code {text!r}; expected 0 unknown, 1 initialisation or 2 failure")
        return Special(int(numbers[0]))
    if len(numbers) < 4 or len(numbers) % 2:
        raise ValueError(
            f"{len(numbers)} numbers; expected a code, a rectangle x,y,w,h, a polygon of three points or more, "
            "or a mask mX,Y,W,H,runs"
        )
    if any(map(math.isnan, numbers)):
        return Special(UNKNOWN)
    return _shape(numbers)


def read_regions(path: str | Path) -> list[Region]:
    """All regions of a text (.txt) or binary (.bin) file, one a frame.

    Raises:
        ResultsError: no such file, not text, empty, or a line (in a binary file: a region) that is none; file and line
            are named.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"region file {path}: no such file") from None
    except OSError as error:
        raise ResultsError(f"region file {path}: cannot be read: {error}") from error
    if path.suffix == ".bin":
        return _read_binary(path, content)
    try:
        lines = content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ResultsError(f"region file {path}, line {number}: not text in UTF-8: {error}") from error
    if not lines:
        raise ResultsError(f"region file {path}: empty; expected one region a line")
    regions = []
    for number, line in enumerate(lines, start=1):
        try:
            regions.append(parse_region(line))
        except ValueError as error:
            raise ResultsError(f"region file {path}, line {number}: {error}") from error
    return regions


def _parse_numbers(text: str) -> list[float]:
    try:
        # float() would read 1_0 as 10, and digits of other scripts.
        if "_" in text or not text.isascii():
            raise ValueError(text)
        return [float(cell) for cell in text.split(",")]
    except ValueError:
        raise ValueError(f"expected numbers separated by commas, found {_short(text)}") from None


def _shape(numbers: list[float]) -> Rectangle | Polygon:
    values = np.array(numbers, np.float32)
    if not (np.abs(values) <= MAX_COORDINATE).all():
        raise ValueError(f"{numbers} is infinite or too large for pixels")
    return Rectangle(values) if len(values) == 4 else Polygon(values.reshape(-1, 2))


def _parse_mask(text: str) -> Mask:
    if re.fullmatch(r"m-?\d+,-?\d+(,\d+)+", text, re.ASCII) is None:
        raise ValueError(f"expected a mask mX,Y,W,H,runs of whole numbers, found {_short(text)}")
    numbers = [int(cell) for cell in text[1:].split(",")]
    if len(numbers) < 4:
        raise ValueError(f"expected a mask mX,Y,W,H,runs, found {_short(text)}")
    x, y, width, height, *runs = numbers
    pixels = _decode_runs(runs, width, height)
    last_row, last_column = _last_pixels(pixels)
    # The toolkit cuts what it reads from text to its pixels, and drops a mask that ends in its window's first column.
    if last_column <= 0:
        return Mask(np.zeros((0, 0), bool), (0, 0))
    top, left = int(pixels.any(1).argmax()), int(pixels.any(0).argmax())
    return _mask(pixels[top : last_row + 1, left : last_column + 1].copy(), x + left, y + top)


def _mask(pixels: Bool[np.ndarray, "h w"], x: int, y: int) -> Mask:
    if max(abs(x), abs(y)) > MAX_COORDINATE:
        raise ValueError(f"a mask at {x},{y}: too far away for pixels")
    return Mask(pixels, (x, y))


def _decode_runs(runs: list[int], width: int, height: int) -> Bool[np.ndarray, "h w"]:
    if not width * height:
        # Published, with a run all the same: m0,0,0,0,0,1 (votchallenge/toolkit#7).
        return np.zeros((height, width), bool)
    if width * height > MAX_MASK_PIXELS:
        raise ValueError(f"a mask of {width} x {height} pixels; at most {MAX_MASK_PIXELS} are read")
    if sum(runs) > width * height:
        raise ValueError(f"the runs of a mask cover {sum(runs)} pixels, and its window has {width} x {height}")
    # What the runs leave over at the end is not part of the mask.
    values = np.zeros(width * height, bool)
    covered = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    values[: len(covered)] = covered
    return values.reshape(height, width)


def _last_pixels(pixels: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Last row and column that hold a pixel; -1, -1 when none does."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return (int(rows[-1]), int(columns[-1])) if rows.size else (-1, -1)


def _read_binary(path: Path, content: bytes) -> list[Region]:
    regions: list[Region] = []
    position = 0

    def take(layout: str) -> tuple:
        nonlocal position
        values = struct.unpack_from(layout, content, position)
        position += struct.calcsize(layout)
        return values

    try:
        version, length = take("<hI")
        if version != 1:
            raise ValueError(f"version {version}; expected 1")
        while len(regions) < length:
            regions.append(_take_region(take))
        if position != len(content):
            raise ValueError(f"{len(content) - position} bytes after the last region")
    except (struct.error, ValueError) as error:
        raise ResultsError(f"region file {path}, region {len(regions) + 1}: no binary trajectory: {error}") from error
    if not regions:
        raise ResultsError(f"region file {path}: empty; expected one region a frame")
    return regions


def _take_region(take: Callable[[str], tuple]) -> Region:
    (kind,) = take("<B")
    if kind == 0:
        return parse_region(str(take("<I")[0]))
    if kind == 1:
        return _shape(list(take("<4f")))
    if kind == 2:
        (count,) = take("<H")
        if count < 3:
            raise ValueError(f"a polygon of {count} points")
        return _shape(list(take(f"<{2 * count}f")))
    if kind == 3:
        x, y, width, height, count = take("<hhHHH")
        return _mask(_decode_runs(list(take(f"<{count}H")), width, height), x, y)
    raise ValueError(f"kind {kind}; expected 0 to 3")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
