"""Frames in and video out: one interface for video files, streams, folders of images, cameras and arrays.
Every frame is HWC uint8 RGB. A source that cannot be read to its end gives every frame before the damage, and then says
at which frame it broke off."""

import contextlib
import itertools
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.files import Part
from mixformer_jax.media.decoders import Decoder, ffmpeg_location, find_pyav, is_address, open_decoder
from mixformer_jax.media.images import IMAGE_SUFFIXES, SourceError, list_images, read_image
from mixformer_jax.media.sources import (
    RECONNECTS,
    ArrayFrames,
    Camera,
    Frame,
    FrameSource,
    ImageFiles,
    LiveSource,
    LiveStream,
    TimedFrame,
    checked_size,
    is_pattern,
    pattern_images,
    usable_rate,
    without_number,
)

# OpenCV's wheels encode no H.264 ("avc1"), and VP9 takes 0.3 s a frame.
CODECS = {".mp4": ("mp4v", "MPEG-4 part 2"), ".avi": ("MJPG", "Motion JPEG")}
H264 = "H.264"
_H264_ENCODER = "libx264"
# Nearly without visible loss, and quick: what is drawn is written once and looked at a few times.
_H264_OPTIONS = {"crf": "20", "preset": "veryfast"}
# ITU-T H.273: BT.709, and levels 16 to 235. What has no label browsers and players guess by its size.
_BT709, _LIMITED_RANGE = 1, 1
# Ticks a second: at least so many, so that frames of any rate stand where they belong.
_LEAST_TICKS = 90_000


class EncodingError(Exception):
    """The encoder cannot begin, or failed at a frame."""


def h264_library() -> ModuleType | None:
    """PyAV where it is installed with an encoder of H.264, else None."""
    av = find_pyav()
    if av is None:
        return None
    try:
        av.codec.Codec(_H264_ENCODER, "w")
    except av.codec.codec.UnknownCodecError:  # an FFmpeg that was built without it
        return None
    return av


class OpenCVEncoder:
    """FFmpeg through OpenCV, which knows no times: every frame follows at the video's rate."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        letters, self.codec = CODECS[path.suffix.lower()]
        fourcc = cv2.VideoWriter.fourcc(*letters)
        self._writer = cv2.VideoWriter(ffmpeg_location(path), cv2.CAP_FFMPEG, fourcc, fps, size[::-1])
        if not self._writer.isOpened():
            raise EncodingError(f"OpenCV cannot encode {size[1]}x{size[0]} at {fps:g} Hz here")

    def write(self, frame: UInt8[np.ndarray, "height width 3"], seconds: float | None) -> None:
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        self._writer.release()


class H264Encoder:
    """FFmpeg's libx264 through PyAV: 4:2:0, BT.709, its index at the front, so that a browser starts at once."""

    codec = H264

    def __init__(self, path: Path, fps: float, size: tuple[int, int], av: ModuleType) -> None:
        rate = Fraction(fps).limit_denominator(1001) or Fraction(fps)
        self._av = av
        self._ticks = rate.numerator * math.ceil(_LEAST_TICKS / rate.numerator)
        self._ticks_a_frame = round(self._ticks / rate)
        self._next = 0  # the time of the next frame, in ticks
        self._last = -1
        try:
            self._container = av.open(ffmpeg_location(path), "w", format="mp4", options={"movflags": "faststart"})
            self._stream: Any = self._container.add_stream(_H264_ENCODER, rate=rate, options=dict(_H264_OPTIONS))
            self._stream.height, self._stream.width = size
            self._stream.pix_fmt = "yuv420p"
            context = self._stream.codec_context
            context.time_base = Fraction(1, self._ticks)
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED_RANGE
            self._container.start_encoding()
        except (av.error.FFmpegError, OSError) as error:
            raise EncodingError(f"{_H264_ENCODER} cannot encode {size[1]}x{size[0]} at {fps:g} Hz: {error}") from error

    def write(self, frame: UInt8[np.ndarray, "height width 3"], seconds: float | None) -> None:
        """Appends an RGB frame at a time, or at the video's rate; one that is not later than the one before follows it
        by a tick."""
        picture = self._av.VideoFrame.from_ndarray(frame)
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation="BICUBIC")
        time = self._next if seconds is None else round(seconds * self._ticks)
        self._last = picture.pts = max(time, self._last + 1)
        self._next = self._last + self._ticks_a_frame
        picture.time_base = Fraction(1, self._ticks)
        picture.duration = self._ticks_a_frame
        self._mux(picture)

    def close(self) -> None:
        try:
            self._mux(None)
        finally:
            try:
                self._container.close()
            except (self._av.error.FFmpegError, OSError) as error:
                raise EncodingError(str(error)) from error

    def _mux(self, picture: Any) -> None:
        try:
            self._container.mux(self._stream.encode(picture))
        except (self._av.error.FFmpegError, OSError) as error:
            raise EncodingError(str(error)) from error


