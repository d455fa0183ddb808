"""Score prediction module (the paper, section 3.5, Fig. 6): is what was found still the target?"""

import functools

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.attention import attend
from mixformer_jax.models.layers import TRUNCATED_NORMAL, perceptron


def hat_integrals(
    start: Float[Array, " b"], end: Float[Array, " b"], bins: int, cells: int
) -> Float[Array, "b bins cells"]:
    """Mean of every cell's hat function over every bin of the intervals from `start` to `end`.

    The hat of cell j rises from 0 at j - 1 to 1 at j and falls to 0 at j + 1; beyond the first and last cell values
    fade to zero. An interval without extent, or with a negative one, has mean 0.
    """
    # Each slope of the hat is integrated over the part of the bin that it covers, as shares of the bin: differences of
    # an antiderivative, or of the bins' ends, would cancel for small bins in float32.
    length = ((end - start) / bins)[:, None, None]
    has_extent = length > 0
    safe_length = jnp.where(has_extent, length, 1.0)
    low = start[:, None, None] + length * jnp.arange(bins)[:, None]
    centre = jnp.arange(cells, dtype=start.dtype)

    def slope(left: Array, height_at_left: float, direction: float) -> Array:
        a, b = (jnp.clip((x - low) / safe_length, 0.0, 1.0) for x in (left, left + 1))
        middle = low - left + 0.5 * (a + b) * safe_length
        return (b - a) * (height_at_left + direction * middle)

    mean = slope(centre - 1, 0.0, 1.0) + slope(centre, 1.0, -1.0)
    return jnp.where(has_extent, mean, 0.0)


def precise_roi_pool(
    features: Float[Array, "b h w c"], boxes_xyxy: Float[Array, "b 4"], bins: tuple[int, int]
) -> Float[Array, "b rows columns c"]:
    """Pools each map over one box of its own.

    Args:
        features: the maps.
        boxes_xyxy: in cells; the integer coordinate (x, y) is the centre of cell (row y, column x).
        bins: rows and columns of the result.
    """
    x1, y1, x2, y2 = boxes_xyxy.astype(jnp.float32).T
    rows = hat_integrals(y1, y2, bins[0], features.shape[1])
    columns = hat_integrals(x1, x2, bins[1], features.shape[2])
    pooled = jnp.einsum("bih,bhwc,bjw->bijc", rows, features.astype(jnp.float32), columns)
    return pooled.astype(features.dtype)


EPSILON = 1e-5
POOLED = 4


class TokenAttention(nn.Module):
    """A query that attends to tokens as they are; logits scaled by the full width, as the official weights want."""

    width: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, query: Float[Array, "b 1 c"], tokens: Float[Array, "b n c"]) -> Float[Array, "b 1 c"]:
        dense = functools.partial(nn.Dense, self.width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL)

        def heads(name: str, x: Float[Array, "b n c"]) -> Float[Array, "b heads n d"]:
            return rearrange(dense(name=name)(x), "b n (h d) -> b h n d", h=self.num_heads)

        mixed = attend(heads("q", query), heads("k", tokens), heads("v", tokens), None, self.width**-0.5)
        return dense(name="proj")(rearrange(mixed, "b h n d -> b n (h d)"))


class ScorePrediction(nn.Module):
    """A learned token looks at the box's content in the search region, then at the initial template."""

    width: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        search: Float[Array, "b h w c"],
        template: Float[Array, "b th tw c"],
        boxes_xyxy: Float[Array, "b 4"],
    ) -> Float[Array, " b"]:
        """Confidence logits.

        Args:
            search: features of the search region.
            template: features of the initial template.
            boxes_xyxy: what to judge, normalised to the search crop. Coordinates are stretched by the grid's width,
                so that 0 is the centre of the first cell, as in the official weights.
        """
        norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)
        pooled = precise_roi_pool(search, boxes_xyxy * search.shape[2], (POOLED, POOLED))
        token = self.param("token", TRUNCATED_NORMAL, (self.width,))
        query = norm(name="norm_token")(repeat(token.astype(self.dtype), "c -> b 1 c", b=len(search)))
        for i, maps in enumerate((pooled, template)):
            attention = TokenAttention(self.width, self.num_heads, self.dtype, name=f"attention_{i}")
            query = norm(name=f"norm_{i}")(attention(query, rearrange(maps, "b h w c -> b (h w) c")))
        logits = perceptron(query, 1, self.dtype)
        return logits[:, 0, 0].astype(jnp.float32)
