"""Validation inside the loop: fixed held-out samples, exact means over them, and a picture."""

import contextlib

import jax
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.data.pipeline import batches
from mixformer_jax.training.distributed import gather
from mixformer_jax.training.objective import Objective, Variables
from mixformer_jax.training.program import TrainProgram
from mixformer_jax.training.settings import RunConfig
from mixformer_jax.training.sharding import put_batch


class Validation:
    """The held-out batches of an objective; false where nothing is held out."""

    def __init__(self, objective: Objective, settings: RunConfig, program: TrainProgram, part: tuple[int, int]) -> None:
        """Reads `train.validation_pairs` samples, this process's part of each batch."""
        self._objective, self._program, self._pairs = objective, program, settings.validation_pairs
        self._batches: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        samples = objective.validation_samples()
        if samples is None:
            return
        index, count = part
        size = settings.batch_size
        stream = batches(samples, size, workers=settings.workers, process_index=index, process_count=count)
        with contextlib.closing(stream):
            for first in range(0, self._pairs, size):
                rows = first + index * (size // count) + np.arange(size // count)
                # Copies: worker processes hand over arrays in /dev/shm, which may be small.
                batch = {name: np.array(value) for name, value in next(stream).items()}
                self._batches.append((batch, (rows < self._pairs).astype(np.float32)))

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __call__(self, variables: Variables) -> tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]:
        """Means of the objective's metrics over all samples, and its picture of the first ones."""
        mesh = self._program.mesh
        totals: dict[str, float] = {}
        for batch, weights in self._batches:
            on_device = put_batch(batch, mesh), put_batch({"weights": weights}, mesh)["weights"]
            for name, value in jax.device_get(self._program.evaluate(variables, *on_device)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        batch, _weights = self._batches[0]
        shown = gather(self._program.show(variables, put_batch(batch, mesh)))
        own = len(next(iter(batch.values())))
        picture = self._objective.draw(batch, {name: value[:own] for name, value in shown.items()})
        return {name: total / self._pairs for name, total in totals.items()}, picture
