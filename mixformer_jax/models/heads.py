"""What reads the backbone's features: box heads, the score prediction module, and TransT's fusion before a head.

Box heads: corner and query (the paper, section 3.2), and pyramidal corner (section 3.3, Fig. 4 c).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.attention import Filled, KeyMask, Tokens, attend
from mixformer_jax.models.config import HeadKind, HeadNormKind
from mixformer_jax.models.layers import TRUNCATED_NORMAL, ConvNormRelu, perceptron, sincos_positions

EPSILON = 1e-5
POOLED = 4  # bins along a side of the box that the score module looks at
FUSION_WIDTH, FUSION_HEADS, FUSION_HIDDEN = 256, 8, 2048  # TransT's


class CornerPrediction(NamedTuple):
    """Corners found by a head: boxes normalised to the search crop, and the raw score maps."""

    boxes_xyxy: Float[Array, "b 4"]
    top_left_logits: Float[Array, "b h w"]
    bottom_right_logits: Float[Array, "b h w"]


def soft_argmax(logits: Float[Array, "b h w"]) -> Float[Array, "b 2"]:
    """Expected corner (x, y) under softmax(logits), normalised to the crop (the paper, section 3.2, after STARK).

    Cell (row i, column j) of an h x w map stands for its top-left corner (j / w, i / h), as in the official weights.
    """
    _, height, width = logits.shape
    weights = jax.nn.softmax(rearrange(logits.astype(jnp.float32), "b h w -> b (h w)"), axis=-1)
    weights = rearrange(weights, "b (h w) -> b h w", h=height)
    # Elementwise, not einsums: an accelerator would round a matrix product's inputs to fewer bits.
    x = jnp.sum(weights.sum(axis=1) * (jnp.arange(width) / width), axis=-1)
    y = jnp.sum(weights.sum(axis=2) * (jnp.arange(height) / height), axis=-1)
    return jnp.stack([x, y], axis=-1)


def map_entropy(logits: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Entropy of softmax(logits), in nats: the logarithm of over how many cells a corner is spread."""
    logarithms = jax.nn.log_softmax(rearrange(logits, "b h w -> b (h w)").astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(logarithms) * logarithms, axis=-1)


