"""Frames by their index, counted from 0: of a video that can be read again, or kept of what is live."""

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mixformer_jax.media.images import SourceError, decode_image
from mixformer_jax.media.sources import Frame, FrameSource, TimedFrame

# What a frame of the largest usual video (8K) has; more would fill the memory.
MAX_PIXELS = 36_000_000
# Frames of a file that are kept decoded, so that steps back are quick.
RECENT_BYTES = 64 * 2**20
JPEG_QUALITY = 90
# Start-of-frame markers of JPEG files (ITU-T T.81, table B.1), and segments without a length.
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}


class Frames(ABC):
    """Frames of one size. Several threads may ask."""

    name: str
    fps: float
    num_frames: int | None  # as promised, or seen; None where nobody knows
    size: tuple[int, int]  # (height, width)

    @abstractmethod
    def get(self, index: int) -> TimedFrame:
        """A frame; IndexError behind the last one, SourceError where it cannot be decoded."""

    def close(self) -> None:  # noqa: B027 (memory alone needs no closing)
        """Lets go of what is open."""


class FileFrames(Frames):
    """A video that can be read again. The last frames are kept, and what lies further back is had by beginning anew."""

    def __init__(self, source: FrameSource, recent_bytes: int = RECENT_BYTES) -> None:
        check_pixels(source.size)
        self.name, self.fps, self.num_frames, self.size = source.name, source.fps, source.num_frames, source.size
        self._source, self._lock = source, threading.Lock()
        self._pass: Iterator[TimedFrame] = source.timed()
        self._recent: deque[TimedFrame] = deque(maxlen=max(2, recent_bytes // (3 * math.prod(source.size))))

    def get(self, index: int) -> TimedFrame:
        """See `Frames`."""
        with self._lock:
            recent = self._recent
            if recent and index + 1 < recent[0].number:
                self._pass = self._source.timed()
                recent.clear()
            while not recent or recent[-1].number <= index:
                frame = next(self._pass, None)
                if frame is None:
                    self.num_frames = recent[-1].number if recent else 0
                    raise IndexError(index)
                recent.append(frame)
            return recent[index + 1 - recent[0].number]

    def again(self) -> "FileFrames":
        """The same video, to be read independently, and once."""
        return FileFrames(self._source, 0)

    def close(self) -> None:
        """See `Frames`."""
        with self._lock:
            self._pass = iter(())
            self._recent.clear()
            self._source.close()


class _Kept(NamedTuple):
    start: int
    size: int
    seconds: float


class KeptFrames(Frames):
    """Frames as they came, kept as JPEG in a file, so that one can go back; `is_full` once that has reached `most`."""

    def __init__(self, name: str, fps: float, size: tuple[int, int], path: Path, most: int) -> None:
        check_pixels(size)
        self.name, self.fps, self.size, self.num_frames = name, fps, size, 0
        self._file, self._most, self._lock = path.open("w+b"), most, threading.Lock()
        self._kept: list[_Kept] = []
        self._end = 0

    @property
    def is_full(self) -> bool:
        """Whether no further frame may be kept."""
        return self._end >= self._most

    def append(self, jpeg: bytes, seconds: float) -> int:
        """Keeps a frame; returns its index."""
        with self._lock:
            self._file.seek(self._end)
            self._file.write(jpeg)
            self._kept.append(_Kept(self._end, len(jpeg), seconds))
            self._end += len(jpeg)
            self.num_frames = len(self._kept)
        return self.num_frames - 1

    def get(self, index: int) -> TimedFrame:
        """See `Frames`."""
        with self._lock:
            kept = self._kept[index]
            self._file.seek(kept.start)
            data = self._file.read(kept.size)
        return TimedFrame(decode_image(data, self.name), index + 1, kept.seconds)

    def again(self) -> "KeptFrames":
        """Itself: its frames are read independently of each other."""
        return self

    def close(self) -> None:
        """See `Frames`."""
        with self._lock:
            self._file.close()


def check_pixels(size: tuple[int, int]) -> None:
    """Raises SourceError where frames of (height, width) are larger than MAX_PIXELS."""
    if size[0] * size[1] > MAX_PIXELS:
        raise SourceError(f"frames of {size[1]}x{size[0]} pixels; this page takes up to {MAX_PIXELS:,} pixels")


def encode_jpeg(frame: Frame, widest: int | None = None) -> bytes:
    """A frame as JPEG, not wider than `widest`."""
    if widest is not None and frame.shape[1] > widest:
        height = max(1, round(frame.shape[0] * widest / frame.shape[1]))
        frame = cv2.resize(frame, (widest, height), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.asarray(encoded[1]).tobytes()


def jpeg_size(data: bytes) -> tuple[int, int]:
    """(height, width) as the head of a JPEG says, before anything is decoded; SourceError where there is none."""
    position = 2
    while data.startswith(b"\xff\xd8") and position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
            return height, width
        position += 2 if marker in _BARE_MARKERS else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise SourceError("a picture of the camera is no JPEG")
