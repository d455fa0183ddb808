"""Position embeddings of the paper's section 3.3: frozen sin-cos, frozen interpolated, learnable interpolated."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.config import PositionKind

PRETRAINED_GRID = 14  # tokens along a side of the 224-pixel images that MAE and ViT are pre-trained on


def sincos_positions(grid: int, width: int) -> Float[np.ndarray, "n c"]:
    """Two-dimensional sin-cos table of a square token grid, float64, row-major.

    The first half of the channels encodes the column (x), the second the row (y); each half holds all sines, then
    all cosines, of the integer position times 10000 ** (-i / (width / 4)). As in MAE and the official weights.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(position: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n half"]:
        angle = position[:, None] * frequencies
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    rows, columns = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([encode(columns.astype(np.float64)), encode(rows.astype(np.float64))], axis=1)


def resize_positions(table: Float[Array | np.ndarray, "n c"], grid: int, prefix_tokens: int = 0) -> Float[Array, "m c"]:
    """Resizes a square position table to `grid * grid` tokens, bicubically as PyTorch does (a = -0.75).

    The first `prefix_tokens` rows (a class token) pass through untouched.

    Raises:
        ValueError: if the table without its prefix is not a square grid.
    """
    prefix, cells = table[:prefix_tokens], table[prefix_tokens:]
    source = round(len(cells) ** 0.5)
    if source * source != len(cells):
        raise ValueError(f"a position table of {len(cells)} rows is no square grid (prefix {prefix_tokens})")
    square = cells.reshape(source, source, -1)
    resized = jax.image.resize(square, (grid, grid, square.shape[-1]), method="cubic-pytorch", antialias=False)
    return jnp.concatenate([prefix, resized.reshape(grid * grid, -1)])


def add_positions(maps: Float[Array, "b h w c"], table: Float[Array | np.ndarray, "n c"]) -> Float[Array, "b h w c"]:
    """Adds the table of a token grid to every image of that grid."""
    return maps + jnp.asarray(table, maps.dtype).reshape(maps.shape[1:])


class PositionTable(nn.Module):
    """The position table of one token grid, `[grid * grid, width]`."""

    kind: PositionKind
    grid: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array | np.ndarray, "n c"]:
        if self.kind == "sincos":
            return jnp.asarray(sincos_positions(self.grid, self.width), dtype=jnp.float32)
        if self.kind == "learnable":
            # As large as content and sin-cos tables are, and independent of the other grid's table.
            return self.param("table", nn.initializers.normal(0.5), (self.grid**2, self.width))
        # Without a checkpoint, the table that would have been interpolated is MAE's own initialisation.
        pretrained = sincos_positions(PRETRAINED_GRID, self.width).astype(np.float32)
        table = self.param("table", lambda _key: resize_positions(pretrained, self.grid))
        return jax.lax.stop_gradient(table) if self.kind == "interpolated_frozen" else table
