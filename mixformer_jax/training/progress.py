"""What a run tells while it goes: the progress bar, and a line of metrics every so many steps."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from mixformer_jax.training.settings import RunConfig
from mixformer_jax.training.watch import Taken


class Progress:
    """Makes lines for the log out of finished steps, and shows samples a second and the time left."""

    def __init__(self, settings: RunConfig, schedule: Callable[[int], Any], first_step: int, shown: bool) -> None:
        self._settings, self._schedule = settings, schedule
        size = settings.batch_size
        self._bar = tqdm(
            total=settings.steps * size,
            initial=first_step * size,
            unit=" samples",
            desc="train",
            smoothing=0.05,
            disable=not shown,
        )
        self._recent: list[dict[str, float]] = []
        self._idle_s = self._paused_s = 0.0
        self._since = time.perf_counter()

    def lines(self, taken: Taken) -> Iterator[tuple[int, dict[str, float]]]:
        """Means over the steps since the last line, with the number of steps done, where a line is due.

        `outside_step` is the share of time in which the device had no step to do; validations and checkpoints count
        neither there nor in `samples_per_s`.
        """
        settings = self._settings
        self._idle_s += taken.idle_s
        self._paused_s += taken.paused_s
        for step, metrics in taken.finished:
            self._recent.append(metrics)
            self._bar.update(settings.batch_size)
            done = step + 1
            if done % settings.log_every and done != settings.steps:
                continue
            now = time.perf_counter()
            elapsed = max(now - self._since - self._paused_s, 1e-9)
            line = {name: float(np.mean([each[name] for each in self._recent])) for name in metrics}
            line |= {
                "learning_rate": float(self._schedule(step)),
                "samples_per_s": len(self._recent) * settings.batch_size / elapsed,
                "outside_step": min(self._idle_s / elapsed, 1.0),
            }
            self._bar.set_postfix({name: f"{line[name]:.3f}" for name in metrics if "_" not in name})
            self._recent, self._idle_s, self._paused_s, self._since = [], 0.0, 0.0, now
            yield done, line

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
