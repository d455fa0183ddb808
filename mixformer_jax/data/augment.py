"""How samples vary: jitter of crops, light, image quality and occluders; and their pixels on the host.
All is drawn through a `Random`, so that the renderer on the device (`pool.device`) draws from the same functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from mixformer_jax import views
from mixformer_jax.typed_settings import LogStrength, Range, Share, ShareBelowOne, TypedSettings
from mixformer_jax.views import CropConfig, Placement, UnusableSampleError


class Random:
    """Random numbers and the choices that depend on them, on the host; in a trace see `pool.device.DeviceRandom`."""

    xp: Any = np  # numpy, or what stands for it
    geometry: Any = views  # `views`, or what stands for it

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def uniform(self, low: Any = 0.0, high: Any = 1.0, shape: tuple[int, ...] | None = None) -> Any:
        """Uniform between two bounds."""
        return self.rng.uniform(low, high, shape)

    def signed(self, bound: Any, shape: tuple[int, ...] | None = None) -> Any:
        """Uniform within +-bound."""
        return (2 * self.rng.random(shape) - 1) * bound

    def normal(self, shape: tuple[int, ...]) -> Any:
        """Normal with deviation 1."""
        return self.rng.standard_normal(shape)

    def below(self, count: Any, shape: tuple[int, ...] | None = None) -> Any:
        """A whole number from 0 to count - 1."""
        return self.rng.integers(count, size=shape)

    def chance(self, probability: float) -> Any:
        """True with a probability."""
        return bool(self.rng.random() < probability)

    def entry(self, cumulative: Any) -> Any:
        """A position in a list of weights, each added to those before."""
        found = np.searchsorted(cumulative, self.rng.random() * cumulative[-1], side="right")
        return min(int(found), len(cumulative) - 1)

    def pick(self, mask: Any) -> Any:
        """A position at which the mask is true, all alike."""
        return np.flatnonzero(mask)[self.rng.integers(sum(mask))]

    def exp(self, value: Any) -> Any:
        """The C library's exp: numpy's differs in the last bit between processors."""
        return math.exp(value) if np.ndim(value) == 0 else np.vectorize(math.exp)(value)

    def log(self, value: Any) -> Any:
        """Likewise."""
        return math.log(value)

    def require(self, condition: Any, message: str) -> None:
        """Gives the sample up where the condition does not hold: on the host UnusableSampleError, to draw again; the
        device takes another candidate."""
        if not condition:
            raise UnusableSampleError(message)

    def choose(self, condition: Any, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        """One of two; on the host only that one is drawn."""
        return first() if condition else second()

    def repeat(self, count: Any, most: int) -> Iterator[Any]:
        """True `count` times; on the device `most` times whether this one counts."""
        yield from [True] * int(count)

    def first(self, draw: Callable[[Any], Any], accept: Callable[[Any], Any], tries: tuple[int, int], what: str) -> Any:
        """The first of a few drawn values that is accepted; `tries` on the host, and at once on the device."""
        for _ in range(tries[0]):
            value = draw(self)
            if accept(value):
                return value
        raise UnusableSampleError(f"{tries[0]} draws, and no {what}")

    def stack(self, items: list[Any]) -> Any:
        """Several of a kind."""
        return items


@dataclass(frozen=True)
class AugmentConfig(TypedSettings):
    """Strengths and probabilities; at 0 a disturbance is off.
    Light and colour are drawn once for the sample and once more for every crop, at `independent` times the strength."""

    flip_probability: Share = 0.5  # joint
    separate_flip_probability: Share = 0.0  # data sets on disk only: each crop once more by itself
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
    coarse_probability: Share = 0.07  # each crop: shrunk to 40-80 % and enlarged again, like a small target
    noise_probability: Share = 0.1  # each crop
    max_noise: Annotated[float, Range(0, 255)] = 10.0  # deviation in grey levels
    occluder_probability: Share = 0.1  # search: a patch of another picture over part of the target
    max_occluded: Share = 0.5  # share of the target's box

    @classmethod
    def none(cls) -> AugmentConfig:
        """Nothing is disturbed."""
        return cls(**{field.name: 0.0 for field in dataclasses.fields(cls)})

    @classmethod
    def official(cls) -> AugmentConfig:
        """The official trainer's: joint grey 0.05 and flip 0.5, then for each crop a flip 0.5 and a gain 0.8 to 1.2."""
        none = dataclasses.replace(cls.none(), flip_probability=0.5, grey_probability=0.05)
        return dataclasses.replace(none, separate_flip_probability=0.5, separate_gain=0.2)

    def draw_aspect(self, random: Random) -> Any:
        """A factor on width / height."""
        return random.exp(random.signed(self.aspect))


