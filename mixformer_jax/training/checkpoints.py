"""Checkpoints of a run, folders that appear whole by one rename: the only file that knows Orbax. What comes back is
compared with fingerprints of what was saved, on whatever mesh. Only its own bytes make a checkpoint a damaged one: that
memory or a file system fails, or that it is of another experiment, is an error that changes nothing."""

import contextlib
import functools
import gc
import inspect
import json
import logging
import math
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from mixformer_jax.training.distributed import LostPeerError, all_agree, barrier, is_first
from mixformer_jax.training.program import TrainState

_BEST = "best"
_FILE_BYTES = 8 * 2**20  # where Orbax begins a new file
# What Orbax says of a failure, with tracebacks from its threads and tasks, comes back as one error of ours.
_NOISY_LOGS = (logging.getLogger("absl"), logging.getLogger("asyncio"))
# What TensorStore says of bytes that are gone, cut off or changed; it has other words for file systems and memory.
_DAMAGE_STATUS = ("DATA_LOSS", "NOT_FOUND", "OUT_OF_RANGE", "INVALID_ARGUMENT", "FAILED_PRECONDITION")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or restored; the message says what is left."""


class _DamageError(ValueError):
    """Content that is not what was saved."""


class Restored(NamedTuple):
    """A checkpoint that was read."""

    state: TrainState  # the train state, where the abstract one said
    data: dict[str, Any] | None  # the state of the data's iterator; None if this process did not write one


class Checkpoints:
    """The checkpoints in one folder: the newest few, the best, and every so many steps' one are kept."""

    def __init__(self, folder: str | Path, keep_latest: int = 2, keep_every: int = 0, read_only: bool = False) -> None:
        self._folder, self._read_only = Path(folder).resolve(), read_only
        self._keep_latest, self._keep_every = keep_latest, keep_every
        for half in self._half_written():
            warnings.warn(f"{half}: a checkpoint that was never finished is passed over", stacklevel=2)

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        """What writes; it cleans up after a killed run, so it is made where a run goes on, and never in another's."""
        assert not self._read_only
        policies = [
            LatestN(self._keep_latest),
            BestN(get_metric_fn=lambda metrics: metrics[_BEST], n=1, keep_checkpoints_without_metrics=False),
        ]
        if self._keep_every:
            policies.append(EveryNSteps(self._keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            best_fn=lambda metrics: metrics[_BEST],  # without it no metrics are written
        )
        return ocp.CheckpointManager(self._folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending."""
        folders = self._folder.iterdir() if self._folder.is_dir() else ()  # glob hides that it may not be read
        return sorted(int(path.name) for path in folders if path.name.isdecimal())

    def best(self) -> float:
        """What the best of the finished checkpoints has; -inf where none was measured."""
        return max((self._json(step, "metrics/metrics")[_BEST] for step in self.steps()), default=-math.inf)

    def save(
        self, state: TrainState, data: grain.DatasetIterator, experiment: Mapping[str, Any], best: float | None = None
    ) -> None:
        """Starts to write a checkpoint, and the state may be given up at once; `wait` ends it. One of the same step is
        left as it is.

        `data` has not drawn its next batch yet; `experiment` is JSON, for people and programs that find the folder. The
        best checkpoint has most of `best`; None where it was not measured.

        Raises CheckpointError: this one or the one before could not be written.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state._asdict(), ocdbt_target_data_file_size=_FILE_BYTES),
            data=grain.checkpoint.CheckpointSave(data),
            about=ocp.args.JsonSave({"experiment": dict(experiment), "fingerprints": _fingerprints(state)}),
        )
        with self._writing():
            self._manager.save(step, args=args, metrics={_BEST: -math.inf if best is None else best})

    def wait(self) -> None:
        """Waits until the checkpoint is on disk; CheckpointError where it could not be written."""
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def restore(self, like: TrainState) -> Restored | None:
        """The newest checkpoint that is whole, as `like`, abstract arrays on any mesh; None where there is none at all.

        Damaged ones are named in warnings, and the one before is tried. Once one was read they get other names, for
        the run will come to their steps again.

        Raises CheckpointError: a checkpoint that cannot be read for another reason than damage, one of another
        experiment, or none but damaged ones. Nothing has changed.
        """
        found: Restored | None = None
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            read, error = found, None
            try:
                if not isinstance(self._json(step, "metrics/metrics")[_BEST], (int, float)):
                    raise _DamageError("its metrics are no numbers")  # Orbax stumbles as soon as it looks at the folder
                if found is None:
                    read = self._read(step, like)
            except Exception as caught:  # noqa: BLE001 (Orbax raises bare ones; none is lost)
                error = caught
            reason = "another process could not read it" if error is None else _in_short(error)
            if not all_agree(error is None or _is_damage(error)):
                raise CheckpointError(
                    f"{self._folder / str(step)}: cannot be restored: {reason}. Nothing was changed: once the reason "
                    "is gone, the same command goes on"
                ) from error
            if all_agree(error is None):
                found = read
            else:
                damaged[step] = reason
        if not damaged:
            return found
        error = None
        gc.collect()  # what Orbax has left of the attempt goes now, unheard
        if found is None:
            listed = "".join(f"\n  {step}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"{self._folder}: all checkpoints are damaged, and nothing was changed. Bring one of them back from a "
                f"copy; or remove this folder to begin anew:{listed}"
            )
        for step, reason in damaged.items():
            warnings.warn(f"{self._folder / str(step)}: a damaged checkpoint is passed over: {reason}", stacklevel=2)
        if not self._read_only:
            self._put_aside(damaged)
        return found

    def close(self) -> None:
        """Waits for what is being written; CheckpointError where it could not be."""
        if "_manager" in vars(self):
            with self._writing():
                self._manager.close()

    def __enter__(self) -> "Checkpoints":
        self._log_levels = {log: log.level for log in _NOISY_LOGS}
        for log in _NOISY_LOGS:
            log.setLevel(logging.CRITICAL)
        self._hook = sys.unraisablehook
        sys.unraisablehook = lambda fault: None if _is_aftermath(fault) else self._hook(fault)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if not isinstance(error, LostPeerError):  # closing would wait for all processes
                self.close()
        except CheckpointError:
            if error is None:  # what went wrong first tells more
                raise
        finally:
            if isinstance(error, CheckpointError):
                gc.collect()  # hundreds of Orbax's tasks have failed, and each would say so when it goes
            sys.unraisablehook = self._hook
            for log, level in self._log_levels.items():
                log.setLevel(level)

    def _read(self, step: int, like: TrainState) -> Restored:
        wanted = like._asdict()
        expected = self._json(step, "about/metadata")["fingerprints"]
        saved = self._saved_shapes(step)
        if set(saved) != set(expected):
            raise _DamageError("its files do not agree on what was saved")
        ours = _shapes(wanted)
        if saved != ours:
            unlike = [name for name in saved | ours if saved.get(name) != ours.get(name)]
            listed = (f"{name}: {saved.get(name, 'none')} there, {ours.get(name, 'none')} here" for name in unlike[:3])
            raise CheckpointError(f"it is of another experiment: {len(unlike)} arrays differ, {'; '.join(listed)}")
        how = ocp.checkpoint_utils.construct_restore_args(wanted)
        options = ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True)
        with ocp.CheckpointManager(self._folder, options=options) as reader:
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(wanted, restore_args=how))
            state = TrainState(**reader.restore(step, args=args)["state"])
        changed = [name for name, value in _fingerprints(state).items() if expected[name] != value]
        if changed:
            raise _DamageError(f"not what was saved: {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''}")
        return Restored(state, self._read_data(step))

    def _saved_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        try:
            return _shapes(ocp.PyTreeCheckpointHandler().metadata(self._folder / str(step) / "state").tree)
        except (NotImplementedError, ValueError) as error:
            if re.match("[A-Z_]+: ", str(error)):  # TensorStore has said what it is
                raise
            raise _DamageError("its list of arrays makes no sense") from error

    def _json(self, step: int, name: str) -> Any:
        return json.loads((self._folder / str(step) / name).read_text())

    def _read_data(self, step: int) -> dict[str, Any] | None:
        name = f"data/process_{jax.process_index()}-of-{jax.process_count()}.json"
        if not (self._folder / str(step) / name).is_file():
            return None
        data: dict[str, Any] = self._json(step, name)
        if data["step"] != step:
            raise _DamageError("its place in the data is another step's")
        return data

    def _put_aside(self, steps: Iterable[int]) -> None:
        """Gives damaged checkpoints other names."""
        barrier("damaged checkpoints")
        for step in steps if is_first() else ():
            names = (self._folder / f"{step}.damaged{suffix}" for suffix in ("", *(f".{i}" for i in range(1, 100))))
            (self._folder / str(step)).rename(next(name for name in names if not name.exists()))
        barrier("damaged checkpoints put aside")
        if "_manager" in vars(self):
            self._manager.reload()

    def _half_written(self) -> list[Path]:
        return sorted(self._folder.glob("*.orbax-checkpoint-tmp*"))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            for half in self._half_written() if is_first() else ():
                shutil.rmtree(half)
            steps = self.steps()
            last = f"the last whole one is {self._folder / str(steps[-1])}" if steps else "there is none before it"
            raise CheckpointError(f"{self._folder}: a checkpoint could not be written ({error}); {last}") from error