def open_encoder(path: Path, fps: float, size: tuple[int, int]) -> OpenCVEncoder | H264Encoder:
    """An encoder for `path`, by its suffix; `size` is (height, width), even. EncodingError where it cannot begin."""
    av = h264_library() if path.suffix.lower() == ".mp4" else None
    return OpenCVEncoder(path, fps, size) if av is None else H264Encoder(path, fps, size, av)


# Containers promise a few frames more than they hold (edit lists, dropped last packets, longer audio). A file counts as
# truncated when it is short by more than this, both in frames and in seconds.
MISSING_FRAMES = 5
MISSING_FRACTION = 0.01

# Names of videos and folders of images that are the same in every sequence.
_SAYS_NOTHING = re.compile(r"(?i)(video|images?|imgs?|frames?|color|rgb|\d*)")


class OutputError(OSError):
    """A file or a folder that cannot be written."""


class VideoFile(FrameSource):
    """A video file, here or at an address (`https://...`), turned upright as its metadata say.
    The decoder (`decoders`) conceals damage inside a frame; missing frames are noticed (see MISSING_FRAMES)."""

    def __init__(self, name: str, decoder: Decoder) -> None:
        self.name, self._decoder = name, decoder
        self.fps = usable_rate(decoder.fps)
        self.num_frames = decoder.num_frames
        self.size = decoder.size

    def timed(self) -> Iterator[TimedFrame]:
        """See `FrameSource`. Times that do not grow, which some containers have, are put a frame apart."""
        location, latest = self._decoder.location, -math.inf
        number, seconds = 0, 0.0
        for number, (frame, seconds) in enumerate(self._decoder.frames(), start=1):
            latest = seconds if seconds > latest else latest + 1 / self.fps
            yield TimedFrame(checked_size(frame, self.size, location, number), number, latest)
        if self._decoder.is_live:
            raise SourceError(f"{location}: the stream gave no frame {number + 1}")
        if self.num_frames is None:
            return
        # Containers without a frame count have it estimated as duration x rate, far off where the rate
        # varies: there the time of the last frame tells. Where the last picture stands long, the count tells.
        tolerance = max(MISSING_FRAMES, MISSING_FRACTION * self.num_frames)
        interval = max(1 / self.fps, seconds / max(number - 1, 1))
        missing_seconds = self.num_frames / self.fps - (seconds + interval)
        if self.num_frames - number > tolerance and missing_seconds > tolerance * interval:
            raise SourceError(
                f"{location}: truncated or damaged: it promises {self.num_frames} frames, "
                f"but frame {number + 1} cannot be decoded"
            )


