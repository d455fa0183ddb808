"""The square context crop around a box, the stretched one of mask networks, and the ways back to the frame. As trained
weights have seen it, outside of the frame is black before normalisation; its last column and row count as outside."""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int32, UInt8

from mixformer_jax.boxes import Array, cxcywh_to_xywh, namespace, xywh_to_cxcywh

# A square whose side is above this, and above twice the frame's, is not made: its crop is sampled from the frame.
MAX_SQUARE = 4096
MAX_EXTENT = 2**40  # pixels; far below what the float64 of a box tells apart


class Crop(NamedTuple):
    """A context crop, RGB, and what the frame has behind it."""

    pixels: UInt8[np.ndarray, "size size c"]
    scale: float  # crop pixels per frame pixel (size / side)
    side: int  # of the square, in frame pixels


def resize_streams(image: UInt8[np.ndarray, "h w *c"], size: int) -> UInt8[np.ndarray, "{size} {size} *c"]:
    """A crop by OpenCV's bilinear resizing, every stream by itself: RGB as if it were alone."""
    if image.ndim == 2 or image.shape[2] == 3:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.concatenate([resize_streams(image[..., first : first + 3], size) for first in (0, 3)], axis=2)


def context_crop(frame: UInt8[np.ndarray, "h w c"], box_xywh: Float[np.ndarray, "4"], factor: float, size: int) -> Crop:
    """The square of side ceil(sqrt(w * h) * factor) around a box's centre, resized to `size` pixels, on the host:
    equals the official crop bit for bit.

    The frame is RGB, or two streams of three channels each; the box, in its pixels, may stick out of it. `factor` is
    the side of the square in units of sqrt(w * h): about 2 for templates, 4 to 5 for search regions.

    Raises ValueError: a NaN or infinite box, no area, too small a box for a crop of one pixel, or too large a one to
    count its pixels.
    """
    x, y, w, h = box_xywh.tolist()
    cannot = f"cannot crop around box x, y, w, h = ({x:g}, {y:g}, {w:g}, {h:g})"
    if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
        raise ValueError(f"{cannot}: all four must be finite, width and height above 0")
    exact_side = math.sqrt(w * h) * factor
    if max(abs(x), abs(y), exact_side) > MAX_EXTENT:
        beyond = f"lies beyond the {MAX_EXTENT:,} pixels that can be counted"
        raise ValueError(f"{cannot}: the square of side {exact_side:g} {beyond}")
    side = math.ceil(exact_side)
    if side < 1:
        raise ValueError(
            f"too small a bounding box to crop: w x h = {w:g} x {h:g} and factor {factor:g} give a square "
            f"of side {side}; at least one pixel is needed"
        )
    left = round(x + 0.5 * w - side * 0.5)
    top = round(y + 0.5 * h - side * 0.5)
    return Crop(pixels=_resized(frame, Rectangle(left, top, side, side), size), scale=size / side, side=side)


class Rectangle(NamedTuple):
    """A part of a frame's plane, in whole pixels; may stick out of the frame."""

    left: int
    top: int
    width: int
    height: int


def stretched_rectangle(box_xywh: Float[np.ndarray, "4"], factor: float) -> Rectangle:
    """What a stretched crop shows: the box's width and height, each times `factor` and rounded up, around its centre.

    Raises ValueError for a box that is not finite, without area, or beyond the pixels that can be counted.
    """
    x, y, w, h = box_xywh.tolist()
    if not all(math.isfinite(value) and abs(value) * factor <= MAX_EXTENT for value in (x, y, w, h)) or min(w, h) <= 0:
        raise ValueError(
            f"cannot crop around box x, y, w, h = ({x:g}, {y:g}, {w:g}, {h:g}): all four must be finite and below "
            f"{MAX_EXTENT:,} pixels, width and height above 0"
        )
    width, height = math.ceil(w * factor), math.ceil(h * factor)
    return Rectangle(round(x + 0.5 * w - 0.5 * width), round(y + 0.5 * h - 0.5 * height), width, height)


def stretched_crop(
    image: UInt8[np.ndarray, "h w *c"], box_xywh: Float[np.ndarray, "4"], factor: float, size: int
) -> UInt8[np.ndarray, "{size} {size} *c"]:
    """The rectangle around a box, its sides stretched one by one to `size` pixels (Alpha-Refine, Yan et al. 2021).

    `image` may be a mask of 0 and 1, which its crop then is, too. ValueError as in `stretched_rectangle`.
    """
    return _resized(image, stretched_rectangle(box_xywh, factor), size)


def box_in_stretched_crop(
    box_xywh: Float[np.ndarray, "4"], crop_box_xywh: Float[np.ndarray, "4"], factor: float, size: int
) -> Float32[np.ndarray, "4"]:
    """A box in pixels of the stretched crop around `crop_box_xywh`, x, y, w, h, cut at the crop's edges. As in the
    official code the crop's box is centred at (size - 1) / 2; that the rectangle's corner is rounded does not count."""
    rectangle = stretched_rectangle(crop_box_xywh, factor)
    scale = np.array([size / rectangle.width, size / rectangle.height])
    offset = xywh_to_cxcywh(box_xywh)[:2] - xywh_to_cxcywh(crop_box_xywh)[:2]
    centre, half = (size - 1) / 2 + offset * scale, 0.5 * box_xywh[2:] * scale
    corners = np.clip([centre - half, centre + half], 0, size)
    return np.concatenate([corners[0], corners[1] - corners[0]]).astype(np.float32)


