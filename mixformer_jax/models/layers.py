"""Small layers shared by the backbones and heads."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.core.scope import LazyRng
from jaxtyping import Array, Float

from mixformer_jax.models.config import HeadNormKind
from mixformer_jax.models.masking import Masking

TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)


Activation = Literal["gelu", "quick_gelu"]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU, by erf: on a CPU half the time of `jax.nn.gelu(approximate=False)`, which goes by erfc."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x): CvT's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two dense layers with an activation between them."""

    hidden: int
    activation: Activation
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        width = x.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL)
        activate = gelu if self.activation == "gelu" else quick_gelu
        return dense(width, name="fc2")(activate(dense(self.hidden, name="fc1")(x)))


def perceptron(x: Float[Array, "*b c"], outputs: int, dtype: jnp.dtype) -> Float[Array, "*b outputs"]:
    """Three dense layers `fc0`, `fc1`, `fc2` of the calling module, with ReLU between them."""
    width = x.shape[-1]
    for i in range(2):
        x = nn.relu(nn.Dense(width, dtype=dtype, name=f"fc{i}")(x))
    return nn.Dense(outputs, dtype=dtype, name="fc2")(x)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples and rescales the others (Huang et al. 2016).

    A module draws once for a pass of the model: what it drops of the templates of a sample, it drops of the search
    region, which pass one after the other here and as one stream of tokens in the official trainer.
    """

    rate: float

    @nn.compact
    def __call__(self, branch: Float[Array, "b ..."], *, train: bool) -> Float[Array, "b ..."]:
        if not train or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        assert self.scope is not None
        # Not `make_rng`, which would count the calls.
        key = LazyRng.create(self.scope.rngs["drop_path"]).as_jax_rng()
        kept = jax.random.bernoulli(key, keep, shape)
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


def depthwise_kernel(module: nn.Module, size: int, channels: int) -> Float[Array | np.ndarray, "k l c"]:
    """The parameter `kernel` of a depth-wise convolution; its fan-in is the window alone."""
    init = nn.initializers.truncated_normal(1 / size)
    return module.param("kernel", init, (size, size, channels))


def depthwise_convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array | np.ndarray, "k l c"],
    stride: int,
    masking: Masking | None = None,
) -> Float[Array, "b out_h out_w c"]:
    """A convolution of every channel by itself, padded by half a window, as the sum of shifted images that it is.

    XLA on CPUs has no fast depth-wise convolution (about 30 times slower than this); on accelerators the sum fuses
    into one loop. Products are summed in float32. With `masking`, `x` are the visible cells alone.
    """
    size = kernel.shape[0]
    reach = size // 2
    out_h, out_w = ((side - 1) // stride + 1 for side in x.shape[1:3])
    if masking is None:
        padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    else:
        padded = masking.surround(x, reach)

    def tap(i: int, j: int) -> Float[Array, "b out_h out_w c"]:
        rows = slice(i, i + stride * (out_h - 1) + 1, stride)
        columns = slice(j, j + stride * (out_w - 1) + 1, stride)
        return padded[:, rows, columns].astype(jnp.float32) * kernel[i, j]

    return functools.reduce(jnp.add, (tap(i, j) for i in range(size) for j in range(size))).astype(x.dtype)


class DepthwiseConv(nn.Module):
    """A depth-wise convolution with bias."""

    size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], masking: Masking | None = None) -> Float[Array, "b h w c"]:
        kernel = depthwise_kernel(self, self.size, x.shape[-1])
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return depthwise_convolution(x.astype(self.dtype), kernel, 1, masking) + bias.astype(self.dtype)


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

    XLA's gradient of a strided 16x16 convolution is an order of magnitude slower on CPUs than this. Whole images and
    visible cells are all one to it.
    """

    width: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        return self.embed(images)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        """The projected patches; for `__call__` of this class and its subclasses."""
        patches = rearrange(images, "b (i p) (j q) c -> b i j (p q c)", p=self.patch, q=self.patch)
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="proj")(patches)


class ConvPatchEmbed(nn.Module):
    """Patch embedding by a 4x4 patchify layer and strided 3x3 convolutions, for small models trained from scratch.

    Xiao et al. 2021: early convolutions make a transformer easier to train. Channels double with every halving of
    the grid, up to `width`. With `masking`, the images are the visible cells alone.
    """

    width: int
    patch: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], masking: Masking | None = None) -> Float[Array, "b gh gw d"]:
        halvings = (self.patch // 4).bit_length() - 1
        x = PatchEmbed(self.width // 2**halvings, 4, self.dtype, name="patchify")(images)
        for i in range(halvings):
            x = gelu(nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=f"norm{i}")(x))
            features = self.width // 2 ** (halvings - 1 - i)
            x, padding = (x, 1) if masking is None else (masking.surround(x, 1), 0)
            x = nn.Conv(features, (3, 3), strides=2, padding=padding, dtype=self.dtype, name=f"conv{i}")(x)
        return x
