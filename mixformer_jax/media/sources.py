"""What a source of frames is, and those whose frames can be had in any order: images on disk, arrays in memory."""

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mixformer_jax.media.images import IMAGE_SUFFIXES, SourceError, list_images, read_image

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


class FrameSource(ABC):
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

    def close(self) -> None:  # noqa: B027 (only what is live has something open between frames)
        """Lets go of what is held open between frames."""

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _IndexedFrames(FrameSource):
    """Frames that can be had in any order, one each 1/fps seconds."""

    num_frames: int

    @abstractmethod
    def _pixels(self, index: int) -> Frame:
        """The frame of an index, counted from 0; of the source's size."""

    def timed(self) -> Iterator[TimedFrame]:
        """See `FrameSource`."""
        return (self._frame(number) for number in range(1, self.num_frames + 1))

    def backward(self, start: int | None, end: int, stride: int) -> Iterator[TimedFrame]:
        """See `FrameSource`; each frame is read once."""
        if start is not None and start > self.num_frames:
            raise SourceError(f"{self.name}: there is no frame {start}; it has {self.num_frames}")
        return (self._frame(number) for number in range(start or self.num_frames, end - 1, -stride))

    def _frame(self, number: int) -> TimedFrame:
        return TimedFrame(self._pixels(number - 1), number, (number - 1) / self.fps)


class ImageFiles(_IndexedFrames):
    """Images on disk, in the given order."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        self.name, self.paths, self.fps, self.num_frames = name, paths, DEFAULT_FPS, len(paths)
        first = read_image(paths[0])
        self.size = (first.shape[0], first.shape[1])

    def _pixels(self, index: int) -> Frame:
        return checked_size(read_image(self.paths[index]), self.size, str(self.paths[index]), index + 1)


class ArrayFrames(_IndexedFrames):
    """Frames in memory: uint8 RGB [n, height, width, 3], or a sequence (also a lazy one) of such frames."""

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


def folder_images(folder: Path) -> list[Path]:
    """The images of a folder that are frames; SourceError where there is none."""
    paths = list_images(folder)
    if not paths:
        raise SourceError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def is_pattern(path: Path) -> bool:
    """Whether the name of a file stands for numbered ones: `frames/%06d.jpg`."""
    return _PATTERN.search(path.name) is not None


def pattern_images(pattern: Path) -> list[Path]:
    """The files that a pattern such as `frames/%06d.jpg` stands for, in the order of their numbers.

    The first number is the lowest there is; SourceError where there is no such file, or a number is missing.
    """
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
