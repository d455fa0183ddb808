"""Decoding videos: by PyAV where it is installed, else by OpenCV.

Both use FFmpeg and convert to RGB alike: where both give a frame, it is the same byte for byte (but for BT.2020
primaries, which OpenCV 5 maps to BT.709). PyAV goes first, as it decodes more: AV1, and interlaced frames.

OpenCV 5.0.0 cannot convert frames that are flagged as interlaced, says that it did, and hands out its buffer as it was:
uninitialised, or with the frame before in it (4.12 converts them). So a frame of OpenCV's counts only once it is known
that the buffer was written, see `OpenCVDecoder`. `try_interlaced` tells how this computer does.
"""

import functools
import itertools
import math
import os
import shlex
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.media.images import SourceError

Frame = UInt8[np.ndarray, "height width 3"]

# Seconds until a network stream that does not answer counts as broken; as in OpenCV.
STREAM_TIMEOUT = 30.0
# By degrees counter-clockwise.
_ROTATIONS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
# Codecs, and the four letters that files have for them.
_CODECS = {
    "AV1": "av01",
    "DV": "dvsd dvc dvcp dv25",
    "H.264": "avc1 avc3 h264",
    "HEVC": "hev1 hvc1 hevc",
    "MPEG-2": "mpg2 mpeg2video",
    "MPEG-4": "mp4v fmp4 xvid divx dx50",
    "ProRes": "apco apcs apcn apch ap4h ap4x",
    "VVC": "vvc1 vvi1 h266",
}
# Interlaced H.264, made by `tests/clips.py`: a colour in each quarter, and on every frame another one.
INTERLACED_CLIP = Path(str(resources.files("mixformer_jax") / "assets" / "interlaced.mp4"))
_CLIP_SIDE, _CLIP_FRAMES = 64, 4
_CLIP_COLOURS = ((200, 40, 40), (40, 180, 60), (50, 60, 190), (210, 200, 90))
# Grey levels of 255 that a codec may change in the middle of a flat area.
_CLIP_TOLERANCE = 20
# FFmpeg's scaler complains on stderr, so that what was passed before is in order.
_WITNESS = """
import os, sys, cv2
capture = cv2.VideoCapture(sys.argv[1], cv2.CAP_FFMPEG)
number = 0
while capture.grab():
    capture.retrieve()
    number += 1
    os.write(2, b"passed %d\\n" % number)
"""


class Decoder(ABC):
    """A way to read one video. Frames that change their size inside a file are rescaled to the one that it names."""

    location: str  # a path, or an address with `://`
    fps: float  # as the file says it; 0 or NaN where it does not
    num_frames: int | None  # as the file promises; None where it says nothing
    is_live: bool  # an endless stream, of which what is not read in time is gone
    codec: str  # for messages
    size: tuple[int, int]  # (height, width), upright

    @abstractmethod
    def frames(self) -> Iterator[tuple[Frame, float]]:
        """Every frame, as RGB and turned as the file says, with its time in seconds.

        Ends at the end, and where the file is damaged: the caller compares with `num_frames`. Raises SourceError where
        the video cannot be opened, or a frame cannot be decoded rightly.
        """


def is_address(source: object) -> bool:
    """Whether a source is a network stream (`rtsp://...`, `http://...`) rather than a path."""
    return isinstance(source, str) and "://" in source


def ffmpeg_location(location: str | Path) -> str:
    """How FFmpeg is told of a file or a stream; it takes a relative `12:30:00.mp4` for an address of protocol `12`."""
    return str(location) if is_address(location) else str(Path(location).absolute())


def find_pyav() -> ModuleType | None:
    """PyAV, or None where it is not installed. An installation that is broken raises its own error."""
    try:
        import av
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        return None
    return av


def decoder_name() -> str:
    """Who decodes videos here, with the version; a record of an evaluation names it."""
    av = find_pyav()
    return f"OpenCV {cv2.__version__}" if av is None else f"PyAV {av.__version__}"


def open_decoder(location: str) -> Decoder:
    """A decoder for a video file or a stream; SourceError where its first frame cannot be had."""
    av = find_pyav()
    return OpenCVDecoder(location) if av is None else PyAVDecoder(location, av)