def paste_map(
    values: Float32[np.ndarray, "s s"], rectangle: Rectangle, frame_size: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """The way back from a stretched crop: a map of it on the frame of (height, width), 0 outside of the rectangle.

    Linear, without antialiasing, as OpenCV's resizing. The frame's last row and column are inside here.
    """
    (left, top, width, height), pasted = rectangle, np.zeros(frame_size, np.float32)
    rows = np.arange(max(top, 0), min(top + height, frame_size[0]))
    columns = np.arange(max(left, 0), min(left + width, frame_size[1]))
    if not (rows.size and columns.size):
        return pasted
    above, below, row_share = _linear_taps(rows - top, height, len(values))
    before, behind, column_share = _linear_taps(columns - left, width, len(values))
    across = values[:, before] * (1 - column_share) + values[:, behind] * column_share
    found = across[above] * (1 - row_share[:, None]) + across[below] * row_share[:, None]
    pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = found
    return pasted


def _linear_taps(
    positions: Int[np.ndarray, " n"], extent: int, size: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Where output pixels look when `size` values are resized to `extent`: two values, and the second one's share."""
    exact = np.clip((positions + 0.5) * (size / extent) - 0.5, 0, size - 1)
    first = np.floor(exact).astype(np.int64)
    return first, np.minimum(first + 1, size - 1), (exact - first).astype(np.float32)


def _resized(image: np.ndarray, rectangle: Rectangle, size: int) -> np.ndarray:
    """A rectangle of an image at `size` x `size` pixels, black outside of it."""
    if max(rectangle[2:]) <= max(MAX_SQUARE, 2 * image.shape[0], 2 * image.shape[1]):
        return resize_streams(_cut(image, rectangle), size)
    channels = image.reshape(*image.shape[:2], -1)
    return _sampled(channels, rectangle, size).reshape(size, size, *image.shape[2:])


def _cut(frame: np.ndarray, rectangle: Rectangle) -> np.ndarray:
    """Rectangle of the frame, black outside; all but the frame's last row and last column count as inside."""
    left, top, width, height = rectangle
    usable_height, usable_width = frame.shape[0] - 1, frame.shape[1] - 1
    row_from, row_to = max(top, 0), min(top + height, usable_height)
    column_from, column_to = max(left, 0), min(left + width, usable_width)
    inside = frame[row_from:row_to, column_from:column_to]
    if inside.shape[:2] == (height, width):
        return inside
    whole = np.zeros((height, width, *frame.shape[2:]), dtype=frame.dtype)
    if row_from < row_to and column_from < column_to:
        whole[row_from - top : row_to - top, column_from - left : column_to - left] = inside
    return whole


def _sampled(frame: np.ndarray, rectangle: Rectangle, size: int) -> np.ndarray:
    """The same crop (a weight may be rounded otherwise) without the cut: only the pixels that it looks at."""
    left, top, width, height = (np.array(value, np.int64) for value in rectangle)
    rows, row_weights = _bilinear_taps(top, height, size, frame.shape[0])
    columns, column_weights = _bilinear_taps(left, width, size, frame.shape[1])
    return _interpolate(lambda row, column: frame[rows[row][:, None], columns[column]], row_weights, column_weights)


# OpenCV's fixed point: bilinear weights are multiples of 1 / 2048.
_WEIGHT_ONE = 2048


def context_crop_on_device(
    frame: UInt8[jax.Array, "h w c"], box_xywh: Float[jax.Array, "4"], factor: float, size: int
) -> tuple[UInt8[jax.Array, "{size} {size} c"], Float32[jax.Array, ""]]:
    """`context_crop` in jax.numpy, by OpenCV's fixed point: the crop and its scale (size / side).

    `factor` and `size` are static. The pixels equal the host form's where the square is the same one: it comes from
    float32 numbers, and may be one pixel off where the host's float64 is that close to a rounding boundary. A traced
    value cannot raise: a box without area gives the crop of one pixel.
    """
    left, top, side = _square_in_float32(box_xywh.astype(jnp.float32), factor, size)
    rows, row_weights = _bilinear_taps(top, side, size, frame.shape[0])
    columns, column_weights = _bilinear_taps(left, side, size, frame.shape[1])

    # Four explicit gathers fuse into one loop: 2 to 6 times as fast on a CPU as gathering bands of rows and columns, or
    # as products with interpolation matrices.
    def neighbour(row: int, column: int) -> jax.Array:
        return frame.at[rows[row][:, None], columns[column][None, :]].get(mode="promise_in_bounds")

    return _interpolate(neighbour, row_weights, column_weights), size / side.astype(jnp.float32)


def _interpolate(neighbour: Callable[[int, int], Array], row_weights: Array, column_weights: Array) -> Array:
    """OpenCV's fixed point: bytes [size, size, c] out of the four neighbours of each, `neighbour(row, column)`."""

    def weighted(row: int, column: int) -> Array:
        return neighbour(row, column).astype(np.int32) * column_weights[column][:, None]

    upper, lower = (
        (row_weights[row][:, None, None] * ((weighted(row, 0) + weighted(row, 1)) >> 4)) >> 16 for row in (0, 1)
    )
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _square_in_float32(box_xywh: jax.Array, factor: float, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Left, top and side of the square as int32."""
    x, y, w, h = box_xywh
    exact_side = jnp.sqrt(w * h) * factor
    # What is an integer up to float32 rounding is that integer: 20 px * 4.55 is 91, not 91.000004 and so 92.
    nearest = jnp.round(exact_side)
    is_integer = jnp.abs(exact_side - nearest) <= 4e-7 * exact_side
    side = jnp.where(is_integer, nearest, jnp.ceil(exact_side)).astype(jnp.int32)
    # The upper bound keeps the integer products of _bilinear_taps inside int32.
    side = jnp.clip(side, 1, (2**31 - 1) // (2 * size))
    half = 0.5 * side.astype(jnp.float32)
    left = jnp.round(x + 0.5 * w - half).astype(jnp.int32)
    top = jnp.round(y + 0.5 * h - half).astype(jnp.int32)
    return left, top, side


def _bilinear_taps(
    start: Int[Array, ""], side: Int[Array, ""], size: int, extent: int
) -> tuple[Int[Array, "2 {size}"], Int32[Array, "2 {size}"]]:
    """Where each of `size` output pixels looks on one axis of the frame: two positions, weights out of 2048.

    Output pixel i looks at (i + 1/2) * side / size - 1/2 from the start of the square; the black surround has weight 0.
    """
    xp = namespace(start, side)
    numerator = (2 * xp.arange(size, dtype=side.dtype) + 1) * side - size
    whole, rest = numerator // (2 * size), numerator % (2 * size)
    # OpenCV rounds the position to float32 before it takes the fraction: so do we.
    position = whole.astype(np.float32) + rest.astype(np.float32) / (2 * size)
    first = xp.floor(position)
    fraction = position - first
    weights = xp.round(xp.stack([1 - fraction, fraction]) * _WEIGHT_ONE).astype(np.int32)
    offsets = first.astype(side.dtype) + xp.arange(2, dtype=side.dtype)[:, None]
    positions = start + xp.clip(offsets, 0, side - 1)
    inside = (positions >= 0) & (positions < extent - 1)
    return xp.clip(positions, 0, extent - 1), xp.where(inside, weights, 0)


def crop_box_to_frame(
    box_cxcywh: Float[Array, "*n 4"],
    previous_box_xywh: Float[Array, "*#n 4"],
    scale: float | Float[Array, "*#n"],
    size: int,
) -> Float[Array, "*n 4"]:
    """A box normalised to a search crop -> `x, y, w, h` in frame pixels, not yet clipped.

    `scale` (size / side) and `size` are the crop's, in crop pixels. As in the official tracker, its middle is taken to
    lie on the unrounded centre of `previous_box_xywh`, around which it was taken.
    """
    xp = namespace(box_cxcywh, previous_box_xywh, scale)
    side = size / _column(scale, xp.result_type(box_cxcywh, previous_box_xywh), xp)
    box = box_cxcywh * side
    previous_centre = xywh_to_cxcywh(previous_box_xywh)[..., :2]
    centre = box[..., :2] + (previous_centre - 0.5 * side)
    return cxcywh_to_xywh(xp.concatenate([centre, box[..., 2:]], axis=-1))


def frame_box_to_crop(
    box_xywh: Float[Array, "*n 4"],
    crop_box_xywh: Float[Array, "*#n 4"],
    scale: float | Float[Array, "*#n"],
    size: int,
    normalised: bool = True,
) -> Float[Array, "*n 4"]:
    """A frame box -> `x, y, w, h` in a crop around `crop_box_xywh`, normalised by `size` or in crop pixels.

    The official trainer's ground truth: it puts the centre of the crop box at (size - 1) / 2 here and at size / 2 in
    `crop_box_to_frame`, so the way there and back is off by half a crop pixel.
    """
    xp = namespace(box_xywh, crop_box_xywh, scale)
    factor = _column(scale, xp.result_type(box_xywh, crop_box_xywh), xp)
    offset = xywh_to_cxcywh(box_xywh)[..., :2] - xywh_to_cxcywh(crop_box_xywh)[..., :2]
    box = cxcywh_to_xywh(xp.concatenate([(size - 1) / 2 + offset * factor, box_xywh[..., 2:] * factor], axis=-1))
    return box / size if normalised else box


def _column(scale: float | Array, dtype: np.dtype, xp: ModuleType) -> Array:
    """The scale with an axis to meet a box's four numbers; a Python float must not widen float32 boxes."""
    return xp.asarray(scale, dtype=dtype)[..., None]
