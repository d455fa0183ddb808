"""Mask networks: Alpha-Refine's (Yan et al. 2021, with the mask head of VOT2020; "MixFormer + AR" of Table 9), and a
small decoder on a tracker's frozen backbone. Their crops: `crops.stretched_crop`."""

import dataclasses
import functools
import math
from typing import Annotated, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

from mixformer_jax.models.config import MixFormerConfig, Width
from mixformer_jax.models.heads import precise_roi_pool, upsample
from mixformer_jax.models.layers import PatchEmbed
from mixformer_jax.models.mixformer import BACKBONES
from mixformer_jax.typed_settings import ConfigError, Range, TypedSettings

EPSILON = 1e-5
POOLED_STRIDE = 16  # of the features that are correlated, pixels of the crop
EXPANSION = 4  # channels that a bottleneck gives over those of its 3x3 convolution
# Taps of the cubic kernel (a = -0.75) a quarter of a cell to the right of a cell's centre: its left neighbour, itself,
# and two to the right.
CUBIC_TAPS = (-0.10546875, 0.87890625, 0.26171875, -0.03515625)

Maps = Float[Array, "b h w c"]


@dataclasses.dataclass(frozen=True)
class AlphaRefineConfig(TypedSettings):
    """Alpha-Refine's sizes; the defaults are the published configuration (30,161,573 parameters with its classifier).

    Attributes:
        name: shown to users.
        pool_size: bins along a side of the template's box; the mask has 32 times as many pixels.
        depths: bottlenecks of the four ResNet layers.
        stem_width: channels of the stem; the layers have 4, 8, 16 and 32 times as many.
        head_width: channels of the mask head.
    """

    section = "alpha_refine"

    name: str = "alpha_refine"
    pool_size: Annotated[int, Range(2, 64)] = 12
    depths: tuple[Annotated[int, Range(1, 64)], ...] = (3, 4, 6, 3)
    stem_width: Width = 64
    head_width: Annotated[int, Range(2, 4096)] = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != 4:
            raise ConfigError(f"alpha_refine.depths is {self.depths}; expected the bottlenecks of four layers")

    @property
    def crop_size(self) -> int:
        """Side of the crops in training and tracking, and always of the mask."""
        return 32 * self.pool_size

    @property
    def correlated(self) -> int:
        """Maps of the correlation, one a bin."""
        return self.pool_size**2


def resize_linear(maps: Maps, height: int, width: int) -> Float[Array, "b out_h out_w c"]:
    """Half-pixel centres, edges repeated, no antialiasing even where it shrinks."""
    return jax.image.resize(maps, (maps.shape[0], height, width, maps.shape[3]), "linear", antialias=False)


def double_cubic(maps: Maps) -> Float[Array, "b hh ww c"]:
    """Twice the size by the cubic kernel with a = -0.75, edges repeated."""
    for axis in (1, 2):
        padding = [(2, 2) if axis == each else (0, 0) for each in range(4)]
        padded, length = jnp.pad(maps, padding, mode="edge"), maps.shape[axis]
        pair = []
        for start, taps in enumerate((CUBIC_TAPS[::-1], CUBIC_TAPS)):
            parts = (tap * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i, tap in enumerate(taps, start))
            pair.append(functools.reduce(jnp.add, parts))
        maps = jnp.stack(pair, axis + 1).reshape(*maps.shape[:axis], 2 * length, *maps.shape[axis + 1 :])
    return maps


def _mean(maps: Maps) -> Float[Array, "b 1 1 c"]:
    return jnp.mean(maps, axis=(1, 2), keepdims=True)


