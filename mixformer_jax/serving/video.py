"""A video that is open on a page: its frames by index, read again or kept; where it stands, and who is followed."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mixformer_jax.media.images import SourceError, decode_image
from mixformer_jax.media.sources import Frame, FrameSource, TimedFrame
from mixformer_jax.media.video import VideoWriter
from mixformer_jax.serving.following import Following
from mixformer_jax.tracking.record import annotate
from mixformer_jax.tracking.tracker import Tracked, Tracker

# What a frame of the largest usual video (8K) has; more would fill the memory.
MAX_PIXELS = 36_000_000
# Frames of a file that are kept decoded, so that steps back are quick.
RECENT_BYTES = 64 * 2**20
JPEG_QUALITY = 90
# Start-of-frame markers of JPEG files (ITU-T T.81, table B.1), and segments without a length.
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = {0x01, *range(0xD0, 0xD9)}


class FileFrames:
    """A video that can be read again; several threads may ask. The last frames are kept, and what lies further back is
    had by beginning anew. `num_frames` are promised, or seen; None where nobody knows."""

    def __init__(self, source: FrameSource, recent_bytes: int = RECENT_BYTES) -> None:
        check_pixels(source.size)
        self.name, self.fps, self.num_frames, self.size = source.name, source.fps, source.num_frames, source.size
        self._source, self._lock = source, threading.Lock()
        self._pass: Iterator[TimedFrame] = source.timed()
        self._recent: deque[TimedFrame] = deque(maxlen=max(2, recent_bytes // (3 * math.prod(source.size))))

    def get(self, index: int) -> TimedFrame:
        """A frame; IndexError behind the last one, SourceError where it cannot be decoded."""
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
        """Lets go of the file."""
        with self._lock:
            self._pass = iter(())
            self._recent.clear()
            self._source.close()


class KeptFrames:
    """Frames as they came, kept as JPEG in a file, so that one can go back; `is_full` once that has reached `most`."""

    def __init__(self, name: str, fps: float, size: tuple[int, int], path: Path, most: int) -> None:
        check_pixels(size)
        self.name, self.fps, self.size, self.num_frames = name, fps, size, 0
        self._file, self._most, self._lock = path.open("w+b"), most, threading.Lock()
        self._kept: list[tuple[int, int, float]] = []  # start and size in the file, and seconds
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
            self._kept.append((self._end, len(jpeg), seconds))
            self._end += len(jpeg)
            self.num_frames = len(self._kept)
        return self.num_frames - 1

    def get(self, index: int) -> TimedFrame:
        """A frame; IndexError behind the last one."""
        with self._lock:
            start, size, seconds = self._kept[index]
            self._file.seek(start)
            data = self._file.read(size)
        return TimedFrame(decode_image(data, self.name), index + 1, seconds)

    def again(self) -> "KeptFrames":
        """Itself: its frames are read independently of each other."""
        return self

    def close(self) -> None:
        """Lets go of the file."""
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


MOST_FRAMES = 200_000  # that are followed, or kept of what is live
# Frames of a video that is written between two words on how far it is.
_TOLD_EVERY = 10


class EndError(Exception):
    """There is no further frame."""


class Video:
    """Frames of a file, of a stream, or of the browser's camera (`is_camera`), which sends them itself."""

    def __init__(self, tracker: Tracker, frames: FileFrames | KeptFrames, live: FrameSource | None = None) -> None:
        self.frames = frames
        self.following = Following(tracker, frames.get)
        self.position = -1  # index of the frame that was shown last
        self.is_live = isinstance(frames, KeptFrames)  # frames come whether or not they are wanted
        self.is_camera = self.is_live and live is None  # the browser sends them
        self._live, self._passing = live, iter(()) if live is None else live.timed()
        self._began = 0.0

    @property
    def is_up_to_date(self) -> bool:
        """Whether the next frame has to come first."""
        return self.is_live and self.position + 1 == self.frames.num_frames

    def about(self) -> dict[str, Any]:
        """What a page has to know of it."""
        (height, width), frames = self.frames.size, self.frames
        about = {"name": frames.name, "width": width, "height": height, "fps": frames.fps, "live": self.is_live}
        return about | {"frames": None if self.is_live else frames.num_frames}

    def next(self) -> tuple[TimedFrame, bytes | None]:
        """The frame behind the position, and as JPEG where it has come as such.

        Raises:
            EndError: there is none.
            SourceError: it cannot be decoded, or no more can be kept.
        """
        try:
            if not (isinstance(self.frames, KeptFrames) and self.is_up_to_date):
                return self.frames.get(self.position + 1), None
            self._check_room()
            live = next(self._passing)
        except (IndexError, StopIteration):
            raise EndError from None
        jpeg = encode_jpeg(live.pixels)
        return TimedFrame(live.pixels, self.frames.append(jpeg, live.seconds) + 1, live.seconds), jpeg

    def take(self, jpeg: bytes) -> TimedFrame:
        """A picture of the browser's camera; SourceError where it is none, of another size, or no more can be kept."""
        frames = self.frames
        assert isinstance(frames, KeptFrames)
        size = jpeg_size(jpeg)
        check_pixels(size)
        if size != frames.size:
            raise SourceError(f"a picture of {size[1]}x{size[0]} from a camera of {frames.size[1]}x{frames.size[0]}")
        self._check_room()
        pixels, now = decode_image(jpeg, "a picture of the camera"), time.monotonic()
        self._began = self._began or now
        return TimedFrame(pixels, frames.append(jpeg, now - self._began) + 1, now - self._began)

    def _check_room(self) -> None:
        assert isinstance(self.frames, KeptFrames)
        if self.frames.is_full or len(self.following.found) >= MOST_FRAMES:
            raise SourceError("no more frames can be kept; download what there is, and open it again to go on")

    def at(self, index: int) -> TimedFrame:
        """A frame; the last one where there is none of that index. SourceError where there is no frame at all."""
        try:
            return self.frames.get(index)
        except IndexError:
            if not self.frames.num_frames:
                raise SourceError("there is no frame") from None
            return self.frames.get(self.frames.num_frames - 1)

    def found(self, frame: TimedFrame) -> Tracked | None:
        """The targets on a frame that was tracked."""
        return self.following.found.get(frame.number - 1)

    def tracked(self, frame: TimedFrame) -> Tracked | None:
        """The same; a frame behind the last one that was tracked is tracked now."""
        following = self.following
        if frame.number - 1 <= following.last or not following.targets:
            return self.found(frame)
        if len(following.found) >= MOST_FRAMES:
            raise SourceError(f"{MOST_FRAMES:,} frames were tracked, which is as many as one page holds")
        return following.step(frame)

    def writing(self, path: Path) -> Callable[[], Generator[tuple[int, int], None, None]]:
        """A function that writes the frames from the first to the last that were tracked by now, with their boxes.

        It may be called in another thread; it yields how many frames are done, of how many, and whoever stops asking
        ends it. ValueError where nothing was tracked.
        """
        found, frames = dict(self.following.found), self.frames.again()
        if not found:
            raise ValueError("nothing was tracked yet: draw a box around a target first")
        first, last = min(found), max(found)

        def write() -> Generator[tuple[int, int], None, None]:
            begin = None
            with VideoWriter(path, frames.fps, frames.size) as writer:
                for index in range(first, last + 1):
                    frame = frames.get(index)
                    begin = frame.seconds if begin is None else begin
                    pixels = annotate(frame.pixels, index, found[index]) if index in found else frame.pixels
                    writer.write(pixels, frame.seconds - begin)
                    if (index - first) % _TOLD_EVERY == 0:
                        yield index - first, last + 1 - first

        return write

    def close(self) -> None:
        """Lets go of files and streams."""
        if self._live is not None:
            self._live.close()
        self.frames.close()
