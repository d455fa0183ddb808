"""Images: read whole or not at all, listed in the order in which they are frames, written, and drawn on."""

import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16

from mixformer_jax.files import write_atomically

Image = UInt8[np.ndarray, "height width 3"]  # RGB
Colour = tuple[int, int, int]

# Images of 16 bits that use no more than these are taken for a sensor's, unscaled.
MAX_SENSOR_BITS = 14
FAR_MM = 10_000  # depth beyond is all the same
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# In entropy-coded data 0xff is followed by 0x00 (a plain 0xff), D0-D7 (restart) or 0xff (fill); all else is a marker.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")

# Bytes of a PNG's signature and first chunk; and the chunk of text that images of labels have behind it.
_PNG_HEAD = 33
_LABELS_TEXT = b"tEXtSoftware\0mixformer_jax labels"
_LABELS_MARK = struct.pack(f">I{len(_LABELS_TEXT)}sI", len(_LABELS_TEXT) - 4, _LABELS_TEXT, zlib.crc32(_LABELS_TEXT))

# Chosen to differ from each other and from most scenes; each line also gets a dark rim.
TARGET: Colour = (80, 255, 60)
GROUND_TRUTH: Colour = (255, 210, 40)
RIM: Colour = (16, 16, 16)
# Of several targets; then from the start again. Apart from each other for colour-blind eyes as well, where that can be.
TARGETS: tuple[Colour, ...] = (
    *(TARGET, (64, 160, 255), (255, 110, 60), (240, 90, 220)),
    *((60, 230, 230), (170, 130, 255), (200, 220, 90), (255, 255, 255)),
)
# Drawing wraps around far outside the frame (OpenCV holds 16-bit coordinates); nothing visible is lost.
_FAR = 16_000


class SourceError(ValueError):
    """A source that is missing, cannot be decoded, ends too early, or changes its frame size."""


def has_images(folder: Path) -> bool:
    """Whether a folder has any image that `list_images` lists."""
    return any(_is_listed(path) for path in folder.iterdir())


