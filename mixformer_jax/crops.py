"""The square context crop around a box, and the way from crop coordinates back to the frame.

A crop is the square of side ceil(sqrt(w * h) * factor) around the box's centre, resized to `size` pixels.
`context_crop` is the host form (numpy and OpenCV) and equals the official crop bit for bit; `context_crop_on_device`
is the same in jax.numpy, for a step that never leaves the accelerator.

Two details of the official crop that trained weights have seen, and that are therefore kept: what lies outside the
frame is black before normalisation, and the frame's last column and last row count as outside.
"""

import math
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8

from mixformer_jax.boxes import Array, cxcywh_to_xywh, xywh_to_cxcywh

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Crop(NamedTuple):
    """A context crop. `scale` is crop pixels per frame pixel (= size / side), `side` the square's side in the frame."""

    pixels: UInt8[np.ndarray, "size size 3"]
    scale: float
    side: int


def normalise(images: UInt8[Array, "*n h w 3"]) -> Float32[Array, "*n h w 3"]:
    """RGB bytes -> float32 with ImageNet's mean and deviation taken out: what every model takes in."""
    xp = jnp if isinstance(images, jax.Array) else np
    mean = xp.asarray(IMAGENET_MEAN, dtype=np.float32)
    std = xp.asarray(IMAGENET_STD, dtype=np.float32)
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def context_crop(
    frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float[np.ndarray, "4"], factor: float, size: int
) -> Crop:
    """The crop of `size` x `size` pixels around a box, on the host.

    Args:
      frame: RGB.
      box_xywh: in frame pixels; may stick out of the frame.
      factor: side of the crop in units of sqrt(w * h): 2.0 for templates, 4.5 or 5.0 for search regions (paper, section 4.1).
      size: side of the result in pixels.

    Raises:
      ValueError: a NaN or infinite box, no area, or too small a box for a crop of one pixel.
    """
    x, y, w, h = box_xywh.tolist()
    if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
        raise ValueError(
            f"cannot crop around box x, y, w, h = ({x:g}, {y:g}, {w:g}, {h:g}): "
            "all four must be finite, width and height above 0"
        )
    side = math.ceil(math.sqrt(w * h) * factor)
    if side < 1:
        raise ValueError(
            f"too small a bounding box to crop: w x h = {w:g} x {h:g}, factor {factor:g} give a side of {side}; "
            "at least one pixel is needed"
        )
    left = round(x + 0.5 * w - side * 0.5)
    top = round(y + 0.5 * h - side * 0.5)
    square = _cut_square(frame, left, top, side)
    pixels = cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR)
    return Crop(pixels=pixels, scale=size / side, side=side)


