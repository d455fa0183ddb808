"""Regions as vot-toolkit reads and compares them: files of a run, and IoU that counts pixels.

Numbers are float32. A rectangle covers the pixels round(x) .. round(x) + round(w) - 1, and a polygon its border too
(rounding is half to even). Degenerate cases are the toolkit's: two regions that together span at most one row or one
column overlap fully, even when both are empty.
"""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mixformer_jax.datasets import vot
from mixformer_jax.datasets.vot import MAX_MASK_PIXELS, Mask, Polygon, Rectangle, Region, Special
from mixformer_jax.evaluation.results import ResultsError, decode_text, read_bytes

# Left, top, right, bottom in whole pixels, the last two included.
Box = tuple[int, int, int, int]


def is_empty(region: Region) -> bool:
    """Whether vot-toolkit takes the region for empty: codes, shapes without extent, and masks without pixels, or with
    pixels in the first row or the first column of their window alone."""
    match region:
        case Rectangle(box_xywh):
            return not bool((box_xywh[2:] > 0).all())
        case Polygon(points_xy):
            return bool((np.ptp(points_xy, axis=0) == 0).any())
        case Mask(pixels):
            ends = _pixel_ends(pixels)
            return ends is None or min(ends[2:]) <= 0
    return True


def parse_region(text: str) -> Region:
    """The region on one line, as the toolkit keeps it; ValueError as in `datasets.vot`. A mask is cut to its pixels;
    one that ends in its window's first column is dropped."""
    region = vot.parse_region(text)
    if not isinstance(region, Mask):
        return _in_float32(region)
    ends = _pixel_ends(region.pixels)
    if ends is None or ends[3] <= 0:
        return Mask(np.zeros((0, 0), bool), (0, 0))
    top, left, bottom, right = ends
    pixels = region.pixels[top : bottom + 1, left : right + 1].copy()
    return Mask(pixels, (region.offset_xy[0] + left, region.offset_xy[1] + top))


def read_regions(path: str | Path) -> list[Region]:
    """The regions of a text file or a binary trajectory (.bin), one a frame; ResultsError, with the line or the
    region's number, for a file that is missing, empty or no such file."""
    path = Path(path)
    content = read_bytes(path, "region file")
    if path.suffix == ".bin":
        return _read_binary(path, content)
    regions = []
    text = decode_text(path, content, "region file", "one region a line")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            regions.append(parse_region(line))
        except ValueError as error:
            raise ResultsError(f"region file {path}, line {number}: {error}") from error
    return regions


def _in_float32(region: Region) -> Region:
    match region:
        case Rectangle(box_xywh):
            return Rectangle(box_xywh.astype(np.float32))
        case Polygon(points_xy):
            return Polygon(points_xy.astype(np.float32))
    return region


def _pixel_ends(pixels: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int] | None:
    """The first row and column with a pixel, and the last ones; None without any."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return (int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])) if rows.size else None


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
        return _in_float32(vot.shape_region(take("<4f")))
    if kind == 2:
        (count,) = take("<H")
        if count < 3:
            raise ValueError(f"a polygon of {count} points")
        return _in_float32(vot.shape_region(take(f"<{2 * count}f")))
    if kind == 3:
        x, y, width, height, count = take("<hhHHH")
        return vot.mask_region(x, y, width, height, take(f"<{count}H"))
    raise ValueError(f"kind {kind}; expected 0 to 3")


def region_overlaps(
    first: Sequence[Region], second: Sequence[Region], size: tuple[int, int] | None
) -> Float64[np.ndarray, " n"]:
    """IoU of regions, pair by pair; nothing outside the frame of `size` (width, height) counts.

    Without a size, the toolkit cuts rectangles wrongly that lie left of or above the origin, and so does this:
    identical boxes at x = -50 have 0. Raises ValueError for unequal numbers of regions, or shapes other than rectangles
    that are too large to be drawn.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} regions and {len(second)}; overlaps are between pairs")
    overlaps = np.empty(len(first))
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    chosen = []
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        if isinstance(one, Rectangle) and isinstance(other, Rectangle):
            chosen.append(index)
            boxes.append((one.box_xywh, other.box_xywh))
        else:
            overlaps[index] = _overlap(one, other, size)
    if boxes:
        pairs = np.array(boxes)
        overlaps[chosen] = _box_overlaps(pairs[:, 0], pairs[:, 1], size)
    return overlaps


