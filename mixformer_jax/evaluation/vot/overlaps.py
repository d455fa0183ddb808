"""Overlap of regions as vot-toolkit measures it: both become sets of pixels, and IoU counts pixels.

A rectangle covers the pixels round(x) .. round(x) + round(w) - 1, and a polygon's border belongs to it (rounding is
half to even). The degenerate cases are the toolkit's: two regions that together span no more than one row or one column
overlap fully, even when both are empty.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from mixformer_jax.datasets.vot import MAX_MASK_PIXELS
from mixformer_jax.evaluation.vot.regions import Mask, Polygon, Rectangle, Region, Special

# Left, top, right, bottom in whole pixels, the last two included.
Box = tuple[int, int, int, int]


def region_overlaps(
    first: Sequence[Region], second: Sequence[Region], size: tuple[int, int] | None
) -> Float64[np.ndarray, " n"]:
    """IoU of regions, pair by pair.

    Args:
        first, second: as many of the one as of the other.
        size: width and height of the frame, outside of which nothing counts; None for no bounds. Without them the
            toolkit cuts rectangles wrongly that lie left of or above the origin, and so does this: identical
            boxes at x = -50 have 0.

    Raises:
        ValueError: unequal numbers of regions, or shapes other than rectangles that are too large to be drawn.
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
        overlaps[chosen] = _rectangle_overlaps(pairs[:, 0], pairs[:, 1], size)
    return overlaps


def bounding_box(region: Region) -> Float64[np.ndarray, " 4"]:
    """The pixels that a region spans as x, y, w, h; NaN for a special code."""
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
    """The pixels that a region spans; an empty one spans the first pixel of its window, a code that of the frame."""
    if isinstance(region, Rectangle):
        (first,), (last,) = _rectangle_ends(region.box_xywh[None])
        return int(first[0]), int(first[1]), int(last[0]), int(last[1])
    if isinstance(region, Polygon):
        x, y = np.round(region.points_xy).T
        return int(x.min()), int(y.min()), int(x.max()), int(y.max())
    if isinstance(region, Mask):
        x, y = region.offset_xy
        rows, columns = np.flatnonzero(region.pixels.any(1)), np.flatnonzero(region.pixels.any(0))
        if not rows.size:
            return (x, y, x, y)
        return (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]), y + int(rows[-1]))
    return (0, 0, 0, 0)


def _draw(region: Region, box: Box) -> Bool[np.ndarray, "h w"]:
    """The part of a region inside a box, as pixels of that box."""
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
    """Fills rows between crossings with the edges, all rows at once; `points` are whole numbers on the canvas."""
    height, width = canvas.shape
    rows = np.arange(height)[:, None]
    (x, y), (before_x, before_y) = points.T, np.roll(points, 1, axis=0).T
    # An edge meets every row between its ends, both included; a level one is met at its own end alone.
    meets = (np.minimum(y, before_y) <= rows) & (rows <= np.maximum(y, before_y))
    rise = before_y - y
    slope = np.where(rise == 0, 1.0, rise)
    crossings = np.where(rise == 0, x, x + (rows - y) / slope * (before_x - x))
    # Toward zero, as an assignment to an integer does. Rows are sorted, those of other edges last.
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
        # A corner gives the same crossing twice: the first is passed over, unless these are the row's last two.
        doubled = alive & (start == stop) & (at < count - 2)
        filled = alive & ~doubled & (stop >= 0)
        changes[every[filled], np.maximum(start[filled], 0).astype(np.int64)] += 1
        changes[every[filled], np.minimum(stop[filled], width - 1).astype(np.int64) + 1] -= 1
        at = np.where(alive, at + np.where(doubled, 1, 2), count)
    return changes[:, :-1].cumsum(1) > 0


def _rectangle_overlaps(
    first: np.ndarray, second: np.ndarray, size: tuple[int, int] | None
) -> Float64[np.ndarray, " n"]:
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
    """First and last pixel of rectangles [n, 4], by x and y; the last is before the first where there is no extent."""
    rounded = np.round(boxes)
    # The sum in float32, as the toolkit has it.
    last = (rounded[:, :2] + rounded[:, 2:]).astype(np.float64) - 1
    return rounded[:, :2].astype(np.int64), np.round(last).astype(np.int64)


def _drawn_rectangle(
    boxes: np.ndarray, box: Int64[np.ndarray, "n 4"]
) -> tuple[Int64[np.ndarray, "n 2"], Int64[np.ndarray, "n 2"]]:
    """The slices that the toolkit fills in a canvas over `box`, by x and y: start, and stop (>= start).

    Its last pixel is limited by the box's right end in the frame and not on the canvas. Left of the origin that is
    too little, and a stop below zero counts from the canvas' end, as in any slice.
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