def _is_listed(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names (frame2 before frame10), hidden ones left out.
    Raises SourceError: two images differ in their suffix only, so one of them would be a frame too many."""
    paths = sorted(filter(_is_listed, folder.iterdir()), key=natural_order)
    by_stem: dict[str, Path] = {}
    for path in paths:
        twin = by_stem.setdefault(path.stem, path)
        if twin is not path:
            raise SourceError(f"{folder}: holds both {twin.name} and {path.name}; move away what is no frame")
    return paths


def natural_order(path: Path) -> tuple[list[int | str], str]:
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def read_image(path: str | Path) -> Image:
    """One image, turned by its EXIF orientation. Of 16 bits the higher 8 are kept; a warning, once a folder, says where
    that leaves next to nothing. Raises SourceError: the file is missing, is no image, or ends early."""
    return decode_image(_read_bytes(Path(path)), str(path))


def read_depth(path: str | Path) -> Image:
    """A depth map of 16 bits, in millimetres, as three equal channels of `depth_bytes`; images of bytes as they are.
    Raises SourceError: as `read_image`, or numbers of another type, such as metres in float32."""
    return decode_image(_read_bytes(Path(path)), str(path), is_depth=True)


def depth_bytes(depth: UInt16[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n"]:
    """Millimetres as bytes, in all frames alike: 0 where nothing was measured, 1 near the camera to 255 from
    `FAR_MM` on."""
    near = np.minimum(depth, FAR_MM).astype(np.uint32)
    return np.where(depth == 0, 0, 1 + (254 * near + FAR_MM // 2) // FAR_MM).astype(np.uint8)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error


def decode_image(data: bytes, name: str, is_depth: bool = False) -> Image:
    """The image in a file's bytes, as `read_image` or `read_depth`; `name` says in messages which file it is."""
    if not data:
        raise SourceError(f"{name}: the file is empty")
    # Some JPEG decoders fill what is missing with grey and only warn.
    if _is_cut_off(data):
        raise SourceError(f"{name}: truncated: ends inside its picture, at byte {len(data)}; copy it again")
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image is not None and image.dtype == np.uint16:
            image = depth_bytes(image) if is_depth else _higher_bytes(image, name)
        elif image is not None and image.dtype != np.uint8:
            if is_depth:
                raise SourceError(f"{name}: depth in {image.dtype}; expected millimetres in 16 bits, 0 where unknown")
            image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{name}: cannot be decoded as an image: {error}") from error
    if image is None:
        raise SourceError(f"{name}: cannot be decoded as an image ({len(data)} bytes): damaged, truncated or no image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _higher_bytes(image: UInt16[np.ndarray, "height width 3"], name: str) -> Image:
    # Sensors of 10 to 14 bits are often stored in 16, unscaled.
    if 8 < int(image.max()).bit_length() <= MAX_SENSOR_BITS:
        folder = Path(name).parent
        # One text a folder: its brightest image, which tells the sensor's bits, is not known here.
        text = (
            f"{folder}: images of 16 bits whose values need {MAX_SENSOR_BITS} at most are nearly black as 8 bits; "
            f"scale them to 16 first, those of 12 bits by: magick mogrify -evaluate multiply 16 '{folder}/*' "
            "(10 bits: 64, 14 bits: 4)"
        )
        warnings.warn(text, stacklevel=2)
    return np.right_shift(image, 8).astype(np.uint8)


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG stops before its end marker. Decoders of the other formats refuse such a file."""
    if data.startswith(b"\xff\xd8"):
        # Most files end with the marker. One that was cut there by chance holds no picture, and does not decode.
        return not (data.endswith(b"\xff\xd9") or _has_jpeg_end(data))
    return data.startswith(b"\x89PNG\r\n\x1a\n") and not _has_png_end(data)


def _has_jpeg_end(data: bytes) -> bool:
    # Segments are stepped over by their length: an EXIF thumbnail is a JPEG with an end marker of its own.
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        if found[1] == b"\xd9":
            return True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def _has_png_end(data: bytes) -> bool:
    position = 8
    while position + 12 <= len(data):
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return False


def write_image(path: Path, image: Image) -> None:
    """Writes a PNG; the file appears whole or not at all."""
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    write_atomically(path, encoded.tobytes())


def write_labels(path: Path, labels: UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]) -> None:
    """Writes a grey PNG whose values are numbers of regions; the file appears whole or not at all.
    It says of itself that it is one, see `is_labels`."""
    png = cv2.imencode(".png", labels)[1].tobytes()
    write_atomically(path, png[:_PNG_HEAD] + _LABELS_MARK + png[_PNG_HEAD:])


def is_labels(path: Path) -> bool:
    """Whether `write_labels` made an image."""
    with path.open("rb") as file:
        return file.read(_PNG_HEAD + len(_LABELS_MARK))[_PNG_HEAD:] == _LABELS_MARK


def target_colour(index: int) -> Colour:
    """The colour of a target, counted from 0."""
    return TARGETS[index % len(TARGETS)]


def draw_box(
    frame: Image,
    box_xywh: Float[np.ndarray, "4"],
    colour: Colour = TARGET,
    label: str | None = None,
    thickness: int | None = None,
    dashed: bool = False,
) -> Image:
    """A copy of a frame with a box in pixels and a label on its upper edge.
    The thickness grows with the frame unless it is given. NaN (an absent target) leaves the frame as it is."""
    picture = frame.copy()
    if not np.isfinite(box_xywh).all():
        return picture
    x, y, w, h = (float(value) for value in box_xywh)
    left, top, right, bottom = (round(min(max(value, -_FAR), _FAR)) for value in (x, y, x + w, y + h))
    thickness = thickness or max(1, round(min(frame.shape[:2]) / 180))
    for ink, weight in ((RIM, thickness + 2), (colour, thickness)):
        if dashed:
            _draw_dashes(picture, (left, top), (right, bottom), ink, weight)
        else:
            cv2.rectangle(picture, (left, top), (right, bottom), ink, weight)
    if label:
        _draw_label(picture, label, (left, top), colour)
    return picture


def draw_mask(frame: Image, mask: Bool[np.ndarray, "height width"], colour: Colour = TARGET) -> Image:
    """A copy of a frame with a mask half covered by a colour, and outlined."""
    picture = frame.copy()
    picture[mask] = picture[mask] // 2 + np.array(colour, np.uint8) // 2
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, outlines, -1, colour, 1)


def draw_caption(frame: Image, text: str, colour: Colour = TARGET) -> Image:
    """A copy of a frame with a line of text in its upper left corner."""
    picture = frame.copy()
    _draw_label(picture, text, (0, 0), colour)
    return picture


def contact_sheet(
    frames: Sequence[Image], columns: int = 3, gap: int = 6
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Frames of one size in rows of `columns`, with `gap` white pixels between; missing cells are white.
    Raises ValueError: no frames, or frames of different sizes."""
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
