"""Frames in and video out: one interface for video files, streams, folders of images, cameras and arrays.

Every frame is HWC uint8 RGB. A source that cannot be read to its end gives every frame before the damage, and then
says at which frame it broke off.
"""

import math
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from urllib.parse import urlsplit

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.files import Part
from mixformer_jax.media.decoders import ffmpeg_location, is_address, open_decoder
from mixformer_jax.media.encoders import CODECS, EncodingError, open_encoder
from mixformer_jax.media.images import IMAGE_SUFFIXES, SourceError, list_images, read_image

# Images on disk carry no rate; a video made of them has to have one.
DEFAULT_FPS = 30.0
# Containers promise a few frames more than they hold (edit lists, dropped last packets, longer audio). A file counts as
# truncated when it is short by more than this, both in frames and in seconds.
MISSING_FRAMES = 5
MISSING_FRACTION = 0.01

# Names of videos and folders of images that are the same in every sequence.
_SAYS_NOTHING = re.compile(r"(?i)(video|images?|imgs?|frames?|color|rgb|\d*)")

Frame = UInt8[np.ndarray, "height width 3"]


class OutputError(OSError):
    """A file or a folder that cannot be written."""


class FrameSource(ABC):
    """Frames of one size, in order. Each `iter()` starts again at the first frame (a camera goes on instead)."""

    name: str  # for messages and output files: the stem of the file, the name of the folder
    fps: float  # DEFAULT_FPS where the source does not know
    num_frames: int | None  # as promised; None for a camera or a stream without a count
    size: tuple[int, int]  # (height, width)

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields frames; raises SourceError where the source breaks off."""

    def close(self) -> None:  # noqa: B027 (only a camera has what is open between frames)
        """Lets go of what is held open between frames."""

    def __enter__(self) -> "FrameSource":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class VideoFile(FrameSource):
    """A video file or a network stream (an address with `://`), turned upright as its metadata say.

    The decoder (`decoders`) conceals damage inside a frame; missing frames are noticed (see MISSING_FRAMES).
    """

    def __init__(self, path: str | Path) -> None:
        self.name = _stream_name(path) if isinstance(path, str) and is_address(path) else telling_name(Path(path))
        self._decoder = open_decoder(str(path))
        self.fps = _rate(self._decoder.fps)
        self.num_frames = self._decoder.num_frames
        self.size = self._decoder.size

    def __iter__(self) -> Iterator[Frame]:
        location = self._decoder.location
        number, seconds = 0, 0.0
        for number, (frame, seconds) in enumerate(self._decoder.frames(), start=1):  # noqa: B007 (both are read below)
            yield _checked(frame, self.size, location, number)
        if self.num_frames is None and is_address(location):
            raise SourceError(f"{location}: the stream gave no frame {number + 1}")
        if self._is_short(number, seconds):
            raise SourceError(
                f"{location}: truncated or damaged: it promises {self.num_frames} frames, "
                f"but frame {number + 1} cannot be decoded"
            )

    def _is_short(self, number: int, seconds: float) -> bool:
        # Containers without a frame count have it estimated as duration x rate, far off where the rate
        # varies: there the time of the last frame tells. Where the last picture stands long, the count tells.
        if self.num_frames is None:
            return False
        tolerance = max(MISSING_FRAMES, MISSING_FRACTION * self.num_frames)
        interval = max(1 / self.fps, seconds / max(number - 1, 1))
        missing_seconds = self.num_frames / self.fps - (seconds + interval)
        return self.num_frames - number > tolerance and missing_seconds > tolerance * interval


class ImageFolder(FrameSource):
    """A folder of images, in natural order of their names. Other and hidden files are left out."""

    def __init__(self, path: Path) -> None:
        self.name = telling_name(path)
        self.paths = list_images(path)
        if not self.paths:
            raise SourceError(f"{path}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
        self.fps = DEFAULT_FPS
        self.num_frames = len(self.paths)
        first = read_image(self.paths[0])
        self.size = (first.shape[0], first.shape[1])

    def __iter__(self) -> Iterator[Frame]:
        for number, path in enumerate(self.paths, start=1):
            yield _checked(read_image(path), self.size, str(path), number)


class Camera(FrameSource):
    """A camera by its index. It has no end of its own: a device that gives no more is a SourceError."""

    def __init__(self, index: int) -> None:
        self.name = f"camera{index}"
        self.num_frames = None
        self._capture = cv2.VideoCapture(index)
        decoded, frame = self._capture.read() if self._capture.isOpened() else (False, None)
        if not decoded or frame is None:
            self.close()
            raise SourceError(
                f"camera {index} gives no picture: is it connected, is it free, and may you read it "
                f"(/dev/video{index} on Linux)? SOURCE may also be a video file or a folder of images"
            )
        self.fps = _rate(self._capture.get(cv2.CAP_PROP_FPS))
        self.size = (frame.shape[0], frame.shape[1])

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        while True:
            number += 1
            decoded, frame = self._capture.read()
            if not decoded:
                raise SourceError(f"{self.name}: the camera gave no frame {number}")
            yield _checked(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), self.size, self.name, number)

    def close(self) -> None:
        """Frees the device."""
        self._capture.release()


class ArrayFrames(FrameSource):
    """Frames in memory: uint8 RGB [n, height, width, 3], or a sequence (also a lazy one) of such frames."""

    def __init__(self, frames: np.ndarray | Sequence, name: str = "frames", fps: float = DEFAULT_FPS) -> None:
        self.name, self.fps, self._frames = name, fps, frames
        self.num_frames = len(frames)
        if self.num_frames == 0:
            raise SourceError(f"{name}: no frames; expected uint8 RGB arrays [height, width, 3]")
        first = np.asarray(frames[0])
        self.size = (first.shape[0], first.shape[1]) if first.ndim == 3 else (0, 0)
        _checked(first, self.size, name, 1)

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self._frames)):
            yield _checked(np.asarray(self._frames[index]), self.size, self.name, index + 1)


def open_source(source: str | Path | int | np.ndarray | Sequence[np.ndarray]) -> FrameSource:
    """Opens a video file, a stream (`rtsp://...`), a folder of images, a camera (0 or "0"), or frames in memory.

    Digits as text mean a camera unless a file or folder has that name. SourceError where the first frame cannot be had.
    """
    if isinstance(source, (int, np.integer)):
        return Camera(int(source))
    if not isinstance(source, (str, Path)):
        return ArrayFrames(source)
    if isinstance(source, str) and is_address(source):
        return VideoFile(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        if str(source).isdecimal():
            return Camera(int(str(source)))
        raise SourceError(f"{path}: does not exist; expected a video, a folder of images or a camera number")
    if path.stat().st_size == 0 and path.is_file():
        raise SourceError(f"{path}: the file is empty")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"{path}: is a single image; expected a video, or the folder that holds the images")
    return VideoFile(path)


def telling_name(path: Path) -> str:
    """`walk` for `walk.mp4`, `walk/video.mp4`, `walk/img/` and `walk/00000001.avi`; links keep their own names."""
    # Not `resolve`: the name of a link is the one that its owner chose.
    path = Path(os.path.abspath(path))  # noqa: PTH100
    names = [path.name if path.is_dir() else path.stem, *(parent.name for parent in path.parents)]
    return next((name for name in names if name and not _SAYS_NOTHING.fullmatch(name)), names[0])


def _stream_name(address: str) -> str:
    parts = urlsplit(address)
    return PurePosixPath(parts.path).stem or parts.hostname or "stream"


def _rate(fps: float) -> float:
    return fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS


def _checked(frame: np.ndarray, size: tuple[int, int], name: str, number: int) -> Frame:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        found = f"{frame.dtype} {list(frame.shape)}"
        raise SourceError(f"{name}: frame {number} is {found}; expected uint8 RGB [height, width, 3]")
    if frame.shape[:2] != size:
        raise SourceError(
            f"{name}: frame {number} has {frame.shape[1]}x{frame.shape[0]} pixels, but the first one has "
            f"{size[1]}x{size[0]}; all frames of a source must have one size"
        )
    return frame


def prepare_output(path: str | Path) -> Path:
    """Makes the folder of an output file and tries it, so that no long run ends at one it cannot use (OutputError)."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of a file to write")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writable-"):
            pass
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot write into this folder: {error.strerror}") from error
    return path


