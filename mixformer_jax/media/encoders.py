"""Encoding videos: H.264, which browsers play, by PyAV where it is installed; else what OpenCV's wheels can."""

import math
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.media.decoders import ffmpeg_location, find_pyav

# OpenCV's wheels encode no H.264 ("avc1"), and VP9 takes 0.3 s a frame.
CODECS = {".mp4": "mp4v", ".avi": "MJPG"}
NAMES = {"mp4v": "MPEG-4 part 2", "MJPG": "Motion JPEG"}
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


class Encoder(ABC):
    """A way to write one video of frames with even sides."""

    codec: str  # for messages

    @abstractmethod
    def write(self, frame: UInt8[np.ndarray, "height width 3"], seconds: float | None) -> None:
        """Appends an RGB frame. `seconds`: its time, where the encoder can keep one; None: at the video's rate."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left."""


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


def open_encoder(path: Path, fps: float, size: tuple[int, int]) -> Encoder:
    """An encoder for `path`, by its suffix; `size` is (height, width). EncodingError where it cannot begin."""
    av = h264_library() if path.suffix.lower() == ".mp4" else None
    return OpenCVEncoder(path, fps, size) if av is None else H264Encoder(path, fps, size, av)


class OpenCVEncoder(Encoder):
    """FFmpeg through OpenCV, which knows no times: every frame follows at the video's rate."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        letters = CODECS[path.suffix.lower()]
        self.codec = NAMES[letters]
        fourcc = cv2.VideoWriter.fourcc(*letters)
        self._writer = cv2.VideoWriter(ffmpeg_location(path), cv2.CAP_FFMPEG, fourcc, fps, size[::-1])
        if not self._writer.isOpened():
            raise EncodingError(f"OpenCV cannot encode {size[1]}x{size[0]} at {fps:g} Hz here")

    def write(self, frame: UInt8[np.ndarray, "height width 3"], seconds: float | None) -> None:
        """See `Encoder`."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """See `Encoder`."""
        self._writer.release()


class H264Encoder(Encoder):
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
        """See `Encoder`; a frame that is not later than the one before follows it by a tick."""
        picture = self._av.VideoFrame.from_ndarray(frame)
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", interpolation="BICUBIC")
        time = self._next if seconds is None else round(seconds * self._ticks)
        self._last = picture.pts = max(time, self._last + 1)
        self._next = self._last + self._ticks_a_frame
        picture.time_base = Fraction(1, self._ticks)
        picture.duration = self._ticks_a_frame
        self._mux(picture)

    def close(self) -> None:
        """See `Encoder`."""
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