def open_source(
    source: str | Path | int | np.ndarray | Sequence[np.ndarray],
    live: bool | None = None,
    reconnects: int = RECONNECTS,
    read: Callable[[Path], Frame] = read_image,
) -> FrameSource:
    """Opens a video file, an address, images, a camera, or frames in memory.

    Args:
        source: a path or an address of a video (`https://...`, `rtsp://...`, `rtmp://...`); a folder of images, or a
            pattern such as `frames/%06d.jpg`; a camera, 0 or "0" (unless a file or folder has that name); arrays.
        live: of an address, whether only the newest frame counts (see `media.sources`). None: where it has no end.
        reconnects: how often a live stream that broke off is opened again without a frame.
        read: what reads an image of a folder or pattern: `read_image`, or `read_depth` for a second stream.

    Raises SourceError: the first frame cannot be had.
    """
    if isinstance(source, (int, np.integer)):
        return Camera(int(source))
    if not isinstance(source, (str, Path)):
        return ArrayFrames(source)
    if isinstance(source, str) and is_address(source):
        decoder = open_decoder(source)
        is_live = decoder.is_live if live is None else live
        parts = urlsplit(source)
        name = PurePosixPath(parts.path).stem or parts.hostname or "stream"
        return LiveStream(name, decoder, reconnects) if is_live else VideoFile(name, decoder)
    path = Path(source).expanduser()
    if path.is_dir():
        images = list_images(path)
        if not images:
            raise SourceError(f"{path}: holds no image ({', '.join(IMAGE_SUFFIXES)})")
        return ImageFiles(telling_name(path), images, read)
    if not path.exists():
        if str(source).isdecimal():
            return Camera(int(str(source)))
        if is_pattern(path):
            return ImageFiles(telling_name(without_number(path)), pattern_images(path), read)
        raise SourceError(
            f"{path}: does not exist; expected a video, images (a folder, or %06d.jpg) or a camera number"
        )
    if path.stat().st_size == 0 and path.is_file():
        raise SourceError(f"{path}: the file is empty")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise SourceError(f"{path}: is a single image; expected a video, or the folder that holds the images")
    return VideoFile(telling_name(path), open_decoder(str(path)))


def telling_name(path: Path) -> str:
    """`walk` for `walk.mp4`, `walk/video.mp4`, `walk/img/` and `walk/00000001.avi`; links keep their own names."""
    # Not `resolve`: the name of a link is the one that its owner chose.
    path = Path(os.path.abspath(path))  # noqa: PTH100
    names = [path.name if path.is_dir() else path.stem, *(parent.name for parent in path.parents)]
    return next((name for name in names if name and not _SAYS_NOTHING.fullmatch(name)), names[0])


def prepare_output(path: str | Path, is_folder: bool = False) -> Path:
    """Makes the folder around an output and tries it, so that no long run ends at one it cannot use (OutputError)."""
    path = Path(path).expanduser()
    if path.is_dir() and not is_folder:
        raise OutputError(f"{path}: is a folder; expected the name of a file to write")
    if path.is_file() and is_folder:
        raise OutputError(f"{path}: is a file; expected the name of a folder to write into")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writable-"):
            pass
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot write into this folder: {error.strerror}") from error
    return path


