"""Several processes that train one model: how they find each other and agree, and what happens when one is lost."""

import contextlib
import os
from collections.abc import Iterator
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

    Losing one of them raises `LostPeerError`: where computing fails (`naming_lost_peers`), or where a step takes longer
    than `train.peer_timeout_s` (`StepWatch`). JAX's own service watches too, and aborts a process that waits elsewhere,
    in a checkpoint say, after twice that time.

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
