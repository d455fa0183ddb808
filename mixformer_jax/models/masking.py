"""Which cells of a token grid a masked autoencoder shows its encoder, and how layers work on those cells alone.

A cell is what one token stands for: `patch_size` square pixels of the image, and fewer on the maps of a convolutional
embedding. Visible cells travel as a batch of small images, `[batch * visible, side, side, channels]`: whatever works
pixel by pixel, or patch by patch inside a cell, works on them as it does on whole images. Convolutions that reach
beyond a cell find the neighbours with `Masking.surround`, and zeros where a neighbour is hidden (the masked
convolutions of ConvMAE: Gao et al. 2022, section 3.2).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

# Indices come from a permutation: nothing has to be checked or clipped.
_TRUSTED = "promise_in_bounds"


class Masking(NamedTuple):
    """A choice of cells for every sample, on a square grid, row-major.

    Attributes:
        visible: indices of the cells that stay, in the order of their tokens.
        hidden: True for every cell of the grid that is taken away.
    """

    visible: Int[Array, "b n"]
    hidden: Bool[Array, "b cells"]

    @property
    def grid(self) -> int:
        """Cells along one side."""
        return math.isqrt(self.hidden.shape[1])

    def take(self, maps: Float[Array, "b h w c"]) -> Float[Array, "bn side side c"]:
        """The visible cells of whole maps, as small images."""
        cells = rearrange(maps, "b (i h) (j w) c -> b (i j) h w c", i=self.grid, j=self.grid)
        taken = jnp.take_along_axis(cells, self.visible[:, :, None, None, None], axis=1, mode=_TRUSTED)
        return rearrange(taken, "b n h w c -> (b n) h w c")

    def surround(self, cells: Float[Array, "bn side side c"], reach: int) -> Float[Array, "bn wider wider c"]:
        """Visible cells with `reach` pixels around them; hidden cells and the outside of the image are zeros."""
        grid, side = self.grid, cells.shape[1]

        def of_one(visible: Array, cells: Array) -> Array:
            everywhere = jnp.zeros((grid * grid, *cells.shape[1:]), cells.dtype)
            everywhere = everywhere.at[visible].set(cells, mode=_TRUSTED, unique_indices=True)
            maps = rearrange(everywhere, "(i j) h w c -> (i h) (j w) c", i=grid)
            maps = jnp.pad(maps, ((reach, reach), (reach, reach), (0, 0)))
            window = jnp.arange(side + 2 * reach)
            rows, columns = (start[:, None] * side + window for start in jnp.divmod(visible, grid))
            return maps.at[rows[:, :, None], columns[:, None, :]].get(mode=_TRUSTED)

        by_sample = rearrange(cells, "(b n) h w c -> b n h w c", n=self.visible.shape[1])
        return rearrange(jax.vmap(of_one)(self.visible, by_sample), "b n h w c -> (b n) h w c")

    def fill(self, tokens: Float[Array, "b n c"], missing: Float[Array, " c"]) -> Float[Array, "b cells c"]:
        """Visible tokens at their places in the whole grid, one and the same token at all others."""

        def of_one(visible: Array, tokens: Array) -> Array:
            everywhere = jnp.broadcast_to(missing.astype(tokens.dtype), (self.hidden.shape[1], tokens.shape[1]))
            return everywhere.at[visible].set(tokens, mode=_TRUSTED, unique_indices=True)

        return jax.vmap(of_one)(self.visible, tokens)


def count_visible(cells: int, mask_ratio: float) -> int:
    """Cells that stay visible, rounded down as in MAE."""
    return int(cells * (1 - mask_ratio))


def random_masking(noise: Float[Array, "b cells"], mask_ratio: float) -> Masking:
    """Keeps the cells with the smallest noise, smallest first (He et al. 2022, section 3).

    Args:
        noise: uniform for a random choice, one value a cell of a square grid.
        mask_ratio: share of the cells that is hidden.
    """
    order = jnp.argsort(noise, axis=1)
    visible = count_visible(noise.shape[1], mask_ratio)
    return Masking(order[:, :visible], jnp.argsort(order, axis=1) >= visible)
