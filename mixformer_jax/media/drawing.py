"""Boxes and captions on frames, and frames side by side. Every function returns a new picture."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Colour = tuple[int, int, int]
# RGB. Chosen to differ from each other and from most scenes; each line also gets a dark rim.
TARGET: Colour = (80, 255, 60)
GROUND_TRUTH: Colour = (255, 210, 40)
RIM: Colour = (16, 16, 16)
# Of several targets; then from the start again. Apart from each other for colour-blind eyes as well, where that can be.
TARGETS: tuple[Colour, ...] = (
    TARGET,
    (64, 160, 255),
    (255, 110, 60),
    (240, 90, 220),
    (60, 230, 230),
    (170, 130, 255),
    (200, 220, 90),
    (255, 255, 255),
)
# Drawing wraps around far outside the frame (OpenCV holds 16-bit coordinates); nothing visible is lost.
_FAR = 16_000


def target_colour(index: int) -> Colour:
    """The colour of a target, counted from 0."""
    return TARGETS[index % len(TARGETS)]


def draw_box(
    frame: UInt8[np.ndarray, "height width 3"],
    box_xywh: Float[np.ndarray, "4"],
    colour: Colour = TARGET,
    label: str | None = None,
    thickness: int | None = None,
    dashed: bool = False,
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a copy of an RGB frame with a box around `x, y, w, h` (pixels) and a label on its upper edge.

    The thickness grows with the frame unless it is given. `dashed` leaves gaps in the four edges. A box that holds
    NaN (an absent target) leaves the frame as it is; parts outside the frame are not drawn.
    """
    picture = frame.copy()
    if not np.isfinite(box_xywh).all():
        return picture
    x, y, w, h = (float(value) for value in box_xywh)
    corner, opposite = _pixel(x, y), _pixel(x + w, y + h)
    thickness = thickness or max(1, round(min(frame.shape[:2]) / 180))
    for ink, weight in ((RIM, thickness + 2), (colour, thickness)):
        if dashed:
            _draw_dashes(picture, corner, opposite, ink, weight)
        else:
            cv2.rectangle(picture, corner, opposite, ink, weight)
    if label:
        _draw_label(picture, label, corner, colour)
    return picture


def draw_caption(
    frame: UInt8[np.ndarray, "height width 3"], text: str, colour: Colour = TARGET
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a copy of an RGB frame with a line of text in its upper left corner."""
    picture = frame.copy()
    _draw_label(picture, text, (0, 0), colour)
    return picture


def contact_sheet(
    frames: Sequence[UInt8[np.ndarray, "height width 3"]], columns: int = 3, gap: int = 6
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Lays frames out in rows of `columns`, with `gap` white pixels between; missing cells are white.

    Raises:
        ValueError: no frames, or frames of different sizes.
    """
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ValueError(f"a sheet needs frames of one size, got {[frame.shape for frame in frames]}")
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    height, width = frames[0].shape[:2]
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _pixel(x: float, y: float) -> tuple[int, int]:
    return round(min(max(x, -_FAR), _FAR)), round(min(max(y, -_FAR), _FAR))


def _draw_dashes(
    picture: np.ndarray, corner: tuple[int, int], opposite: tuple[int, int], colour: Colour, weight: int
) -> None:
    """The corners of a rectangle and the middles of its edges; a third of each edge is left out."""
    (left, top), (right, bottom) = corner, opposite
    for start, end in ((0.0, 1 / 6), (1 / 3, 2 / 3), (5 / 6, 1.0)):
        x1, x2 = round(left + start * (right - left)), round(left + end * (right - left))
        y1, y2 = round(top + start * (bottom - top)), round(top + end * (bottom - top))
        for y in (top, bottom):
            cv2.line(picture, (x1, y), (x2, y), colour, weight)
        for x in (left, right):
            cv2.line(picture, (x, y1), (x, y2), colour, weight)


def _draw_label(picture: np.ndarray, text: str, corner: tuple[int, int], colour: Colour) -> None:
    """Dark text on a plate of `colour`, above `corner` where there is room, and always inside the picture."""
    height, width = picture.shape[:2]
    scale = max(0.4, min(height, width) / 800)
    weight = max(1, round(1.6 * scale))
    (text_width, text_height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, weight)
    pad = max(2, text_height // 4)
    plate_width, plate_height = text_width + 2 * pad, text_height + baseline + 2 * pad
    left = max(0, min(corner[0], width - plate_width))
    top = max(0, min(corner[1] - plate_height, height - plate_height))
    cv2.rectangle(picture, (left, top), (left + plate_width, top + plate_height), colour, cv2.FILLED)
    origin = (left + pad, top + pad + text_height)
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, RIM, weight, cv2.LINE_AA)
