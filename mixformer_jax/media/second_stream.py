"""Frames of two sources, read in step: RGB, and behind it a second stream such as depth or thermal images."""

import itertools
from collections.abc import Iterator

import numpy as np

from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import FrameSource, TimedFrame
from mixformer_jax.media.video import MISSING_FRAMES, VideoFile


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
        """See `FrameSource`."""
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
