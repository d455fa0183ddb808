"""Frames of which a crop decodes only a part, the crop itself, and data sets that `mixformer data pack` has packed.

A frame on disk is decoded whole. A packed one has pieces of several sizes; the smallest that shows what the crop needs
is decoded. Both give the same crop.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
from filelock import FileLock
from jaxtyping import Float, Float32, UInt8

from mixformer_jax.crops import resize_streams
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.files import user_cache, whole_file
from mixformer_jax.media.images import SourceError, decode_image
from mixformer_jax.views import CENTRED, Placement, UnusableSampleError


class FrameArea(NamedTuple):
    """A part of a frame in frame pixels, which may reach beyond it."""

    left: float
    top: float
    width: float
    height: float


class FramePart(NamedTuple):
    """A decoded part of a frame, which may be shrunk."""

    pixels: UInt8[np.ndarray, "h w c"]
    covers: FrameArea  # whole frame pixels, inside the frame


@runtime_checkable
class Frame(Protocol):
    """A frame of which parts can be decoded."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole frame."""
        ...

    def part(self, needed: FrameArea) -> FramePart:
        """A part that shows `needed`, as far as that lies in the frame and is stored."""
        ...


class WholeFrame:
    def __init__(self, pixels: UInt8[np.ndarray, "h w c"]) -> None:
        self.pixels, self.size = pixels, (pixels.shape[0], pixels.shape[1])

    def part(self, needed: FrameArea) -> FramePart:
        """The whole frame."""
        return FramePart(self.pixels, FrameArea(0, 0, self.size[1], self.size[0]))


def open_frame(sequence: TrackingSequence, index: int) -> Frame:
    """Frame `index` of a sequence."""
    open_parts = getattr(sequence.frame, "open", None)
    return WholeFrame(sequence.frame(index)) if open_parts is None else open_parts(index)


def context_rectangle(
    box_xywh: Float[np.ndarray, "4"], factor: float, placement: Placement = CENTRED, aspect: float = 1.0
) -> FrameArea:
    """What a crop shows: the square that the tracker cuts around a box, moved and zoomed by `placement`.

    The side is `ceil(sqrt(w * h) * zoom * factor)` whole pixels, and the corner is rounded (see `crops.context_crop`).
    `aspect` multiplies width / height of the target in the crop. UnusableSampleError for a box without area, or NaN.
    """
    x, y, w, h = box_xywh.tolist()
    if not (math.isfinite(x + y) and w > 0 and h > 0 and math.isfinite(w * h)):
        raise UnusableSampleError(f"no crop around box ({x:g}, {y:g}, {w:g}, {h:g})")
    side = math.sqrt(w * h) * placement.zoom
    stretch = math.sqrt(aspect)
    width, height = math.ceil(side * factor / stretch), math.ceil(side * factor * stretch)
    centre_x = x + 0.5 * w + placement.offset_xy[0] * side / stretch
    centre_y = y + 0.5 * h + placement.offset_xy[1] * side * stretch
    return FrameArea(round(centre_x - width * 0.5), round(centre_y - height * 0.5), width, height)


def cut(frame: Frame, rectangle: FrameArea, size: int) -> tuple[UInt8[np.ndarray, "{size} {size} c"], FrameArea]:
    """The pixels of a rectangle at `size` x `size`, and the rectangle that they show.

    That differs for a shrunk part, of which whole pixels are cut. As in the tracker, everything outside the frame is
    black, and so are its last row and column.
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
        canvas = np.zeros((height, width, *window.shape[2:]), np.uint8)
        if row_from < row_to and column_from < column_to:
            canvas[row_from - top : row_to - top, column_from - left : column_to - left] = window
        window = canvas
    shown = FrameArea(covers.left + left / scale_x, covers.top + top / scale_y, width / scale_x, height / scale_y)
    return resize_streams(window, size), shown


def _in_part(start: float | int, length: float | int, scale: float) -> tuple[int, int]:
    """A start and a length in frame pixels, in whole pixels of a part."""
    if scale == 1:
        return round(start), round(length)
    return round(start * scale), max(1, round(length * scale))


def box_within(box_xywh: Float[np.ndarray, "4"], rectangle: FrameArea) -> Float32[np.ndarray, "4"]:
    """A box on the frame -> cx, cy, w, h as fractions of a rectangle."""
    x, y, w, h = box_xywh.tolist()
    centre_x, centre_y = (x + w / 2 - rectangle.left) / rectangle.width, (y + h / 2 - rectangle.top) / rectangle.height
    return np.array([centre_x, centre_y, w / rectangle.width, h / rectangle.height], np.float32)


def shows_frame(frame_size: tuple[int, int], rectangle: FrameArea, least: float) -> bool:
    """Whether at least a fraction `least` of a rectangle's width, and of its height, lies in the frame."""
    height, width = frame_size
    across, down = _common(rectangle, FrameArea(0, 0, width - 1, height - 1))
    return across >= least * rectangle.width and down >= least * rectangle.height


