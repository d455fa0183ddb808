"""Box formats and overlaps: one definition for numpy and JAX arrays.

    xywh    left, top, width, height          every benchmark's files, boxes on a frame (pixels)
    xyxy    left, top, right, bottom          corners: heads, overlaps
    cxcywh  centre x, centre y, width, height inside the model, normalised to the search crop

Boxes are `[..., 4]`; numpy in gives numpy out, a JAX array among the arguments a JAX array. Extents are continuous
(right - left, no "+ 1").
"""

import math
from types import ModuleType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

# Arrays of one kind in, an array of that kind out.
Array = TypeVar("Array", np.ndarray, jax.Array)
# One value a box; numpy makes a scalar of the value of a single box.
Values = np.ndarray | np.floating | jax.Array

# A smaller divisor counts as 0: the gradient of a quotient divides by its square, which float32 has to hold.
_TINY = 1e-12
# No number of a user's box is larger: its crop must have a size that can be counted.
MAX_PIXELS = 1e9


def namespace(*arrays: object) -> ModuleType:
    """jax.numpy if any argument is a JAX array (a tracer included), else numpy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def _ratio(numerator: Values, denominator: Values) -> Values:
    """numerator / denominator, and 0 (with a zero gradient) where the denominator is 0 or as good as 0."""
    xp = namespace(numerator, denominator)
    empty = xp.abs(denominator) < _TINY
    return xp.where(empty, 0, numerator / xp.where(empty, 1, denominator))


def _halves(boxes: Array) -> tuple[Array, Array]:
    return boxes[..., :2], boxes[..., 2:]


def _joined(first: Array, second: Array) -> Array:
    return namespace(first, second).concatenate([first, second], axis=-1)


def xywh_to_xyxy(boxes_xywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Left, top, width, height -> left, top, right, bottom."""
    corner, extent = _halves(boxes_xywh)
    return _joined(corner, corner + extent)


