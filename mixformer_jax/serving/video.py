"""A video that is open on a page: where it stands, and who is followed in it."""

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from mixformer_jax.media.images import SourceError, decode_image
from mixformer_jax.media.sources import FrameSource, TimedFrame
from mixformer_jax.media.video import VideoWriter
from mixformer_jax.serving.following import Following
from mixformer_jax.serving.frames import FileFrames, KeptFrames, check_pixels, encode_jpeg, jpeg_size
from mixformer_jax.tracking.record import annotate
from mixformer_jax.tracking.tracker import Tracked, Tracker

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
        self._live, self._passing = live, iter(()) if live is None else live.timed()
        self._began = 0.0

    @property
    def is_live(self) -> bool:
        """Whether frames come whether or not they are wanted."""
        return isinstance(self.frames, KeptFrames)

    @property
    def is_camera(self) -> bool:
        """Whether the browser sends them."""
        return self.is_live and self._live is None

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