def bounding_box(region: Region) -> Float64[np.ndarray, " 4"]:
    """The box of pixels that a region spans, x, y, w, h; NaN for a special code."""
    if isinstance(region, Special):
        return np.full(4, np.nan)
    left, top, right, bottom = _box(region)
    return np.array([left, top, right - left + 1, bottom - top + 1], np.float64)


def _overlap(first: Region, second: Region, size: tuple[int, int] | None) -> float:
    one, other = _box(first), _box(second)
    left, top = min(one[0], other[0]), min(one[1], other[1])
    right, bottom = max(one[2], other[2]), max(one[3], other[3])
    if left >= right or top >= bottom:
        return 1.0
    if size is not None:
        left, top = max(0, left), max(0, top)
        right, bottom = min(size[0] - 1, right), min(size[1] - 1, bottom)
        if left >= right or top >= bottom:
            return 0.0
    if (right - left + 1) * (bottom - top + 1) > MAX_MASK_PIXELS:
        raise ValueError(f"regions that span {right - left + 1} x {bottom - top + 1} pixels are too large to be drawn")
    a, b = (_draw(region, (left, top, right, bottom)) for region in (first, second))
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def _box(region: Region) -> Box:
    """The first and last pixels of a region; an empty mask has the first of its window, a code that of the frame."""
    if isinstance(region, Rectangle):
        (first,), (last,) = _rectangle_ends(region.box_xywh[None])
        return int(first[0]), int(first[1]), int(last[0]), int(last[1])
    if isinstance(region, Polygon):
        x, y = np.round(region.points_xy).T
        return int(x.min()), int(y.min()), int(x.max()), int(y.max())
    if isinstance(region, Mask):
        x, y = region.offset_xy
        top, left, bottom, right = _pixel_ends(region.pixels) or (0, 0, 0, 0)
        return x + left, y + top, x + right, y + bottom
    return (0, 0, 0, 0)


def _draw(region: Region, box: Box) -> Bool[np.ndarray, "h w"]:
    """The pixels of a region inside a box."""
    left, top, right, bottom = box
    canvas = np.zeros((bottom - top + 1, right - left + 1), bool)
    if isinstance(region, Rectangle):
        start, stop = _drawn_rectangle(region.box_xywh[None], np.array([box]))
        canvas[start[0, 1] : stop[0, 1], start[0, 0] : stop[0, 0]] = True
    elif isinstance(region, Polygon):
        return _draw_polygon(np.round(region.points_xy).astype(np.float64) - (left, top), canvas)
    elif isinstance(region, Mask):
        x, y = region.offset_xy
        height, width = region.pixels.shape
        x_from, x_to = max(x, left), min(x + width, right + 1)
        y_from, y_to = max(y, top), min(y + height, bottom + 1)
        if x_from < x_to and y_from < y_to:
            canvas[y_from - top : y_to - top, x_from - left : x_to - left] = region.pixels[
                y_from - y : y_to - y, x_from - x : x_to - x
            ]
    return canvas


