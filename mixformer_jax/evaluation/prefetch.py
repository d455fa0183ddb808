"""Reading frames ahead in a thread, so that decoding goes on while the tracker is busy."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from mixformer_jax.tracking.interface import Frame

# Frames that are read ahead of the tracker: at most 25 MB of Full HD.
FRAMES_AHEAD = 4


class FramesAhead:
    """The frames of an iterator, in order, read by a thread of its own. A context manager.

    At most `depth` frames wait. What the iterator raises is raised where its frame would have come.
    """

    def __init__(self, frames: Iterator[Frame], depth: int = FRAMES_AHEAD) -> None:
        self._frames = frames
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="frames")
        self._waiting: deque[Future[Frame | None]] = deque(
            self._thread.submit(next, frames, None) for _ in range(depth)
        )

    def __iter__(self) -> "FramesAhead":
        return self

    def __next__(self) -> Frame:
        frame = self._waiting.popleft().result()
        if frame is None:
            raise StopIteration
        self._waiting.append(self._thread.submit(next, self._frames, None))
        return frame

    def close(self) -> None:
        """Ends the thread once it has read the frame that it is at."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "FramesAhead":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
