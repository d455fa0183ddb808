"""From samples to batches: in threads or worker processes, for one process or many, and from any step on.
Workers share one copy of the samples' arrays, a whole pool."""

from __future__ import annotations

import contextlib
import functools
import logging
import mmap
import os
import pickle
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import connection, parent_process
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar, runtime_checkable

import cloudpickle
import cv2
import grain
import numpy as np
from absl import flags

from mixformer_jax.data.samples import HostSamples
from mixformer_jax.data.single_images import ImageSamples
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.signals import blocked

Value = TypeVar("Value")
_ALIGNMENT = 64  # of every array, in bytes


class Shared(Generic[Value]):
    """A value to hand to other processes: they map the bytes of its arrays, and get all else by pickling.

    The bytes lie in a file without a name, in memory where the system has such files: nothing is left of it when the
    last process that has it open ends, however it ends. It is not in `/dev/shm`, which is small in containers.
    """

    def __init__(self, value: Value) -> None:
        """Copies the arrays of `value`, once; OSError where there is no room for them."""
        arrays: list[pickle.PickleBuffer] = []
        self._pickled: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        self._sizes: list[int] = []
        self._file = _nameless_file()
        for array in arrays:
            with array.raw() as raw:
                self._file.write(raw)
                self._file.write(bytes(-raw.nbytes % _ALIGNMENT))
                self._sizes.append(raw.nbytes)
        self._file.flush()

    def open(self) -> Value:
        """The value; its arrays are read-only and lie in the file."""
        # No bytes at all cannot be mapped.
        whole = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if any(self._sizes) else b"")
        arrays, start = [], 0
        for size in self._sizes:
            arrays.append(whole[start : start + size])
            start += size + -size % _ALIGNMENT
        return pickle.loads(self._pickled, buffers=arrays)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": DupFd(self._file.fileno())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _file=os.fdopen(state["_file"].detach(), "rb"))


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("mixformer"), "w+b")
    return tempfile.TemporaryFile()


logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
PREFETCH = 4  # batches that are made ahead
# A share is judged once so many samples were drawn: one broken file among the first ten is not 10 % of a data set.
MIN_JUDGED = 1000
MAX_NAMED = 100  # faults that are written to the log; the rest is only counted
SMALL = 2**16  # bytes that a pipe takes sooner than shared memory is made
FAULTS = "\0faults"  # the entry of a batch on its way from a worker that never reaches the caller


class BadDataError(DatasetError):
    """So many files of the data sets are broken that training on the rest would be another training."""


@runtime_checkable
class Samples(Protocol):
    """Samples by index: `HostSamples`, which keep a core busy, or what a device needs to render them itself."""

    def sample(self, index: int) -> Mapping[str, np.ndarray]:
        """Sample `index`, the same whenever, wherever and in whatever order it is asked for."""
        ...


