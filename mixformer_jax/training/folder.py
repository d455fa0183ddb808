"""A run's folder: whose it is, and what is left in it when a run cannot go on."""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.files import whole_file, write_atomically
from mixformer_jax.training.distributed import barrier, is_first
from mixformer_jax.training.objective import Objective
from mixformer_jax.training.settings import FREE_SETTINGS
from mixformer_jax.training.sharding import own_rows
from mixformer_jax.training.steps import trained_names
from mixformer_jax.training.watch import NotFinite

CONFIG_NAME = "config.json"
_FREE = {("train", name) for name in FREE_SETTINGS}


# What no reading of data gives.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where its evidence lies."""


def claim_folder(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Writes an experiment into a new run's folder; refuses to go on with a different one. Returns it as JSON has it.

    Raises:
        TrainingError: another experiment's folder, or one that cannot be written to.
    """
    mine = json.loads(json.dumps(record))
    path = folder / CONFIG_NAME
    if is_first() and not path.exists():
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(mine, indent=2))
    barrier("run folder")
    try:
        theirs = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); all processes of a run need the same folder") from error
    ours, others = flatten_dict(mine), flatten_dict(theirs)
    differences = [
        f"{'.'.join(key)}: {others.get(key)!r} there, {ours.get(key)!r} now"
        for key in (*ours, *(key for key in others if key not in ours))
        if not _is_free(key) and ours.get(key) != others.get(key)
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise TrainingError(f"{folder} holds another experiment; give a new --out, or undo:\n  {listed}")
    return mine


def _is_free(key: tuple[str, ...]) -> bool:
    """Whether a setting may change between two parts of a run; where the data lie is no part of what they are, and a
    run may move to where they are rendered on another device (its samples are others from there on)."""
    return key in _FREE or (key[0] == "data" and key[-1] in ("root", "render"))


@contextlib.contextmanager
def writing(folder: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    """Says what it means when a run's folder cannot be written to.

    Args:
        folder: the run's.
        only: numbers of the errors that mean so; all others pass. Empty: all mean so.

    Raises:
        TrainingError: a full disk, a read-only folder, ...
    """
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

    Args:
        folder: the run's.
        objective: what trains.
        params: the parameters or their shapes.
        bad: the step; processes of a distributed run save their own part of its batch.
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
