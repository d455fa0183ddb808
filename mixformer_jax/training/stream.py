"""The batches of a run from any step on, and the place in them that a checkpoint remembers."""

import json
from collections.abc import Iterator

import numpy as np

from mixformer_jax.data.pipeline import batches
from mixformer_jax.training.objective import Samples


class BatchStream:
    """This process's part of every batch.

    Batch k of a seed is a function of k. A stream therefore begins at any step; the place that it reports also holds
    what else its iterator keeps.
    """

    def __init__(
        self, samples: Samples, batch_size: int, step: int, part: tuple[int, int], workers: int, place: str | None
    ) -> None:
        """Begins at a step, or goes on from a place.

        Args:
            samples: by index.
            batch_size: of the whole batch, over all processes.
            step: of the first batch.
            part: which of how many parts of every batch this process makes.
            workers: see `RunConfig`.
            place: as `place()` gave it at this step; one of a run with other parts or workers is not used.
        """
        saved = json.loads(place) if place else {}
        self._about = {"part": list(part), "workers": workers}
        goes_on = {key: saved.get(key) for key in self._about} == self._about
        self._origin: int = saved["origin"] if goes_on else step
        self._iterator: Iterator[dict[str, np.ndarray]] = batches(
            samples,
            batch_size,
            start_step=self._origin,
            num_threads=workers,
        )
        if goes_on:
            self._iterator.set_state(saved["state"])  # type: ignore[attr-defined]

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def place(self) -> str:
        """JSON: where the next batch stands."""
        state = self._iterator.get_state()  # type: ignore[attr-defined]
        return json.dumps({**self._about, "origin": self._origin, "state": state})
