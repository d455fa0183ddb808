"""Mixed attention (the paper, section 3.1): what every block does, whatever its projections and its neighbours.

A block works on one stream of tokens, template or search, in two halves: `project` makes its queries, keys and values,
`advance` attends and runs the MLP. What the queries see is decided between the halves, by whoever drives the
blocks (`backbone.py`): own tokens alone, or cached template keys and values before the own ones (eq. 2), or both
streams' (eq. 1).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.layers import TRUNCATED_NORMAL, Activation, DropPath, Mlp


class KeysValues(NamedTuple):
    """Keys and values of one block's tokens, heads before tokens, as the matrix products want them."""

    keys: Float[Array, "b heads n d"]
    values: Float[Array, "b heads n d"]

    def then(self, other: "KeysValues") -> "KeysValues":
        """These tokens, followed by the other's."""
        return KeysValues(*(jnp.concatenate(pair, axis=2) for pair in zip(self, other, strict=True)))


class Grid(NamedTuple):
    """How a stream's tokens lie: so many square images of `side * side` tokens each, row-major; then extra tokens."""

    images: int
    side: int

    @property
    def tokens(self) -> int:
        return self.images * self.side**2


# An attention map beyond the processor's cache is written to memory and read back; CvT's first stage has one of 54 MB.
CPU_MAP_BYTES = 8 * 2**20


def attend(
    queries: Float[Array, "b heads q d"],
    keys: Float[Array, "b heads k d"],
    values: Float[Array, "b heads k d"],
    key_mask: Bool[Array, "b k"] | None,
    scale: float,
) -> Float[Array, "b heads q d"]:
    """Scaled dot-product attention; keys where `key_mask` is False get no weight.

    The exponentials are summed in float32 and divide the product with the values, which is smaller than the map. On
    CPUs a large map is made for a few queries at a time; the last of them may be filled up.
    """
    queries = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
    chunks = query_chunks(queries.shape, keys.shape[2])
    if chunks == 1:
        return _attend_at_once(queries, keys, values, key_mask)

    def in_chunks(queries: Array, keys: Array, values: Array) -> Array:
        count = queries.shape[2]
        whole = jnp.pad(queries, ((0, 0), (0, 0), (0, -count % chunks), (0, 0)))
        parts = rearrange(whole, "b h (n q) d -> n b h q d", n=chunks)
        mixed = jax.lax.map(lambda part: _attend_at_once(part, keys, values, key_mask), parts)
        return rearrange(mixed, "n b h q d -> b h (n q) d")[:, :, :count]

    def at_once(queries: Array, keys: Array, values: Array) -> Array:
        return _attend_at_once(queries, keys, values, key_mask)

    return jax.lax.platform_dependent(queries, keys, values, cpu=in_chunks, default=at_once)


def query_chunks(queries_shape: tuple[int, ...], num_keys: int) -> int:
    """Into how many parts of one size to cut the queries so that a float32 map of one part fits `CPU_MAP_BYTES`.

    A number that divides them is taken where there is one near; otherwise the last part is to be filled up.
    """
    batch, heads, num_queries, _ = queries_shape
    parts = min(-(-batch * heads * num_queries * num_keys * 4 // CPU_MAP_BYTES), num_queries)
    return next((n for n in range(parts, 2 * parts) if num_queries % n == 0), parts)


def _attend_at_once(
    queries: Float[Array, "b heads q d"],
    keys: Float[Array, "b heads k d"],
    values: Float[Array, "b heads k d"],
    key_mask: Bool[Array, "b k"] | None,
) -> Float[Array, "b heads q d"]:
    logits = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / total).astype(values.dtype)


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
    """Multi-head attention in two halves, with one dense layer for queries, keys and values (S-MAM's).

    Attributes:
        width: channels.
        num_heads: heads.
        scale: of the logits.
        mimetic_init: see `MixFormerConfig`.
        dtype: compute type.
    """

    width: int
    num_heads: int
    scale: float
    mimetic_init: bool
    dtype: jnp.dtype

    def setup(self) -> None:
        qkv_init: nn.initializers.Initializer = TRUNCATED_NORMAL
        output_init: nn.initializers.Initializer = TRUNCATED_NORMAL
        if self.mimetic_init:
            qkv_init = functools.partial(mimetic_qkv_init, num_heads=self.num_heads)
            output_init = mimetic_output_init
        self.qkv = nn.Dense(3 * self.width, dtype=self.dtype, kernel_init=qkv_init)
        self.proj = nn.Dense(self.width, dtype=self.dtype, kernel_init=output_init)

    def project(
        self, tokens: Float[Array, "b n c"], grid: Grid, *, train: bool
    ) -> tuple[Float[Array, "b heads q d"], KeysValues]:
        """Queries, and the keys and values that these tokens offer to others."""
        qkv = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        return qkv[0], KeysValues(qkv[1], qkv[2])

    def mix(
        self, queries: Float[Array, "b heads q d"], seen: KeysValues, key_mask: Bool[Array, "b k"] | None
    ) -> Float[Array, "b q c"]:
        """What the queries gather of the keys and values that they see."""
        self.sow("intermediates", "queries", queries)
        self.sow("intermediates", "keys", seen.keys)
        mixed = attend(queries, seen.keys, seen.values, key_mask, self.scale)
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))