def _draw_polygon(points: Float64[np.ndarray, "n 2"], canvas: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Fills all rows between their crossings with the edges; `points` are whole numbers on the canvas."""
    height, width = canvas.shape
    rows = np.arange(height)[:, None]
    (x, y), (before_x, before_y) = points.T, np.roll(points, 1, axis=0).T
    # An edge meets the rows from one end to the other; a level one is met at its own end alone.
    meets = (np.minimum(y, before_y) <= rows) & (rows <= np.maximum(y, before_y))
    rise = before_y - y
    slope = np.where(rise == 0, 1.0, rise)
    crossings = np.where(rise == 0, x, x + (rows - y) / slope * (before_x - x))
    # Toward zero, as in the toolkit's assignment to integers. Each row is sorted, edges that do not meet it last.
    nodes = np.where(meets, np.trunc(crossings), np.inf)
    nodes.sort(axis=1)
    count = meets.sum(1)

    changes = np.zeros((height, width + 1), np.int64)
    at = np.zeros(height, np.int64)
    every = np.arange(height)
    while True:
        alive = at < count - 1
        start = nodes[every, np.minimum(at, len(x) - 1)]
        alive &= start < width
        if not alive.any():
            break
        stop = nodes[every, np.minimum(at + 1, len(x) - 1)]
        # A corner gives two equal crossings: the first is skipped, unless these are the row's last two.
        doubled = alive & (start == stop) & (at < count - 2)
        filled = alive & ~doubled & (stop >= 0)
        changes[every[filled], np.maximum(start[filled], 0).astype(np.int64)] += 1
        changes[every[filled], np.minimum(stop[filled], width - 1).astype(np.int64) + 1] -= 1
        at = np.where(alive, at + np.where(doubled, 1, 2), count)
    return changes[:, :-1].cumsum(1) > 0


def _box_overlaps(first: np.ndarray, second: np.ndarray, size: tuple[int, int] | None) -> Float64[np.ndarray, " n"]:
    """`_overlap` for rectangles [n, 4] without drawing them."""
    ends = [_rectangle_ends(boxes) for boxes in (first, second)]
    low = np.minimum(ends[0][0], ends[1][0])
    high = np.maximum(ends[0][1], ends[1][1])
    thin = (low >= high).any(1)
    outside = np.zeros(len(first), bool)
    if size is not None:
        low, high = np.maximum(low, 0), np.minimum(high, np.array(size) - 1)
        outside = (low >= high).any(1)
    box = np.concatenate([low, high], axis=1)
    (start_a, stop_a), (start_b, stop_b) = (_drawn_rectangle(boxes, box) for boxes in (first, second))
    area_a, area_b = ((stop - start).prod(1) for start, stop in ((start_a, stop_a), (start_b, stop_b)))
    shared = (np.minimum(stop_a, stop_b) - np.maximum(start_a, start_b)).clip(0).prod(1)
    shared = np.where((area_a > 0) & (area_b > 0), shared, 0)
    union = area_a + area_b - shared
    overlaps = np.where(union > 0, shared / np.maximum(union, 1), 0.0)
    return np.where(thin, 1.0, np.where(outside, 0.0, overlaps))


def _rectangle_ends(boxes: np.ndarray) -> tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n 2"]]:
    """First and last pixel of rectangles [n, 4], by x and y; without extent, the last is before the first."""
    rounded = np.round(boxes)
    # The sum is in float32, as in the toolkit.
    last = (rounded[:, :2] + rounded[:, 2:]).astype(np.float64) - 1
    return rounded[:, :2].astype(np.int64), np.round(last).astype(np.int64)


def _drawn_rectangle(
    boxes: np.ndarray, box: Int64[np.ndarray, "n 4"]
) -> tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n 2"]]:
    """The slices that the toolkit fills in a canvas over `box`, by x and y: start, and stop (>= start).

    It limits the last pixel by the box's right end in the frame and not on the canvas. Left of the origin that is too
    little, and a negative stop counts from the canvas' end, as in any slice.
    """
    first, last = _rectangle_ends(boxes)
    low, high = box[:, :2], box[:, 2:]
    extent = high - low + 1
    missing = ((first > high) | (last < low)).any(1, keepdims=True)
    start = np.maximum(0, first - low)
    stop = np.minimum(high, last - low) + 1
    stop = np.where(stop < 0, np.maximum(stop + extent, 0), np.minimum(stop, extent))
    start = np.minimum(start, extent)
    stop = np.maximum(stop, start)
    return start, np.where(missing, start, stop)
