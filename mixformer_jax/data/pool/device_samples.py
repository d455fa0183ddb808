"""Samples of the pool that the host only numbers: a device holds the pool and renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.device_pool import DevicePool
from mixformer_jax.data.pool.rendering import CANDIDATES, inspector, renderer, sources_of
from mixformer_jax.data.samples import Pools, TrackingSamples

CHECKED = 2048
MAX_UNSERVED = 0.01


class DeviceSamples:
    """The device form of `TrackingSamples`: sample i of a seed is one thing.

    Attributes:
        resident: what a device must hold, as numpy arrays.
    """

    def __init__(self, pools: Pools, config: DataConfig, seed: int, names: Sequence[str] | None = None) -> None:
        """`names` are those of the arrays wanted; None for all.

        Raises:
            ValueError: no material for a source of the mix.
        """
        TrackingSamples(pools, config, seed)  # says what is missing
        self.config, self.seed, self._names = config, seed, names
        self.resident = DevicePool.build(pools.videos, pools.images, config)
        self._render = renderer(config, seed)

    def sample(self, index: int) -> dict[str, np.ndarray]:
        """The number of sample `index`, uint32 []."""
        return {"index": np.array(index, np.uint32)}

    def render(self, resident: DevicePool, batch: Mapping[str, Array]) -> dict[str, Array]:
        """`rendering.renderer`'s function, to be jitted."""
        rendered = self._render(resident, batch)
        return rendered if self._names is None else {name: rendered[name] for name in self._names}

    def show(self, numbers: Sequence[int]) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Samples for people to look at, each with its source's name."""
        inspect = jax.jit(inspector(self.config, self.seed))
        rendered, about = jax.device_get(inspect(self.resident, jnp.asarray(numbers, jnp.uint32)))
        names = sources_of(self.config)
        return [
            (names[about.source[row]], {name: value[row] for name, value in rendered.items()})
            for row in range(len(numbers))
        ]

    def check(self, resident: DevicePool) -> None:
        """Draws samples without rendering them.

        Raises:
            ValueError: a source whose candidates too often cannot serve.
        """
        numbers = jnp.arange(CHECKED, dtype=jnp.uint32)
        draw = jax.jit(lambda pool: inspector(self.config, self.seed)(pool, numbers)[1])
        about = draw.lower(resident).compile()(resident)
        source, served = np.asarray(about.source), np.asarray(about.served)
        for number, name in enumerate(sources_of(self.config)):
            of_source = served[source == number]
            if len(of_source) and np.mean(~of_source) > MAX_UNSERVED:
                raise ValueError(
                    f"source {name!r}: for {np.mean(~of_source):.0%} of the samples none of {CANDIDATES} candidates "
                    "serves; its material does not suit the crop sizes and jitters of the config"
                )
