"""Layers that backbones, heads and autoencoders share; position tables, and maskings of token grids.

A cell of a token grid is what one token stands for: `patch_size` square pixels of the image, and fewer on the maps of a
convolutional embedding. The visible cells of a masked image travel as a batch of small images, `[batch * visible, side,
side, channels]`: what works pixel by pixel, or patch by patch inside a cell, works on them as on whole images.
Convolutions that reach beyond a cell find its neighbours with `Masking.surround`.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.core.scope import LazyRng
from jaxtyping import Array, Bool, Float, Int

from mixformer_jax.models.config import HeadNormKind, PositionKind

Activation = Literal["gelu", "quick_gelu"]

TRUNCATED_NORMAL = nn.initializers.truncated_normal(0.02)
PRETRAINED_GRID = 14  # tokens along a side of the 224-pixel images that MAE and ViT are pre-trained on

# Indices come from a permutation: nothing has to be checked or clipped.
_TRUSTED = "promise_in_bounds"


class Masking(NamedTuple):
    """A choice of cells for every sample, on a square grid, row-major."""

    visible: Int[Array, "b n"]  # indices of the cells that stay, in the order of their tokens
    hidden: Bool[Array, "b cells"]

    @property
    def grid(self) -> int:
        """Cells along one side."""
        return math.isqrt(self.hidden.shape[1])

    def take(self, maps: Float[Array, "b h w c"]) -> Float[Array, "bn side side c"]:
        """The visible cells of whole maps, as small images."""
        cells = rearrange(maps, "b (i h) (j w) c -> b (i j) h w c", i=self.grid, j=self.grid)
        taken = jnp.take_along_axis(cells, self.visible[:, :, None, None, None], axis=1, mode=_TRUSTED)
        return rearrange(taken, "b n h w c -> (b n) h w c")

    def surround(self, cells: Float[Array, "bn side side c"], reach: int) -> Float[Array, "bn wider wider c"]:
        """Visible cells with `reach` pixels around them; hidden cells and the outside of the image are zeros.

        As in the masked convolutions of ConvMAE (Gao et al. 2022, section 3.2).
        """
        grid, side = self.grid, cells.shape[1]

        def of_one(visible: Array, cells: Array) -> Array:
            everywhere = jnp.zeros((grid * grid, *cells.shape[1:]), cells.dtype)
            everywhere = everywhere.at[visible].set(cells, mode=_TRUSTED, unique_indices=True)
            maps = rearrange(everywhere, "(i j) h w c -> (i h) (j w) c", i=grid)
            maps = jnp.pad(maps, ((reach, reach), (reach, reach), (0, 0)))
            window = jnp.arange(side + 2 * reach)
            rows, columns = (start[:, None] * side + window for start in jnp.divmod(visible, grid))
            return maps.at[rows[:, :, None], columns[:, None, :]].get(mode=_TRUSTED)

        by_sample = rearrange(cells, "(b n) h w c -> b n h w c", n=self.visible.shape[1])
        return rearrange(jax.vmap(of_one)(self.visible, by_sample), "b n h w c -> (b n) h w c")

    def fill(self, tokens: Float[Array, "b n c"], missing: Float[Array, " c"]) -> Float[Array, "b cells c"]:
        """Visible tokens at their places in the whole grid, one and the same token at all others."""

        def of_one(visible: Array, tokens: Array) -> Array:
            everywhere = jnp.broadcast_to(missing.astype(tokens.dtype), (self.hidden.shape[1], tokens.shape[1]))
            return everywhere.at[visible].set(tokens, mode=_TRUSTED, unique_indices=True)

        return jax.vmap(of_one)(self.visible, tokens)


def count_visible(cells: int, mask_ratio: float) -> int:
    """Cells that stay visible, rounded down as in MAE."""
    return int(cells * (1 - mask_ratio))


def random_masking(noise: Float[Array, "b cells"], mask_ratio: float) -> Masking:
    """Keeps the cells of a square grid with the smallest noise, smallest first (He et al. 2022, section 3)."""
    order = jnp.argsort(noise, axis=1)
    visible = count_visible(noise.shape[1], mask_ratio)
    return Masking(order[:, :visible], jnp.argsort(order, axis=1) >= visible)


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

    A module draws once for a pass of the model: it drops a sample's templates and search region together, as the
    official trainer, whether they pass as one stream of tokens or one after the other.
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
        scale, var = (self.variable("constants", name, jnp.ones, channels).value for name in ("scale", "var"))
        bias, mean = (self.variable("constants", name, jnp.zeros, channels).value for name in ("bias", "mean"))
        factor = scale * jax.lax.rsqrt(var + 1e-5)
        return (x * factor + (bias - mean * factor)).astype(x.dtype)


def batch_norm(x: Float[Array, "... c"], frozen: bool, dtype: jnp.dtype, *, train: bool) -> Float[Array, "... c"]:
    """The batch norm `norm` of the calling module: a frozen one, or one that learns (momentum 0.9: PyTorch's 0.1)."""
    if frozen:
        return FrozenBatchNorm(name="norm")(x)
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name="norm")(x)


