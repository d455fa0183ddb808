"""Checkpoints of a run: the only file that knows Orbax.

A checkpoint is a folder that appears whole, by one rename. It holds the train state, the place in the data, the
experiment, and a fingerprint of every array: what comes back is compared with what was saved, on whatever mesh, so a
damaged file is found and passed over.
"""

import json
import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from mixformer_jax.training.distributed import LostPeerError, all_agree, barrier, is_first
from mixformer_jax.training.steps import TrainState

_TEMPORARY = ".orbax-checkpoint-tmp"
_BEST = "best"
_FILE_BYTES = 8 * 2**20  # where Orbax begins a new file
_ORBAX_LOG = logging.getLogger("absl")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written; the message names the last whole one."""


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        state: the train state, where the abstract one said.
        data: the state of the data's iterator; None if this process did not write one.
    """

    state: TrainState
    data: dict[str, Any] | None


class Checkpoints:
    """The checkpoints in one folder: the newest few, the best, and every so many steps' one are kept."""

    def __init__(self, folder: str | Path, keep_latest: int = 2, keep_every: int = 0, read_only: bool = False) -> None:
        self._folder = Path(folder).resolve()
        for half in self._half_written():
            warnings.warn(f"{half}: a checkpoint that was never finished is passed over", stacklevel=2)
        for step in [] if read_only else self._without_metrics():
            self._pass_over(step, "its metrics cannot be read")
        policies = [
            LatestN(keep_latest),
            BestN(get_metric_fn=lambda metrics: metrics[_BEST], n=1, keep_checkpoints_without_metrics=False),
        ]
        if keep_every:
            policies.append(EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
            best_fn=lambda metrics: metrics[_BEST],  # without it no metrics are written
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        data: grain.DatasetIterator,
        experiment: Mapping[str, Any],
        best: float | None = None,
    ) -> None:
        """Starts to write a checkpoint; `wait` ends it. One of the same step is left as it is.

        Args:
            state: may be given up to the next step at once.
            data: this process's batches; the next one is not drawn yet.
            experiment: JSON, for people and programs that find the folder.
            best: what the best checkpoint has most of; None where it was not measured.

        Raises:
            CheckpointError: this one or the one before could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        about = {"experiment": dict(experiment), "fingerprints": _fingerprints(state)}
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict(), ocdbt_target_data_file_size=_FILE_BYTES),
            data=grain.checkpoint.CheckpointSave(data),
            about=ocp.args.JsonSave(about),
        )
        try:
            self._manager.save(step, args=args, metrics={_BEST: -math.inf if best is None else best})
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Waits until the checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(error) from error

    def restore(self, like: TrainState) -> Restored | None:
        """The newest checkpoint that is whole, None where there is none.

        A damaged one is named in a warning, put aside under another name, and the one before is tried.

        Args:
            like: abstract arrays with shardings; the mesh may be another one than the checkpoint was written on.
        """
        for step in reversed(self.steps()):
            found, reason = None, "another process could not read it"
            try:
                found = self._read(step, like)
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if all_agree(found is not None):
                return found
            self._pass_over(step, reason)
            self._manager.reload()
        return None

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self._manager.close()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_written(error) from error

    def __enter__(self) -> "Checkpoints":
        # What Orbax logs of a failure, with tracebacks from its threads, comes back as one error of ours.
        self._log_level = _ORBAX_LOG.level
        _ORBAX_LOG.setLevel(logging.CRITICAL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LostPeerError):
            return  # closing would wait for all processes
        try:
            self.close()
        except CheckpointError:
            if error is None:  # what went wrong first tells more
                raise
        finally:
            _ORBAX_LOG.setLevel(self._log_level)

    def _read(self, step: int, like: TrainState) -> Restored:
        wanted = like._asdict()
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(wanted, restore_args=how), about=ocp.args.JsonRestore())
        read = self._manager.restore(step, args=args)
        state = TrainState(**read["state"])
        expected, found = read["about"]["fingerprints"], _fingerprints(state)
        changed = [name for name, value in found.items() if expected.get(name) != value]
        if changed:
            raise ValueError(f"not what was saved: {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}")
        return Restored(state, self._read_data(step))

    def _read_data(self, step: int) -> dict[str, Any] | None:
        file = self._folder / str(step) / "data" / f"process_{jax.process_index()}-of-{jax.process_count()}.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def _pass_over(self, step: int, reason: str) -> None:
        """Names a damaged checkpoint and gives it another name."""
        warnings.warn(f"{self._folder / str(step)}: a damaged checkpoint is passed over: {reason}", stacklevel=3)
        barrier(f"damaged checkpoint {step}")
        if is_first():
            damaged = self._folder / str(step)
            names = (damaged.with_name(f"{step}.damaged{suffix}") for suffix in ("", *(f".{i}" for i in range(1, 100))))
            damaged.rename(next(name for name in names if not name.exists()))
        barrier(f"damaged checkpoint {step} put aside")

    def _without_metrics(self) -> list[int]:
        """Steps whose metrics Orbax would stumble over as soon as it looks at the folder."""
        damaged = []
        folders = self._folder.iterdir() if self._folder.is_dir() else ()
        for folder in (folder for folder in folders if folder.name.isdecimal()):
            try:
                json.loads((folder / "metrics" / "metrics").read_text())
            except (OSError, ValueError):
                damaged.append(int(folder.name))
        barrier("metrics of checkpoints read")
        return sorted(damaged)

    def _half_written(self) -> Iterable[Path]:
        return sorted(self._folder.glob(f"*{_TEMPORARY}*")) if self._folder.is_dir() else []

    def _not_written(self, error: Exception) -> CheckpointError:
        # Hundreds of Orbax's tasks have failed by now, and each would say the same again.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        for half in self._half_written() if is_first() else ():
            _remove(half)
        steps = self.steps()
        last = f"the last whole one is {self._folder / str(steps[-1])}" if steps else "there is none before it"
        return CheckpointError(f"{self._folder}: a checkpoint could not be written ({error}); {last}")


def _fingerprints(state: TrainState) -> dict[str, int]:
    """A number for every array that any changed bit changes, the same on every mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(state._asdict())
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    sharding = next((x.sharding for _, x in leaves if isinstance(x.sharding, NamedSharding)), None)
    whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
    values = jax.device_get(jax.jit(_all_sums, out_shardings=whole)([value for _, value in leaves]))
    return dict(zip(names, map(int, values), strict=True))


def _all_sums(arrays: list[Array]) -> UInt32[Array, " arrays"]:
    return jnp.stack([_weighted_sum(array) for array in arrays])


def _weighted_sum(array: Array) -> UInt32[Array, ""]:
    """Sum of the bits as whole numbers, each times an odd number that tells its place, modulo 2 ** 32."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