class PyAVDecoder(Decoder):
    """FFmpeg through PyAV."""

    def __init__(self, location: str, av: ModuleType) -> None:
        self.location, self._av = location, av
        with self._open() as container:
            stream = container.streams.best("video")  # not the picture on a cover
            if stream is None:
                raise SourceError(f"{location}: holds no video, only other streams")
            self.fps = float(stream.guessed_rate or 0)
            seconds = (container.duration or 0) / av.time_base
            self.num_frames = stream.frames or round(seconds * self.fps) or None
            is_file = (container.size or 0) > 0 and container.format.name != "hls"  # whose list of pieces has a size
            self.is_live = is_address(location) and self.num_frames is None and not is_file
            # There is no context where this FFmpeg knows no decoder.
            context = stream.codec_context
            self.codec = "an unknown codec" if context is None else _codec_name(context.codec.canonical_name)
            with closing(self._decoded(container)) as frames:  # from the same connection
                first = next(frames, None)
        if first is None:
            raise _undecodable(self)
        self.size = first[0].shape[:2]

    def frames(self) -> Iterator[tuple[Frame, float]]:
        """See `Decoder`. Packets before the first that decodes are passed over: recordings are cut anywhere."""
        with self._open() as container:
            yield from self._decoded(container)

    def _decoded(self, container: Any) -> Generator[tuple[Frame, float], None, None]:
        stream = container.streams.best("video")
        if stream.codec_context is None:
            return
        stream.thread_type = "SLICE" if self.is_live else "AUTO"  # frame by frame, each thread is a frame behind
        start = float((stream.start_time or 0) * stream.time_base)
        size = (stream.codec_context.width, stream.codec_context.height)
        number = 0
        for packet in self._packets(container, stream):
            try:
                pictures = stream.decode(packet)
            except self._av.error.FFmpegError as error:
                if self.is_live:  # as after a lost packet: the next key frame mends it
                    continue
                if number and self.num_frames is None:
                    raise SourceError(f"{self.location}: damaged: frame {number + 1} cannot be decoded") from error
                if number:
                    return
                continue
            for picture in pictures:
                # Not `picture.time`: what the decoder still held at the end of a broken connection knows no time base.
                rate = self.fps or 1.0
                seconds = number / rate if picture.pts is None else float(picture.pts * stream.time_base) - start
                number += 1
                yield self._converted(picture, size), seconds

    def _converted(self, picture: Any, size: tuple[int, int]) -> Frame:
        # As OpenCV converts: by way of BGR, bicubic in the colours and where the size changes inside a file.
        width, height = (side or None for side in size)
        try:
            bgr = picture.to_ndarray(format="bgr24", width=width, height=height, interpolation="BICUBIC")
        except self._av.error.FFmpegError as error:
            told = f"{self.location}: pictures in {picture.format.name} cannot be converted to RGB: {error.strerror}"
            raise SourceError(f"{told}; {_remedy(self.location)}") from error
        return _upright(bgr, picture.rotation)

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            yield from container.demux(stream)
        except self._av.error.FFmpegError as error:
            yield None  # what the decoder still holds
            if self.is_live:
                raise SourceError(f"{self.location}: {error.strerror}") from error

    def _open(self) -> Any:
        timeout = STREAM_TIMEOUT if is_address(self.location) else None
        # Over UDP, FFmpeg's first choice, cameras lose packets; OpenCV asks for TCP as well.
        options = {"rtsp_flags": "prefer_tcp"} if self.location.startswith("rtsp://") else {}
        try:
            return self._av.open(ffmpeg_location(self.location), timeout=timeout, options=options)
        except (self._av.error.FFmpegError, OSError) as error:
            raise _not_opened(self.location, error.strerror) from error


