"""Masked autoencoders around the tracker's own encoder (the paper, section 3.4).

One model, three objectives: MAE on single images (He et al. 2022); TrackMAE, where a masked search region attends to
fully visible templates through the mixed attention of the tracker's blocks (Fig. 5); and ConvMAE (Gao et al. 2022),
which is either of them behind ConvMAE's patch embedding. The encoder is the tracker's backbone, variables and all;
only visible tokens of the search region pass through it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32

from mixformer_jax.models.attention import Grid, joint_step, search_step, step_runner
from mixformer_jax.models.backbone import VisibleFeatures
from mixformer_jax.models.config import (
    DECODER_HEADS,
    DECODER_WIDTH,
    ConfigError,
    MixFormerConfig,
    SomeBlocks,
    SomeHeads,
    Width,
    dataclass_from_mapping,
)
from mixformer_jax.models.layers import TRUNCATED_NORMAL
from mixformer_jax.models.masking import Masking, count_visible, random_masking
from mixformer_jax.models.positions import add_positions, sincos_positions
from mixformer_jax.models.vit import MixViTBackbone, slimming_block
from mixformer_jax.typed_settings import InnerShare, OnlineTemplates, TypedSettings

VARIANCE_EPSILON = 1e-6  # added to that of a patch


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(TypedSettings):
    """A masked autoencoder around the encoder of a tracker.

    Attributes:
        model: the tracker. Its backbone is built as far as the encoder goes; `search_size` is the size of the images
            that are masked. `attention` holds for the decoder too.
        num_templates: visible templates beside the masked search region (TrackMAE); 0 for single images (MAE).
        mask_ratio: share of the search region's tokens that are hidden.
        decoder_depth: blocks of the decoder.
        decoder_width: its channels.
        decoder_heads: its attention heads.
        norm_pix_loss: the decoder is to tell each patch less its mean, over its deviation.
        class_token: a learned token goes along with the visible ones, as in MAE. The tracker has none; it is for
            going on with MAE's checkpoints, and for writing some.
    """

    model: MixFormerConfig
    num_templates: OnlineTemplates = 0
    mask_ratio: InnerShare = 0.75
    decoder_depth: SomeBlocks = 8
    decoder_width: Width = DECODER_WIDTH
    decoder_heads: SomeHeads = DECODER_HEADS
    norm_pix_loss: bool = True
    class_token: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.backbone != "vit":
            raise ConfigError(
                f"model.backbone is {self.model.backbone!r}; masked autoencoders need 'vit': the convolutions between "
                "the stages of 'cvt' want whole grids"
            )
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ConfigError(
                f"decoder_width is {self.decoder_width}; expected a multiple of 4 and of decoder_heads "
                f"({self.decoder_heads})"
            )
        cells = self.model.search_grid**2
        if not 0 < count_visible(cells, self.mask_ratio) < cells:
            raise ConfigError(
                f"mask_ratio is {self.mask_ratio}; expected a share in (0, 1) that hides some of the {cells} tokens of "
                "a search region and leaves others"
            )

    @property
    def encoder(self) -> MixFormerConfig:
        """The model up to its encoder: nothing of what trackers put behind."""
        return dataclasses.replace(
            self.model,
            decoder_blocks=0,
            cross_attention_blocks=0,
            context_augment_layers=0,
            head="corner",
            score_heads=0,
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "AutoencoderConfig":
        """Raises ConfigError, see `dataclass_from_mapping`."""
        return dataclass_from_mapping(cls, values, "autoencoder")


class Reconstruction(NamedTuple):
    """What an autoencoder makes of masked images.

    Attributes:
        patches: predicted pixels of all patches, see `models/patches.py`; with `norm_pix_loss`, normalised ones.
        latent: visible tokens, and behind them the class token, as the decoder takes them in: after a layer norm.
    """

    patches: Float[Array, "b cells pixels"]
    latent: Float[Array, "b n c"]


class Decoder(nn.Module):
    """Visible tokens to the pixels of all patches, with the templates' tokens in the tracker's mixed attention.

    Attributes:
        config: of the autoencoder.
        remat: see `Backbone`.
    """

    config: AutoencoderConfig
    remat: bool = False

    def setup(self) -> None:
        config, dtype = self.config, jnp.dtype(self.config.model.dtype)
        width = config.decoder_width
        dense = functools.partial(nn.Dense, dtype=dtype, kernel_init=TRUNCATED_NORMAL)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=dtype)
        # ConvMAE's decoder also reads the convolutional stages (Gao et al. 2022, section 3.2); others have none.
        self.early = [dense(config.model.width) for _ in config.model.early_widths]
        self.norm, self.embed = norm(), dense(width)
        self.mask_token = self.param("mask_token", nn.initializers.normal(0.02), (width,))
        self.blocks = [
            slimming_block(config.model, width, config.decoder_heads, 0.0, None) for _ in range(config.decoder_depth)
        ]
        self.output_norm, self.pixels = norm(), dense(3 * config.model.patch_size**2)

    def __call__(
        self,
        templates: Float[Array, "b slots h w c"] | None,
        visible: VisibleFeatures,
        masking: Masking,
        *,
        train: bool,
    ) -> Reconstruction:
        """Reconstructs the search region from what the encoder made of its visible cells and of the templates."""
        latent = self.norm(self._fused(visible, masking))
        search, grid = self._whole_grid(self._embedded(latent), masking), Grid(1, masking.grid)
        if templates is None:
            step = functools.partial(search_step, grid=grid, train=train)
            for block in self.blocks:
                search = self._run(step, train)(block, search, None, None)
        else:
            target, target_grid = self._template_tokens(templates), Grid(*templates.shape[1:3])
            symmetric = self.config.model.attention == "symmetric"
            joint = functools.partial(joint_step, grids=(target_grid, grid), symmetric=symmetric, train=train)
            both = jnp.concatenate([target, search], axis=1)
            for block in self.blocks:
                both = self._run(joint, train)(block, both, None)
            search = both[:, target_grid.tokens :]
        return Reconstruction(self.pixels(self.output_norm(search[:, : grid.tokens])), latent)

    def _run(self, step: Callable[..., Any], train: bool) -> Callable[..., Any]:
        return step_runner(step, self.remat and train)

    def _embedded(self, tokens: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        """In the decoder's width; its residual stream is float32, as the backbone's."""
        return self.embed(tokens).astype(jnp.float32)

    def _fused(self, visible: VisibleFeatures, masking: Masking) -> Float[Array, "b n c"]:
        """The encoder's tokens, with ConvMAE's early stages added to those of cells."""
        count = masking.visible.shape[1]
        cells = visible.tokens[:, :count]
        for dense, maps in zip(self.early, visible.early, strict=True):
            cells = cells + dense(rearrange(maps, "(b n) h w c -> b n (h w c)", n=count))
        return jnp.concatenate([cells, visible.tokens[:, count:]], axis=1)

    def _whole_grid(self, tokens: Float[Array, "b n c"], masking: Masking) -> Float[Array, "b m c"]:
        """Tokens for all cells, the mask token where one is hidden, with positions; the class token as it is."""
        count = masking.visible.shape[1]
        cells = masking.fill(tokens[:, :count], jnp.asarray(self.mask_token))
        cells = cells + jnp.asarray(sincos_positions(masking.grid, self.config.decoder_width), cells.dtype)
        return jnp.concatenate([cells, tokens[:, count:]], axis=1)

    def _template_tokens(self, templates: Float[Array, "b slots h w c"]) -> Float[Array, "b n d"]:
        slots, grid = templates.shape[1:3]
        maps = self._embedded(self.norm(rearrange(templates, "b s h w c -> (b s) h w c")))
        maps = add_positions(maps, sincos_positions(grid, self.config.decoder_width))
        return rearrange(maps, "(b s) h w c -> b (s h w) c", s=slots)


class Autoencoder(nn.Module):
    """Encoder and decoder. Images come in normalised (`crops.normalise`), NHWC float32.

    Attributes:
        config: the architecture.
        remat: see `Backbone`.
    """

    config: AutoencoderConfig
    remat: bool = False

    def setup(self) -> None:
        config = self.config
        self.backbone = MixViTBackbone(config.encoder, self.remat)
        self.decoder = Decoder(config, self.remat)
        if config.class_token:
            self.class_token = self.param("class_token", nn.initializers.normal(0.02), (config.model.width,))

    def __call__(
        self,
        search: Float[Array, "b S S 3"],
        masking: Masking,
        templates: Float[Array, "b slots T T 3"] | None = None,
        *,
        train: bool = False,
    ) -> Reconstruction:
        """Reconstructs masked search regions, or single images.

        Args:
            search: the images that are masked; the encoder sees the visible cells of them alone.
            masking: which; see `draw_masking` and `random_masking`.
            templates: fully visible crops of the same targets, `num_templates` of them.
            train: whether stochastic depth draws.

        Raises:
            ConfigError: another number of templates than the config's.
        """
        given = 0 if templates is None else templates.shape[1]
        if given != self.config.num_templates:
            raise ConfigError(f"num_templates is {self.config.num_templates}, and {given} templates came")
        class_tokens = None
        if self.config.class_token:
            class_tokens = repeat(jnp.asarray(self.class_token), "c -> b 1 c", b=len(search))
        features, visible = self.backbone.joint_visible(templates, search, masking, class_tokens, train=train)
        return self.decoder(features, visible, masking, train=train)


def draw_masking(config: AutoencoderConfig, key: Array, batch_size: int) -> Masking:
    """A random masking for each sample of a batch."""
    return random_masking(jax.random.uniform(key, (batch_size, config.model.search_grid**2)), config.mask_ratio)


def init_autoencoder(model: Autoencoder, key: Array) -> dict[str, Any]:
    """Fresh variables: `params/backbone` as trackers have them, `params/decoder`, and a class token where asked for."""
    # Initialisation runs once: on a CPU, where XLA takes long to optimise it, optimising costs more than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(initial_values, model), compiler_options=options)(key)


def autoencoder_shapes(model: Autoencoder) -> dict[str, Any]:
    """The tree of `init_autoencoder` as shapes and types, at no cost."""
    return jax.eval_shape(functools.partial(initial_values, model), jax.random.key(0))


def initial_values(model: Autoencoder, key: Array) -> dict[str, Any]:
    """What `init_autoencoder` computes, to be traced."""
    config, tracker = model.config, model.config.model
    search = jnp.zeros((1, tracker.search_size, tracker.search_size, 3))
    templates = None
    if config.num_templates:
        templates = jnp.zeros((1, config.num_templates, tracker.template_size, tracker.template_size, 3))
    return dict(model.init(key, search, draw_masking(config, key, 1), templates))


def patchify(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b cells pixels"]:
    """Images as patches of `patch * patch` pixels, ordered by row, column, channel; cells are row-major."""
    return rearrange(images, "b (i p) (j q) c -> b (i j) (p q c)", p=patch, q=patch)


def unpatchify(patches: Float[Array, "b cells pixels"], patch: int) -> Float[Array, "b h w c"]:
    """Patches of a square image as the image."""
    grid = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (i j) (p q c) -> b (i p) (j q) c", i=grid, p=patch, q=patch)


def patch_moments(
    patches: Float[Array, "b cells pixels"],
) -> tuple[Float[Array, "b cells 1"], Float[Array, "b cells 1"]]:
    """Mean and deviation of every patch over its pixels and channels; the deviation is never 0.

    The variance is the unbiased one, plus `VARIANCE_EPSILON`, as in MAE.
    """
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + VARIANCE_EPSILON)


def reconstruction_losses(
    predicted: Float[Array, "b cells pixels"],
    images: Float[Array, "b h w c"],
    hidden: Bool[Array, "b cells"],
    norm_pix_loss: bool,
) -> Float32[Array, " b"]:
    """Mean squared error of each image's hidden patches (He et al. 2022, section 3).

    Args:
        predicted: patches.
        images: the truth.
        hidden: the patches that count.
        norm_pix_loss: the truth is each patch less its mean, over its deviation.
    """
    patches = patchify(images.astype(jnp.float32), _side(predicted, images))
    if norm_pix_loss:
        mean, deviation = patch_moments(patches)
        patches = (patches - mean) / deviation
    errors = jnp.mean((predicted.astype(jnp.float32) - patches) ** 2, axis=-1)
    return jnp.mean(errors, axis=1, where=hidden)


def reconstruction_loss(
    predicted: Float[Array, "b cells pixels"],
    images: Float[Array, "b h w c"],
    hidden: Bool[Array, "b cells"],
    norm_pix_loss: bool,
) -> Float32[Array, ""]:
    """The mean of `reconstruction_losses`: MAE's loss, where every image has as many hidden patches."""
    return reconstruction_losses(predicted, images, hidden, norm_pix_loss).mean()


def reconstruct(
    predicted: Float[Array, "b cells pixels"],
    images: Float[Array, "b h w c"],
    hidden: Bool[Array, "b cells"],
    norm_pix_loss: bool,
) -> Float32[Array, "b h w c"]:
    """The images with predicted patches in place of the hidden ones.

    Predictions of a normalised-pixel loss tell a patch's pattern and not its mean and deviation: these two are taken
    from the truth.
    """
    patch = _side(predicted, images)
    patches, predicted = patchify(images.astype(jnp.float32), patch), predicted.astype(jnp.float32)
    if norm_pix_loss:
        mean, deviation = patch_moments(patches)
        predicted = predicted * deviation + mean
    return unpatchify(jnp.where(hidden[..., None], predicted, patches), patch)


def _side(predicted: Float[Array, "b cells pixels"], images: Float[Array, "b h w c"]) -> int:
    return round((predicted.shape[2] / images.shape[3]) ** 0.5)