def upsample(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b fh fw c"]:
    """Nearest-neighbour upsampling by a whole factor."""
    return repeat(x, "b h w c -> b (h fh) (w fw) c", fh=factor, fw=factor)


class CornerBranch(nn.Module):
    """Four convolutions that halve the channels, and one score map at the backbone's stride."""

    width: int
    norm: HeadNormKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w"]:
        x = features
        for i in range(4):
            x = ConvNormRelu(self.width // 2**i, self.norm, self.dtype, name=f"conv{i + 1}")(x, train=train)
        return nn.Conv(1, (1, 1), dtype=jnp.float32, name="conv5")(x)[..., 0]


class PyramidCornerBranch(nn.Module):
    """A score map at a quarter of the backbone's stride, fused from three resolutions."""

    width: int
    norm: HeadNormKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b fh fw"]:
        def conv(name: str, divisor: int, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
            return ConvNormRelu(self.width // divisor, self.norm, self.dtype, name=name)(x, train=train)

        def to_score(name: str, divisors: tuple[int, ...], x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
            for i, divisor in enumerate(divisors):
                x = conv(f"{name}_{i}", divisor, x)
            return ConvNormRelu(1, self.norm, jnp.dtype(jnp.float32), name=f"{name}_{len(divisors)}")(x, train=train)

        stride1 = conv("conv2", 2, conv("conv1", 1, features))
        stride2 = conv("conv3", 4, upsample(stride1, 2) + upsample(conv("adjust1", 2, features), 2))
        stride4 = upsample(stride2, 2) + upsample(conv("adjust2", 4, features), 4)
        score = nn.Conv(1, (1, 1), dtype=jnp.float32, name="conv5")(conv("conv4", 8, stride4))
        score = score + upsample(to_score("adjust3", (4, 8), stride1), 4)
        score = score + upsample(to_score("adjust4", (8,), stride2), 2)
        return score[..., 0]


class CornerHead(nn.Module):
    """Two separate branches, one a corner, each read off by soft-argmax."""

    kind: HeadKind
    width: int
    norm: HeadNormKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"], *, train: bool) -> CornerPrediction:
        branch = CornerBranch if self.kind == "corner" else PyramidCornerBranch
        args = (self.width, self.norm, self.dtype)
        top_left = branch(*args, name="top_left")(features, train=train).astype(jnp.float32)
        bottom_right = branch(*args, name="bottom_right")(features, train=train).astype(jnp.float32)
        boxes_xyxy = jnp.concatenate([soft_argmax(top_left), soft_argmax(bottom_right)], axis=-1)
        return CornerPrediction(boxes_xyxy, top_left, bottom_right)


class QueryHead(nn.Module):
    """Three dense layers on the regression token, and a sigmoid: a box without a map."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, token: Float[Array, "b c"]) -> Float[Array, "b 4"]:
        """Boxes as cx, cy, w, h, normalised to the search crop."""
        return jax.nn.sigmoid(perceptron(token, 4, self.dtype).astype(jnp.float32))


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
    """Pools each map over one box of its own, in cells: coordinate (x, y) is the centre of cell (row y, column x)."""
    x1, y1, x2, y2 = boxes_xyxy.astype(jnp.float32).T
    rows = hat_integrals(y1, y2, bins[0], features.shape[1])
    columns = hat_integrals(x1, x2, bins[1], features.shape[2])
    pooled = jnp.einsum("bih,bhwc,bjw->bijc", rows, features.astype(jnp.float32), columns)
    return pooled.astype(features.dtype)


def projected_attention(
    queries: Float[Array, "b q c"],
    keys: Tokens,
    values: Tokens,
    key_mask: KeyMask,
    num_heads: int,
    scale: float,
    dtype: jnp.dtype,
) -> Float[Array, "b q c"]:
    """Multi-head attention between dense layers `q`, `k`, `v` and `proj` of the calling module."""
    dense = functools.partial(nn.Dense, queries.shape[-1], dtype=dtype, kernel_init=TRUNCATED_NORMAL)
    q, k, v = (
        rearrange(dense(name=name)(x), "b n (h d) -> b h n d", h=num_heads)
        for name, x in (("q", queries), ("k", keys), ("v", values))
    )
    mixed = attend(q, k, v, key_mask, scale)
    return dense(name="proj")(rearrange(mixed, "b h n d -> b n (h d)"))


class TokenAttention(nn.Module):
    """A query that attends to tokens as they are; logits scaled by the full width, as the official weights want."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, query: Float[Array, "b 1 c"], tokens: Tokens) -> Float[Array, "b 1 c"]:
        scale = query.shape[-1] ** -0.5
        return projected_attention(query, tokens, tokens, None, self.num_heads, scale, self.dtype)


class ScorePrediction(nn.Module):
    """A learned token looks at the box's content in the search region, then at the initial template."""

    width: int
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, search: Float[Array, "b h w c"], template: Float[Array, "b th tw c"], boxes_xyxy: Float[Array, "b 4"]
    ) -> Float[Array, " b"]:
        """Confidence logits of boxes normalised to the search crop, from features of it and of the initial template.

        Coordinates are stretched by the grid's width: 0 is the centre of the first cell, as in the official weights.
        """
        norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)
        pooled = precise_roi_pool(search, boxes_xyxy * search.shape[2], (POOLED, POOLED))
        token = self.param("token", TRUNCATED_NORMAL, (self.width,))
        query = norm(name="norm_token")(repeat(token.astype(self.dtype), "c -> b 1 c", b=len(search)))
        for i, maps in enumerate((pooled, template)):
            attention = TokenAttention(self.num_heads, self.dtype, name=f"attention_{i}")
            query = norm(name=f"norm_{i}")(attention(query, rearrange(maps, "b h w c -> b (h w) c")))
        logits = perceptron(query, 1, self.dtype)
        return logits[:, 0, 0].astype(jnp.float32)


class _Fused(NamedTuple):
    tokens: Tokens
    positions: Float[Array, "n c"]
    mask: KeyMask


class AugmentAttention(nn.Module):
    """Attention of one stream to another or itself, residual, norm; with `feed_forward`, an FFN behind.

    Ego-context augment (ECA) is the one to itself, cross-feature augment (CFA) the one to the other, with FFN.
    """

    feed_forward: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, ours: _Fused, theirs: _Fused) -> _Fused:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL)
        norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, dtype=self.dtype)

        queries, keys = ours.tokens + ours.positions, theirs.tokens + theirs.positions
        scale = (FUSION_WIDTH // FUSION_HEADS) ** -0.5
        mixed = projected_attention(queries, keys, theirs.tokens, theirs.mask, FUSION_HEADS, scale, self.dtype)
        tokens = norm(name="norm1")(ours.tokens + mixed)
        if self.feed_forward:
            hidden = nn.relu(dense(FUSION_HIDDEN, name="fc1")(tokens))
            tokens = norm(name="norm2")(tokens + dense(FUSION_WIDTH, name="fc2")(hidden))
        return ours._replace(tokens=tokens)


class ContextAugment(nn.Module):
    """TransT's feature fusion (Chen et al. 2021, section 3.1): the separate integration module of Table 3, row 3.

    Layers of two ECA and two CFA each, and a last CFA from the search region to the templates, post-norm, in TransT's
    width. Both streams see each other, so nothing can be cached. With the head of Table 3 49.74 M parameters, in the
    paper 49.75 M.
    """

    layers: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, templates: Float[Array, "b slots th tw c"], search: Float[Array, "b h w c"], filled: Filled
    ) -> Float[Array, "b h w c"]:
        slots, grid = templates.shape[1:3]
        reduce = nn.Dense(FUSION_WIDTH, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="reduce")
        mask = None if filled is None else repeat(filled, "b s -> b (s n)", n=grid * grid)
        target = _Fused(reduce(rearrange(templates, "b s h w c -> b (s h w) c")), self._positions(grid, slots), mask)
        region = _Fused(reduce(rearrange(search, "b h w c -> b (h w) c")), self._positions(search.shape[1], 1), None)
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
        table = np.tile(sincos_positions(grid, FUSION_WIDTH), (images, 1))
        return jnp.asarray(table, self.dtype)
