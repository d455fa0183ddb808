"""The pool on the device: its pixels, views of them and their disturbances; what `views` and `augment` do on the host.
For one sample; callers map over many. Coordinates are continuous: pixel i covers [i, i + 1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, PRNGKeyArray, UInt32

from mixformer_jax.data.augment import AugmentConfig, Light, Quality
from mixformer_jax.data.pool.pool import HostPool, Numbers, Tables
from mixformer_jax.views import deform

CHANNELS = 4
SEEN_GRID = 16
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV has it
MAX_PIXELS = 2**31 - 1  # positions in the row of pixels are 32-bit integers

_product = functools.partial(jnp.matmul, precision="highest")


class Images(NamedTuple):
    """Pyramids of pictures, one after the other in one row of pixels, so that nothing is padded."""

    pixels: UInt32[Numbers, " pixels"]  # R + 256 G + 256^2 B + 256^3 alpha; alpha is 255 where a picture has none
    offset: Int32[Numbers, "images levels"]  # where a level begins. A picture with fewer levels repeats its last one.
    width_height: Int32[Numbers, "images levels 2"]  # of every level


class DevicePool(NamedTuple):
    """The material as arrays alone, so that a device holds it and draws from it by itself."""

    tables: Tables  # its numbers
    images: Images  # all pictures
    outline_xy: Float32[Numbers, "cutouts points 2"]  # hulls on the photographs; short ones repeat their last point
    pasted_outline_xy: Float32[Numbers, "cutouts points 2"]  # likewise on the cut-outs' own pictures

    @classmethod
    def of(cls, pool: HostPool) -> DevicePool:
        """As numpy arrays; ValueError for more pixels than positions."""
        return cls(
            jax.tree.map(lambda table: table.astype(np.float32) if table.dtype == float else table, pool.tables),
            packed_images(pool.pictures),
            _padded(pool.outline_xy),
            _padded(pool.pasted_outline_xy),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that a device must have for it."""
        return sum(table.nbytes for table in jax.tree.leaves(self))

    def extent(self, picture: Any) -> Any:
        """Width and height, float32 [2]."""
        return self.images.width_height[picture, 0].astype(np.float32)

    def texture(self, picture: Any, box_xywh: Any) -> Any:
        """Deviation of the green channel in a box, at 8 x 8 points of the coarsest level."""
        full, (width, height) = self.images.width_height[picture, 0], self.images.width_height[picture, -1]
        at = (jnp.arange(8) + 0.5) / 8
        x = ((box_xywh[0] + at * box_xywh[2]) * (width / full[0])).astype(jnp.int32)[None]
        y = ((box_xywh[1] + at * box_xywh[3]) * (height / full[1])).astype(jnp.int32)[:, None]
        place = self.images.offset[picture, -1] + jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
        return jnp.std(unpacked(self.images.pixels[place])[..., 1])


def packed_images(pyramids: Sequence[Sequence[np.ndarray]]) -> Images:
    """All pictures in one row of pixels; ValueError for more pixels than positions."""
    depth = max((len(levels) for levels in pyramids), default=1)
    total = sum(level.shape[0] * level.shape[1] for levels in pyramids for level in levels)
    if total > MAX_PIXELS:
        raise ValueError(
            f"the pool has {total / 1e9:.1f} thousand million pixels, and a device can number {MAX_PIXELS / 1e9:.1f}; "
            "pack a smaller one (mixformer data pool), or lower data.max_target_side"
        )
    rgba = np.full((total, 4), 255, np.uint8)
    offsets, sizes = np.zeros((len(pyramids), depth), np.int32), np.zeros((len(pyramids), depth, 2), np.int32)
    at = 0
    for number, levels in enumerate(pyramids):
        for level, picture in enumerate(levels):
            height, width, channels = picture.shape
            rgba[at : at + height * width, :channels] = picture.reshape(-1, channels)
            offsets[number, level:], sizes[number, level:] = at, (width, height)
            at += height * width
    return Images(rgba.view("<u4").astype(np.uint32, copy=False).reshape(-1), offsets, sizes)


def _padded(hulls: Sequence[np.ndarray]) -> np.ndarray:
    most = max((len(hull) for hull in hulls), default=1)
    padded = [np.concatenate([hull, np.repeat(hull[-1:], most - len(hull), axis=0)]) for hull in hulls]
    return np.array(padded, np.float32).reshape(-1, most, 2)


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


def seen_share(matrix: Float[Array, "2 3"], size: int, width_height: Float[Array, "2"]) -> Float[Array, ""]:
    """Share of a crop that shows the source image, counted on a grid of 16 x 16 points."""
    at = (jnp.arange(SEEN_GRID) + 0.5) * (size / SEEN_GRID)
    points = jnp.stack(jnp.meshgrid(at, at), axis=-1).reshape(-1, 2)
    source = deform(_inverse(matrix[:, :2]), points - matrix[:, 2])
    return jnp.mean(((source >= 0) & (source <= width_height)).all(axis=1))


def warp(
    images: Images,
    image: Int[Array, ""],
    matrix: Float[Array, "2 3"],
    size: int,
    finer: Bool[Array, ""] | Int[Array, ""] | int = 0,
    replicate: Bool[Array, ""] | bool = False,
) -> Float[Array, "size size 4"]:
    """One view of one picture, RGBA from 0 to 255; beyond the picture all are 0, or with `replicate` as at its edge.
    See `views.warp`: one bilinear look-up on the coarsest level that still has the view's resolution."""
    offsets, sizes = images.offset[image], images.width_height[image]
    linear = matrix[:, :2]
    scale = jnp.sqrt(jnp.abs(linear[0, 0] * linear[1, 1] - linear[0, 1] * linear[1, 0]))
    level = jnp.clip(jnp.floor(-jnp.log2(scale)).astype(jnp.int32) - jnp.asarray(finer, jnp.int32), 0, len(offsets) - 1)
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


