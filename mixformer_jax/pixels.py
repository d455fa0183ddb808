"""Pixels as models take them in, and back; the channels of frames with a second stream."""

from types import ModuleType

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mixformer_jax.boxes import Array, namespace
from mixformer_jax.typed_settings import Streams

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: UInt8[Array, "*n c"]) -> Float32[Array, "*n c"]:
    """Bytes, RGB or two streams of three channels -> float32 with ImageNet's mean and deviation taken out: what every
    model takes in."""
    mean, std = _moments(namespace(images), images.shape[-1])
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def denormalise(images: Float[Array, "*n c"]) -> UInt8[Array, "*n c"]:
    """The inverse of `normalise`; values that no byte has go to the nearest one."""
    xp = namespace(images)
    mean, std = _moments(xp, images.shape[-1])
    return xp.clip(xp.rint((images * std + mean) * 255), 0, 255).astype(np.uint8)


def _moments(xp: ModuleType, channels: int) -> tuple[Array, Array]:
    mean, std = (moments * (channels // 3) for moments in (IMAGENET_MEAN, IMAGENET_STD))
    return xp.asarray(mean, dtype=np.float32), xp.asarray(std, dtype=np.float32)


def take_streams(frame: UInt8[np.ndarray, "*n c"], streams: Streams) -> UInt8[np.ndarray, "*n _c"]:
    """What a model reads of a frame of three channels, or of six, RGB and a second stream: the first three, the last
    three, or all. ValueError for both streams of a frame that has three channels."""
    channels = frame.shape[-1]
    if streams == "both" and channels != 6:
        raise ValueError(f"a frame of {channels} channels; expected 6: RGB, then the second stream's three")
    return {"colour": frame[..., :3], "second": frame[..., -3:], "both": frame}[streams]
