"""Score prediction module (the paper, section 3.5, Fig. 6): is what was found still the target?"""

import functools

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.attention import attend
from mixformer_jax.models.layers import TRUNCATED_NORMAL, perceptron
from mixformer_jax.models.prroi import precise_roi_pool

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
