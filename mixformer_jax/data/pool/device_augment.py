"""How the pixels of a sample are disturbed on the device: what `augment` does on the host, for one sample.

Pixels are floats from 0 to 255 and are rounded once, at the end; the host rounds after every disturbance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.pool.draws import Draws

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as OpenCV has it


class DeviceLight(NamedTuple):
    """Logs of gains, see `augment.Light`."""

    brightness: Float[Array, ""]
    contrast: Float[Array, ""]
    gamma: Float[Array, ""]
    saturation: Float[Array, ""]
    colour: Float[Array, "3"]

    def over(self, other: DeviceLight) -> DeviceLight:
        """One after the other."""
        return jax.tree.map(jnp.add, self, other)


def draw_light(draws: Draws, config: AugmentConfig, strength: float = 1.0) -> DeviceLight:
    """Every log uniform within +-strength times its configured bound."""
    u = draws.signed(strength, (7,))
    return DeviceLight(
        u[0] * config.brightness,
        u[1] * config.contrast,
        u[2] * config.gamma,
        u[3] * config.saturation,
        u[4:] * config.colour,
    )


def relight(image: Float[Array, "h w 3"], light: DeviceLight) -> Float[Array, "h w 3"]:
    """Saturation, then gamma, contrast about mid grey, brightness and channel gains."""
    gain = jnp.exp(light.saturation)
    image = jnp.clip(image * gain + greyed(image) * (1 - gain), 0, 255) / 255
    image = (image ** jnp.exp(light.gamma) - 0.5) * jnp.exp(light.contrast) + 0.5
    return jnp.clip(image * jnp.exp(light.colour + light.brightness), 0, 1) * 255


def greyed(image: Float[Array, "h w 3"]) -> Float[Array, "h w 1"]:
    """Luminance."""
    return (image[..., :1] * GREY[0] + image[..., 1:2] * GREY[1]) + image[..., 2:] * GREY[2]


def disturb(
    key: PRNGKeyArray,
    templates: Float[Array, "slots t t 3"],
    search: Float[Array, "s s 3"],
    config: AugmentConfig,
) -> tuple[Float[Array, "slots t t 3"], Float[Array, "s s 3"]]:
    """Light, colour and image quality of a whole sample: a joint draw and one of its own for every crop."""
    draws = Draws(key)
    joint = draw_light(draws, config)
    is_grey = draws.chance(config.grey_probability)

    def one(key: PRNGKeyArray, crop: Array) -> Array:
        draws = Draws(key)
        light = joint.over(draw_light(draws, config, config.independent))
        gain = jnp.log(1 + draws.signed(config.separate_gain))
        crop = relight(crop, light._replace(brightness=light.brightness + gain))
        if config.grey_probability > 0:
            crop = jnp.where(is_grey, greyed(crop), crop)
        return degrade(draws, crop, config)

    keys = jax.random.split(draws.key(), len(templates) + 1)
    return jax.vmap(one)(keys[1:], templates), one(keys[0], search)


def degrade(draws: Draws, image: Float[Array, "s s 3"], config: AugmentConfig) -> Float[Array, "s s 3"]:
    """Lost resolution, blur, motion blur and noise, each with its probability."""
    size = image.shape[0]
    rows = None
    if config.coarse_probability > 0:
        rows = _either(draws.chance(config.coarse_probability), coarse_matrix(size, draws.uniform(0.4, 0.8)), size)
    if config.blur_probability > 0:
        deviation = draws.uniform(0.4, max(config.max_blur, 0.4))
        blurred = _either(draws.chance(config.blur_probability), blur_matrix(size, deviation), size)
        rows = blurred if rows is None else _product(blurred, rows)
    if rows is not None:
        image = jnp.einsum("ij,jkc->ikc", rows, image, precision="highest")
        image = jnp.einsum("ij,kjc->kic", rows, image, precision="highest")
    if config.motion_blur_probability > 0:
        # On the host a longest line below 3 px would be drawn between it and 3.
        length, angle = draws.uniform(3, config.max_motion_blur), draws.uniform(0, math.pi)
        reach = math.ceil((max(3.0, config.max_motion_blur) - 1) / 2)
        smeared = _smear(image, line_kernel(length, angle, reach))
        image = jnp.where(draws.chance(config.motion_blur_probability), smeared, image)
    if config.noise_probability > 0:
        deviation = draws.uniform(0.2, 1.0) * config.max_noise
        field = jax.random.normal(draws.key(), image.shape)
        field = jnp.where(draws.chance(0.5), field, field[..., :1]) * deviation
        image = jnp.where(draws.chance(config.noise_probability), image + field, image)
    return image


def coarse_matrix(size: int, keep: Float[Array, ""]) -> Float[Array, "size size"]:
    """Rows of an image shrunk to a share of its size by area means and enlarged again bilinearly."""
    small = jnp.round(size * keep)
    most = size  # rows of the small image from `small` on are not looked at
    first = jnp.arange(most)[:, None] * (size / small)
    pixel = jnp.arange(size)[None]
    overlap = jnp.clip(jnp.minimum(first + size / small, pixel + 1) - jnp.maximum(first, pixel), 0, 1)
    shrink = overlap * (small / size)
    at = jnp.clip((jnp.arange(size)[:, None] + 0.5) * (small / size) - 0.5, 0, small - 1)
    enlarge = jnp.clip(1 - jnp.abs(at - jnp.arange(most)[None]), 0, 1)
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


def _either(chosen: Bool[Array, ""], matrix: Float[Array, "s s"], size: int) -> Float[Array, "s s"]:
    return jnp.where(chosen, matrix, jnp.eye(size))


def _product(first: Float[Array, "s s"], second: Float[Array, "s s"]) -> Float[Array, "s s"]:
    return jnp.matmul(first, second, precision="highest")
