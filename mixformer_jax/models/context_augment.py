"""TransT's feature fusion (Chen et al. 2021, section 3.1): the separate integration module of Table 3, row 3.

Ego-context augment (ECA) is self-attention of either stream, cross-feature augment (CFA) attention of one stream to the
other with a feed-forward network. Post-norm, with sin-cos positions on queries and keys. Both streams see
each other, so nothing can be cached.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.attention import attend
from mixformer_jax.models.layers import TRUNCATED_NORMAL
from mixformer_jax.models.positions import sincos_positions

EPSILON = 1e-5
WIDTH, HEADS, FEED_FORWARD_WIDTH = 256, 8, 2048  # TransT's


class _Stream(NamedTuple):
    tokens: Float[Array, "b n c"]
    positions: Float[Array, "n c"]
    mask: Bool[Array, "b n"] | None


class AugmentAttention(nn.Module):
    """Attention of one stream to another (or to itself), residual, norm; with `feed_forward`, an FFN behind."""

    feed_forward: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ours: _Stream, theirs: _Stream) -> _Stream:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL)
        norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)

        def heads(name: str, x: Float[Array, "b n c"]) -> Float[Array, "b heads n d"]:
            return rearrange(dense(WIDTH, name=name)(x), "b n (h d) -> b h n d", h=HEADS)

        queries = heads("q", ours.tokens + ours.positions)
        keys, values = heads("k", theirs.tokens + theirs.positions), heads("v", theirs.tokens)
        mixed = attend(queries, keys, values, theirs.mask, queries.shape[-1] ** -0.5)
        mixed = dense(WIDTH, name="proj")(rearrange(mixed, "b h n d -> b n (h d)"))
        tokens = norm(name="norm1")(ours.tokens + mixed)
        if self.feed_forward:
            hidden = nn.relu(dense(FEED_FORWARD_WIDTH, name="fc1")(tokens))
            tokens = norm(name="norm2")(tokens + dense(WIDTH, name="fc2")(hidden))
        return ours._replace(tokens=tokens)


class ContextAugment(nn.Module):
    """Layers of two ECA and two CFA each, and a last CFA from the search region to the templates.

    In TransT's width, and back in the backbone's: with the head that all rows of Table 3 share, this is 49.74 M
    parameters; the paper says 49.75 M.
    """

    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        templates: Float[Array, "b slots th tw c"],
        search: Float[Array, "b h w c"],
        filled: Bool[Array, "b slots"] | None,
    ) -> Float[Array, "b h w c"]:
        slots, grid = templates.shape[1:3]
        reduce = nn.Dense(WIDTH, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="reduce")
        mask = None if filled is None else repeat(filled, "b s -> b (s n)", n=grid * grid)
        target = _Stream(reduce(rearrange(templates, "b s h w c -> b (s h w) c")), self._positions(grid, slots), mask)
        region = _Stream(reduce(rearrange(search, "b h w c -> b (h w) c")), self._positions(search.shape[1], 1), None)
        for i in range(self.layers):
            target, region = (
                AugmentAttention(False, self.dtype, name=f"eca{i}_{name}")(stream, stream)
                for name, stream in (("templates", target), ("search", region))
            )
            target, region = (
                AugmentAttention(True, self.dtype, name=f"cfa{i}_templates")(target, region),
                AugmentAttention(True, self.dtype, name=f"cfa{i}_search")(region, target),
            )
        region = AugmentAttention(True, self.dtype, name="cfa_last")(region, target)
        expand = nn.Dense(search.shape[-1], dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="expand")
        return rearrange(expand(region.tokens), "b (h w) c -> b h w c", h=search.shape[1])

    def _positions(self, grid: int, images: int) -> Float[Array, "n c"]:
        table = np.tile(sincos_positions(grid, WIDTH), (images, 1))
        return jnp.asarray(table, self.dtype)