class VideoWriter(contextlib.AbstractContextManager):
    """Writes RGB frames to a video file (.mp4: H.264, without PyAV MPEG-4; .avi: Motion JPEG), as a context manager.

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
        self._padding = down, right = size[0] % 2, size[1] % 2
        self._is_open = True
        try:
            self._encoder = open_encoder(self._part.path, fps, (size[0] + down, size[1] + right))
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
            down, right = self._padding
            frame = cv2.copyMakeBorder(frame, 0, down, 0, right, cv2.BORDER_REPLICATE)
        try:
            self._encoder.write(frame, seconds)
        except EncodingError as error:
            raise OutputError(f"{self.path}: cannot be written: {error}") from error
        self.num_frames += 1

    def close(self) -> None:
        """Finishes the file and gives it its name; errors as in `files.Part`.
        Raises OutputError: it holds less than was written; OpenCV itself says nothing on a full disk."""
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

    def __exit__(self, *_: object) -> None:
        self.close()


class SelectedFrames(FrameSource):
    """Frames of another source, with their indices and times there.

    Args:
        source: where they are from; closed with this.
        start: the first of them, counted from 1; None: the source's first, or going backward its last.
        end: the last of them; None: the source's last, or going backward its first.
        stride: only every so many frames, counted from `start`. The rate is divided by it.
        backward: from `start` down to `end`.

    Raises ValueError: numbers that leave nothing, or what a live source cannot do.
    """

    def __init__(
        self,
        source: FrameSource,
        start: int | None = None,
        end: int | None = None,
        stride: int = 1,
        backward: bool = False,
    ) -> None:
        if min(stride, 1 if start is None else start, 1 if end is None else end) < 1:
            raise ValueError(f"start {start}, end {end} and stride {stride} must be 1 or more")
        if start is not None and end is not None and (start < end if backward else start > end):
            way = "before end, which backward is not before it" if backward else "after end"
            raise ValueError(f"start {start} is {way} ({end})")
        if source.is_live and backward:
            raise ValueError(f"{source.name} is live, and frames that are to come cannot be had backward")
        self._source, self._start, self._end, self._stride, self._backward = source, start, end, stride, backward
        self.name, self.size, self.is_live = source.name, source.size, source.is_live
        self.fps = source.fps / stride
        self.num_frames = None if source.num_frames is None else len(self._numbers(source.num_frames))

    def _numbers(self, num_frames: int) -> range:
        if self._backward:
            start = num_frames if self._start is None else min(self._start, num_frames)
            return range(start, (self._end or 1) - 1, -self._stride)
        end = num_frames if self._end is None else min(self._end, num_frames)
        return range(self._start or 1, end + 1, self._stride)

    def timed(self) -> Iterator[TimedFrame]:
        if self._backward:
            end, frame = self._end or 1, None
            for frame in self._source.backward(self._start, end, self._stride):
                yield frame
            if frame is None:
                raise SourceError(f"{self.name}: there is no frame {end}")
            return
        start = wanted = self._start or 1
        number = 0
        for frame in self._source.timed():
            number = frame.number
            if self._end is not None and number > self._end:
                return
            if number >= wanted:  # a live source may have dropped the very one
                yield frame
                wanted = number + self._stride
            if number == self._end:
                return
        if number < start:
            raise SourceError(f"{self.name}: there is no frame {start}; it has {number}")

    def peek(self) -> TimedFrame:
        frame = super().peek()
        if isinstance(self._source, LiveSource):
            self._source.put_back(frame)
        return frame

    def part(self) -> tuple[int, int | None, int, bool]:
        return self._start or (0 if self._backward else 1), self._end, self._stride, self._backward

    def close(self) -> None:
        self._source.close()


class TwoStreams(FrameSource):
    """Frames of six channels: those of `colour`, whose times count, and behind them those of `second`.

    Both are closed with this.

    Raises SourceError: a live source, or two that do not go together: of other sizes, or another number of frames.
        Videos promise a few frames more than they hold: where one ends before the other is seen when it does.
    """

    def __init__(self, colour: FrameSource, second: FrameSource) -> None:
        self._colour, self._second = colour, second
        self.name, self.fps, self.num_frames, self.size = colour.name, colour.fps, colour.num_frames, colour.size
        for source in (colour, second):
            if source.is_live:
                raise SourceError(f"{source.name} is live, and drops frames: a second stream goes with recorded ones")
        if colour.size != second.size:
            ours, theirs = (f"{width}x{height}" for height, width in (colour.size, second.size))
            raise SourceError(
                f"the second stream, {second.name}, has {theirs} pixels, and {colour.name} {ours}; expected images of "
                "one size that lie over each other"
            )
        if colour.num_frames is not None and second.num_frames is not None:
            counted = not any(isinstance(source, VideoFile) for source in (colour, second))
            if abs(colour.num_frames - second.num_frames) > (0 if counted else MISSING_FRAMES):
                raise SourceError(
                    f"the second stream, {second.name}, has {second.num_frames} frames, and {colour.name} "
                    f"{colour.num_frames}; expected as many, the first with the first"
                )

    def timed(self) -> Iterator[TimedFrame]:
        return self._in_step(self._colour.timed(), self._second.timed())

    def backward(self, start: int | None, end: int, stride: int) -> Iterator[TimedFrame]:
        return self._in_step(*(source.backward(start, end, stride) for source in (self._colour, self._second)))

    def _in_step(self, colour: Iterator[TimedFrame], second: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
        for frame, beside in itertools.zip_longest(colour, second):
            if frame is None or beside is None or frame.number != beside.number:
                ours, theirs = ("the end" if each is None else f"frame {each.number}" for each in (frame, beside))
                raise SourceError(
                    f"{self.name}: {ours} would be beside {theirs} of the second stream, {self._second.name}; expected "
                    "as many frames, the first with the first"
                )
            yield frame._replace(pixels=np.concatenate([frame.pixels, beside.pixels], axis=2))

    def close(self) -> None:
        self._colour.close()
        self._second.close()
