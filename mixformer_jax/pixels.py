"""Frames that users give; pixels as models take them in, and back; the channels of frames with a second stream."""

from types import ModuleType
from typing import Any

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


def checked_frame(frame: Any, streams: Streams = "colour") -> UInt8[np.ndarray, "h w _c"]:
    """What a tracker reads of a frame that a user gave, as an array: of RGB, or of RGB and a second stream behind it.

    Raises ValueError: no array of bytes, no lists of whole numbers from 0 to 255, no PIL image of mode RGB, no pixels,
    or RGB alone for a tracker of two streams.
    """
    expected = "expected uint8 RGB of shape (height, width, 3)"
    if streams == "both":
        expected = "expected uint8 of shape (height, width, 6): RGB, then a second stream (0 where nothing is measured)"
    mode = getattr(frame, "mode", None)  # text of a PIL image; in other modes three channels may be something else
    if isinstance(mode, str) and mode != "RGB":
        raise ValueError(f'a frame of mode {mode!r}; convert a PIL image with image.convert("RGB"); {expected}')
    try:
        pixels = np.asarray(frame)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors on a GPU, traced JAX arrays
        raise ValueError(f"a frame of type {type(frame).__name__} is no array: {error}; {expected}") from error
    # Python's numbers have no type of their own; arrays of another type may hold another range.
    if isinstance(frame, (list, tuple)) and pixels.dtype.kind == "i" and ((pixels >= 0) & (pixels <= 255)).all():
        pixels = pixels.astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in ((6,) if streams == "both" else (3, 6)):
        kind = type(frame).__name__ if pixels.dtype == object else f"{pixels.dtype} and shape {pixels.shape}"
        raise ValueError(f"a frame of type {kind}; {expected}")
    if pixels.size == 0:
        raise ValueError(f"a frame of {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height); {expected}")
    return take_streams(pixels, streams)
