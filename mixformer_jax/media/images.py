"""Images on disk: read whole or not at all, written the same way, and the order in which they are frames."""

import re
import warnings
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8, UInt16

from mixformer_jax.files import write_atomically

# Images of 16 bits that use no more than these are taken for a sensor's, unscaled.
MAX_SENSOR_BITS = 14
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# In entropy-coded data 0xff is followed by 0x00 (a plain 0xff), D0-D7 (restart) or 0xff (fill);
# anything else is a marker.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


class SourceError(ValueError):
    """A source that is missing, cannot be decoded, ends too early, or changes its frame size."""


def has_images(folder: Path) -> bool:
    """Whether a folder has any image that `list_images` lists."""
    return any(_is_listed(path) for path in folder.iterdir())


def _is_listed(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names (frame2 before frame10), hidden ones left out.

    Raises:
        SourceError: two images differ in their suffix only, so one of them would be a frame too many.
    """
    paths = sorted(filter(_is_listed, folder.iterdir()), key=_natural_order)
    by_stem: dict[str, Path] = {}
    for path in paths:
        twin = by_stem.setdefault(path.stem, path)
        if twin is not path:
            raise SourceError(f"{folder}: holds both {twin.name} and {path.name}; move away what is no frame")
    return paths


def _natural_order(path: Path) -> tuple[list[int | str], str]:
    parts = re.split(r"([0-9]+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], path.name


def read_image(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Reads one image as HWC uint8 RGB, turned by its EXIF orientation; grey and 16-bit images are converted.

    Of 16 bits the higher 8 are kept. A warning, once a folder, says where that leaves next to nothing.

    Raises:
        SourceError: the file is missing, is no image, or ends early. Some JPEG decoders fill what is missing
            with grey and only warn, so completeness is checked here before a decoder sees the file.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """The image in an encoded file's bytes, as `read_image` gives it; `name` says in messages which file it is.

    Raises:
        SourceError: it is no image, or ends early.
    """
    if not data:
        raise SourceError(f"{name}: the file is empty")
    if _is_cut_off(data):
        raise SourceError(f"{name}: truncated: ends inside its picture, at byte {len(data)}; copy it again")
    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if image is not None and image.dtype == np.uint16:
            _warn_of_few_bits(image, name)
            image = np.right_shift(image, 8).astype(np.uint8)
        elif image is not None and image.dtype != np.uint8:
            image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{name}: cannot be decoded as an image: {error}") from error
    if image is None:
        raise SourceError(f"{name}: cannot be decoded as an image ({len(data)} bytes): damaged, truncated or no image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _warn_of_few_bits(image: UInt16[np.ndarray, "height width 3"], name: str) -> None:
    """Sensors of 10 to 14 bits are often stored in 16, unscaled."""
    bits = int(image.max()).bit_length()
    if 8 < bits <= MAX_SENSOR_BITS:
        folder = Path(name).parent
        # One text a folder: its brightest image, which tells the sensor's bits, is not known here.
        text = (
            f"{folder}: images of 16 bits whose values need {MAX_SENSOR_BITS} at most are nearly black as 8 bits; "
            f"scale them to 16 first, those of 12 bits by: magick mogrify -evaluate multiply 16 '{folder}/*' "
            "(10 bits: 64, 14 bits: 4)"
        )
        warnings.warn(text, stacklevel=2)


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG stops before its end marker. Decoders of the other formats refuse such a file."""
    if data.startswith(b"\xff\xd8"):
        # Most files end with the marker. One that was cut there by chance holds no picture, and does not decode.
        return not (data.endswith(b"\xff\xd9") or _has_jpeg_end(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return not _has_png_end(data)
    return False


def _has_jpeg_end(data: bytes) -> bool:
    # Segments are stepped over by their length: an EXIF thumbnail is a JPEG with an end marker of its own.
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) is not None:
        marker = found.group(1)[0]
        if marker == 0xD9:
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


def write_image(path: Path, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes an HWC uint8 RGB image as a PNG; the file appears whole or not at all."""
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    write_atomically(path, encoded.tobytes())
