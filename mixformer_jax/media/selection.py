"""A part of a source: from one frame to another, only every n-th, or from the end to the start."""

from collections.abc import Iterator

from mixformer_jax.media.images import SourceError
from mixformer_jax.media.live import LiveSource
from mixformer_jax.media.sources import FrameSource, TimedFrame


class SelectedFrames(FrameSource):
    """Frames of another source, with their indices and times there.

    Args:
        source: where they are from; closed with this.
        start: the first of them, counted from 1; None: the source's first, or going backward its last.
        end: the last of them; None: the source's last, or going backward its first.
        stride: only every so many frames, counted from `start`. The rate is divided by it.
        backward: from `start` down to `end`.

    Raises:
        ValueError: numbers that leave nothing, or what a live source cannot do.
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
        """See `FrameSource`."""
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
        """See `FrameSource`."""
        frame = super().peek()
        if isinstance(self._source, LiveSource):
            self._source.put_back(frame)
        return frame

    def part(self) -> tuple[int, int | None, int, bool]:
        """See `FrameSource`."""
        return self._start or (0 if self._backward else 1), self._end, self._stride, self._backward

    def close(self) -> None:
        """See `FrameSource`."""
        self._source.close()