def _common(a: FrameArea, b: FrameArea) -> tuple[float, float]:
    """Width and height of what two rectangles have in common; where that is nothing, one of them is not above 0."""
    width = min(a.left + a.width, b.left + b.width) - max(a.left, b.left)
    return width, min(a.top + a.height, b.top + b.height) - max(a.top, b.top)


PACKING = "packing.json"
# Of a frame: height, width and number of parts. Of a part: left, top, width and height in frame pixels, and bytes.
HEADER = struct.Struct("<IIB")
PART = struct.Struct("<iiIII")


class StoredPart(NamedTuple):
    """An encoded part of a frame."""

    covers: FrameArea
    image: bytes


def is_packed(root: str) -> bool:
    """Whether this is a packed data set: a folder of that form, or an address, where nothing else can be read."""
    return is_remote(root) or (Path(root) / PACKING).is_file()


def read_packed(root: str | Path, split: str | None = None) -> Dataset:
    """The sequences of a data set that `data.packing` wrote, in the original order, from shards of ArrayRecord.

        packing.json                    how it was packed, and which sequences each shard holds
        shard-00000.array_record        for each sequence: a record of its annotations, then one for each frame
        shard-00000.json                names of its sequences and where they begin; written last

    `root` is a folder, or an address of fsspec's such as gs://bucket/folder. From there a shard is copied whole to the
    user's cache when it is first needed, once a machine: ArrayRecord reads at random, and a crop needs a few kilobytes.

    Raises DatasetError where packing is not complete.
    """
    folder = open_bucket(str(root)) if is_remote(root) else _Folder(Path(root))
    root, packing = folder.local, folder.fetch(PACKING)
    if not packing.is_file():
        raise DatasetError(f"{root}: no {PACKING}; expected what `mixformer data pack` writes")
    try:
        shards = json.loads(packing.read_text(encoding="utf-8"))["shards"]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{packing}: damaged: {error}") from error
    listings = [folder.fetch(f"{shard_name(number)}.json") for number in range(len(shards))]
    if missing := sum(not path.is_file() for path in listings):
        raise DatasetError(f"{root}: {missing} of {len(shards)} shards are missing; pack again, which adds them")
    places: dict[str, tuple[int, int]] = {}
    for number, path in enumerate(listings):
        try:
            places |= {name: (number, record) for name, record in json.loads(path.read_text(encoding="utf-8"))}
        except (ValueError, TypeError) as error:
            raise DatasetError(f"{path}: damaged: {error}; delete it and pack again") from error
    return Dataset("packed", root, list(places), _Reader(folder, places))


def shard_name(number: int) -> str:
    """Name of a shard's files without suffix."""
    return f"shard-{number:05d}"


def encode_frame(size: tuple[int, int], parts: Sequence[StoredPart]) -> bytes:
    """The record of a frame of `size` (height, width)."""
    heads = [PART.pack(*(int(value) for value in part.covers), len(part.image)) for part in parts]
    return b"".join([HEADER.pack(*size, len(parts)), *heads, *(part.image for part in parts)])


def encode_fault(message: str) -> bytes:
    """The record of a frame or a sequence that could not be read when it was packed."""
    return HEADER.pack(0, 0, 0) + message.encode("utf-8")