def batches(
    samples: Samples,
    batch_size: int,
    start_step: int = 0,
    num_threads: int = 2,
    *,
    workers: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless batches (arrays of `samples.sample` stacked on a new first axis) from batch `start_step` on.

    Batch k holds samples k * batch_size ... (k + 1) * batch_size - 1, whatever the number of workers and processes, so
    a run resumes by its step number alone. In worker processes OpenCV has one thread; where threads of this process
    render, see `one_opencv_thread`.

    Args:
        batch_size: of the whole batch, over all processes.
        num_threads: loader threads; 0 loads synchronously.
        workers: in place of `num_threads`: loader processes for `HostSamples`, else loader threads. Processes
            read the arrays of `samples`, a whole pool, where this one has put them (`Shared`).
        process_index: this process gets the slice `process_index` of `process_count` equal ones of every batch.

    Raises ValueError: numbers that do not go together.
    """
    if batch_size < 1 or start_step < 0:
        raise ValueError(f"batch_size {batch_size} must be at least 1 and start_step {start_step} at least 0")
    if not 0 <= process_index < process_count or batch_size % process_count:
        raise ValueError(
            f"process {process_index} of {process_count} cannot have an equal part of a batch of {batch_size}"
        )
    processes = 0
    if workers is not None:
        processes = workers if isinstance(samples, HostSamples) else 0
        num_threads = workers - processes
    render = _RenderBatch(Shared(samples) if processes else samples, batch_size, process_index, process_count)
    return Batches(render, samples, start_step, num_threads, processes)


@contextlib.contextmanager
def one_opencv_thread() -> Iterator[None]:
    """While open, OpenCV's functions use the calling thread alone, in the whole process.
    Crops are small, and the threads that render them already fill the cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class Batches(grain.DatasetIterator):
    """The iterator of `batches`. A state is the number of the next batch, so it fits any workers and processes.

    Replaced samples are counted and named in the log.

    Attributes:
        drawn: samples handed out.
        replaced: faults met on the way to them.
    """

    def __init__(
        self, render: _RenderBatch, samples: Samples, start_step: int, num_threads: int, num_processes: int
    ) -> None:
        super().__init__()
        self.drawn = self.replaced = 0
        self._render, self._num_threads, self._num_processes = render, num_threads, num_processes
        self._max_bad_share: float = getattr(getattr(samples, "config", None), "max_bad_share", 1.0)
        self._of_images = isinstance(samples, ImageSamples)
        self._named: set[str] = set()
        self._step = start_step
        self._running: grain.DatasetIterator | None = None
        self._first: dict[str, Any] | None = None

    def start(self) -> None:
        """Makes the next batch now, and with it starts the workers, which go on to make more; raises as `next`."""
        if self._first is None:
            self._first = self._draw()

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            BadDataError: more than `max_bad_share` of at least 1,000 samples had to be replaced (see `DataConfig` and
                `ImagesConfig`).
            DatasetError: a worker process was killed.
        """
        first, self._first = self._first, None
        batch = self._draw() if first is None else first
        self._step += 1
        self._count(batch.pop(FAULTS), self._render.local_size)
        return batch

    def _draw(self) -> dict[str, Any]:
        # Processes start with the first batch. What becomes of a signal to all of them is for this one to decide.
        with blocked() if self._running is None and self._num_processes else contextlib.nullcontext():
            if self._running is None:
                self._running = iter(self._pipeline())
            try:
                return next(self._running)
            except RuntimeError as error:
                if "Worker process" not in str(error):
                    raise
                raise DatasetError(
                    f"a process that makes samples has ended ({str(error).split('. ')[0]}); exit code -9 is mostly the "
                    "system's, for want of memory: lower train.workers"
                ) from error

    def get_state(self) -> dict[str, Any]:
        """Where the next batch stands: {"step": number}."""
        return {"step": self._step}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where another iterator over the same samples was."""
        self._stop()
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends threads and processes."""
        self._stop()
        super().close()

    def _pipeline(self) -> grain.IterDataset:
        dataset = grain.MapDataset.range(self._step, sys.maxsize).map(self._render)
        if not self._num_processes:
            buffer = PREFETCH if self._num_threads else 0
            options = grain.ReadOptions(num_threads=self._num_threads, prefetch_buffer_size=buffer)
            return dataset.to_iter_dataset(options)
        # Grain reads flags of its own, which nobody has parsed outside absl's app.run. Those of others are theirs.
        for name in (name for name in flags.FLAGS if name.startswith("grain_")):
            flags.FLAGS[name].present = max(1, flags.FLAGS[name].present)
        ahead = max(1, PREFETCH // self._num_processes)
        one_by_one = grain.experimental.WithOptionsIterDataset(
            dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
            grain.experimental.DatasetOptions(min_shm_size=self._least_in_shared_memory(ahead)),
        )
        options = grain.MultiprocessingOptions(num_workers=self._num_processes, per_worker_buffer_size=ahead)
        return one_by_one.mp_prefetch(options, worker_init_fn=_start_worker)

    def _least_in_shared_memory(self, ahead: int) -> int:
        """Bytes from which an array comes from a worker by /dev/shm; smaller ones come through a pipe.

        All do where there is no room: containers often have 64 MiB, and a worker that finds it full dies by a signal.
        """
        shm = Path("/dev/shm")
        if not shm.is_dir():  # macOS has shared memory elsewhere, as much as there is
            return SMALL
        # What a worker holds: batches in its queue, as many on their way out of it, one being made, one in use.
        most = self._render.nbytes(self._step) * self._num_processes * (2 * ahead + 2)
        return SMALL if most <= shutil.disk_usage(shm).free else sys.maxsize

    def _stop(self) -> None:
        self._first = None
        if self._running is not None:
            self._running.close()
            self._running = None

    def _count(self, faults: str, drawn: int) -> None:
        self.drawn += drawn
        for fault in faults.split("\n") if faults else []:
            self.replaced += 1
            if fault not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(fault)
                logger.warning("replaced a sample: %s", fault)
        if self.replaced > self._max_bad_share * max(self.drawn, MIN_JUDGED):
            section, mend = "data", "run `mixformer data check`"
            if self._of_images:
                section, mend = "images", "copy these images again, or take them out"
            raise BadDataError(
                f"{self.replaced} of {self.drawn} samples had to be replaced, more than {section}.max_bad_share "
                f"= {self._max_bad_share:g} allows; {mend}. Among what was wrong:\n  "
                + "\n  ".join(sorted(self._named)[:10])
            )


class _RenderBatch:
    """Step -> this process's part of the batch."""

    def __init__(
        self, samples: Samples | Shared[Samples], batch_size: int, process_index: int, process_count: int
    ) -> None:
        self._given, self.batch_size = samples, batch_size
        self.local_size = batch_size // process_count
        self.offset = process_index * self.local_size

    @functools.cached_property
    def samples(self) -> Samples:
        """In a worker process its own, over arrays that it shares."""
        return self._given.open() if isinstance(self._given, Shared) else self._given

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "samples"}

    def nbytes(self, step: int) -> int:
        """About what this process's part of a batch takes."""
        sample = self.samples.sample(step * self.batch_size + self.offset)
        return self.local_size * sum(value.nbytes for value in sample.values())

    def __call__(self, step: int) -> dict[str, Any]:
        first = step * self.batch_size + self.offset
        numbers, samples, faults = range(first, first + self.local_size), self.samples, []
        if isinstance(samples, HostSamples):
            rendered = [samples.render(number) for number in numbers]
            rows = [each.sample for each in rendered]
            faults = [fault.replace("\n", " ") for each in rendered for fault in each.faults]
        else:
            rows = [dict(samples.sample(number)) for number in numbers]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {FAULTS: "\n".join(faults)}


def _start_worker(index: int, count: int) -> None:
    """Set up a worker process: it must not take an accelerator from its parent, nor outlive it."""
    import jax

    # Grain imports JAX in its workers; nothing here computes with it, but if anything did, it would be on the CPU.
    jax.config.update("jax_platforms", "cpu")
    cv2.setNumThreads(1)
    parent = parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