def depthwise_kernel(module: nn.Module, size: int, channels: int) -> Float[Array | np.ndarray, "k l c"]:
    """The parameter `kernel` of a depth-wise convolution; its fan-in is the window alone."""
    init = nn.initializers.truncated_normal(1 / size)
    return module.param("kernel", init, (size, size, channels))


@functools.partial(jax.jit, static_argnames="stride", inline=True)  # traced once for all layers of one shape
def depthwise_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array | np.ndarray, "k l c"], stride: int, masking: Masking | None = None
) -> Float[Array, "b out_h out_w c"]:
    """A convolution of every channel by itself, padded by half a window, as the sum of shifted images that it is.

    About 30 times as fast as XLA's own on CPUs; on accelerators the sum, in float32, fuses into one loop. With
    `masking`, `x` are the visible cells alone.
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
        return nn.relu(batch_norm(x, self.norm == "frozen", self.dtype, train=train))


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: ViT's strided convolution as the matrix product that it is.

    XLA's gradient of a strided 16x16 convolution is an order of magnitude slower on CPUs.
    """

    width: int
    patch: int
    dtype: jnp.dtype
    normed: bool = False  # layer norm and GELU behind it: ConvMAE's

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        patches = rearrange(images, "b (i p) (j q) c -> b i j (p q c)", p=self.patch, q=self.patch)
        tokens = nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="proj")(patches)
        return gelu(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)) if self.normed else tokens


class ConvPatchEmbed(nn.Module):
    """A 4x4 patchify layer and strided 3x3 convolutions, which make a transformer easier to train (Xiao et al. 2021).

    Channels double with every halving of the grid, up to `width`. With `masking`, the images are the visible cells.
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


def sincos_positions(grid: int, width: int) -> Float[np.ndarray, "n c"]:
    """Two-dimensional sin-cos table of a square token grid, float64, row-major, as in MAE and the official weights.

    Half of the channels encode the column (x), half the row (y): all sines, then all cosines, of the integer position
    times 10000 ** (-i / (width / 4)).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))

    def encode(position: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n half"]:
        angle = position[:, None] * frequencies
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    rows, columns = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([encode(columns.astype(np.float64)), encode(rows.astype(np.float64))], axis=1)


def resize_positions(table: Float[Array | np.ndarray, "n c"], grid: int) -> Float[Array, "m c"]:
    """Resizes the position table of a square grid to `grid * grid` tokens, bicubically as PyTorch does (a = -0.75)."""
    source = math.isqrt(len(table))
    if source * source != len(table):
        raise ValueError(f"a position table of {len(table)} rows is no square grid")
    square = table.reshape(source, source, -1)
    resized = jax.image.resize(square, (grid, grid, square.shape[-1]), method="cubic-pytorch", antialias=False)
    return resized.reshape(grid * grid, -1)


def add_positions(maps: Float[Array, "b h w c"], table: Float[Array | np.ndarray, "n c"]) -> Float[Array, "b h w c"]:
    """Adds the table of a token grid to every image of that grid."""
    return maps + jnp.asarray(table, maps.dtype).reshape(maps.shape[1:])


class PositionTable(nn.Module):
    """The position table of one token grid (the paper, section 3.3)."""

    kind: PositionKind
    grid: int
    width: int

    @nn.compact
    def __call__(self) -> Float[Array | np.ndarray, "n c"]:
        if self.kind == "sincos":
            return jnp.asarray(sincos_positions(self.grid, self.width), dtype=jnp.float32)
        if self.kind == "learnable":
            # As large as content and sin-cos tables are, and independent of the other grid's table.
            return self.param("table", nn.initializers.normal(0.5), (self.grid**2, self.width))
        # Without a checkpoint, the table that would have been interpolated is MAE's own initialisation.
        pretrained = sincos_positions(PRETRAINED_GRID, self.width).astype(np.float32)
        table = self.param("table", lambda _key: resize_positions(pretrained, self.grid))
        return jax.lax.stop_gradient(table) if self.kind == "interpolated_frozen" else table
