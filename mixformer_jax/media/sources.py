"""What a source of frames is: images on disk and arrays in memory, in any order, and cameras and live streams.
Live frames come whether or not they are wanted: a thread takes them, keeps the newest one and drops what nobody asked
for in time, so that whoever is slow sees now, not a growing past."""

import itertools
import math
import re
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax import signals
from mixformer_jax.media.decoders import Decoder
from mixformer_jax.media.images import SourceError, read_image

# Images on disk carry no rate; a video made of them has to have one.
DEFAULT_FPS = 30.0
# A source that cannot go backward is read in stretches that fit into so many bytes, the last one first.
BACKWARD_BYTES = 2**30
_PATTERN = re.compile(r"%(0?)(\d*)d")

Frame = UInt8[np.ndarray, "height width channels"]  # RGB, and a second stream behind it where there is one


class TimedFrame(NamedTuple):
    """A frame of a source."""

    pixels: Frame
    number: int  # in the source, counted from 1
    seconds: float  # its time in the source


class FrameSource(AbstractContextManager):
    """Frames of one size. Each pass starts again at the first frame (what is live goes on instead)."""

    name: str  # for messages and output files: the stem of the file, the name of the folder
    fps: float  # DEFAULT_FPS where the source does not know
    num_frames: int | None  # as promised; None for a camera or a stream without a count
    size: tuple[int, int]  # (height, width)
    is_live = False  # whether frames come whether or not they are wanted, and only once

    @abstractmethod
    def timed(self) -> Iterator[TimedFrame]:
        """Yields the frames in order; raises SourceError where the source breaks off."""

    def __iter__(self) -> Iterator[Frame]:
        return (frame.pixels for frame in self.timed())

    def backward(self, start: int | None, end: int, stride: int) -> Iterator[TimedFrame]:
        """From frame `start` (None: the last one) down to frame `end`, counted from 1; only every `stride`-th.

        The source is read once for each stretch of BACKWARD_BYTES. SourceError as `timed`, and where there is no frame
        `start`.
        """
        most = max(1, BACKWARD_BYTES // (self.size[0] * self.size[1] * 3))
        if start is None:
            last = deque(self.timed(), most)
            if not last:
                raise SourceError(f"{self.name}: there is no frame")
            start = last[-1].number
            wanted = range(start, end - 1, -stride)
            kept = [frame for frame in reversed(last) if frame.number in wanted]
            yield from kept
            wanted = wanted[len(kept) :]
        else:
            wanted = range(start, end - 1, -stride)
        while wanted:
            stretch, wanted = wanted[:most], wanted[most:]
            kept = []
            for frame in self.timed():
                if frame.number in stretch:
                    kept.append(frame)
                if frame.number >= stretch[0]:
                    break
            if len(kept) < len(stretch):
                raise SourceError(f"{self.name}: there is no frame {stretch[0]}; it ends before")
            yield from reversed(kept)

    def peek(self) -> TimedFrame:
        """The first frame of the next pass. SourceError where there is none."""
        frame = next(self.timed(), None)
        if frame is None:
            raise SourceError(f"{self.name}: there is no frame")
        return frame

    def part(self) -> tuple[int, int | None, int, bool]:
        """Which frames of what it was opened from these are: start, end, stride, and whether backward."""
        return 1, None, 1, False

    def close(self) -> None:
        """Lets go of what is held open between frames."""

    def __exit__(self, *_: object) -> None:
        self.close()


class ArrayFrames(FrameSource):
    """Frames in memory, had in any order, one each 1/fps seconds: uint8 RGB [n, height, width, 3], or a sequence (also
    a lazy one) of such frames."""

    num_frames: int

    def __init__(self, frames: np.ndarray | Sequence, name: str = "frames", fps: float = DEFAULT_FPS) -> None:
        self.name, self.fps, self._frames = name, fps, frames
        self.num_frames = len(frames)
        if self.num_frames == 0:
            raise SourceError(f"{name}: no frames; expected uint8 RGB arrays [height, width, 3]")
        first = np.asarray(frames[0])
        self.size = (first.shape[0], first.shape[1]) if first.ndim == 3 else (0, 0)
        checked_size(first, self.size, name, 1)

    def _pixels(self, index: int) -> Frame:
        return checked_size(np.asarray(self._frames[index]), self.size, self.name, index + 1)

    def timed(self) -> Iterator[TimedFrame]:
        return (self._frame(number) for number in range(1, self.num_frames + 1))

    def backward(self, start: int | None, end: int, stride: int) -> Iterator[TimedFrame]:
        """See `FrameSource`; each frame is read once."""
        if start is not None and start > self.num_frames:
            raise SourceError(f"{self.name}: there is no frame {start}; it has {self.num_frames}")
        return (self._frame(number) for number in range(start or self.num_frames, end - 1, -stride))

    def _frame(self, number: int) -> TimedFrame:
        return TimedFrame(self._pixels(number - 1), number, (number - 1) / self.fps)


class ImageFiles(ArrayFrames):
    """Images on disk, likewise, in the given order; `read` is `read_image` or `read_depth`."""

    def __init__(self, name: str, paths: Sequence[Path], read: Callable[[Path], Frame] = read_image) -> None:
        self.name, self.paths, self.fps, self.num_frames = name, paths, DEFAULT_FPS, len(paths)
        self._read, first = read, read(paths[0])
        self.size = (first.shape[0], first.shape[1])

    def _pixels(self, index: int) -> Frame:
        return checked_size(self._read(self.paths[index]), self.size, str(self.paths[index]), index + 1)


def is_pattern(path: Path) -> bool:
    """Whether the name of a file stands for numbered ones: `frames/%06d.jpg`."""
    return _PATTERN.search(path.name) is not None


def pattern_images(pattern: Path) -> list[Path]:
    """The files that a pattern such as `frames/%06d.jpg` stands for, in the order of their numbers.
    The first number is the lowest there is; SourceError where there is no such file, or a number is missing."""
    marks = list(_PATTERN.finditer(pattern.name))
    if len(marks) != 1:
        raise SourceError(f"{pattern}: expected one number in the name, such as %06d")
    (mark,) = marks
    before, after = pattern.name[: mark.start()], pattern.name[mark.end() :]
    if not pattern.parent.is_dir():
        raise SourceError(f"{pattern}: there is no folder {pattern.parent}")
    by_number: dict[int, Path] = {}
    for path in pattern.parent.iterdir():
        digits = path.name[len(before) : len(path.name) - len(after)]
        if digits.isdecimal() and path.name == f"{before}{mark[0] % int(digits)}{after}":
            by_number[int(digits)] = path
    if not by_number:
        raise SourceError(f"{pattern}: no file is named so, such as {before}{mark[0] % 1}{after}")
    numbers = sorted(by_number)
    for number, following in itertools.pairwise(numbers):
        if following != number + 1:
            missing, there = pattern.with_name(f"{before}{mark[0] % (number + 1)}{after}"), by_number[following].name
            raise SourceError(f"{missing}: is missing, but {there} is there; give the folder to take what there is")
    return [by_number[number] for number in numbers]


def without_number(pattern: Path) -> Path:
    """`walk/run_%06d.jpg` -> `walk/run.jpg`, `walk/%06d.jpg` -> `walk/0.jpg`: for a name."""
    return pattern.with_name((re.sub(rf"[-_.]?{_PATTERN.pattern}", "", pattern.stem) or "0") + pattern.suffix)


def usable_rate(fps: float) -> float:
    """A rate that a source names, or DEFAULT_FPS where that is none."""
    return fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS


def checked_size(frame: np.ndarray, size: tuple[int, int], name: str, number: int) -> Frame:
    """A frame that is one, of the size of the source's first; `number` is counted from 1. Else SourceError."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}"
        raise SourceError(f"{name}: frame {number} is {found}; expected uint8 RGB [height, width, 3]")
    if frame.shape[:2] != size:
        raise SourceError(
            f"{name}: frame {number} has {frame.shape[1]}x{frame.shape[0]} pixels, but the first one has "
            f"{size[1]}x{size[0]}; all frames of a source must have one size"
        )
    return frame


# A stream that breaks off is opened anew after so many seconds, then twice as many, ...: so often without a frame.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
RECONNECTS = 6
# How often who waits for a frame looks whether the thread is still there, and whether a signal came.
_LOOK_S = 0.2
# A thread may stand in a decoder that waits for its stream; it ends with the process.
_JOIN_S = 0.5


class LiveSource(FrameSource):
    """The newest frame, each at most once. Gaps in the numbers are the frames that were dropped."""

    is_live = True
    num_frames = None

    def __init__(self) -> None:
        self.dropped = 0  # frames that came and were not asked for
        self.reconnections = 0
        self._changed = threading.Condition()
        self._newest: TimedFrame | None = None
        self._put_back: TimedFrame | None = None
        self._broken: SourceError | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _arriving(self) -> Iterator[tuple[Frame, float]]:
        """Frames and their seconds as they come, in a thread of its own."""

    def timed(self) -> Iterator[TimedFrame]:
        """See `FrameSource`. The first pass starts the thread; a later one goes on with the next frame."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch, name=self.name, daemon=True)
            self._thread.start()
        if self._put_back is not None:
            held, self._put_back = self._put_back, None
            yield held
        while not self._closed.is_set():
            with self._changed:
                while self._newest is None and self._thread.is_alive() and self._broken is None:
                    signals.check()
                    self._changed.wait(_LOOK_S)
                frame, self._newest = self._newest, None
            if frame is None:
                raise self._broken or SourceError(f"{self.name}: the thread that reads it has ended")
            yield frame

    def peek(self) -> TimedFrame:
        frame = super().peek()
        self.put_back(frame)
        return frame

    def put_back(self, frame: TimedFrame) -> None:
        """The next pass begins with this frame, whatever comes meanwhile."""
        self._put_back = frame

    def _fetch(self) -> None:
        arriving = self._arriving()
        try:
            for number, (pixels, seconds) in enumerate(arriving, 1):
                frame = TimedFrame(checked_size(pixels, self.size, self.name, number), number, seconds)
                with self._changed:
                    self.dropped += self._newest is not None
                    self._newest = frame
                    self._changed.notify_all()
                if self._closed.is_set():
                    return
        except SourceError as error:
            self._broken = error
        finally:
            arriving.close()  # type: ignore[attr-defined]
            with self._changed:
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the thread, and lets go of the device or stream."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)


class Camera(LiveSource):
    """A camera by its index. It has no end of its own: a device that gives no more is a SourceError."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.name = f"camera{index}"
        self._capture = cv2.VideoCapture(index)
        decoded, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        if not decoded or frame is None:
            self.close()
            raise SourceError(
                f"camera {index} gives no picture: is it connected, is it free, and may you read it "
                f"(/dev/video{index} on Linux)? SOURCE may also be a video file or a folder of images"
            )
        self.fps = usable_rate(self._capture.get(cv2.CAP_PROP_FPS))
        self.size = (frame.shape[0], frame.shape[1])

    def _arriving(self) -> Iterator[tuple[Frame, float]]:
        number, began = 0, time.monotonic()
        while True:
            number += 1
            decoded, frame = self._capture.read()
            if not decoded:
                raise SourceError(f"{self.name}: the camera gave no frame {number}")
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), time.monotonic() - began

    def close(self) -> None:
        """Frees the device."""
        super().close()
        if self._thread is None or not self._thread.is_alive():
            self._capture.release()


class LiveStream(LiveSource):
    """A stream that goes on (`rtsp://...`). One that breaks off is opened again, `reconnects` times without a frame."""

    def __init__(self, name: str, decoder: Decoder, reconnects: int = RECONNECTS) -> None:
        super().__init__()
        self.name, self.size, self.fps = name, decoder.size, usable_rate(decoder.fps)
        self._decoder, self._reconnects = decoder, reconnects

    def _arriving(self) -> Iterator[tuple[Frame, float]]:
        """Seconds are the stream's own, from its first frame; a later connection goes on by the clock on the wall."""
        began, failures, latest = time.monotonic(), 0, -1 / self.fps
        while True:
            reason, offset = "it ended", None
            try:
                for frame, seconds in self._decoder.frames():
                    if offset is None:
                        passed = time.monotonic() - began if self.reconnections else 0.0
                        offset = max(passed, latest + 1 / self.fps) - seconds
                    failures, latest = 0, seconds + offset
                    yield frame, latest
            except SourceError as error:
                reason = str(error).removeprefix(f"{self._decoder.location}: ")
            if failures == self._reconnects:
                tried = f", and {failures} attempts to open it again gave no frame" if failures else ""
                raise SourceError(f"{self._decoder.location}: the stream broke off ({reason}){tried}")
            if self._closed.wait(min(FIRST_WAIT_S * 2**failures, LONGEST_WAIT_S)):
                return
            failures += 1
            self.reconnections += 1
