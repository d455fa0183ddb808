"""Mixed attention (the paper, section 3.1): `attend`, its kernels, and the transformer block that backbones drive.

A block's `step` works on one stream of tokens, template or search: they attend to cached template keys and values,
where there are any, and to themselves (eq. 2). `joint_step`, for training, runs both streams at once, templates first:
all but the attention is one pass over all tokens.
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

from mixformer_jax.models.config import AttentionKernel, ConfigError, RematPolicy
from mixformer_jax.models.layers import TRUNCATED_NORMAL, Activation, DropPath, Mlp
from mixformer_jax.models.tpu_attention import attend_on_tpu, fits_tpu_kernel

Tokens = Float[Array, "b n c"]
Queries = Float[Array, "b heads q d"]
KeyMask = Bool[Array, "b k"] | None
Present = Bool[Array, "b own"] | None  # which tokens of a search region may be attended to; None: all
Filled = Bool[Array, "b slots"] | None  # which slots hold a template, or which tokens of them count; None: all


class AttentionMasks(NamedTuple):
    """What may be attended to, of the templates and of a stream's own tokens."""

    filled: Filled = None
    present: Present = None


UNMASKED = AttentionMasks()


class KeysValues(NamedTuple):
    """Keys and values of one block's tokens."""

    keys: Float[Array, "b heads n d"]
    values: Float[Array, "b heads n d"]

    def part(self, start: int, end: int | None) -> "KeysValues":
        return KeysValues(self.keys[:, :, start:end], self.values[:, :, start:end])

    def then(self, other: "KeysValues") -> "KeysValues":
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
    queries: Queries,
    keys: Float[Array, "b heads k d"],
    values: Float[Array, "b heads k d"],
    key_mask: KeyMask,
    scale: float,
    kernel: AttentionKernel = "xla",
) -> Queries:
    """Scaled dot-product attention; keys where `key_mask` is False get no weight.

    By `xla`, the exponentials are summed in float32 and divide the product with the values, which is smaller than the
    map. On CPUs a large map is made for a few queries at a time.
    """
    # cuDNN's masks have had faults (jax issue 28974), and only trackers with empty slots need one.
    if kernel == "cudnn" and key_mask is None:
        queries, keys, values = (rearrange(x, "b h n d -> b n h d") for x in (queries, keys, values))
        return rearrange(_attend_by_cudnn(queries, keys, values, scale), "b n h d -> b h n d")
    queries = (queries.astype(jnp.float32) * scale).astype(queries.dtype)
    at_once = functools.partial(_attend_at_once, key_mask=key_mask)
    chunks = query_chunks(queries.shape, keys.shape[2])
    if chunks == 1:
        return at_once(queries, keys, values)

    def in_chunks(queries: Array, keys: Array, values: Array) -> Array:
        count = queries.shape[2]
        whole = jnp.pad(queries, ((0, 0), (0, 0), (0, -count % chunks), (0, 0)))
        parts = rearrange(whole, "b h (n q) d -> n b h q d", n=chunks)
        mixed = jax.lax.map(lambda part: at_once(part, keys, values), parts)
        return rearrange(mixed, "n b h q d -> b h (n q) d")[:, :, :count]

    return jax.lax.platform_dependent(queries, keys, values, cpu=in_chunks, default=at_once)