def _inverse(linear: Float[Array, "2 2"]) -> Float[Array, "2 2"]:
    (a, b), (c, d) = linear
    return jnp.array([[d, -b], [-c, a]]) / (a * d - b * c)


def relight(image: Float[Array, "h w 3"], light: Light) -> Float[Array, "h w 3"]:
    """Saturation, then gamma, contrast about mid grey, brightness and channel gains."""
    gain = jnp.exp(light.saturation)
    image = jnp.clip(image * gain + greyed(image) * (1 - gain), 0, 255) / 255
    image = (image ** jnp.exp(light.gamma) - 0.5) * jnp.exp(light.contrast) + 0.5
    return jnp.clip(image * jnp.exp(light.colour + light.brightness), 0, 1) * 255


def greyed(image: Float[Array, "h w 3"]) -> Float[Array, "h w 1"]:
    """Luminance."""
    return (image[..., :1] * GREY[0] + image[..., 1:2] * GREY[1]) + image[..., 2:] * GREY[2]


def degrade(
    image: Float[Array, "s s 3"], quality: Quality, key: PRNGKeyArray, config: AugmentConfig
) -> Float[Array, "s s 3"]:
    """See `augment.degrade`; what has no probability is not computed."""
    size = image.shape[0]
    rows = jnp.eye(size)
    if config.coarse_probability > 0:
        rows = jnp.where(quality.is_coarse, coarse_matrix(size, quality.keep), rows)
    if config.blur_probability > 0:
        rows = jnp.where(quality.is_blurred, _product(blur_matrix(size, quality.deviation), rows), rows)
    if config.coarse_probability > 0 or config.blur_probability > 0:
        image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
        image = jnp.einsum("ij,kjc->kic", rows, image, precision="highest")
    if config.motion_blur_probability > 0:
        # On the host a longest line below 3 px would be drawn between it and 3.
        reach = math.ceil((max(3.0, config.max_motion_blur) - 1) / 2)
        smeared = _smear(image, line_kernel(quality.length, quality.angle, reach))
        image = jnp.where(quality.is_smeared, smeared, image)
    if config.noise_probability > 0:
        field = jax.random.normal(key, image.shape)
        field = jnp.where(quality.is_coloured, field, field[..., :1]) * quality.noise
        image = jnp.where(quality.is_noisy, image + field, image)
    return image


def coarse_matrix(size: int, keep: Float[Array, ""]) -> Float[Array, "size size"]:
    """Rows of an image shrunk to a share of its size by area means and enlarged again bilinearly."""
    small = jnp.round(size * keep)  # rows of the small image from this one on are not looked at
    first = jnp.arange(size)[:, None] * (size / small)
    pixel = jnp.arange(size)[None]
    overlap = jnp.clip(jnp.minimum(first + size / small, pixel + 1) - jnp.maximum(first, pixel), 0, 1)
    shrink = overlap * (small / size)
    at = jnp.clip((jnp.arange(size)[:, None] + 0.5) * (small / size) - 0.5, 0, small - 1)
    enlarge = jnp.clip(1 - jnp.abs(at - jnp.arange(size)[None]), 0, 1)
    return _product(enlarge, shrink)


def blur_matrix(size: int, deviation: Float[Array, ""]) -> Float[Array, "size size"]:
    """Rows of an image under a Gaussian; beyond the edges the image is mirrored."""
    # OpenCV's kernel: 2 * radius + 1 = the nearest whole number to 6 * deviation + 1, made odd.
    radius = jnp.floor(jnp.round(6 * deviation + 1) / 2)

    def weight(distance: Array) -> Array:
        return jnp.where(jnp.abs(distance) <= radius, jnp.exp(-(distance**2) / (2 * deviation**2)), 0.0)

    to, source = jnp.arange(size)[:, None], jnp.arange(size)[None]
    mirrored = jnp.where(source > 0, weight(to + source), 0.0)
    mirrored += jnp.where(source < size - 1, weight(2 * (size - 1) - to - source), 0.0)
    weights = weight(to - source) + mirrored
    return weights / weights.sum(axis=1, keepdims=True)


def line_kernel(length: Float[Array, ""], angle: Float[Array, ""], reach: int) -> Float[Array, "k k"]:
    """See `augment.line_kernel`; 2 * reach + 1 pixels wide whatever the length."""
    offsets = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    x, y = jnp.meshgrid(offsets, offsets)
    along = x * jnp.cos(angle) + y * jnp.sin(angle)
    across = -x * jnp.sin(angle) + y * jnp.cos(angle)
    own_reach = jnp.ceil((length - 1) / 2)
    within = jnp.maximum(jnp.abs(x), jnp.abs(y)) <= own_reach
    kernel = jnp.clip(1 - jnp.abs(across), 0, 1) * jnp.clip(length / 2 + 0.5 - jnp.abs(along), 0, 1) * within
    return kernel / kernel.sum()


def _smear(image: Float[Array, "s s 3"], kernel: Float[Array, "k k"]) -> Float[Array, "s s 3"]:
    size, width = image.shape[0], kernel.shape[0]
    padded = jnp.pad(image, ((width // 2,) * 2, (width // 2,) * 2, (0, 0)), mode="reflect")
    total = jnp.zeros_like(image)
    for row in range(width):
        for column in range(width):
            total += kernel[row, column] * padded[row : row + size, column : column + size]
    return total
