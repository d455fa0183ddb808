"""Frames as far as a crop needs them, and the crop itself.

A frame on disk is decoded whole; a packed one has pieces of several sizes, of which the smallest that shows what the
crop needs is decoded. Both give the same crop: the same square is cut, black lies outside the frame, and the box is
computed from what was cut.
"""

from __future__ import annotations

import io
import json
import math
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.images import SourceError, decode_image
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


PACKING = "packing.json"
# Height and width of the frame, and number of parts; then of each part left, top, width and height in frame pixels, and
# the bytes of its image.
HEADER = struct.Struct("<IIB")
PART = struct.Struct("<iiIII")


class StoredPart(NamedTuple):
    """An encoded piece of a frame and what it shows."""

    covers: Rectangle
    image: bytes


def read_packed(root: Path, split: str | None = None) -> Dataset:
    """The sequences of a packed data set, in the order of the one that was packed, if packing came to its end."""
    if not (root / PACKING).is_file():
        raise DatasetError(f"{root}: no {PACKING}; expected what `mixformer data pack` writes")
    try:
        shards = json.loads((root / PACKING).read_text(encoding="utf-8"))["shards"]
    except (ValueError, KeyError) as error:
        raise DatasetError(f"{root / PACKING}: damaged: {error}") from error
    listings = [root / f"{shard_name(number)}.json" for number in range(len(shards))]
    missing = sum(not path.is_file() for path in listings)
    if missing:
        raise DatasetError(f"{root}: {missing} of {len(shards)} shards are not there; pack again, and it goes on")
    places = {
        name: (number, record)
        for number, path in enumerate(listings)
        for name, record in json.loads(path.read_text(encoding="utf-8"))
    }
    return Dataset("packed", root, list(places), _Reader(root, places))


def shard_name(number: int) -> str:
    """Of a shard's files, without their suffixes."""
    return f"shard-{number:05d}"


def encode_frame(size: tuple[int, int], parts: Sequence[StoredPart]) -> bytes:
    """A record of a frame of a height and a width."""
    heads = [PART.pack(*(int(value) for value in part.covers), len(part.image)) for part in parts]
    return b"".join([HEADER.pack(*size, len(parts)), *heads, *(part.image for part in parts)])


def encode_fault(message: str) -> bytes:
    """A record of a frame, or of a sequence, that could not be read when it was packed."""
    return HEADER.pack(0, 0, 0) + message.encode("utf-8")


def encode_annotations(sequence: TrackingSequence) -> bytes:
    """A record of what is known about a sequence."""
    arrays: dict[str, Any] = {"boxes_xywh": sequence.boxes_xywh, "fps": sequence.fps, "is_still": sequence.is_still}
    if sequence.visible is not None:
        arrays["visible"] = sequence.visible
    if sequence.attributes is not None:
        arrays["attributes"] = np.array(sequence.attributes, np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


class PackedFrame:
    """A frame in pieces. What is decoded is kept."""

    def __init__(self, record: bytes, name: str) -> None:
        self.name = name
        height, width, count = HEADER.unpack_from(record)
        if not height:
            raise SourceError(f"{name}: could not be read when it was packed: {record[HEADER.size :].decode('utf-8')}")
        self.size = (height, width)
        self._parts: list[StoredPart] = []
        start = HEADER.size + count * PART.size
        for *covers, length in PART.iter_unpack(record[HEADER.size : start]):
            self._parts.append(StoredPart(Rectangle(*covers), record[start : start + length]))
            start += length
        self._decoded: dict[int, FramePart] = {}

    def part(self, needed: Rectangle) -> FramePart:
        """The first part that shows as much as any does of what is needed; smaller ones stand before larger ones."""
        if not self._parts:
            raise UnusableSampleError(f"{self.name}: nothing around the target was packed")
        shown = [_overlap(part.covers, needed) for part in self._parts]
        return self._decode(shown.index(max(shown)))

    def whole(self) -> UInt8[np.ndarray, "h w 3"]:
        """The frame as far as it is known, black elsewhere."""
        pixels = np.zeros((*self.size, 3), np.uint8)
        for number in reversed(range(len(self._parts))):  # what is packed larger comes last, on top
            part = self._decode(number)
            left, top, width, height = (int(value) for value in part.covers)
            pixels[top : top + height, left : left + width] = cv2.resize(part.pixels, (width, height))
        return pixels

    def _decode(self, number: int) -> FramePart:
        if number not in self._decoded:
            covers, image = self._parts[number]
            self._decoded[number] = FramePart(decode_image(image, f"{self.name}, part {number}"), covers)
        return self._decoded[number]


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Area that two rectangles have in common."""
    width = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    height = min(a.top + a.height, b.top + b.height) - max(a.top, b.top)
    return float(max(width, 0) * max(height, 0))


class _Reader:
    """Reads records; every process opens the shards for itself, when it first needs them."""

    def __init__(self, root: Path, places: dict[str, tuple[int, int]]) -> None:
        self.root, self.places = root, places
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Reader"], tuple[Path, dict[str, tuple[int, int]]]]:
        return _Reader, (self.root, self.places)

    def __call__(self, key: str) -> TrackingSequence:
        shard, first = self.places[key]
        name = key.rpartition("/")[2]
        record = self.read(shard, first)
        if record.startswith(HEADER.pack(0, 0, 0)):
            raise DatasetError(record[HEADER.size :].decode("utf-8"))
        with np.load(io.BytesIO(record), allow_pickle=False) as arrays:
            return TrackingSequence(
                *(name, arrays["boxes_xywh"], PackedFrames(self, name, shard, first + 1)),
                *(float(arrays["fps"]), self.root),
                visible=arrays.get("visible"),
                attributes=tuple(arrays["attributes"].tolist()) if "attributes" in arrays else None,
                is_still=bool(arrays["is_still"]),
            )

    def read(self, shard: int, record: int) -> bytes:
        """The bytes of a record."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if shard not in self._open:
                path = self.root / f"{shard_name(shard)}.array_record"
                if not path.is_file():
                    raise DatasetError(f"{path}: no such file; pack again")
                # Records are asked for one by one and anywhere: reading ahead would be in vain.
                self._open[shard] = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
            return self._open[shard].read([record])[0]


@dataclass(frozen=True)
class PackedFrames:
    """The frames of a packed sequence."""

    reader: _Reader
    name: str
    shard: int
    first: int  # record

    def open(self, index: int) -> PackedFrame:
        """Frame `index`, of which parts can be had."""
        record = self.reader.read(self.shard, self.first + index)
        return PackedFrame(record, f"{self.reader.root}, {self.name} frame {index}")

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.open(index).whole()
