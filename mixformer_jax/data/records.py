"""One annotated sequence, and random access to its frames."""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from mixformer_jax.images import read_image
from mixformer_jax.video import FrameSource, open_source


@dataclass(frozen=True, eq=False)
class Sequence:
    """A video with one target. `len()` is its number of frames; it pickles wherever `frame` does.

    Attributes:
        name: unique within its data set.
        boxes_xywh: ground truth in pixels, 0-based; a row of NaN where no box is known (target absent, or
            hidden test ground truth).
        frame: index -> HWC uint8 RGB.
        fps: frames a second.
        root: the folder of the sequence.
        visible: False where the data set marks the target as absent; None where it has no such marks.
    """

    name: str
    boxes_xywh: Float64[np.ndarray, "n 4"]
    frame: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    fps: float
    root: Path
    visible: Bool[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.boxes_xywh)

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """All frames in order; a video is decoded once."""
        # A copy has a decoder of its own: calls of `frame` meanwhile do not send this one back to the start.
        frame = copy.copy(self.frame)
        for index in range(len(self)):
            yield frame(index)


@dataclass(frozen=True)
class ImageFrames:
    """Frames which are image files: `frames(i)` reads file i of `names` in `folder`."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        if not 0 <= index < len(self.names):
            raise IndexError(f"{self.folder}: frame {index} of {len(self.names)}")
        return read_image(self.folder / self.names[index])


class VideoFrames:
    """Frames of a video file by index; nothing is opened before the first call.

    Seeking in compressed video is inexact for some containers and slow for all, so frames are found by
    counting: an index ahead of the last one reads on, an index behind it opens the file again. Sequential
    access decodes every frame once. Safe to call from several threads; a pickled or copied object opens the
    file for itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._source: FrameSource | None = None
        self._decoded: Iterator[np.ndarray] | None = None
        self._position = -1
        self._current: np.ndarray | None = None

    def __reduce__(self) -> tuple[type["VideoFrames"], tuple[Path]]:
        return VideoFrames, (self.path,)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        if index < 0:
            raise IndexError(f"{self.path}: frame {index}; indices start at 0")
        with self._lock:
            try:
                return self._read(index).copy()
            except BaseException:
                # After an interrupt or a decoding error the position is unknown; the next call starts afresh.
                self._close()
                raise

    def close(self) -> None:
        """Give the decoder back; a later call opens the file again."""
        with self._lock:
            self._close()

    def _read(self, index: int) -> np.ndarray:
        if self._source is None:
            self._source = open_source(self.path)
        if self._decoded is None or index < self._position:
            self._decoded, self._position = iter(self._source), -1
        while self._position < index:
            current = next(self._decoded, None)
            if current is None:
                raise IndexError(f"{self.path}: frame {index}, but the video ends after {self._position + 1} frames")
            self._current = current
            self._position += 1
        assert self._current is not None
        return self._current

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source, self._decoded, self._position, self._current = None, None, -1, None


def count_video_frames(path: Path) -> int:
    """Number of frames that decode; the count in a container's header is an estimate for some encoders."""
    with open_source(path) as source:
        return sum(1 for _ in source)
