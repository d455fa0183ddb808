"""How the pixels of a sample are disturbed: light, colour, blur, noise, occluders (geometry: `views`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from mixformer_jax.typed_settings import LogStrength, Range, Share, ShareBelowOne, TypedSettings


@dataclass(frozen=True)
class AugmentConfig(TypedSettings):
    """Strengths and probabilities. A strength of 0 or a probability of 0 turns its disturbance off.

    Light and colour are drawn once for the sample and once more for every crop, at `independent` times the
    strength. The official trainer has other disturbances, see `AugmentConfig.official`.
    """

    flip_probability: Share = 0.5  # joint
    # Data sets on disk only: each crop once more by itself
    separate_flip_probability: Share = 0.0
    aspect: LogStrength = 0.08  # each crop: log of width / height uniform within +-aspect
    brightness: LogStrength = 0.2  # log of the gain uniform within +-brightness
    separate_gain: ShareBelowOne = 0.0  # each crop: gain uniform within 1 +-separate_gain
    contrast: LogStrength = 0.2  # log of the gain about mid grey
    gamma: LogStrength = 0.2  # log of the exponent
    colour: LogStrength = 0.1  # log of the gain of each channel
    saturation: LogStrength = 0.4  # log of the gain of the distance from grey
    independent: LogStrength = 0.6
    grey_probability: Share = 0.05  # joint
    blur_probability: Share = 0.1  # each crop, Gaussian, sigma 0.4 to max_blur px
    max_blur: Annotated[float, Range(0, 100)] = 1.2
    motion_blur_probability: Share = 0.07  # each crop, straight line of 3 to max_motion_blur px
    max_motion_blur: Annotated[float, Range(0, 100)] = 7.0
    # Each crop: shrunk to 40-80 % and enlarged again, as a small target on a frame is
    coarse_probability: Share = 0.07
    noise_probability: Share = 0.1  # each crop
    max_noise: Annotated[float, Range(0, 255)] = 10.0  # deviation in grey levels
    occluder_probability: Share = 0.1  # search: a patch of another picture over part of the target
    max_occluded: Share = 0.5  # share of the target's box

    @classmethod
    def official(cls) -> AugmentConfig:
        """The disturbances of the official trainer: joint grey 0.05 and flip 0.5, then for each crop by itself a flip
        0.5 and a gain in 0.8 to 1.2."""
        none = {field.name: 0.0 for field in fields(cls)}
        ours = {
            "flip_probability": 0.5,
            "separate_flip_probability": 0.5,
            "separate_gain": 0.2,
            "grey_probability": 0.05,
        }
        return cls(**none | ours)

    def draw_aspect(self, rng: np.random.Generator) -> float:
        """A factor on width / height."""
        return math.exp((2 * rng.random() - 1) * self.aspect)


@dataclass(frozen=True)
class Light:
    """Logs of gains; the sum of two lights is one after the other, but for the clipping between."""

    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    saturation: float = 0.0
    colour: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __add__(self, other: Light) -> Light:
        red, green, blue = (a + b for a, b in zip(self.colour, other.colour, strict=True))
        return Light(
            self.brightness + other.brightness,
            self.contrast + other.contrast,
            self.gamma + other.gamma,
            self.saturation + other.saturation,
            (red, green, blue),
        )


def draw_light(rng: np.random.Generator, config: AugmentConfig, strength: float = 1.0) -> Light:
    """Every log uniform within +-strength times its configured bound."""
    u = (2 * rng.random(7) - 1) * strength
    return Light(
        brightness=float(u[0]) * config.brightness,
        contrast=float(u[1]) * config.contrast,
        gamma=float(u[2]) * config.gamma,
        saturation=float(u[3]) * config.saturation,
        colour=(float(u[4]) * config.colour, float(u[5]) * config.colour, float(u[6]) * config.colour),
    )


def relight(image: UInt8[np.ndarray, "h w 3"], light: Light) -> UInt8[np.ndarray, "h w 3"]:
    """Saturation, then gamma, contrast about mid grey, brightness and channel gains in one table look-up."""
    if light == Light(brightness=light.brightness):
        return image if light.brightness == 0 else cv2.convertScaleAbs(image, alpha=math.exp(light.brightness))
    if light.saturation != 0:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        gain = math.exp(light.saturation)
        image = cv2.addWeighted(image, gain, grey, 1 - gain, 0)
    levels = (np.arange(256, dtype=np.float32) / 255) ** math.exp(light.gamma)
    levels = (levels - 0.5) * math.exp(light.contrast) + 0.5
    gains = np.exp(np.array(light.colour, np.float32) + np.float32(light.brightness))
    table = np.clip(levels[:, None] * (gains * 255) + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


def degrade(
    rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"], config: AugmentConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """Blur, motion blur, lost resolution and noise, each with its probability."""
    blur, motion, coarse, noise = rng.random(4)
    if coarse < config.coarse_probability:
        height, width = image.shape[:2]
        keep = rng.uniform(0.4, 0.8)
        small = cv2.resize(image, (round(width * keep), round(height * keep)), interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if blur < config.blur_probability:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, max(config.max_blur, 0.4)))
    if motion < config.motion_blur_probability:
        image = cv2.filter2D(image, -1, line_kernel(rng.uniform(3, config.max_motion_blur), rng.uniform(0, math.pi)))
    if noise < config.noise_probability:
        channels = 3 if rng.random() < 0.5 else 1
        deviation = np.float32(rng.uniform(0.2, 1.0) * config.max_noise)
        field = rng.standard_normal((*image.shape[:2], channels), np.float32) * deviation
        image = np.clip(image + field, 0, 255).astype(np.uint8)
    return image


def line_kernel(length: float, angle: float) -> Float32[np.ndarray, "k k"]:
    """A straight anti-aliased line of `length` pixels through the middle of an odd kernel, summing to one."""
    reach = math.ceil((length - 1) / 2)
    offsets = np.arange(-reach, reach + 1, dtype=np.float32)
    x, y = np.meshgrid(offsets, offsets)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = -x * math.sin(angle) + y * math.cos(angle)
    kernel = np.clip(1 - np.abs(across), 0, 1) * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    return (kernel / kernel.sum()).astype(np.float32)


def disturb(
    rng: np.random.Generator,
    templates: UInt8[np.ndarray, "slots t t 3"],
    search: UInt8[np.ndarray, "s s 3"],
    config: AugmentConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Light, colour and image quality of a whole sample: a joint draw and one of its own for every crop."""
    joint = draw_light(rng, config)
    grey = rng.random() < config.grey_probability

    def one(crop: np.ndarray) -> np.ndarray:
        light = joint + draw_light(rng, config, config.independent)
        if config.separate_gain > 0:
            gain = 1 + (2 * rng.random() - 1) * config.separate_gain
            light = replace(light, brightness=light.brightness + math.log(gain))
        crop = relight(crop, light)
        if grey:
            crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return degrade(rng, crop, config)

    return np.stack([one(template) for template in templates]), one(search)


