"""Affine views on the device: what `views` is on the host, for one sample; callers map over many.

The same conventions: continuous coordinates, in which pixel i covers [i, i + 1).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mixformer_jax.data.pool.device_pool import Images

CHANNELS = 4
SEEN_GRID = 16


class DeviceView(NamedTuple):
    """A map from source coordinates to crop coordinates, and the target under it."""

    matrix: Float[Array, "2 3"]
    box_cxcywh: Float[Array, "4"]


def box_outline(box_xywh: Float[Array, "4"]) -> Float[Array, "4 2"]:
    """The four corners of a box."""
    x, y, w, h = box_xywh
    return jnp.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])


def linear_map(
    flip: Bool[Array, ""] | bool,
    rotation: Float[Array, ""] | float = 0.0,
    aspect: Float[Array, ""] | float = 1.0,
    shear: Float[Array, ""] | float = 0.0,
) -> Float[Array, "2 2"]:
    """Flip, then shear (x by y), then aspect (w / h multiplied, area kept), then rotation in radians."""
    stretch, cosine, sine = jnp.sqrt(jnp.asarray(aspect)), jnp.cos(rotation), jnp.sin(rotation)
    mirror = jnp.where(flip, -1.0, 1.0)
    # The product of the three matrices of `views.linear_map`, written out.
    top, slant, bottom = stretch * mirror, shear * stretch, 1.0 / stretch
    return jnp.array(
        [[cosine * top, cosine * slant - sine * bottom], [sine * top, sine * slant + cosine * bottom]], jnp.float32
    )


def target_view(
    outline_xy: Float[Array, "n 2"],
    linear: Float[Array, "2 2"],
    factor: Float[Array, ""] | float,
    size: int,
    zoom: Float[Array, ""] | float = 1.0,
    offset_xy: Float[Array, "2"] | float = 0.0,
) -> DeviceView:
    """See `views.target_view`; `zoom` and `offset_xy` are those of a `views.Placement`."""
    points = _apply(linear, outline_xy)
    low, high = points.min(0), points.max(0)
    width_height = high - low
    side = jnp.sqrt(width_height[0] * width_height[1]) * zoom
    crop_centre = (low + high) / 2 + offset_xy * side
    scale = size / (side * factor)
    matrix = jnp.concatenate([linear * scale, (size / 2 - crop_centre * scale)[:, None]], axis=1)
    centre = ((low + high) / 2 - crop_centre) * scale / size + 0.5
    return DeviceView(matrix, jnp.concatenate([centre, width_height * scale / size]))


def seen_share(matrix: Float[Array, "2 3"], size: int, width_height: Float[Array, "2"]) -> Float[Array, ""]:
    """Share of a crop that shows the source image, counted on a grid of 16 x 16 points."""
    at = (jnp.arange(SEEN_GRID) + 0.5) * (size / SEEN_GRID)
    points = jnp.stack(jnp.meshgrid(at, at), axis=-1).reshape(-1, 2)
    source = _apply(_inverse(matrix[:, :2]), points - matrix[:, 2])
    return jnp.mean(((source >= 0) & (source <= width_height)).all(axis=1))


def warp(
    images: Images,
    image: Int[Array, ""],
    matrix: Float[Array, "2 3"],
    size: int,
    finer: Int[Array, ""] | int = 0,
    replicate: Bool[Array, ""] | bool = False,
) -> Float[Array, "size size 4"]:
    """One view of one picture, RGBA from 0 to 255; beyond the picture all are 0, or with `replicate` as at its edge.

    See `views.warp`: one bilinear look-up on the coarsest level that still has the view's resolution.
    """
    offsets, sizes = images.offset[image], images.width_height[image]
    linear = matrix[:, :2]
    scale = jnp.sqrt(jnp.abs(linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0]))
    level = jnp.clip(jnp.floor(-jnp.log2(scale)).astype(jnp.int32) - finer, 0, len(offsets) - 1)
    offset, width, height = offsets[level], sizes[level, 0], sizes[level, 1]
    on_level = _inverse(linear) * (sizes[level] / sizes[0])[:, None]
    # The middle of the view's first pixel, from the middle of the level's first pixel.
    origin = jnp.sum(on_level * (0.5 - matrix[:, 2]), axis=1) - 0.5
    column, row = jnp.arange(size)[None], jnp.arange(size)[:, None]
    x = origin[0] + on_level[0, 0] * column + on_level[0, 1] * row
    y = origin[1] + on_level[1, 0] * column + on_level[1, 1] * row
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, bottom_share = x - left, y - top
    # Far outside, a position may be too large for an integer.
    left = jnp.clip(left, -2, width).astype(jnp.int32)
    top = jnp.clip(top, -2, height).astype(jnp.int32)
    total = jnp.zeros((size, size, CHANNELS), jnp.float32)
    for down, row_share in ((0, 1 - bottom_share), (1, bottom_share)):
        for across, column_share in ((0, 1 - right_share), (1, right_share)):
            at_x, at_y = left + across, top + down
            inside_x, inside_y = jnp.clip(at_x, 0, width - 1), jnp.clip(at_y, 0, height - 1)
            counts = ((at_x == inside_x) & (at_y == inside_y)) | replicate
            found = jnp.asarray(images.pixels).at[offset + inside_y * width + inside_x].get(mode="promise_in_bounds")
            share = jnp.where(counts, row_share * column_share, 0.0)
            total += share[..., None] * unpacked(found)
    return total


def unpacked(pixels: Array) -> Float[Array, "*shape 4"]:
    """R, G, B, alpha of packed pixels, 0 to 255."""
    shifts = jnp.arange(0, 32, 8, dtype=jnp.uint32)
    return ((pixels[..., None] >> shifts) & jnp.uint32(255)).astype(jnp.float32)


# Products with a dot would be rounded to half the digits on some devices.
def _apply(linear: Float[Array, "2 2"], points: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    return points[:, :1] * linear[:, 0] + points[:, 1:] * linear[:, 1]


def _inverse(linear: Float[Array, "2 2"]) -> Float[Array, "2 2"]:
    (a, b), (c, d) = linear
    return jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)
