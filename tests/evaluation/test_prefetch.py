import threading
import time
from contextlib import closing

import numpy as np
import pytest

from mixformer_jax.evaluation.lane_loop import frames_ahead


def frames(count, read, error_at=None):
    for index in range(count):
        if index == error_at:
            raise OSError(f"frame {index} is damaged")
        read.append((index, threading.current_thread().name))
        yield np.full((2, 2, 3), index, np.uint8)


def _wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    assert condition()


def test_frames_come_in_order_from_another_thread():
    read = []
    with closing(frames_ahead(frames(7, read), depth=3)) as ahead:
        assert [int(frame[0, 0, 0]) for frame in ahead] == list(range(7))
    assert [index for index, _ in read] == list(range(7))
    assert threading.current_thread().name not in {name for _, name in read}


def test_only_so_many_are_read_ahead():
    read = []
    with closing(frames_ahead(frames(100, read), depth=3)) as ahead:
        for count in (4, 5):
            next(ahead)
            _wait_for(lambda count=count: len(read) == count)
            time.sleep(0.02)
            assert len(read) == count
    time.sleep(0.02)
    assert len(read) == 5, "closed, it reads no more"


def test_an_error_comes_where_its_frame_would_have():
    with closing(frames_ahead(frames(5, [], error_at=2), depth=4)) as ahead:
        assert [int(next(ahead)[0, 0, 0]) for _ in range(2)] == [0, 1]
        with pytest.raises(OSError, match="frame 2 is damaged"):
            next(ahead)