def occlude(
    rng: np.random.Generator,
    search: UInt8[np.ndarray, "s s 3"],
    box_cxcywh: Float32[np.ndarray, "4"],
    texture: UInt8[np.ndarray, "h w 3"],
    config: AugmentConfig,
) -> UInt8[np.ndarray, "s s 3"]:
    """Lay a rectangle or ellipse of `texture` over at most `max_occluded` of the target's box. The box stays
    the whole."""
    size = search.shape[0]
    cx, cy, w, h = (float(v) * size for v in box_cxcywh)
    share = rng.uniform(0.2, 1.0) * config.max_occluded
    # A bar across one side, or a patch: either way width * height * w * h is at most the share.
    width = rng.uniform(share, 1.0)
    height = share / width
    u, v = rng.uniform(-0.5, 0.5, 2)
    centre = (round(cx + u * w), round(cy + v * h))
    half = (max(1, round(width * w / 2)), max(1, round(height * h / 2)))
    left, top = max(0, centre[0] - half[0]), max(0, centre[1] - half[1])
    right, bottom = min(size, centre[0] + half[0]), min(size, centre[1] + half[1])
    if right - left < 2 or bottom - top < 2:
        return search
    patch = cv2.resize(texture, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    mask = np.zeros(search.shape[:2], np.uint8)
    if rng.random() < 0.5:
        cv2.ellipse(mask, centre, half, 0, 0, 360, 1, -1)
    else:
        mask[top:bottom, left:right] = 1
    result = search.copy()
    window = result[top:bottom, left:right]
    window[:] = np.where(mask[top:bottom, left:right, None] > 0, patch, window)
    return result
