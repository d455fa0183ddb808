"""Follows the device without holding it up: results of steps, numbers that are not finite, and time that it stood idle.

A thread waits for one step's report after the other, so the loop can make the next batch and dispatch the next step
meanwhile. At most two steps are on their way; the batches of both are kept, as evidence.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

import jax
import numpy as np

from mixformer_jax.training.objective import Batch
from mixformer_jax.training.steps import StepReport

IN_FLIGHT = 2


class Finished(NamedTuple):
    """What a step gave."""

    step: int
    metrics: dict[str, float]


class NotFinite(NamedTuple):
    """A step whose loss or gradients are not finite, and what it was made of."""

    step: int
    batch: Batch
    metrics: dict[str, float]
    gradient_squares: np.ndarray


class Taken(NamedTuple):
    """What happened since the last `take`.

    Attributes:
        finished: steps that the device has done.
        idle_s: seconds in which it had no step to do, pauses left out.
        paused_s: seconds of pauses.
    """

    finished: list[Finished]
    idle_s: float
    paused_s: float


class StepWatch:
    """See the module.

    Attributes:
        not_finite: the first bad step, once it is known.
    """

    def __init__(self) -> None:
        self.not_finite: NotFinite | None = None
        self._failure: BaseException | None = None
        self._finished: list[Finished] = []
        self._idle_s = self._paused_s = 0.0
        self._slots = threading.Semaphore(IN_FLIGHT)
        self._lock = threading.Lock()
        self._pending = 0
        self._idle_since = time.perf_counter()
        self._steps: queue.SimpleQueue[tuple[int, Batch, StepReport] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="step watch", daemon=True)

    def before_step(self) -> None:
        """Waits until another step may be dispatched; call it with the batch at hand, right before the step."""
        self._acquire()
        with self._lock:
            if self._pending == 0:
                self._idle_s += time.perf_counter() - self._idle_since
            self._pending += 1

    def after_step(self, step: int, batch: Batch, report: StepReport) -> None:
        """Hands over what was dispatched: the step's number counts from 0."""
        self._steps.put((step, batch, report))

    def drain(self) -> None:
        """Waits until the device has done all of it."""
        for _ in range(IN_FLIGHT):
            self._acquire()
        self._slots.release(IN_FLIGHT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """After `drain`: what happens inside is neither a step's time nor idle time."""
        began = time.perf_counter()
        yield
        now = time.perf_counter()
        with self._lock:
            self._idle_s += began - self._idle_since
            self._paused_s += now - began
            self._idle_since = now

    def take(self) -> Taken:
        """What happened since the last call."""
        with self._lock:
            taken = Taken(self._finished, self._idle_s, self._paused_s)
            self._finished, self._idle_s, self._paused_s = [], 0.0, 0.0
        return taken

    def __enter__(self) -> "StepWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._steps.put(None)
        if error is None:
            self._thread.join()

    def _follow(self) -> None:
        while (item := self._steps.get()) is not None:
            step, batch, report = item
            try:
                values = jax.device_get(report)
            except jax.errors.JaxRuntimeError as error:
                self._failure = error
            else:
                metrics = {name: float(value) for name, value in values.metrics.items()}
                self._note(Finished(step, metrics), batch, values.gradient_squares)
            self._slots.release()

    def _note(self, finished: Finished, batch: Batch, gradient_squares: np.ndarray) -> None:
        good = np.isfinite(finished.metrics["loss"]) and np.isfinite(gradient_squares).all()
        with self._lock:
            if not good and self.not_finite is None:
                self.not_finite = NotFinite(finished.step, batch, finished.metrics, gradient_squares)
            self._finished.append(finished)
            self._pending -= 1
            self._idle_since = time.perf_counter()

    def _acquire(self) -> None:
        self._slots.acquire()
        if self._failure is not None:
            raise self._failure