class MixedAttentionBlock(nn.Module):
    """A pre-norm transformer block in two halves.

    Attributes:
        attention: `MixedAttention` or a subclass, unbound.
        mlp_ratio: hidden width of the MLP over the width.
        activation: of the MLP.
        epsilon: of the layer norms.
        drop_path: rate of stochastic depth.
        layer_scale: learn a factor per channel on both branches.
    """

    attention: MixedAttention
    mlp_ratio: int
    activation: Activation
    epsilon: float
    drop_path: float
    layer_scale: bool

    def setup(self) -> None:
        width, dtype = self.attention.width, self.attention.dtype
        self.norm1 = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
        self.norm2 = nn.LayerNorm(epsilon=self.epsilon, dtype=dtype)
        self.mlp = Mlp(width * self.mlp_ratio, self.activation, dtype)
        self.drop1, self.drop2 = DropPath(self.drop_path), DropPath(self.drop_path)
        if self.layer_scale:
            small = nn.initializers.constant(1e-4)  # DeiT3's start
            self.scale1, self.scale2 = (self.param(f"scale{i}", small, (width,)) for i in (1, 2))

    def project(
        self, tokens: Float[Array, "b n c"], grid: Grid, *, train: bool
    ) -> tuple[Float[Array, "b heads q d"], KeysValues]:
        """The first half: queries, keys and values of a stream's tokens."""
        return self.attention.project(self.norm1(tokens), grid, train=train)

    def advance(
        self,
        tokens: Float[Array, "b n c"],
        queries: Float[Array, "b heads n d"],
        seen: KeysValues,
        key_mask: Bool[Array, "b k"] | None,
        *,
        train: bool,
    ) -> Float[Array, "b n c"]:
        """The second half: the stream's tokens after attention and MLP.

        Args:
            tokens: as they went into `project`.
            queries: as they came out of it.
            seen: all keys and values that the queries may attend to.
            key_mask: False for those that nobody may attend to (empty slots); None when there are none.
            train: whether stochastic depth draws.
        """
        mixed = self.attention.mix(queries, seen, key_mask)
        tokens = tokens + self.drop1(self._scaled(mixed, 1), train=train)
        hidden = self.mlp(self.norm2(tokens))
        return tokens + self.drop2(self._scaled(hidden, 2), train=train)

    def _scaled(self, branch: Float[Array, "b n c"], which: int) -> Float[Array, "b n c"]:
        if not self.layer_scale:
            return branch
        return branch * (self.scale1 if which == 1 else self.scale2).astype(branch.dtype)


def templates_step(
    block: MixedAttentionBlock,
    templates: Float[Array, "b n c"],
    filled: Bool[Array, "b slots"] | None,
    *,
    grid: Grid,
    train: bool,
) -> tuple[Float[Array, "b n c"], KeysValues]:
    """Every template token attends to the tokens of all filled slots; what it offers to the search region."""
    queries, own = block.project(templates, grid, train=train)
    return block.advance(templates, queries, own, key_mask(filled, own, None), train=train), own


def search_step(
    block: MixedAttentionBlock,
    search: Float[Array, "b n c"],
    templates: KeysValues | None,
    filled: Bool[Array, "b slots"] | None,
    *,
    grid: Grid,
    train: bool,
) -> Float[Array, "b n c"]:
    """The search tokens attend to the templates, where there are any, and to themselves."""
    queries, own = block.project(search, grid, train=train)
    seen = own if templates is None else templates.then(own)
    return block.advance(search, queries, seen, key_mask(filled, templates, own), train=train)


def cross_step(
    block: MixedAttentionBlock,
    search: Float[Array, "b n c"],
    templates: KeysValues,
    filled: Bool[Array, "b slots"] | None,
    *,
    grid: Grid,
    train: bool,
) -> Float[Array, "b n c"]:
    """The search tokens attend to the templates alone."""
    queries, _own = block.project(search, grid, train=train)
    return block.advance(search, queries, templates, key_mask(filled, templates, None), train=train)


def joint_step(
    block: MixedAttentionBlock,
    templates: Float[Array, "b n c"],
    search: Float[Array, "b m c"],
    filled: Bool[Array, "b slots"] | None,
    *,
    template_grid: Grid,
    search_grid: Grid,
    train: bool,
) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"]]:
    """Both streams attend to both."""
    template_queries, template_keys = block.project(templates, template_grid, train=train)
    search_queries, search_keys = block.project(search, search_grid, train=train)
    seen, mask = template_keys.then(search_keys), key_mask(filled, template_keys, search_keys)
    return (
        block.advance(templates, template_queries, seen, mask, train=train),
        block.advance(search, search_queries, seen, mask, train=train),
    )


def step_runner(part: Callable[..., Any], recompute: bool) -> Callable[..., Any]:
    """`part`, a function of a module and arrays; recomputed for the gradient instead of remembered, where asked for."""
    return nn.remat(part) if recompute else part


def key_mask(
    filled: Bool[Array, "b slots"] | None, templates: KeysValues | None, own: KeysValues | None
) -> Bool[Array, "b k"] | None:
    """Which keys may be attended to: those of filled slots, and all of the own ones behind them."""
    if filled is None or templates is None:
        return None
    batch, slots = filled.shape
    mask = repeat(filled, "b s -> b (s n)", n=templates.keys.shape[2] // slots)
    if own is None:
        return mask
    return jnp.concatenate([mask, jnp.ones((batch, own.keys.shape[2]), bool)], axis=1)
