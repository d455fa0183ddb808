"""Box heads: corner and query (the paper, section 3.2), and pyramidal corner (section 3.3, Fig. 4 c)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.config import HeadKind, HeadNormKind
from mixformer_jax.models.layers import ConvNormRelu, perceptron


class CornerPrediction(NamedTuple):
    """Corners found by a head: boxes normalised to the search crop, and the raw score maps."""

    boxes_xyxy: Float[Array, "b 4"]
    top_left_logits: Float[Array, "b h w"]
    bottom_right_logits: Float[Array, "b h w"]


def soft_argmax(logits: Float[Array, "b h w"]) -> Float[Array, "b 2"]:
    """Expected corner (x, y) under softmax(logits), normalised to the crop.

    The paper, section 3.2 (after STARK). Cell (row i, column j) of an h x w map stands for the point (j / w, i / h):
    its top-left, not its centre, so 1.0 is never reached. As in the official weights.
    """
    _, height, width = logits.shape
    weights = jax.nn.softmax(rearrange(logits.astype(jnp.float32), "b h w -> b (h w)"), axis=-1)
    weights = rearrange(weights, "b (h w) -> b h w", h=height)
    # Elementwise, not einsums: an accelerator would round a matrix product's inputs to fewer bits.
    x = jnp.sum(weights.sum(axis=1) * (jnp.arange(width) / width), axis=-1)
    y = jnp.sum(weights.sum(axis=2) * (jnp.arange(height) / height), axis=-1)
    return jnp.stack([x, y], axis=-1)


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