class _Witness:
    """Another process that decodes the same file with OpenCV, ahead, and FFmpeg's complaints about frames there."""

    def __init__(self, path: str) -> None:
        silencers = ("OPENCV_FFMPEG_LOGLEVEL", "OPENCV_FFMPEG_DEBUG")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _WITNESS, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # A terminal's Ctrl-C is not for it: its end would count as a frame in doubt.
            process_group=0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            env={name: value for name, value in os.environ.items() if name not in silencers},
        )
        self._passed, self._complains = 0, False

    def vouches_for(self, number: int) -> bool:
        """Whether the frames up to `number`, counted from 1, were converted without a complaint."""
        assert self._process.stderr is not None
        while self._passed < number and not self._complains:
            line = self._process.stderr.readline()
            self._complains = not line or b"swscaler" in line
            self._passed += line.startswith(b"passed ")
        return self._passed >= number

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        with self._process:
            pass


@functools.cache
def opencv_converts_interlaced() -> bool:
    """Whether this OpenCV does: frames of the clip differ, and those of a buffer that is not written do not."""
    capture = cv2.VideoCapture(str(INTERLACED_CLIP), cv2.CAP_FFMPEG)
    answers = [capture.read() for _ in range(_CLIP_FRAMES)]
    capture.release()
    return all(decoded for decoded, _ in answers) and not any(
        _equal(frame, other) for (_, frame), (_, other) in itertools.pairwise(answers)
    )


@functools.cache
def _witnesses_speak() -> bool:
    """Whether a witness complains where OpenCV does not convert; messages of FFmpeg depend on how it was built."""
    with closing(_Witness(str(INTERLACED_CLIP))) as witness:
        return not witness.vouches_for(_CLIP_FRAMES)