def _cut_square(frame: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Square of the frame, black outside; never more than height - 1 rows and width - 1 columns are inside."""
    usable_height, usable_width = frame.shape[0] - 1, frame.shape[1] - 1
    row_from, row_to = max(top, 0), min(top + side, usable_height)
    column_from, column_to = max(left, 0), min(left + side, usable_width)
    inside = frame[row_from:row_to, column_from:column_to]
    if inside.shape[:2] == (side, side):
        return inside
    square = np.zeros((side, side, 3), dtype=frame.dtype)
    if row_from < row_to and column_from < column_to:
        square[row_from - top : row_to - top, column_from - left : column_to - left] = inside
    return square


# OpenCV's fixed point: bilinear weights are multiples of 1 / 2048.
_WEIGHT_ONE = 2048


def context_crop_on_device(
    frame: UInt8[jax.Array, "h w 3"], box_xywh: Float[jax.Array, "4"], factor: float, size: int
) -> tuple[UInt8[jax.Array, "{size} {size} 3"], Float32[jax.Array, ""]]:
    """`context_crop` in jax.numpy: the crop and its scale (size / side). One compilation for each frame shape.

    `factor` and `size` are static; may be mapped over boxes with `jax.vmap`. Same fixed-point arithmetic as OpenCV,
    so the pixels agree with the host form as long as the square is the same one. The square comes from float32
    arithmetic, and may be one pixel off where the host's float64 is within float32 noise of a rounding boundary.
    A traced value cannot raise: a box without area gives the crop of one pixel.
    """
    x, y, w, h = (box_xywh[i].astype(jnp.float32) for i in range(4))
    exact_side = jnp.sqrt(w * h) * factor
    # An integer up to float32 rounding is that integer (20 px * 4.55 is 91, not 91.000004 and so 92).
    nearest = jnp.round(exact_side)
    is_integer = jnp.abs(exact_side - nearest) <= 4e-7 * exact_side
    side = jnp.where(is_integer, nearest, jnp.ceil(exact_side)).astype(jnp.int32)
    # The upper bound keeps the integer products of _bilinear_taps inside int32.
    side = jnp.clip(side, 1, (2**31 - 1) // (2 * size))
    half = 0.5 * side.astype(jnp.float32)
    left = jnp.round(x + 0.5 * w - half).astype(jnp.int32)
    top = jnp.round(y + 0.5 * h - half).astype(jnp.int32)

    rows, row_weights = _bilinear_taps(top, side, size, frame.shape[0])
    columns, column_weights = _bilinear_taps(left, side, size, frame.shape[1])
    band = frame[rows][:, :, columns].astype(jnp.int32)  # [2 rows, size, 2 columns, size, 3]
    across = jnp.einsum("ryckd,ck->rykd", band, column_weights)
    down = (row_weights[:, :, None, None] * (across >> 4)) >> 16
    pixels = ((down[0] + down[1] + 2) >> 2).astype(jnp.uint8)
    return pixels, size / side.astype(jnp.float32)


def _bilinear_taps(start: jax.Array, side: jax.Array, size: int, extent: int) -> tuple[jax.Array, jax.Array]:
    """The two source positions on a frame axis, and their weights out of 2048, for each of `size` output pixels.

    Output pixel i looks at (i + 1/2) * side / size - 1/2 from the start of the square, in half-pixel coordinates.
    Positions in the black surround get weight 0. Both results are int32 [2, size].
    """
    numerator = (2 * jnp.arange(size, dtype=jnp.int32) + 1) * side - size
    first, rest = numerator // (2 * size), numerator % (2 * size)
    # OpenCV stores the position as a float32 before it takes the fraction: so do we.
    position = first.astype(jnp.float32) + rest.astype(jnp.float32) / (2 * size)
    fraction = position - jnp.floor(position)
    first = jnp.floor(position).astype(jnp.int32)
    fraction = jnp.where((first < 0) | (first >= side - 1), 0.0, fraction)
    first = jnp.clip(first, 0, side - 1)
    offsets = jnp.stack([first, jnp.minimum(first + 1, side - 1)])
    weights = jnp.round(jnp.stack([1 - fraction, fraction]) * _WEIGHT_ONE).astype(jnp.int32)
    positions = start + offsets
    inside = (positions >= 0) & (positions < extent - 1)
    return jnp.clip(positions, 0, extent - 1), jnp.where(inside, weights, 0)


def crop_box_to_frame(
    box_cxcywh: Float[Array, "*n 4"],
    previous_box_xywh: Float[Array, "*#n 4"],
    scale: float | Float[Array, "*#n"],
    size: int,
) -> Float[Array, "*n 4"]:
    """A box normalised to a search crop -> `x, y, w, h` in frame pixels, not yet clipped.

    Args:
      box_cxcywh: the model's prediction.
      previous_box_xywh: the box around which the crop was taken.
      scale: of that crop (size / side).
      size: side of the crop in crop pixels.

    As in the official tracker, the crop's middle is taken to lie on the unrounded centre of the previous box.
    """
    xp = jnp if any(isinstance(a, jax.Array) for a in (box_cxcywh, previous_box_xywh, scale)) else np
    side = size / xp.asarray(scale)[..., None]
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
    """A box on the frame -> `x, y, w, h` in a crop taken around `crop_box_xywh`: the ground truth in training.

    Normalised to the crop (divided by `size`), or else in crop pixels. The official code puts the centre of the crop
    box at (size - 1) / 2 here and at size / 2 in `crop_box_to_frame`; both are kept, so the round trip is off by half
    a crop pixel.
    """
    xp = jnp if any(isinstance(a, jax.Array) for a in (box_xywh, crop_box_xywh, scale)) else np
    factor = xp.asarray(scale)[..., None]
    offset = xywh_to_cxcywh(box_xywh)[..., :2] - xywh_to_cxcywh(crop_box_xywh)[..., :2]
    extent = box_xywh[..., 2:] * factor
    box = cxcywh_to_xywh(xp.concatenate([(size - 1) / 2 + offset * factor, extent], axis=-1))
    return box / size if normalised else box