def query_chunks(queries_shape: tuple[int, ...], num_keys: int) -> int:
    """Into how many parts of one size to cut the queries so that a float32 map of one part fits `CPU_MAP_BYTES`.

    A number that divides them is taken where there is one near; otherwise the last part is to be filled up.
    """
    batch, heads, num_queries, _ = queries_shape
    parts = min(-(-batch * heads * num_queries * num_keys * 4 // CPU_MAP_BYTES), num_queries)
    return next((n for n in range(parts, 2 * parts) if num_queries % n == 0), parts)


def _attend_at_once(
    queries: Queries, keys: Float[Array, "b heads k d"], values: Float[Array, "b heads k d"], key_mask: KeyMask
) -> Queries:
    logits = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    if key_mask is not None:
        logits = jnp.where(key_mask[:, None, None, :], logits, -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhqk,bhkd->bhqd", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (mixed / total).astype(values.dtype)


def _attend_by_cudnn(
    queries: Float[Array, "b q heads d"],
    keys: Float[Array, "b k heads d"],
    values: Float[Array, "b k heads d"],
    scale: float,
) -> Float[Array, "b q heads d"]:
    """The same by cuDNN, whose backward pass wants even numbers of tokens."""
    batch, num_queries, num_keys = len(queries), queries.shape[1], keys.shape[1]

    def even(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) if x.shape[1] % 2 else x

    query_lengths = key_lengths = None
    if num_queries % 2 or num_keys % 2:
        query_lengths, key_lengths = (jnp.full(batch, count, jnp.int32) for count in (num_queries, num_keys))
    mixed = jax.nn.dot_product_attention(
        even(queries),
        even(keys),
        even(values),
        scale=scale,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation="cudnn",
    )
    return mixed[:, :num_queries]


def attend_fused(
    qkv: Float[Array, "b n qkv"], num_heads: int, num_templates: int, scale: float, kernel: AttentionKernel
) -> Tokens:
    """Attention of both streams by `cudnn` or `pallas`, from where the dense layer wrote queries, keys and values.

    The first `num_templates` tokens, the templates', see each other alone; 0 where all see all.
    """
    if kernel == "pallas":
        return attend_on_tpu(qkv, num_heads, num_templates, scale)
    queries, keys, values = (rearrange(x, "b n (h d) -> b n h d", h=num_heads) for x in jnp.split(qkv, 3, axis=2))
    mixed = [_attend_by_cudnn(queries[:, num_templates:], keys, values, scale)]
    if num_templates:
        queries, keys, values = (x[:, :num_templates] for x in (queries, keys, values))
        mixed.insert(0, _attend_by_cudnn(queries, keys, values, scale))
    return rearrange(jnp.concatenate(mixed, axis=1), "b n h d -> b n (h d)")


def choose_kernel(
    asked: AttentionKernel, dtype: str, platform: str | None, width: int, num_heads: int, tokens: int = 0
) -> AttentionKernel:
    """The kernel for attention of some size, where `MixFormerConfig.attention_kernel` asks for one.

    `tokens` are those of both streams, in training. No platform (cpu, gpu or tpu): that of the mesh in whose context
    this is traced, or JAX's default.

    Raises ConfigError: a kernel that cannot run there, or not in this type.
    """
    if platform is None:
        mesh = jax.sharding.get_abstract_mesh()
        platform = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    head_dim = width // num_heads
    may = {
        "cudnn": platform in ("gpu", "cuda") and dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 128,
        "pallas": platform == "tpu" and dtype == "bfloat16" and fits_tpu_kernel(width, num_heads, tokens),
    }
    if asked == "auto":
        if may["cudnn"]:  # from Ampere on
            return "cudnn" if all(float(gpu.compute_capability) >= 8.0 for gpu in jax.devices("gpu")) else "xla"
        return "pallas" if may["pallas"] else "xla"
    if not may.get(asked, True):
        channels = "NVIDIA GPUs with heads of 8, 16, ... 128 channels"
        where = channels if asked == "cudnn" else "TPUs with heads that fill 128 lanes"
        raise ConfigError(
            f"model.attention_kernel is {asked!r}, which runs on {where}, in bfloat16; here are {dtype}, {num_heads} "
            f"heads of {head_dim}, {tokens} tokens and a {platform}: take 'auto' or 'xla'"
        )
    return asked


def mimetic_qkv_init(key: Array, shape: Sequence[int], dtype: Any, num_heads: int) -> Array:
    """Query/key weights whose product is near `0.7 I + 0.7 noise` in every head, values near `0.4 noise - 0.4 I`.

    Trockman & Kolter 2023, with the value half carried by the value weights alone: the output starts at the identity.
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


class MixedAttention(nn.Module):
    """Multi-head attention in two halves, with one dense layer for queries, keys and values (S-MAM's).

    For `mimetic_init` see `MixFormerConfig`, for `kernel` and `platform` see `choose_kernel`.
    """

    width: int
    num_heads: int
    scale: float  # of the logits
    mimetic_init: bool
    dtype: jnp.dtype
    kernel: AttentionKernel
    platform: str | None

    def setup(self) -> None:
        qkv_init: nn.initializers.Initializer = TRUNCATED_NORMAL
        output_init: nn.initializers.Initializer = TRUNCATED_NORMAL
        if self.mimetic_init:
            qkv_init = functools.partial(mimetic_qkv_init, num_heads=self.num_heads)
            output_init = lambda _key, shape, dtype: jnp.eye(shape[0], shape[1], dtype=dtype)  # noqa: E731
        self.qkv = nn.Dense(3 * self.width, dtype=self.dtype, kernel_init=qkv_init)
        self.proj = nn.Dense(self.width, dtype=self.dtype, kernel_init=output_init)

    def project(self, tokens: Tokens, grid: Grid, *, train: bool) -> tuple[Queries, KeysValues]:
        """Queries, and the keys and values that these tokens offer to others."""
        qkv = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        return qkv[0], KeysValues(qkv[1], qkv[2])

    def mix(self, queries: Queries, seen: KeysValues, key_mask: KeyMask) -> Float[Array, "b q c"]:
        """What the queries gather of the keys and values that they see."""
        return self._merged(self._attended(queries, seen, key_mask))

    def joint(
        self, tokens: Tokens, grids: tuple[Grid, Grid], masks: AttentionMasks, *, symmetric: bool, train: bool
    ) -> Tokens:
        """What the tokens of both streams gather, templates first: theirs see each other, or all where symmetric."""
        qkv, start = self.qkv(tokens), grids[0].tokens
        kernel = self._chosen(tokens.shape[1])
        whole = masks.filled is None and masks.present is None
        if kernel != "xla" and whole and not self.is_mutable_collection("intermediates"):
            return self.proj(attend_fused(qkv, self.num_heads, 0 if symmetric else start, self.scale, kernel))
        queries, keys, values = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        both = KeysValues(keys, values)
        offered = (both.part(0, start), both.part(start, None))
        parts = (queries[:, :, :start], queries[:, :, start:])
        return self._mix_streams(parts, offered, both, masks, symmetric)

    def _mix_streams(
        self,
        queries: tuple[Float[Array, "b heads n d"], Float[Array, "b heads m d"]],
        offered: tuple[KeysValues, KeysValues],
        both: KeysValues,
        masks: AttentionMasks,
        symmetric: bool,
    ) -> Float[Array, "b q c"]:
        whole = key_mask(masks, offered)
        templates = (both, whole) if symmetric else (offered[0], key_mask(masks[:1], offered[:1]))
        mixed = (self._attended(queries[0], *templates), self._attended(queries[1], both, whole))
        return self._merged(jnp.concatenate(mixed, axis=2))

    def _attended(self, queries: Queries, seen: KeysValues, key_mask: KeyMask) -> Queries:
        self.sow("intermediates", "queries", queries)
        self.sow("intermediates", "keys", seen.keys)
        return attend(queries, seen.keys, seen.values, key_mask, self.scale, self._chosen())

    def _merged(self, mixed: Queries) -> Float[Array, "b q c"]:
        return self.proj(rearrange(mixed, "b h n d -> b n (h d)"))

    def _chosen(self, tokens: int = 0) -> AttentionKernel:
        return choose_kernel(self.kernel, self.dtype.name, self.platform, self.width, self.num_heads, tokens)


class MixedAttentionBlock(nn.Module):
    """A pre-norm transformer block, driven by its steps."""

    attention: MixedAttention  # unbound
    mlp_ratio: int  # hidden width of the MLP over the width
    activation: Activation
    epsilon: float  # of the layer norms
    drop_path: float
    layer_scale: bool  # learn a factor per channel on both branches

    def setup(self) -> None:
        width, dtype = self.attention.width, self.attention.dtype
        self.norm1, self.norm2 = (nn.LayerNorm(epsilon=self.epsilon, dtype=dtype) for _ in range(2))
        self.mlp = Mlp(width * self.mlp_ratio, self.activation, dtype)
        self.drop1, self.drop2 = DropPath(self.drop_path), DropPath(self.drop_path)
        small = nn.initializers.constant(1e-4)  # DeiT3's start
        self.scale1, self.scale2 = (
            self.param(f"scale{i}", small, (width,)) if self.layer_scale else None for i in (1, 2)
        )

    def project(self, tokens: Tokens, grid: Grid, *, train: bool) -> tuple[Queries, KeysValues]:
        """Queries, keys and values of a stream's tokens."""
        return self.attention.project(self.norm1(tokens), grid, train=train)

    def step(
        self, tokens: Tokens, templates: KeysValues | None, masks: AttentionMasks = UNMASKED, *, grid: Grid, train: bool
    ) -> tuple[Tokens, KeysValues]:
        """A stream's tokens attend to templates, where there are any, and to themselves; also what they offer."""
        queries, own = self.project(tokens, grid, train=train)
        if templates is None:
            seen, mask = own, key_mask(masks[1:], (own,))
        else:
            seen, mask = templates.then(own), key_mask(masks, (templates, own))
        return self._finish(tokens, self.attention.mix(queries, seen, mask), train=train), own

    def cross_step(self, search: Tokens, templates: KeysValues, filled: Filled, *, grid: Grid, train: bool) -> Tokens:
        """The search tokens attend to the templates alone."""
        queries, _own = self.project(search, grid, train=train)
        mixed = self.attention.mix(queries, templates, key_mask((filled,), (templates,)))
        return self._finish(search, mixed, train=train)

    def joint_step(
        self,
        tokens: Tokens,
        masks: AttentionMasks = UNMASKED,
        *,
        grids: tuple[Grid, Grid],
        symmetric: bool,
        train: bool,
    ) -> Tokens:
        """Both streams in one, templates first: these attend to all of both (eq. 1) or to themselves alone (eq. 2)."""
        mixed = self.attention.joint(self.norm1(tokens), grids, masks, symmetric=symmetric, train=train)
        return self._finish(tokens, mixed, train=train)

    def _finish(self, tokens: Tokens, mixed: Tokens, *, train: bool) -> Tokens:
        def scaled(branch: Tokens, scale: Float[Array, " c"] | None) -> Tokens:
            return branch if scale is None else branch * scale.astype(branch.dtype)

        tokens = tokens + self.drop1(scaled(mixed, self.scale1), train=train)
        return tokens + self.drop2(scaled(self.mlp(self.norm2(tokens)), self.scale2), train=train)


def run_step(step: Callable[..., Any], remat: RematPolicy | None, module: nn.Module, *args: Any, **fixed: Any) -> Any:
    """`step(module, *args, **fixed)`; with `remat`, computed again for the gradient but for what the policy saves."""
    part: Callable[..., Any] = functools.partial(step, **fixed)
    if remat is not None:
        part = nn.remat(part, policy=getattr(jax.checkpoint_policies, remat))
    return part(module, *args)


def key_mask(masks: Sequence[Filled | Present], seen: Sequence[KeysValues]) -> KeyMask:
    """Which of the keys, seen one behind the other, may be attended to; None: all."""
    if all(mask is None for mask in masks):
        return None

    def of_keys(mask: Array | None, offered: KeysValues) -> Array:
        batch, _heads, count, _channels = offered.keys.shape
        if mask is None:
            return jnp.ones((batch, count), bool)
        return repeat(mask, "b s -> b (s n)", n=count // mask.shape[1])

    return jnp.concatenate([of_keys(*pair) for pair in zip(masks, seen, strict=True)], axis=1)