class VideoWriter:
    """Writes RGB frames to a video file (.mp4: see `encoders`; .avi: Motion JPEG), as a context manager.

    Frames go to `NAME.part.mp4` in the same folder, which takes its name when the writer closes; an exception or Ctrl-C
    inside the `with` closes it too, so that what was written stays. Codecs want even sizes: odd frames get their last
    row or column once more. Closing without a frame leaves no file. `codec` names what it writes.

    Raises:
        OutputError: the folder cannot be written, or the suffix or the size has no encoder.
        NameTakenError: the file is there, or another run is writing it.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int], overwrite: bool = True) -> None:
        if Path(path).suffix.lower() not in CODECS:
            raise OutputError(f"{path}: cannot write this kind of video; name it {' or '.join(CODECS)}")
        if not (math.isfinite(fps) and fps > 0) or min(size) < 1:
            raise ValueError(f"a video needs a positive rate and size, got {fps} Hz, {size[1]}x{size[0]}")
        self.path, self.size, self.num_frames = prepare_output(path), size, 0
        self._part = Part(self.path, overwrite)
        self._padding = (size[0] % 2, size[1] % 2)
        self._is_open = True
        try:
            self._encoder = open_encoder(self._part.path, fps, (size[0] + self._padding[0], size[1] + self._padding[1]))
        except EncodingError as error:
            self._part.discard()
            raise OutputError(f"{self.path}: {error}") from error
        self.codec = self._encoder.codec

    def write(self, frame: Frame, seconds: float | None = None) -> None:
        """Appends one frame, at a time where one is given and the encoder keeps times (H.264), else at the rate.

        Raises:
            ValueError: its size is not the writer's.
            OutputError: the encoder failed, as on a full disk.
        """
        if frame.shape[:2] != self.size:
            height, width = self.size
            raise ValueError(f"a frame of {frame.shape[1]}x{frame.shape[0]} for a video of {width}x{height}")
        if any(self._padding):
            frame = cv2.copyMakeBorder(frame, 0, self._padding[0], 0, self._padding[1], cv2.BORDER_REPLICATE)
        try:
            self._encoder.write(frame, seconds)
        except EncodingError as error:
            raise OutputError(f"{self.path}: cannot be written: {error}") from error
        self.num_frames += 1

    def close(self) -> None:
        """Finishes the file and gives it its name; errors as in `files.Part`.

        Raises:
            OutputError: it holds less than was written; OpenCV itself says nothing on a full disk.
        """
        if not self._is_open:
            return
        self._is_open = False
        told = "is the disk full?"
        try:
            self._encoder.close()
        except EncodingError as error:
            told = str(error)
        if self.num_frames == 0:
            self._part.discard()
            return
        written = cv2.VideoCapture(ffmpeg_location(self._part.path), cv2.CAP_FFMPEG)
        held = max(int(written.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        written.release()
        if held:
            self._part.finish()
        else:
            self._part.discard()
        if held < self.num_frames:
            raise OutputError(f"{self.path}: holds {held} of {self.num_frames} frames written; {told}")

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