def encode_annotations(sequence: TrackingSequence) -> bytes:
    """The record of a sequence's annotations."""
    arrays: dict[str, Any] = {"boxes_xywh": sequence.boxes_xywh, "fps": sequence.fps, "is_still": sequence.is_still}
    if sequence.visible is not None:
        arrays["visible"] = sequence.visible
    if sequence.attributes is not None:
        arrays["attributes"] = np.array(sequence.attributes, np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


class PackedFrame:
    """A frame in parts; decoded ones are kept."""

    def __init__(self, record: bytes, name: str) -> None:
        self.name = name
        height, width, count = HEADER.unpack_from(record)
        if not height:
            raise SourceError(f"{name}: could not be read when it was packed: {record[HEADER.size :].decode('utf-8')}")
        self.size = (height, width)
        self._parts: list[StoredPart] = []
        start = HEADER.size + count * PART.size
        for *covers, length in PART.iter_unpack(record[HEADER.size : start]):
            self._parts.append(StoredPart(FrameArea(*covers), record[start : start + length]))
            start += length
        self._decoded: dict[int, FramePart] = {}

    def part(self, needed: FrameArea) -> FramePart:
        """The first part that shows as much of `needed` as any; smaller parts come first."""
        if not self._parts:
            raise UnusableSampleError(f"{self.name}: nothing around the target was packed")
        shown = [math.prod(max(side, 0) for side in _common(part.covers, needed)) for part in self._parts]
        return self._decode(shown.index(max(shown)))

    def whole(self) -> UInt8[np.ndarray, "h w 3"]:
        """The frame as far as it is stored, black elsewhere."""
        pixels = np.zeros((*self.size, 3), np.uint8)
        for number in reversed(range(len(self._parts))):  # parts of higher resolution come first, so last here, on top
            part = self._decode(number)
            left, top, width, height = (int(value) for value in part.covers)
            pixels[top : top + height, left : left + width] = cv2.resize(part.pixels, (width, height))
        return pixels

    def _decode(self, number: int) -> FramePart:
        if number not in self._decoded:
            covers, image = self._parts[number]
            self._decoded[number] = FramePart(decode_image(image, f"{self.name}, part {number}"), covers)
        return self._decoded[number]


class _Reader:
    """Reads records; every process opens shards for itself, on demand."""

    def __init__(self, folder: _Folder, places: dict[str, tuple[int, int]]) -> None:
        self.folder, self.places = folder, places
        self._open: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["_Reader"], tuple[_Folder, dict[str, tuple[int, int]]]]:
        return _Reader, (self.folder, self.places)

    def __call__(self, key: str) -> TrackingSequence:
        shard, first = self.places[key]
        name = key.rpartition("/")[2]
        record = self.read(shard, first)
        if record.startswith(HEADER.pack(0, 0, 0)):
            raise DatasetError(record[HEADER.size :].decode("utf-8"))
        with np.load(io.BytesIO(record), allow_pickle=False) as arrays:
            return TrackingSequence(
                *(name, arrays["boxes_xywh"], PackedFrames(self, name, shard, first + 1)),
                *(float(arrays["fps"]), self.folder.local),
                visible=arrays.get("visible"),
                attributes=tuple(arrays["attributes"].tolist()) if "attributes" in arrays else None,
                is_still=bool(arrays["is_still"]),
            )

    def read(self, shard: int, record: int) -> bytes:
        """The bytes of a record."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if shard not in self._open:
                path = self.folder.fetch(f"{shard_name(shard)}.array_record")
                if not path.is_file():
                    raise DatasetError(f"{path}: no such file; pack again")
                # Access is random: no reading ahead.
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
        """Frame `index`, to decode a part of it."""
        record = self.reader.read(self.shard, self.first + index)
        return PackedFrame(record, f"{self.reader.folder.local}, {self.name} frame {index}")

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.open(index).whole()


PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


def is_remote(root: str | Path) -> bool:
    """Whether this is an address, such as gs://bucket/folder."""
    return re.match(r"\w+://", str(root)) is not None


@dataclass(frozen=True)
class _Folder:
    """A folder of this machine, or the copies here of one elsewhere."""

    local: Path
    address: str | None = None  # such as gs://bucket/packed/got10k

    def fetch(self, name: str) -> Path:
        """A file, or its copy, made now if it is not there; processes wait for one another.

        Raises DatasetError: no such file elsewhere, or nothing that opens such addresses is installed.
        """
        path = self.local / name
        if self.address is not None and not path.is_file():
            self.local.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_name(f".{name}.lock")):
                if not path.is_file():
                    with whole_file(path) as unfinished:
                        system, place = _file_system(self.address)
                        _named(self.address, name, system.get_file, f"{place}/{name}", str(unfinished))
        return path


def open_bucket(address: str) -> _Folder:
    """The folder at an address; what its PACKING says tells copies of one version from another's."""
    address = address.rstrip("/")
    system, place = _file_system(address)
    description = _named(address, PACKING, system.cat_file, f"{place}/{PACKING}")
    version = hashlib.sha256(address.encode() + description).hexdigest()[:16]
    return _Folder(user_cache() / "buckets" / version, address)


def _named(address: str, name: str, read: Any, *arguments: str) -> Any:
    try:
        return read(*arguments)
    except FileNotFoundError as error:
        raise DatasetError(f"{address}/{name}: no such file; expected what `mixformer data pack` wrote") from error


def _file_system(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(address)
    except ImportError as error:
        kind = address.partition("://")[0]
        install = f"pip install {PACKAGES[kind]}" if kind in PACKAGES else str(error)
        raise DatasetError(f"{address}: nothing here opens {kind}:// addresses: {install}") from error
    except ValueError as error:
        known = ", ".join(sorted(PACKAGES))
        raise DatasetError(f"{address}: {error}; known are file, memory, {known} and others of fsspec's") from error
