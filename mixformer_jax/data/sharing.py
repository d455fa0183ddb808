"""Values whose arrays several processes read where they lie: one copy of a pool, for however many workers."""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import tempfile
from multiprocessing.reduction import DupFd
from typing import IO, Any, Generic, TypeVar

import cloudpickle

Value = TypeVar("Value")
_ALIGNMENT = 64  # of every array, in bytes


class Shared(Generic[Value]):
    """A value to hand to other processes: they map the bytes of its arrays, and get all else by pickling.

    The bytes lie in a file without a name, in memory where the system has such files: nothing is left of it when the
    last process that has it open ends, however it ends. It is not in `/dev/shm`, which is small in containers.
    """

    def __init__(self, value: Value) -> None:
        """Copies the arrays of `value`, once.

        Raises:
            OSError: there is no room for them.
        """
        arrays: list[pickle.PickleBuffer] = []
        self._pickled: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        self._sizes: list[int] = []
        self._file = _nameless_file()
        for array in arrays:
            with array.raw() as raw:
                self._file.write(raw)
                self._file.write(bytes(_padding(raw.nbytes)))
                self._sizes.append(raw.nbytes)
        self._file.flush()

    def open(self) -> Value:
        """The value; its arrays are read-only and lie in the file."""
        ends = list(itertools.accumulate(size + _padding(size) for size in self._sizes))
        # No bytes at all cannot be mapped.
        whole = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if any(ends) else b"")
        starts = [0, *ends[:-1]]
        arrays = [whole[start : start + size] for start, size in zip(starts, self._sizes, strict=bool(ends))]
        return pickle.loads(self._pickled, buffers=arrays)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": DupFd(self._file.fileno())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _file=os.fdopen(state["_file"].detach(), "rb"))


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("mixformer"), "w+b")
    return tempfile.TemporaryFile()


def _padding(size: int) -> int:
    return -size % _ALIGNMENT