def xyxy_to_xywh(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Left, top, right, bottom -> left, top, width, height."""
    top_left, bottom_right = _halves(boxes_xyxy)
    return _joined(top_left, bottom_right - top_left)


def xywh_to_cxcywh(boxes_xywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Left, top, width, height -> centre x, centre y, width, height."""
    corner, extent = _halves(boxes_xywh)
    return _joined(corner + 0.5 * extent, extent)


def cxcywh_to_xywh(boxes_cxcywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Centre x, centre y, width, height -> left, top, width, height."""
    centre, extent = _halves(boxes_cxcywh)
    return _joined(centre - 0.5 * extent, extent)


def cxcywh_to_xyxy(boxes_cxcywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Centre x, centre y, width, height -> left, top, right, bottom."""
    centre, extent = _halves(boxes_cxcywh)
    return _joined(centre - 0.5 * extent, centre + 0.5 * extent)


def xyxy_to_cxcywh(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Left, top, right, bottom -> centre x, centre y, width, height."""
    top_left, bottom_right = _halves(boxes_xyxy)
    return _joined(0.5 * (top_left + bottom_right), bottom_right - top_left)


def _intersection_and_union(a_xyxy: Array, b_xyxy: Array) -> tuple[Values, Values]:
    xp = namespace(a_xyxy, b_xyxy)

    def area(top_left: Array, bottom_right: Array) -> Values:
        extent = namespace(top_left).maximum(bottom_right - top_left, 0)
        return extent[..., 0] * extent[..., 1]

    a, b = _halves(a_xyxy), _halves(b_xyxy)
    intersection = area(xp.maximum(a[0], b[0]), xp.minimum(a[1], b[1]))
    return intersection, area(*a) + area(*b) - intersection


def _hull_extent(a_xyxy: Array, b_xyxy: Array) -> Array:
    """Width and height of the smallest box around both."""
    xp, a, b = namespace(a_xyxy, b_xyxy), _halves(a_xyxy), _halves(b_xyxy)
    return xp.maximum(xp.maximum(a[1], b[1]) - xp.minimum(a[0], b[0]), 0)


def iou(a_xyxy: Float[Array, "*n 4"], b_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Intersection over union, pair by pair; 0 where both are empty. Negative extents count as empty."""
    xp = namespace(a_xyxy, b_xyxy)
    return xp.asarray(_ratio(*_intersection_and_union(a_xyxy, b_xyxy)))


def iou_matrix(a_xywh: Float[Array, "n 4"], b_xywh: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of all pairs, as `iou`."""
    xp = namespace(a_xywh, b_xywh)
    a, b = xp.broadcast_arrays(xywh_to_xyxy(a_xywh)[:, None], xywh_to_xyxy(b_xywh)[None])
    return iou(a, b)


def giou(a_xyxy: Float[Array, "*n 4"], b_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Generalised IoU, pair by pair, in [-1, 1] (Rezatofighi et al. 2019, algorithm 1).

    IoU minus the share of the enclosing box that the union leaves empty: 0 where that box has no area. A box with a
    negative width or height counts as empty (the official code refuses it).
    """
    xp = namespace(a_xyxy, b_xyxy)
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    hull = _hull_extent(a_xyxy, b_xyxy)
    hull_area = hull[..., 0] * hull[..., 1]
    return xp.asarray(_ratio(intersection, union) - _ratio(hull_area - union, hull_area))


def ciou(a_xyxy: Float[Array, "*n 4"], b_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Complete IoU, pair by pair, clamped to [-1, 1] (Zheng et al. 2020, eq. 10-12).

    As in the official code, alpha counts only where IoU > 0.5 and is a constant for the gradient, and negative sides
    enter the aspect ratio as they are. Unlike there, 0 / 0 (equal boxes, empty boxes) is 0 and not NaN.
    """
    xp = namespace(a_xyxy, b_xyxy)
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    overlap = _ratio(intersection, union)
    hull = _hull_extent(a_xyxy, b_xyxy)
    centre_offset = 0.5 * (b_xyxy[..., :2] + b_xyxy[..., 2:] - a_xyxy[..., :2] - a_xyxy[..., 2:])
    distance = _ratio((centre_offset**2).sum(-1), (hull**2).sum(-1))
    aspect = (4 / math.pi**2) * (_aspect_angle(b_xyxy) - _aspect_angle(a_xyxy)) ** 2
    alpha = xp.where(overlap > 0.5, _ratio(aspect, 1 - overlap + aspect), 0)
    if xp is jnp:
        alpha = jax.lax.stop_gradient(alpha)
    return xp.asarray(xp.clip(overlap - distance - alpha * aspect, -1, 1))


def _aspect_angle(boxes_xyxy: Array) -> Values:
    """arctan(width / height) in [-pi/2, pi/2], with a finite gradient for lines and points as well."""
    xp = namespace(boxes_xyxy)
    width = boxes_xyxy[..., 2] - boxes_xyxy[..., 0]
    height = boxes_xyxy[..., 3] - boxes_xyxy[..., 1]
    flipped = height < 0
    point = (xp.abs(width) < _TINY) & (xp.abs(height) < _TINY)
    above_zero = xp.where(point, 1, xp.where(flipped, -height, height))
    return xp.arctan2(xp.where(flipped, -width, width), above_zero)


def clip_box_xywh(
    box_xywh: Float[Array, "*n 4"], height: int | jax.Array, width: int | jax.Array, margin: int | Values = 0
) -> Float[Array, "*n 4"]:
    """Brings boxes back into a frame of `height` x `width` pixels, as the official tracker does.

    A box that left the frame becomes a small one at the border: it reaches into the frame by `margin` pixels (one
    number or one a box), and its sides are at least that long.
    """
    xp = namespace(box_xywh)
    x1, y1, w, h = (box_xywh[..., i] for i in range(4))
    left = xp.minimum(xp.maximum(x1, 0), width - margin)
    top = xp.minimum(xp.maximum(y1, 0), height - margin)
    right = xp.minimum(xp.maximum(x1 + w, margin), width)
    bottom = xp.minimum(xp.maximum(y1 + h, margin), height)
    return xp.stack([left, top, xp.maximum(right - left, margin), xp.maximum(bottom - top, margin)], axis=-1)


def check_box_xywh(box_xywh: object, frame_shape: tuple[int, ...]) -> Float64[np.ndarray, "4"]:
    """The box a user gave, as float64 `x, y, w, h` in pixels, if a frame of this shape (`frame.shape`) can show it.

    Raises ValueError for what is not four numbers, NaN or infinite, without area, wholly outside the frame, or beyond
    all pixels.
    """
    height, width = frame_shape[:2]
    where = f"on a frame of {width}x{height} pixels (width x height)"
    expected = "give x,y,w,h in pixels: the target's left and top edge, its width and height"
    try:
        box = np.asarray(box_xywh, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"box {box_xywh!r} is not four numbers; {expected}") from error
    if box.shape != (4,):
        raise ValueError(f"box {box_xywh!r} is not four numbers but has shape {box.shape}; {expected}")
    x, y, w, h = box
    if not np.isfinite(box).all():
        problem = f"{where} has a NaN or infinite entry"
    elif np.abs(box).max() > MAX_PIXELS:
        problem = f"{where} has a number above {MAX_PIXELS:g} in size"
    elif w <= 0 or h <= 0 or w * h == 0:  # a product may be too small for a float
        problem = f"{where} has no area: width and height must be above 0"
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        problem = f"lies wholly outside the frame, {where}"
    else:
        return box
    raise ValueError("box ({:g}, {:g}, {:g}, {:g}) ".format(*box) + f"{problem}; {expected}")


def check_boxes(boxes_xywh: Any, frame_shape: tuple[int, ...]) -> Float64[np.ndarray, "n 4"]:
    """One box that a user gave, or several, as [n, 4]; ValueError as `check_box_xywh`, which names the target."""
    try:
        are_several = np.ndim(boxes_xywh) == 2
    except ValueError:  # rows of different lengths, which are no box either
        are_several = False
    if not are_several:
        return check_box_xywh(boxes_xywh, frame_shape)[None]
    if len(boxes_xywh) == 0:
        raise ValueError("no boxes; give x,y,w,h of at least one target")
    checked = []
    for number, box_xywh in enumerate(boxes_xywh, 1):
        try:
            checked.append(check_box_xywh(box_xywh, frame_shape))
        except ValueError as error:
            raise ValueError(f"target {number}: {error}") from error
    return np.stack(checked)
