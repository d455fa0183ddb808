"""Checkpoints of a run: the only file that knows Orbax."""

from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp

from mixformer_jax.training.steps import TrainState


class Checkpoints:
    """The checkpoints in one run's folder. The data need no state: batch k of a seed is a function of k."""

    def __init__(self, folder: str | Path, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(Path(folder).resolve(), options=options)

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint; an existing one of the same step is left as it is."""
        step = int(state.step)
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, like: TrainState) -> TrainState:
        """The newest checkpoint, in the shapes, types and places of `like`.

        Raises:
            FileNotFoundError: if there is none.
        """
        step = self._manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{self._manager.directory}: no checkpoint")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        return TrainState(**self._manager.restore(step, args=ocp.args.StandardRestore(abstract)))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()
