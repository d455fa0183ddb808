"""Cameras and live streams. Their frames come whether or not they are wanted: a thread takes them, keeps the newest one
and drops what nobody asked for in time, so that whoever is slow sees now, not a growing past.
"""

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator

import cv2

from mixformer_jax import signals
from mixformer_jax.media.decoders import Decoder
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import Frame, FrameSource, TimedFrame, checked_size, usable_rate

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
        """See `FrameSource`."""
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
