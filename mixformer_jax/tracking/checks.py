"""What users hand to a tracker, checked at the door: frames, and boxes on them."""

import logging
import math
from typing import Any

import numpy as np
from jaxtyping import Float64

from mixformer_jax.boxes import check_box_xywh
from mixformer_jax.media.sources import Frame
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.pixels import take_streams
from mixformer_jax.tracking.step import clip_margins
from mixformer_jax.typed_settings import Streams

logger = logging.getLogger(__name__)


def check_boxes(boxes_xywh: Any, frame_shape: tuple[int, ...]) -> Float64[np.ndarray, "n 4"]:
    """One box, or several, as [n, 4]."""
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


def warn_of_small_targets(settings: TrackerConfig, boxes_xywh: Float64[np.ndarray, "n 4"]) -> None:
    """Says which targets are smaller than any box that the tracker can give, and the setting that helps."""
    for number, (box_xywh, margin) in enumerate(zip(boxes_xywh, clip_margins(settings, boxes_xywh), strict=True), 1):
        width, height = box_xywh[2:]
        if margin <= max(1, min(width, height)):
            continue
        which = f"target {number}" if len(boxes_xywh) > 1 else "the target"
        enough = max(1, math.floor(min(width, height) / 2))
        logger.warning(
            "%s is %g x %g pixels, and no box of this tracker is smaller than %g x %g (clip_margin); boxes can be as "
            "small as the target with --tracker.clip_margin=%d, or tracker.with_settings(clip_margin=%d)",
            *(which, width, height, margin, margin, enough, enough),
        )


def checked_frame(frame: Any, streams: Streams = "colour") -> Frame:
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