def _is_damage(error: BaseException | None) -> bool:
    """Whether an error of reading is about the bytes of the checkpoint: what cannot be found or decoded."""
    undecodable = (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError)
    if isinstance(error, (_DamageError, *undecodable)):
        return True
    told = isinstance(error, ValueError) and str(error).startswith(_DAMAGE_STATUS)
    return told or (error is not None and _is_damage(error.__cause__))


def _is_aftermath(fault: Any) -> bool:
    """Whether what Python cannot raise comes from reads that were given up together with the first that failed."""
    return inspect.iscoroutine(fault.object) or str(fault.exc_value) == "Event loop is closed"


def _in_short(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of arrays, abstract ones and what Orbax knows of some included, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = ((jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves)
    return {name: tuple(leaf.shape) for name, leaf in named if hasattr(leaf, "shape")}


def _fingerprints(state: TrainState) -> dict[str, int]:
    """A number for every array that any changed bit changes, the same on every mesh."""
    arrays = jax.tree.leaves(state._asdict())
    sharding = next((x.sharding for x in arrays if isinstance(x.sharding, NamedSharding)), None)
    whole = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())
    all_sums = jax.jit(lambda arrays: jnp.stack([_weighted_sum(array) for array in arrays]), out_shardings=whole)
    return dict(zip(_shapes(state._asdict()), map(int, jax.device_get(all_sums(arrays))), strict=True))


def _weighted_sum(array: Array) -> UInt32[Array, ""]:
    """Sum of the bits as whole numbers, each times an odd number that tells its place, modulo 2 ** 32."""
    bits = jax.lax.bitcast_convert_type(array, jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