class OpenCVDecoder(Decoder):
    """FFmpeg through OpenCV, which may answer with a buffer that it has not written (see the head of this file).

    The buffer is the same for a whole pass, so a frame that differs from the one before was written. The first one was,
    if it comes again after another was in the buffer. Of one that equals the frame before (a clip may well hold a
    picture twice) FFmpeg's scaler says whether it was converted, in another process that decodes the file, too. None of
    that is asked where OpenCV converts interlaced frames.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        capture = self._open()
        try:
            self.fps = capture.get(cv2.CAP_PROP_FPS)
            count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            self.num_frames = int(count) if math.isfinite(count) and count >= 1 else None
            self.is_live = is_address(location) and self.num_frames is None
            letters = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
            self.codec = _codec_name(letters.decode("ascii", "replace").strip("\0 "))
            (decoded, first), (_, second) = self._read(capture), self._read(capture)
            if not decoded:
                raise _undecodable(self)
            self.size = _upright(first, -_clockwise(capture)).shape[:2]
            capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            again = self._read(capture)[1]
        finally:
            capture.release()
        self._vouched = 0  # frames for which another process has
        is_written = second is not None and again is not None and _equal(first, again) and not _equal(first, second)
        if not is_written and not opencv_converts_interlaced():
            with closing(self._new_witness(1)) as witness:
                self._ask(witness, 1)

    def frames(self) -> Iterator[tuple[Frame, float]]:
        with ExitStack() as stack:
            capture = self._open()
            stack.callback(capture.release)
            clockwise = _clockwise(capture)
            witness: _Witness | None = None
            previous: np.ndarray | None = None
            for number in itertools.count(1):
                decoded, bgr = self._read(capture)
                if not decoded:
                    return
                is_same = previous is not None and number > self._vouched and _equal(bgr, previous)
                if is_same and not opencv_converts_interlaced():
                    witness = witness or stack.enter_context(closing(self._new_witness(number)))
                    self._ask(witness, number)
                previous = bgr
                yield _upright(bgr, -clockwise), capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    def _new_witness(self, number: int) -> _Witness:
        if is_address(self.location):  # a stream is not sent twice
            raise self._in_doubt(number)
        return _Witness(ffmpeg_location(self.location))

    def _ask(self, witness: _Witness, number: int) -> None:
        if not (_witnesses_speak() and witness.vouches_for(number)):
            raise self._in_doubt(number)
        self._vouched = max(self._vouched, number)

    def _in_doubt(self, number: int) -> SourceError:
        return SourceError(
            f"{self.location}: frame {number} of this video ({self.codec}) cannot be trusted: OpenCV {cv2.__version__} "
            f"does not convert interlaced frames, and gives no picture for them; {_remedy(self.location, ' -vf yadif')}"
        )

    def _read(self, capture: cv2.VideoCapture) -> tuple[bool, Any]:
        try:
            return capture.read()
        except cv2.error as error:  # OpenCV 4.12, where frames change their size
            told = f"{self.location}: OpenCV cannot decode it: {error.err}"
            raise SourceError(f"{told}; {_remedy(self.location)}") from error

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(ffmpeg_location(self.location), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise _not_opened(self.location)
        # OpenCV turns by 180 degrees in its buffer, and one that was not written would differ from frame to frame.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        return capture


def _clockwise(capture: cv2.VideoCapture) -> int:
    return int(capture.get(cv2.CAP_PROP_ORIENTATION_META))


def _undecodable(decoder: Decoder) -> SourceError:
    return SourceError(
        f"{decoder.location}: opens as a video, but its first frame cannot be decoded: {decoder_name()} does not "
        f"decode {decoder.codec} here, or the file is damaged; {_remedy(decoder.location)}"
    )


def _remedy(location: str, options: str = "") -> str:
    install = "" if find_pyav() is not None else "pip install av, which decodes more, or "
    if is_address(location):
        parts = (
            "; a file with its index at the end needs a server that sends parts of a file (ranges): else download it"
        )
        sender = f"{install}let the sender encode H.264, not interlaced"
        return sender + (parts if location.startswith("http") else "")
    path = Path(location)
    target = shlex.quote(str(path.with_name(f"{path.stem}_h264.mp4")))
    return f"{install}re-encode it: ffmpeg -i {shlex.quote(location)}{options} -c:v libx264 -crf 16 {target}"


def _not_opened(location: str, reason: str | None = None) -> SourceError:
    if is_address(location):
        return SourceError(f"{location}: the stream could not be opened" + (f": {reason}" if reason else ""))
    path = Path(location)
    if not os.access(path, os.R_OK):
        return SourceError(f"{path}: cannot be opened as a video: you may not read it")
    return SourceError(
        f"{path}: cannot be opened as a video ({path.stat().st_size} bytes): "
        "it is no video, or it is truncated before the index at its end; copy or re-encode it"
    )


def _codec_name(letters: str) -> str:
    name = next((name for name, known in _CODECS.items() if letters.lower() in known.split()), None)
    return letters or "an unknown codec" if name is None else f"{name} ({letters})"


def _upright(bgr: np.ndarray, counter_clockwise: int) -> Frame:
    rotation = _ROTATIONS.get(counter_clockwise % 360)
    return cv2.cvtColor(bgr if rotation is None else cv2.rotate(bgr, rotation), cv2.COLOR_BGR2RGB)


def _equal(frame: np.ndarray, other: np.ndarray) -> bool:
    # Most frames differ in the first rows that are looked at.
    return np.array_equal(frame[::16], other[::16]) and np.array_equal(frame, other)


def clip_frames() -> UInt8[np.ndarray, "frames side side 3"]:
    """What INTERLACED_CLIP shows."""
    colours, half = np.array(_CLIP_COLOURS, np.uint8), _CLIP_SIDE // 2
    quarters = [np.roll(colours, index, 0).reshape(2, 2, 3) for index in range(_CLIP_FRAMES)]
    return np.stack(quarters).repeat(half, 1).repeat(half, 2)


def try_interlaced(path: Path = INTERLACED_CLIP) -> tuple[bool, str]:
    """Whether interlaced videos are safe here, and `right`, `refused` or `WRONG` with what was wrong of the clip."""
    expected = clip_frames()
    try:
        frames = [frame for frame, _ in open_decoder(str(path)).frames()]
    except SourceError:
        return True, "refused"
    if len(frames) != len(expected) or any(frame.shape != expected[0].shape for frame in frames):
        return False, f"WRONG ({len(frames)} frames of {len(expected)})"
    middle = slice(_CLIP_SIDE // 8, None, _CLIP_SIDE // 4)
    off = np.abs(np.stack(frames)[:, middle, middle].astype(int) - expected[:, middle, middle]).max()
    return (True, "right") if off <= _CLIP_TOLERANCE else (False, f"WRONG (off by {off} of 255)")