def draw_placement(random: Random, crops: CropConfig) -> Placement:
    """The jitter of a search crop, as the official trainer draws it."""
    zoom = random.exp(random.normal((2,)).mean() * crops.scale_jitter)
    zoom = random.xp.clip(zoom, 1 / crops.max_zoom, crops.max_zoom)
    return Placement(zoom, random.signed(0.5 * crops.centre_jitter, (2,)))


class Light(NamedTuple):
    """Logs of gains."""

    brightness: Any = 0.0
    contrast: Any = 0.0
    gamma: Any = 0.0
    saturation: Any = 0.0
    colour: Any = (0.0, 0.0, 0.0)


def draw_light(random: Random, config: AugmentConfig, strength: float = 1.0) -> Light:
    """Every log uniform within +-strength times its configured bound."""
    u = random.signed(strength, (7,))
    bounds = (config.brightness, config.contrast, config.gamma, config.saturation)
    brightness, contrast, gamma, saturation = (u[i] * bound for i, bound in enumerate(bounds))
    return Light(brightness, contrast, gamma, saturation, u[4:] * config.colour)


class Quality(NamedTuple):
    """What is lost of a crop's quality, each with its strength."""

    is_coarse: Any
    keep: Any  # share of the size that it is shrunk to
    is_blurred: Any
    deviation: Any  # of the Gaussian in pixels
    is_smeared: Any
    length: Any  # of the motion in pixels
    angle: Any
    is_noisy: Any
    is_coloured: Any  # noise of each channel
    noise: Any  # deviation in grey levels


def draw_quality(random: Random, config: AugmentConfig) -> Quality:
    """Each loss with its probability, its strength uniform."""
    blurred, smeared, coarse, noisy = random.uniform(shape=(4,))
    coarse = coarse < config.coarse_probability
    keep = random.choose(coarse, lambda: random.uniform(0.4, 0.8), lambda: 1.0)
    blurred = blurred < config.blur_probability
    deviation = random.choose(blurred, lambda: random.uniform(0.4, max(config.max_blur, 0.4)), lambda: 1.0)
    smeared = smeared < config.motion_blur_probability
    length = random.choose(smeared, lambda: random.uniform(3, config.max_motion_blur), lambda: 3.0)
    angle = random.choose(smeared, lambda: random.uniform(0, math.pi), lambda: 0.0)
    noisy = noisy < config.noise_probability
    coloured = random.choose(noisy, lambda: random.chance(0.5), lambda: False)
    noise = random.choose(noisy, lambda: random.uniform(0.2, 1.0) * config.max_noise, lambda: 0.0)
    return Quality(coarse, keep, blurred, deviation, smeared, length, angle, noisy, coloured, noise)


def draw_crop_look(random: Random, config: AugmentConfig, joint: Light) -> tuple[Light, Quality]:
    """Light and quality of one crop; `joint` is the light of the sample."""
    own = draw_light(random, config, config.independent)
    light = Light(*(a + b for a, b in zip(joint, own, strict=True)))  # but for the clipping between the two
    if config.separate_gain > 0:
        gain = random.log(1 + random.signed(config.separate_gain))
        light = light._replace(brightness=light.brightness + gain)
    return light, draw_quality(random, config)


class Patch(NamedTuple):
    """An occluder in whole pixels of the crop, ends excluded; nothing where it is not `shown`."""

    centre: Any
    half: Any
    low: Any
    high: Any
    shown: Any
    is_ellipse: Any


