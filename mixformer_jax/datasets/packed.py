"""Data sets that `mixformer data pack` has packed: ArrayRecord shards of pieces of frames, see `data.packing`.

packing.json                    how it was packed, and which sequences each shard holds
shard-00000.array_record        for each sequence: a record of its annotations, then one for each frame
shard-00000.json                names of its sequences and where they begin; written last
"""

import io
import json
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.datasets.frame_parts import FramePart, Rectangle
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.images import SourceError, decode_image
from mixformer_jax.views import UnusableSampleError

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
