"""Mixed attention (the paper, section 3.1) and its cache.

Asymmetric mixed attention (eq. 2) in two calls of one function: template tokens attend to template tokens, search
tokens to [template tokens, search tokens]. What the second call needs of the first are keys and values: the cache.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.layers import TRUNCATED_NORMAL, DropPath, Mlp


class KeysValues(NamedTuple):
    """Keys and values of one block's template tokens, `[batch, tokens, heads, head_dim]`."""

    keys: Float[Array, "b n heads d"]
    values: Float[Array, "b n heads d"]


def attend(
    queries: Float[Array, "b q heads d"],
    keys: Float[Array, "b k heads d"],
    values: Float[Array, "b k heads d"],
    key_mask: Bool[Array, "b k"] | None,
) -> Float[Array, "b q heads d"]:
    """Scaled dot-product attention, softmax in float32; keys where `key_mask` is False get no weight."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    logits = logits / math.sqrt(queries.shape[-1])
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, values)


def mimetic_qkv_init(key: Array, shape: Sequence[int], dtype: Any, num_heads: int) -> Array:
    """Query/key weights whose product is near `0.7 I + 0.7 noise` in every head, values near `0.4 noise - 0.4 I`.

    Trockman & Kolter 2023, with the value half carried by the value weights alone (the output projection starts at
    the identity, see `mimetic_output_init`).
    """
    width = shape[0]
    head_dim = width // num_heads
    noise_key, value_key = jax.random.split(key)
    queries, key_weights = [], []
    for head_key in jax.random.split(noise_key, num_heads):
        target = 0.7 * jax.random.normal(head_key, (width, width)) / math.sqrt(width) + 0.7 * jnp.eye(width)
        left, singular, right = jnp.linalg.svd(target)
        root = jnp.sqrt(singular[:head_dim])
        queries.append(left[:, :head_dim] * root)
        key_weights.append(right[:head_dim].T * root)
    values = 0.4 * jax.random.normal(value_key, (width, width)) / math.sqrt(width) - 0.4 * jnp.eye(width)
    return jnp.concatenate([*queries, *key_weights, values], axis=1).astype(dtype)


def mimetic_output_init(_key: Array, shape: Sequence[int], dtype: Any) -> Array:
    """The identity: the partner of the values of `mimetic_qkv_init`."""
    return jnp.eye(shape[0], shape[1], dtype=dtype)


class MixedAttention(nn.Module):
    """Multi-head attention of one token stream over its own tokens and, where given, cached template tokens."""

    width: int
    num_heads: int
    mimetic_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n c"], templates: KeysValues | None, key_mask: Bool[Array, "b k"] | None
    ) -> tuple[Float[Array, "b n c"], KeysValues]:
        qkv_init: nn.initializers.Initializer = TRUNCATED_NORMAL
        output_init: nn.initializers.Initializer = TRUNCATED_NORMAL
        if self.mimetic_init:
            qkv_init = functools.partial(mimetic_qkv_init, num_heads=self.num_heads)
            output_init = mimetic_output_init
        qkv = nn.Dense(3 * self.width, dtype=self.dtype, kernel_init=qkv_init, name="qkv")(tokens)
        queries, keys, values = rearrange(qkv, "b n (three h d) -> three b n h d", three=3, h=self.num_heads)
        own = KeysValues(keys, values)
        if templates is not None:
            keys = jnp.concatenate([templates.keys, keys], axis=1)
            values = jnp.concatenate([templates.values, values], axis=1)
        mixed = rearrange(attend(queries, keys, values, key_mask), "b n h d -> b n (h d)")
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=output_init, name="proj")(mixed), own


class MixedAttentionBlock(nn.Module):
    """S-MAM (section 3.3): a pre-norm ViT block whose attention is mixed attention."""

    width: int
    num_heads: int
    mlp_ratio: int
    drop_path: float
    mimetic_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "b n c"],
        templates: KeysValues | None,
        key_mask: Bool[Array, "b k"] | None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b n c"], KeysValues]:
        """Advances one stream by one block; returns its tokens and their keys and values.

        Args:
            tokens: the stream: template tokens of all slots, or search tokens.
            templates: cached keys and values of the template stream; None for the template stream itself.
            key_mask: False for keys that nobody may attend to (empty slots), `[templates, own]` order.
            train: whether stochastic depth draws.
        """
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        drop_path = DropPath(self.drop_path, name="drop_path")
        mixed, own = MixedAttention(self.width, self.num_heads, self.mimetic_init, self.dtype, name="attention")(
            norm(name="norm1")(tokens), templates, key_mask
        )
        tokens = tokens + drop_path(mixed, train=train)
        hidden = Mlp(self.width * self.mlp_ratio, self.dtype, name="mlp")(norm(name="norm2")(tokens))
        return tokens + drop_path(hidden, train=train), own
