"""A run's folder: whose it is, and what is left in it when a run cannot go on."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from mixformer_jax.files import whole_file, write_atomically
from mixformer_jax.training.distributed import all_agree, is_first
from mixformer_jax.training.experiment import FREE_SETTINGS
from mixformer_jax.training.objective import Objective
from mixformer_jax.training.program import trained_names
from mixformer_jax.training.progress import NotFinite
from mixformer_jax.training.sharding import own_rows
from mixformer_jax.typed_settings import default_of

CONFIG_NAME, LOCK_NAME = "config.json", ".lock"
_FREE = {("train", name) for name in FREE_SETTINGS}
# What no reading of data gives.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where its evidence lies."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a run's folder if need be, and keeps other runs out of it while open.

    The lock is the system's, on a file in the folder, and held by the first process: it ends with that process, however
    that ends. Most network file systems hold it across machines; where one has no locks, a warning says so.

    Raises TrainingError: another run has the folder, it cannot be written to, or processes of this run have another.
    """
    file, refusal = None, None
    if is_first():
        try:
            file = _lock(folder)
        except TrainingError as error:
            refusal = error
    try:
        if not all_agree(refusal is None):
            raise refusal or TrainingError(f"{folder}: the first process cannot use it, and says why")
        if not all_agree((folder / LOCK_NAME).exists()):
            raise TrainingError(f"{folder}: not every process sees it; all processes of a run need the same folder")
        yield
    finally:
        if file is not None:
            file.close()


def _lock(folder: Path) -> TextIO:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_NAME).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise TrainingError(
            f"{folder} is in use: {holder} trains there. Wait until it has ended, or stop it; then the same command "
            "goes on. A new --out begins another run"
        ) from error
    except OSError as error:
        warnings.warn(
            f"{folder}: its file system has no locks ({error.strerror}); nothing but you keeps a second run out of it",
            stacklevel=2,
        )
    with writing(folder):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def check_folder(folder: Path, experiment: Any) -> None:
    """Refuses a run's folder that cannot be read, or holds another experiment than these settings, a record or their
    values by name: TrainingError. Settings that one of two versions of this program does not have make no difference:
    what it lacks has its default value here, or is of no more use.
    """
    path = folder / CONFIG_NAME
    try:
        theirs = json.loads(path.read_text()) if path.exists() else None
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); bring it back, or give a new --out") from error
    if theirs is not None and (listed := "\n  ".join(_differences(experiment, theirs, ()))):
        raise TrainingError(f"{folder} holds another experiment; give a new --out, or undo:\n  {listed}")


def claim_folder(folder: Path, experiment: Any) -> dict[str, Any]:
    """Writes an experiment into a new run's folder, and returns it as JSON has it; TrainingError: see `check_folder`,
    or a folder that cannot be written to."""
    check_folder(folder, experiment)
    record: dict[str, Any] = _plain(experiment)
    path = folder / CONFIG_NAME
    if is_first() and not path.exists():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(record, indent=2))
    return record


def _differences(mine: Any, theirs: Any, key: tuple[str, ...]) -> Iterator[str]:
    """Settings that are not alike and may not change between two parts of a run, in words."""
    # Where the data lie is no part of what they are; and a run may move to where they are rendered on another device:
    # its samples are others from there on.
    is_place = key[:1] == ("data",) and key[-1] in ("root", "render")
    if isinstance(theirs, Mapping) and dataclasses.is_dataclass(mine):
        for field in dataclasses.fields(mine):
            default = default_of(field)
            other = theirs.get(field.name, None if default is dataclasses.MISSING else default)
            yield from _differences(getattr(mine, field.name), other, (*key, field.name))
    elif isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for name in dict.fromkeys((*mine, *theirs)):
            yield from _differences(mine.get(name), theirs.get(name), (*key, name))
    elif key not in _FREE and not is_place and _plain(mine) != _plain(theirs):
        yield f"{'.'.join(key)}: {_plain(theirs)!r} there, {_plain(mine)!r} now"


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


@contextlib.contextmanager
def writing(folder: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    """Turns errors of the system, those of these numbers or all, into a TrainingError that says what it means when a
    run's folder cannot be written to."""
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        raise TrainingError(
            f"{folder}: cannot be written to ({error.strerror or error}). Nothing that was there before is lost: make "
            "room, or mend the permissions, and give the same command again"
        ) from error


def save_evidence(folder: Path, objective: Objective, params: Mapping[str, Any], bad: NotFinite) -> str:
    """Saves the batch of a step that went wrong and the names of its bad gradients; returns the message to stop with.

    `params` may be shapes. Processes of a distributed run save their own part of the batch.
    """
    process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    stem = folder / f"not_finite_step_{bad.step}{process}"
    names = trained_names(objective, params)
    offending = [name for name, value in zip(names, bad.gradient_squares, strict=True) if not np.isfinite(value)]
    with whole_file(Path(f"{stem}.npz")) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{name: own_rows(value) for name, value in bad.batch.items()})
    about = {
        "step": bad.step,
        "metrics": {name: repr(value) for name, value in bad.metrics.items()},
        "gradients_not_finite": offending,
        "of_parameters": len(names),
    }
    write_atomically(stem.with_suffix(".json"), json.dumps(about, indent=2))
    listed = f"{', '.join(offending[:3])}{', ...' if len(offending) > 3 else ''}" if offending else "none"
    return (
        f"the loss of step {bad.step} is {bad.metrics['loss']}, and the gradients of {len(offending)} of {len(names)} "
        f"parameters are not finite ({listed}); its batch is in {stem}.npz, all names are in {stem}.json. Lower "
        "train.learning_rate or train.clip_norm, or look at the batch."
    )
