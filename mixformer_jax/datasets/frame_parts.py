"""Frames as far as a crop needs them, and the crop itself.

A frame on disk is decoded whole; a packed one has pieces of several sizes, of which the smallest that shows what the
crop needs is decoded. Both give the same crop: the same square is cut, black lies outside the frame, and the box is
computed from what was cut.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.views import CENTRED, Placement, UnusableSampleError


class Rectangle(NamedTuple):
    """A part of a frame, in frame pixels; may reach beyond it."""

    left: float
    top: float
    width: float
    height: float


class FramePart(NamedTuple):
    """Pixels of a part of a frame: as many as `covers` has, or fewer where the part was shrunk."""

    pixels: UInt8[np.ndarray, "h w 3"]
    covers: Rectangle  # in whole frame pixels and inside the frame


@runtime_checkable
class Frame(Protocol):
    """A frame of which parts can be had."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole frame."""
        ...

    def part(self, needed: Rectangle) -> FramePart:
        """A part that shows `needed`, as far as it lies in the frame and is known at all."""
        ...


class WholeFrame:
    """A decoded frame."""

    def __init__(self, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        self.pixels, self.size = pixels, (pixels.shape[0], pixels.shape[1])

    def part(self, needed: Rectangle) -> FramePart:
        """All of it."""
        return FramePart(self.pixels, Rectangle(0, 0, self.size[1], self.size[0]))


def open_frame(sequence: TrackingSequence, index: int) -> Frame:
    """Frame `index` of a sequence."""
    open_parts = getattr(sequence.frame, "open", None)
    return WholeFrame(sequence.frame(index)) if open_parts is None else open_parts(index)


def context_rectangle(
    box_xywh: Float[np.ndarray, "4"], factor: float, placement: Placement = CENTRED, aspect: float = 1.0
) -> Rectangle:
    """What a crop shows: the square that the tracker cuts around a box, moved and zoomed by `placement`.

    The side is `ceil(sqrt(w * h) * zoom * factor)` and the corner the rounded one, both whole frame pixels (see
    `crops.context_crop`). `aspect` is a factor on width / height of the target in the crop.

    Raises:
        UnusableSampleError: a box that is NaN or has no area.
    """
    x, y, w, h = box_xywh.tolist()
    if not (math.isfinite(x + y) and w > 0 and h > 0 and math.isfinite(w * h)):
        raise UnusableSampleError(f"no crop around box ({x:g}, {y:g}, {w:g}, {h:g})")
    side = math.sqrt(w * h) * placement.zoom
    stretch = math.sqrt(aspect)
    width, height = math.ceil(side * factor / stretch), math.ceil(side * factor * stretch)
    centre_x = x + 0.5 * w + placement.offset_xy[0] * side / stretch
    centre_y = y + 0.5 * h + placement.offset_xy[1] * side * stretch
    return Rectangle(round(centre_x - width * 0.5), round(centre_y - height * 0.5), width, height)


def cut(frame: Frame, rectangle: Rectangle, size: int) -> tuple[UInt8[np.ndarray, "{size} {size} 3"], Rectangle]:
    """The pixels of a rectangle at `size` x `size`, and the rectangle that they really show.

    The two rectangles differ for a part that was shrunk: there, whole pixels of the part are cut, within half of such a
    pixel. As in the tracker, all outside the frame is black, and so are its last row and last column.
    """
    part = frame.part(rectangle)
    covers = part.covers
    scale_x, scale_y = part.pixels.shape[1] / covers.width, part.pixels.shape[0] / covers.height
    left, width = _in_part(rectangle.left - covers.left, rectangle.width, scale_x)
    top, height = _in_part(rectangle.top - covers.top, rectangle.height, scale_y)
    frame_height, frame_width = frame.size
    usable_width = min(part.pixels.shape[1], math.floor((frame_width - 1 - covers.left) * scale_x))
    usable_height = min(part.pixels.shape[0], math.floor((frame_height - 1 - covers.top) * scale_y))

    column_from, column_to = max(left, 0), min(left + width, usable_width)
    row_from, row_to = max(top, 0), min(top + height, usable_height)
    window = part.pixels[row_from:row_to, column_from:column_to]
    if window.shape[:2] != (height, width):
        canvas = np.zeros((height, width, 3), np.uint8)
        if row_from < row_to and column_from < column_to:
            canvas[row_from - top : row_to - top, column_from - left : column_to - left] = window
        window = canvas
    shown = Rectangle(covers.left + left / scale_x, covers.top + top / scale_y, width / scale_x, height / scale_y)
    return cv2.resize(window, (size, size), interpolation=cv2.INTER_LINEAR), shown


def _in_part(start: float | int, length: float | int, scale: float) -> tuple[int, int]:
    """Whole pixels of a part, from a start and a length in frame pixels."""
    if scale == 1:
        return round(start), round(length)
    return round(start * scale), max(1, round(length * scale))


def box_within(box_xywh: Float[np.ndarray, "4"], rectangle: Rectangle) -> Float32[np.ndarray, "4"]:
    """A box on the frame -> cx, cy, w, h as shares of a rectangle."""
    x, y, w, h = box_xywh.tolist()
    centre_x, centre_y = (x + w / 2 - rectangle.left) / rectangle.width, (y + h / 2 - rectangle.top) / rectangle.height
    return np.array([centre_x, centre_y, w / rectangle.width, h / rectangle.height], np.float32)


def shows_frame(frame_size: tuple[int, int], rectangle: Rectangle, least: float) -> bool:
    """Whether the share `least` of a rectangle's width, and of its height, lies in the frame."""
    height, width = frame_size
    across = min(rectangle.left + rectangle.width, width - 1) - max(rectangle.left, 0)
    down = min(rectangle.top + rectangle.height, height - 1) - max(rectangle.top, 0)
    return across >= least * rectangle.width and down >= least * rectangle.height
