"""Small layers shared by the backbones and heads."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.config import HeadNormKind

TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL)
        x = nn.gelu(dense(self.hidden, name="fc1")(x), approximate=False)
        return dense(width, name="fc2")(x)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples and rescales the others (Huang et al. 2016)."""

    rate: float

    @nn.compact
    def __call__(self, branch: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b ..."]:
        if not train or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, shape)
        return jnp.where(kept, branch / keep, 0.0).astype(branch.dtype)


class FrozenBatchNorm(nn.Module):
    """Batch norm whose statistics and affine are constants: a converted or finished model's (eps 1e-5)."""

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        channels = (x.shape[-1],)
        scale = self.variable("constants", "scale", jnp.ones, channels)
        bias = self.variable("constants", "bias", jnp.zeros, channels)
        mean = self.variable("constants", "mean", jnp.zeros, channels)
        var = self.variable("constants", "var", jnp.ones, channels)
        factor = scale.value * jax.lax.rsqrt(var.value + 1e-5)
        return (x * factor + (bias.value - mean.value * factor)).astype(x.dtype)


class ConvNormRelu(nn.Module):
    """3x3 convolution with bias, batch norm, ReLU: the building block of the box heads."""

    features: int
    norm: HeadNormKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w d"]:
        x = nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv")(x)
        if self.norm == "frozen":
            x = FrozenBatchNorm(name="norm")(x)
        else:
            # momentum 0.9 here is PyTorch's 0.1
            x = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return nn.relu(x)


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: ViT's strided convolution, written as the matrix product that it is.

    XLA's gradient of a strided 16x16 convolution is an order of magnitude slower on CPUs than this.
    """

    width: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        patches = rearrange(images, "b (i p) (j q) c -> b i j (p q c)", p=self.patch, q=self.patch)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="proj")(patches)


class ConvPatchEmbed(nn.Module):
    """Patch embedding by a 4x4 patchify layer and strided 3x3 convolutions, for small models trained from scratch.

    Xiao et al. 2021: early convolutions make a transformer easier to train. Channels double with every halving of
    the grid, up to `width`.
    """

    width: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        halvings = (self.patch // 4).bit_length() - 1
        x = PatchEmbed(self.width // 2**halvings, 4, self.dtype, name="patchify")(images)
        for i in range(halvings):
            x = nn.gelu(nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm{i}")(x), approximate=False)
            features = self.width // 2 ** (halvings - 1 - i)
            x = nn.Conv(features, (3, 3), strides=2, padding=1, dtype=self.dtype, name=f"conv{i}")(x)
        return x
