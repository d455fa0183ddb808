"""Several processes that train one model: how they find each other and agree, and what happens when one is lost."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.settings import RunConfig


class LostPeerError(RuntimeError):
    """Another process of the run is gone, and nothing can be computed without it."""


def connect(settings: RunConfig) -> None:
    """Joins the other processes of a distributed run; must come before JAX looks for devices.

    JAX's own service watches the processes too, and aborts one that has not heard of another for twice the time that
    `PeerWatch` allows: only where that one could not tell.

    Raises:
        ConfigError: the other processes cannot be found, or not reached.
    """
    if not settings.distributed:
        return
    count, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count),
            process_id=None if index is None else int(index),
            heartbeat_timeout_seconds=2 * settings.peer_timeout_s,
            shutdown_timeout_seconds=settings.peer_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"train.distributed: cannot join the other processes: {error}. On TPU pods, Slurm and Open MPI they are "
            "found by themselves; elsewhere set JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID"
        ) from error


def is_first() -> bool:
    """Whether this process writes what one alone must write."""
    return jax.process_index() == 0


def all_agree(mine: bool) -> bool:
    """Whether every process says yes; all of them must ask."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
    """Arrays of a mesh as whole numpy arrays; all processes must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


class PeerWatch:
    """While open, every process leaves signs of life in the run's folder, and looks for those of the others.

    When one has been silent for too long, this process ends at once, with a message and exit code 2: it may be stuck in
    a computation with the lost one, which no exception interrupts. In a run of one process it does nothing.
    """

    def __init__(self, folder: Path, timeout_s: int | float, processes: tuple[int, int] | None = None) -> None:
        """Prepares to watch.

        Args:
            folder: of the run; all processes have the same.
            timeout_s: how long a process may be silent.
            processes: this one's number, and how many there are; None: as JAX says.
        """
        own, count = (jax.process_index(), jax.process_count()) if processes is None else processes
        self._own: int = own
        self._count: int = count
        self._folder, self._timeout_s = folder / ".alive", timeout_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)

    def silent(self, last_seen: dict[int, tuple[int, float]]) -> list[int]:
        """Leaves a sign and returns the processes that left none for too long; `last_seen` is its memory."""
        now = time.monotonic()
        with contextlib.suppress(OSError):  # the others will say so
            self._folder.mkdir(exist_ok=True)
            self._sign(self._own).touch()
        for process in (process for process in range(self._count) if process != self._own):
            try:
                sign = self._sign(process).stat().st_mtime_ns
            except OSError:
                sign = 0
            # Clocks may differ: what counts is that the time changes.
            if last_seen.get(process, (None, now))[0] != sign:
                last_seen[process] = (sign, now)
        return [process for process, (_, since) in last_seen.items() if now - since > self._timeout_s]

    def __enter__(self) -> "PeerWatch":
        if self._count > 1:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()

    def _sign(self, process: int) -> Path:
        return self._folder / f"process_{process}"

    def _watch(self) -> None:
        last_seen: dict[int, tuple[int, float]] = {}
        while not self._closed.wait(min(1.0, self._timeout_s / 4)):
            lost = self.silent(last_seen)
            if lost:
                names = ", ".join(f"process {process}" for process in lost)
                message = lost_peer(f"nothing heard of {names} for {self._timeout_s:g} s")
                print(f"mixformer: error: {message}", file=sys.stderr, flush=True)
                os._exit(2)


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Says what it means when computing with the other processes fails.

    Raises:
        LostPeerError: one of them is gone.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise lost_peer(str(error).splitlines()[0]) from error


def lost_peer(reason: str) -> LostPeerError:
    """The error that says what to do."""
    return LostPeerError(
        f"process {jax.process_index()} of {jax.process_count()}: computing with the other processes failed "
        f"({reason}): one of them is gone. Start all of them again with the same command: the run goes on from its "
        "last checkpoint"
    )