def draw_patch(random: Random, box_cxcywh: Any, size: int, max_occluded: float) -> Patch:
    """A rectangle or ellipse over at most `max_occluded` of the target's box: a bar across one side, or a spot."""
    xp = random.xp
    box = xp.asarray(box_cxcywh, float) * size
    share = random.uniform(0.2, 1.0) * max_occluded
    width = random.uniform(share, 1.0)  # width * height of the box is the share
    centre = xp.round(box[:2] + random.uniform(-0.5, 0.5, (2,)) * box[2:])
    half = xp.maximum(1, xp.round(xp.stack([width, share / width]) * box[2:] / 2))
    low, high = xp.maximum(0, centre - half), xp.minimum(size, centre + half)
    shown = (high - low >= 2).all()
    return Patch(centre, half, low, high, shown, random.choose(shown, lambda: random.chance(0.5), lambda: False))


def relight(image: UInt8[np.ndarray, "h w 3"], light: Light) -> UInt8[np.ndarray, "h w 3"]:
    """Saturation, then gamma, contrast about mid grey, brightness and channel gains in one table look-up."""
    if not (light.contrast or light.gamma or light.saturation or np.any(light.colour)):
        return image if light.brightness == 0 else cv2.convertScaleAbs(image, alpha=math.exp(light.brightness))
    if light.saturation != 0:
        gain = math.exp(light.saturation)
        image = cv2.addWeighted(image, gain, _greyed(image), 1 - gain, 0)
    levels = (np.arange(256, dtype=np.float32) / 255) ** math.exp(light.gamma)
    levels = (levels - 0.5) * math.exp(light.contrast) + 0.5
    gains = np.exp(np.array(light.colour, np.float32) + np.float32(light.brightness))
    table = np.clip(levels[:, None] * (gains * 255) + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


def _greyed(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def degrade(image: UInt8[np.ndarray, "h w 3"], quality: Quality, rng: np.random.Generator) -> np.ndarray:
    """Lost resolution, blur, motion blur and noise."""
    height, width = image.shape[:2]
    if quality.is_coarse:
        size = (round(width * quality.keep), round(height * quality.keep))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if quality.is_blurred:
        image = cv2.GaussianBlur(image, (0, 0), quality.deviation)
    if quality.is_smeared:
        image = cv2.filter2D(image, -1, line_kernel(quality.length, quality.angle))
    if quality.is_noisy:
        field = rng.standard_normal((height, width, 3 if quality.is_coloured else 1), np.float32)
        image = np.clip(image + field * np.float32(quality.noise), 0, 255).astype(np.uint8)
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
    random: Random,
    templates: UInt8[np.ndarray, "slots t t 3"],
    search: UInt8[np.ndarray, "s s 3"],
    config: AugmentConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Light, colour and image quality of a whole sample."""
    joint, is_grey = draw_light(random, config), random.chance(config.grey_probability)

    def one(crop: np.ndarray) -> np.ndarray:
        light, quality = draw_crop_look(random, config, joint)
        crop = relight(crop, light)
        return degrade(_greyed(crop) if is_grey else crop, quality, random.rng)

    return np.stack([one(template) for template in templates]), one(search)


def occlude(
    random: Random,
    search: UInt8[np.ndarray, "s s 3"],
    box_cxcywh: Float32[np.ndarray, "4"],
    texture: UInt8[np.ndarray, "h w 3"],
    config: AugmentConfig,
) -> UInt8[np.ndarray, "s s 3"]:
    """A patch of `texture` over the search crop, see `draw_patch`. The box stays the whole."""
    patch = draw_patch(random, box_cxcywh, search.shape[0], config.max_occluded)
    if not patch.shown:
        return search
    (left, top), (right, bottom) = patch.low.astype(int).tolist(), patch.high.astype(int).tolist()
    mask = np.zeros(search.shape[:2], np.uint8)
    if patch.is_ellipse:
        cv2.ellipse(mask, patch.centre.astype(int).tolist(), patch.half.astype(int).tolist(), 0, 0, 360, 1, -1)
    else:
        mask[top:bottom, left:right] = 1
    result = search.copy()
    window = result[top:bottom, left:right]
    pixels = cv2.resize(texture, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    window[:] = np.where(mask[top:bottom, left:right, None] > 0, pixels, window)
    return result
