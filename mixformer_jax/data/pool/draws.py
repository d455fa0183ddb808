"""Random numbers on the device, handed out one after the other, as a generator does on the host."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

ROW = 64


class Draws:
    """Numbers of one key, while a function is traced: the n-th one asked for is the same in every run.

    Whether a branch of the function needs a number must not depend on traced values.
    """

    def __init__(self, key: PRNGKeyArray) -> None:
        self._key, self._rows = key, 0
        self._left = jnp.zeros(0)

    def uniform(
        self, low: Array | float | int = 0.0, high: Array | float | int = 1.0, shape: tuple[int, ...] = ()
    ) -> Float[Array, "..."]:
        """Uniform between two bounds."""
        count = math.prod(shape)
        while len(self._left) < count:
            row = jax.random.uniform(jax.random.fold_in(self._key, self._rows), (ROW,))
            self._left = jnp.concatenate([self._left, row])
            self._rows += 1
        taken, self._left = self._left[:count], self._left[count:]
        return low + (high - low) * taken.reshape(shape)

    def signed(self, bound: Array | float | int, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Uniform within +-bound."""
        return bound * (2 * self.uniform(shape=shape) - 1)

    def chance(self, probability: float) -> Bool[Array, ""]:
        """True so often."""
        return self.uniform() < probability

    def below(self, count: Array | int, shape: tuple[int, ...] = ()) -> Int[Array, "..."]:
        """A whole number from 0 to count - 1."""
        return jnp.minimum((self.uniform(shape=shape) * count).astype(jnp.int32), count - 1)

    def normal(self, shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Normal with deviation 1."""
        # 0 itself would be minus infinity.
        return jax.scipy.special.ndtri(self.uniform(1e-7, 1.0, shape))

    def entry(self, cumulative: Float[Array, " n"]) -> Int[Array, ""]:
        """A position in a list of probabilities, each added to those before."""
        found = jnp.searchsorted(cumulative, self.uniform() * cumulative[-1], side="right")
        return jnp.minimum(found, len(cumulative) - 1).astype(jnp.int32)

    def key(self) -> PRNGKeyArray:
        """A key for somebody who needs many numbers."""
        self._rows += 1
        return jax.random.fold_in(self._key, self._rows - 1)