def _conv(maps: Maps, features: int, size: int, name: str, bias: bool = True) -> Float[Array, "b h w d"]:
    """A convolution of the calling module that keeps the map's size."""
    return nn.Conv(features, (size, size), padding=size // 2, use_bias=bias, name=name)(maps)


class BatchNorm(nn.Module):
    """Batch norm with PyTorch's statistics: the tracked variance is the unbiased one (Flax's is not), momentum 0.1."""

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> Maps:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        tracked_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        tracked_var = self.variable("batch_stats", "var", jnp.ones, channels)
        mean, var = tracked_mean.value, tracked_var.value
        if train:
            mean = jnp.mean(x, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(x - mean), axis=(0, 1, 2))
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                tracked_mean.value = 0.9 * tracked_mean.value + 0.1 * mean
                tracked_var.value = 0.9 * tracked_var.value + 0.1 * var * (count / max(1, count - 1))
        return (x - mean) * (scale * jax.lax.rsqrt(var + EPSILON)) + bias


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the width; a layer's first block projects its shortcut."""

    width: int
    stride: int
    is_first: bool

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> Float[Array, "b out_h out_w out_c"]:
        def conv_norm(maps: Maps, features: int, size: int, stride: int, name: str) -> Array:
            conv = nn.Conv(features, (size, size), stride, size // 2, use_bias=False, name=name)
            return BatchNorm(name=f"{name}_norm")(conv(maps), train=train)

        branch = nn.relu(conv_norm(x, self.width, 1, 1, "conv1"))
        branch = nn.relu(conv_norm(branch, self.width, 3, self.stride, "conv2"))
        branch = conv_norm(branch, EXPANSION * self.width, 1, 1, "conv3")
        shortcut = conv_norm(x, EXPANSION * self.width, 1, self.stride, "shortcut") if self.is_first else x
        return nn.relu(branch + shortcut)


class Stem(nn.Module):
    """7x7 convolution with stride 2, batch norm, ReLU, 3x3 max pooling with stride 2."""

    width: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b out_h out_w c"]:
        x = nn.Conv(self.width, (7, 7), 2, 3, use_bias=False, name="conv")(images)
        x = nn.relu(BatchNorm(name="norm")(x, train=train))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class ResNet(nn.Module):
    """The features of its layers, at strides 4, 8, 16 and 32. Block j of layer i is `layer{i}_{j}`."""

    stem_width: int
    depths: tuple[int, ...]

    def setup(self) -> None:
        self.stem = Stem(self.stem_width)
        self.layers = [
            [
                Bottleneck(self.stem_width * 2**i, 2 if i and not j else 1, j == 0, name=f"layer{i + 1}_{j}")
                for j in range(depth)
            ]
            for i, depth in enumerate(self.depths)
        ]

    def __call__(self, images: Float[Array, "b h w 3"], num_layers: int = 4, *, train: bool) -> list[Array]:
        """The features of the first so many layers; the others are not computed."""
        x, features = self.stem(images, train=train), []
        for layer in self.layers[:num_layers]:
            for block in layer:
                x = block(x, train=train)
            features.append(x)
        return features


class Correlation(nn.Module):
    """The template's bins over the search features, gated and mixed; a map a bin.

    Every value is an unscaled sum over all channels, so the product is made in full precision.
    """

    @nn.compact
    def __call__(
        self, kernel: Float[Array, "b p q c"], features: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w pq"]:
        bins = rearrange(kernel, "b p q c -> b (p q) c")
        maps = jnp.einsum("bhwc,bkc->bhwk", features, bins, precision=jax.lax.Precision.HIGHEST)
        self.sow("intermediates", "correlated", maps)
        channels = maps.shape[-1]
        squeezed = nn.relu(_conv(_mean(maps), max(1, channels // 4), 1, "squeeze"))
        gate = nn.sigmoid(_conv(squeezed, channels, 1, "excite"))
        self.sow("intermediates", "gate", gate)
        maps = maps * gate
        self.sow("intermediates", "gated", maps)
        return maps + self._non_local(maps, train=train)

    def _non_local(self, maps: Maps, *, train: bool) -> Maps:
        """Every cell looks at cells of half the resolution, by logits that are not scaled (Wang et al. 2018)."""
        _, height, width, channels = maps.shape

        def pooled(name: str) -> Float[Array, "b n c"]:
            halved = nn.max_pool(_conv(maps, channels // 2, 1, name), (2, 2), (2, 2))
            return rearrange(halved, "b h w c -> b (h w) c")

        queries = rearrange(_conv(maps, channels // 2, 1, "theta"), "b h w c -> b (h w) c")
        keys, values = pooled("phi"), pooled("g")
        highest = jax.lax.Precision.HIGHEST
        attention = jax.nn.softmax(jnp.einsum("bnc,bmc->bnm", queries, keys, precision=highest), axis=-1)
        self.sow("intermediates", "attention", attention)
        mixed = jnp.einsum("bnm,bmc->bnc", attention, values, precision=highest)
        mixed = rearrange(mixed, "b (h w) c -> b h w c", h=height, w=width)
        branch = BatchNorm(name="expand_norm")(_conv(mixed, channels, 1, "expand"), train=train)
        self.sow("intermediates", "branch", branch)
        return branch


class ResidualRefinement(nn.Module):
    """1x1 convolution, and two 3x3 ones around a batch norm as the residual; ReLU after the sum."""

    @nn.compact
    def __call__(self, x: Maps, *, train: bool) -> Float[Array, "b h w c"]:
        x = _conv(x, x.shape[-1], 1, "conv1")
        branch = nn.relu(BatchNorm(name="norm")(_conv(x, x.shape[-1], 3, "conv2"), train=train))
        return nn.relu(x + _conv(branch, x.shape[-1], 3, "conv3", bias=False))


class Level(nn.Module):
    """One resolution of the mask head: features and correlation mixed, refined, gated, joined with the deeper level.

    Without a deeper level the mean of the reduced features stands in for it.
    """

    width: int

    @nn.compact
    def __call__(
        self, features: Maps, correlation: Float[Array, "b ch cw k"], deeper: Array | None, *, train: bool
    ) -> Float[Array, "b h w d"]:
        height, width = features.shape[1:3]
        reduced = _conv(nn.relu(_conv(features, self.width, 1, "reduce1")), self.width, 1, "reduce2")
        self.sow("intermediates", "reduced", reduced)
        mixed = jnp.concatenate([reduced, resize_linear(correlation, height, width)], axis=-1)
        self.sow("intermediates", "joined", mixed)
        for i, channels in enumerate((mixed.shape[-1], mixed.shape[-1], self.width), start=1):
            mixed = nn.relu(_conv(mixed, channels, 3, f"mix{i}"))
        self.sow("intermediates", "mixed", mixed)
        refined = ResidualRefinement(name="refine1")(mixed, train=train)
        deeper = _mean(reduced) if deeper is None else deeper
        means = jnp.concatenate([_mean(refined), _mean(deeper)], axis=-1)
        logits = _conv(nn.relu(_conv(means, self.width, 1, "gate1")), self.width, 1, "gate2")
        self.sow("intermediates", "gate_logits", logits)
        gated = refined * nn.sigmoid(logits) + resize_linear(deeper, height, width)
        self.sow("intermediates", "gated", gated)
        return ResidualRefinement(name="refine2")(gated, train=train)


class MaskHead(nn.Module):
    """From the deepest level to the finest, then to one logit a pixel of the crop."""

    width: int
    size: int

    @nn.compact
    def __call__(self, features: list[Array], correlation: Maps, *, train: bool) -> Float[Array, "b size size"]:
        deeper = None
        for index in reversed(range(len(features))):
            level = Level(self.width, name=f"stride{4 * 2**index}")
            deeper = level(features[index], correlation, deeper, train=train)
        x = double_cubic(cast(Array, deeper))
        self.sow("intermediates", "doubled", x)
        x = _conv(x, self.width // 2, 3, "project1")
        self.sow("intermediates", "projected", x)
        x = double_cubic(nn.relu(x))
        self.sow("intermediates", "doubled_again", x)
        x = resize_linear(x, self.size, self.size)
        self.sow("intermediates", "resized", x)
        return _conv(x, 1, 3, "project2")[..., 0]


class AlphaRefine(nn.Module):
    """A ResNet-50 reads a template and a search crop. The template's box is pooled to P x P vectors once, and these are
    correlated with every cell of each search crop; squeeze-excitation and a non-local block refine the P * P maps, and
    a head brings them, level by level, to the mask of the target on the crop.

    Images come in normalised (`pixels.normalise`), NHWC float32; it computes in float32.
    """

    config: AlphaRefineConfig

    def setup(self) -> None:
        config = self.config
        self.backbone = ResNet(config.stem_width, config.depths)
        self.correlation = Correlation()
        self.head = MaskHead(config.head_width, config.crop_size)

    def encode_template(
        self, templates: Float[Array, "b th tw 3"], boxes_xyxy: Float[Array, "b 4"], *, train: bool = False
    ) -> Float[Array, "b p p c"]:
        """What a search needs of the templates: their boxes, in pixels of their crops, pooled."""
        features = self.backbone(templates, 3, train=train)[-1]
        pool = (self.config.pool_size, self.config.pool_size)
        return precise_roi_pool(features, boxes_xyxy / POOLED_STRIDE, pool)

    def segment(
        self, kernel: Float[Array, "b p p c"], search: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b s s"]:
        """Logits of the targets' masks on search crops; target i on crop i."""
        features = self.backbone(search, train=train)
        return self.head(features, self.correlation(kernel, features[2], train=train), train=train)

    def __call__(
        self,
        templates: Float[Array, "b th tw 3"],
        boxes_xyxy: Float[Array, "b 4"],
        search: Float[Array, "b h w 3"],
        *,
        train: bool = False,
    ) -> Float[Array, "b s s"]:
        """Both. In training, norms of what templates run through learn from templates first, then from searches."""
        return self.segment(self.encode_template(templates, boxes_xyxy, train=train), search, train=train)

    @nn.nowrap
    def initial_values(self, key: PRNGKeyArray) -> dict:
        """What `init_variables` computes, to be traced.

        The ResNet's kernels are normal with variance 2 / (k * k * out), other kernels and biases uniform within
        1 / sqrt(fan-in), as in PyTorch; the non-local block is the identity.
        """
        size = self.config.crop_size
        images, boxes_xyxy = jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4))
        shapes = flatten_dict(jax.eval_shape(self.init, key, images, boxes_xyxy, images))
        kernels = {path[:-1]: value.shape for path, value in shapes.items() if path[-1] == "kernel"}
        ones = {path for path in shapes if path[-1] in ("scale", "var") and path[-2:] != ("expand_norm", "scale")}
        values = {path: jnp.full(value.shape, float(path in ones)) for path, value in shapes.items()}
        uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
        for in_resnet, part_key in zip((True, False), jax.random.split(key), strict=True):
            paths = [path for path in shapes if path[:-1] in kernels and (path[1] == "backbone") == in_resnet]
            sizes = [math.prod(shapes[path].shape) for path in paths]
            # One draw for all: XLA takes a minute to compile one for each.
            noise = jax.random.normal(part_key, (sum(sizes),)) if in_resnet else uniform(part_key, (sum(sizes),))
            for path, part in zip(paths, jnp.split(noise, np.cumsum(sizes)[:-1]), strict=True):
                height, width, fan_in, fan_out = kernels[path[:-1]]
                reach = (2 / (height * width * fan_out)) ** 0.5 if in_resnet else (height * width * fan_in) ** -0.5
                values[path] = reach * part.reshape(shapes[path].shape)
        return unflatten_dict(values)


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig(TypedSettings):
    """Sizes of a mask decoder, and whose tokens it reads.

    Attributes:
        name: shown to users.
        tracker: weights of the tracker whose backbone it reads, frozen: the name of embedded ones, a file, or a run's
            folder; masks need it where they are used, too.
        widths: channels on the tokens' grid, and on each grid of half the stride before it.
        depth: residual blocks on each grid.
    """

    section = "mask_decoder"

    name: str = "mask_decoder"
    tracker: str = "mixvit_tiny"
    widths: tuple[Annotated[int, Range(4, 1024)], ...] = (96, 48, 24)
    depth: Annotated[int, Range(1, 16)] = 1

    def check_tracker(self, tracker: MixFormerConfig) -> None:
        """Raises ConfigError for a tracker that reads more than colour, or whose patches cannot be halved so often."""
        if tracker.streams != "colour":
            raise ConfigError(
                f"masks are found in colour, and {tracker.name} reads a second stream (second_stream is "
                f"{tracker.second_stream!r}); name a tracker of colour as mask_decoder.tracker"
            )
        halvings = len(self.widths) - 1
        if halvings < 1 or tracker.patch_size % 2**halvings:
            raise ConfigError(
                f"mask_decoder.widths has {len(self.widths)} grids; expected 2 or more, each halving the "
                f"{tracker.patch_size} pixels of a token of {tracker.name}"
            )


def _refined(maps: Maps, depth: int, name: str) -> Maps:
    """Residual blocks of the calling module: layer norm, ReLU, 3x3 convolution."""
    for i in range(depth):
        normed = nn.LayerNorm(epsilon=1e-6, name=f"{name}_norm{i}")(maps)
        maps = maps + nn.Conv(maps.shape[-1], (3, 3), padding=1, name=f"{name}_conv{i}")(nn.relu(normed))
    return maps


class MaskDecoder(nn.Module):
    """From tokens and pixels to a logit for each cell of the finest grid."""

    widths: tuple[int, ...]
    depth: int
    patch: int  # side of a token, pixels

    @nn.compact
    def __call__(self, tokens: Float[Array, "b g g c"], images: Float[Array, "b s s 3"]) -> Float[Array, "b h h"]:
        pixels, maps = [], images
        finest = self.patch // 2 ** (len(self.widths) - 1)
        for i, width in enumerate(self.widths[:0:-1]):
            maps = PatchEmbed(width, 2 if i else finest, jnp.dtype("float32"), name=f"patches{i}")(maps)
            maps = _refined(maps, 1, f"pixels{i}")
            pixels.append(maps)
        grid, width = tokens.shape[1], self.widths[0]
        # Where the box is, is the same in all crops: a table by place has it.
        places = self.param("places", nn.initializers.normal(0.02), (grid, grid, width))
        x = nn.Dense(width, name="tokens")(nn.LayerNorm(epsilon=1e-6, name="tokens_norm")(tokens)) + places
        x = _refined(x, self.depth, "level0")
        for i, width in enumerate(self.widths[1:], start=1):
            x = upsample(nn.Dense(width, name=f"narrow{i}")(x), 2) + pixels[-i]
            x = _refined(x, self.depth, f"level{i}")
        x = nn.relu(nn.LayerNorm(epsilon=1e-6, name="last_norm")(x))
        return nn.Conv(1, (3, 3), padding=1, name="last")(x)[..., 0]


class TokenMasks(nn.Module):
    """A tracker's backbone, frozen, and a decoder from its tokens and the crop's pixels to the target's mask.

    The box is the middle of every crop, and so the prompt. Smaller, the crop is its own template, which tells the
    search tokens what to look for. Tokens say what belongs to the target, pixels where it ends: as in a feature pyramid
    (Lin et al. 2017) the tokens are brought to finer grids step by step, and the pixels are added on each.

    Images come in normalised (`pixels.normalise`), NHWC float32.
    """

    tracker: MixFormerConfig
    config: MaskDecoderConfig

    def setup(self) -> None:
        self.config.check_tracker(self.tracker)
        self.backbone = BACKBONES[self.tracker.backbone](self.tracker)
        self.decoder = MaskDecoder(self.config.widths, self.config.depth, self.tracker.patch_size)

    def __call__(self, crops: Float[Array, "b s s 3"]) -> Float[Array, "b s s"]:
        """Logits of the targets in the middle of the crops, by pixel."""
        small, size = self.tracker.template_size, self.tracker.search_size
        template = jax.image.resize(crops, (len(crops), small, small, 3), "linear")
        _cache, found = self.backbone.joint(template[:, None], crops, None, train=False)
        logits = self.decoder(jax.lax.stop_gradient(found.features.astype(jnp.float32)), crops)
        return resize_linear(logits[..., None], size, size)[..., 0]

    @nn.nowrap
    def initial_values(self, key: PRNGKeyArray) -> dict:
        """What `init_variables` computes, to be traced."""
        size = self.tracker.search_size
        return dict(self.init(key, jnp.zeros((1, size, size, 3))))
