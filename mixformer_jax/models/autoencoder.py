"""Masked autoencoders around the tracker's own encoder (the paper, section 3.4).

One model, three objectives: MAE on single images (He et al. 2022); TrackMAE, where a masked search region attends to
fully visible templates through the tracker's mixed attention (Fig. 5); and ConvMAE (Gao et al. 2022), either of them
behind ConvMAE's patch embedding. The encoder is the tracker's backbone, variables and all; only visible tokens of the
search region pass through it.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Float32

from mixformer_jax.models.attention import Grid, MixedAttentionBlock, Tokens, run_step
from mixformer_jax.models.backbone import Search, Templates, VisibleFeatures, stream_type
from mixformer_jax.models.config import (
    DECODER_HEADS,
    DECODER_WIDTH,
    ComputeDtype,
    ConfigError,
    MixFormerConfig,
    RematPolicy,
    SomeBlocks,
    SomeHeads,
    Width,
)
from mixformer_jax.models.layers import (
    TRUNCATED_NORMAL,
    Masking,
    add_positions,
    count_visible,
    random_masking,
    sincos_positions,
)
from mixformer_jax.models.vit import MixViTBackbone, slimming_block
from mixformer_jax.typed_settings import InnerShare, OnlineTemplates, TypedSettings, refuse

VARIANCE_EPSILON = 1e-6  # added to that of a patch

Patches = Float[Array, "b cells pixels"]
Images = Float[Array, "b h w c"]
Hidden = Bool[Array, "b cells"]


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(TypedSettings):
    """A masked autoencoder around the encoder of a tracker.

    Attributes:
        model: the tracker, of which the encoder is built; `search_size` is the size of the masked images. `attention`
            holds for the decoder too.
        num_templates: visible templates beside the masked search region (TrackMAE); 0 for single images (MAE).
        mask_ratio: share of the search region's tokens that are hidden.
        decoder_depth: blocks of the decoder.
        decoder_width: its channels.
        decoder_heads: its attention heads.
        norm_pix_loss: reconstruction targets are patches less their mean, over their deviation.
        class_token: a learned token goes along with the visible ones, as in MAE; for going on with MAE's checkpoints
            and for writing some. The tracker has none.
    """

    model: MixFormerConfig
    num_templates: OnlineTemplates = 0
    mask_ratio: InnerShare = 0.75
    decoder_depth: SomeBlocks = 8
    decoder_width: Width = DECODER_WIDTH
    decoder_heads: SomeHeads = DECODER_HEADS
    norm_pix_loss: bool = True
    class_token: bool = False

    section = "autoencoder"

    def __post_init__(self) -> None:
        super().__post_init__()
        model, width, heads, cells = self.model, self.decoder_width, self.decoder_heads, self.model.search_grid**2
        whole_grids = "masked autoencoders need 'vit': the convolutions between the stages of 'cvt' want whole grids"
        second = f"model.second_stream is {model.second_stream!r}; masked autoencoders see RGB alone"
        multiple = f"expected a multiple of 4 and of decoder_heads ({heads})"
        share = f"expected a share in (0, 1) that hides some of the {cells} tokens of a search region and leaves others"
        is_share = 0 < count_visible(cells, self.mask_ratio) < cells
        refuse(
            {
                f"model.backbone is {model.backbone!r}; {whole_grids}": model.backbone != "vit",
                second: model.second_stream != "none",
                f"decoder_width is {width}; {multiple}": width % 4 or width % heads,
                f"mask_ratio is {self.mask_ratio}; {share}": not is_share,
            }
        )

    @property
    def encoder(self) -> MixFormerConfig:
        """The model up to its encoder: nothing of what trackers put behind."""
        nothing = {"decoder_blocks": 0, "cross_attention_blocks": 0, "context_augment_layers": 0, "score_heads": 0}
        return dataclasses.replace(self.model, head="corner", **nothing)  # type: ignore[arg-type]


class Reconstruction(NamedTuple):
    """What an autoencoder makes of masked images."""

    patches: Patches  # of each less its mean, over its deviation, where `norm_pix_loss` is set
    latent: Tokens  # visible ones, and behind them the class token, as the decoder takes them in: after a layer norm


class Decoder(nn.Module):
    """Visible tokens to the pixels of all patches, with the templates' tokens in the tracker's mixed attention."""

    config: AutoencoderConfig
    remat: RematPolicy | None = None
    residual_dtype: ComputeDtype = "float32"

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
        latent, stream = self.norm(self._fused(visible, masking)), stream_type(self.residual_dtype, train)
        search = self._whole_grid(self.embed(latent).astype(stream), masking)
        grid, remat = Grid(1, masking.grid), self.remat if train else None
        run = functools.partial(run_step, train=train)
        if templates is None:
            for block in self.blocks:
                search, _own = run(MixedAttentionBlock.step, remat, block, search, None, grid=grid)
        else:
            target, target_grid = self._template_tokens(templates).astype(stream), Grid(*templates.shape[1:3])
            kind = {"grids": (target_grid, grid), "symmetric": self.config.model.attention == "symmetric"}
            both = jnp.concatenate([target, search], axis=1)
            for block in self.blocks:
                both = run(MixedAttentionBlock.joint_step, remat, block, both, **kind)
            search = both[:, target_grid.tokens :]
        return Reconstruction(self.pixels(self.output_norm(search[:, : grid.tokens])), latent)

    def _fused(self, visible: VisibleFeatures, masking: Masking) -> Tokens:
        """The encoder's tokens, with ConvMAE's early stages added to those of cells."""
        count = masking.visible.shape[1]
        cells = visible.tokens[:, :count]
        for dense, maps in zip(self.early, visible.early, strict=True):
            cells = cells + dense(rearrange(maps, "(b n) h w c -> b n (h w c)", n=count))
        return jnp.concatenate([cells, visible.tokens[:, count:]], axis=1)

    def _whole_grid(self, tokens: Tokens, masking: Masking) -> Float[Array, "b m c"]:
        """Tokens for all cells, the mask token where one is hidden, with positions; the class token as it is."""
        count = masking.visible.shape[1]
        cells = masking.fill(tokens[:, :count], jnp.asarray(self.mask_token))
        cells = cells + jnp.asarray(sincos_positions(masking.grid, self.config.decoder_width), cells.dtype)
        return jnp.concatenate([cells, tokens[:, count:]], axis=1)

    def _template_tokens(self, templates: Float[Array, "b slots h w c"]) -> Float[Array, "b n d"]:
        slots, grid = templates.shape[1:3]
        maps = self.embed(self.norm(rearrange(templates, "b s h w c -> (b s) h w c"))).astype(jnp.float32)
        maps = add_positions(maps, sincos_positions(grid, self.config.decoder_width))
        return rearrange(maps, "(b s) h w c -> b (s h w) c", s=slots)


class Autoencoder(nn.Module):
    """Encoder and decoder: variables `params/backbone` as trackers have them, `params/decoder`, maybe a class token.

    Images come in normalised (`pixels.normalise`), NHWC float32. `remat` and `residual_dtype`: see `Backbone`.
    """

    config: AutoencoderConfig
    remat: RematPolicy | None = None
    residual_dtype: ComputeDtype = "float32"

    def setup(self) -> None:
        config = self.config
        self.backbone = MixViTBackbone(config.encoder, self.remat, None, self.residual_dtype)
        self.decoder = Decoder(config, self.remat, self.residual_dtype)
        if config.class_token:
            self.class_token = self.param("class_token", nn.initializers.normal(0.02), (config.model.width,))

    def __call__(
        self, search: Search, masking: Masking, templates: Templates | None = None, *, train: bool = False
    ) -> Reconstruction:
        """Reconstructs masked search regions, or single images.

        Of the `search` images the encoder sees the visible cells alone; `templates` are fully visible crops of the same
        targets. In training stochastic depth draws.

        Raises ConfigError: another number of templates than the config's.
        """
        given = 0 if templates is None else templates.shape[1]
        if given != self.config.num_templates:
            raise ConfigError(f"num_templates is {self.config.num_templates}, and {given} templates came")
        class_tokens = None
        if self.config.class_token:
            class_tokens = repeat(jnp.asarray(self.class_token), "c -> b 1 c", b=len(search))
        features, visible = self.backbone.joint_visible(templates, search, masking, class_tokens, train=train)
        return self.decoder(features, visible, masking, train=train)

    @nn.nowrap
    def initial_values(self, key: Array) -> dict[str, Any]:
        """Fresh variables, to be traced; see `mixformer.init_variables`."""
        config, tracker = self.config, self.config.model
        search = jnp.zeros((1, tracker.search_size, tracker.search_size, 3))
        templates = None
        if config.num_templates:
            templates = jnp.zeros((1, config.num_templates, tracker.template_size, tracker.template_size, 3))
        return dict(self.init(key, search, draw_masking(config, key, 1), templates))


def draw_masking(config: AutoencoderConfig, key: Array, batch_size: int) -> Masking:
    """A random masking for each sample of a batch."""
    return random_masking(jax.random.uniform(key, (batch_size, config.model.search_grid**2)), config.mask_ratio)


def patchify(images: Images, patch: int) -> Patches:
    """Images as patches of `patch * patch` pixels, ordered by row, column, channel; cells are row-major."""
    return rearrange(images, "b (i p) (j q) c -> b (i j) (p q c)", p=patch, q=patch)


def unpatchify(patches: Patches, patch: int) -> Images:
    """Patches of a square image as the image."""
    grid = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (i j) (p q c) -> b (i p) (j q) c", i=grid, p=patch, q=patch)


def patch_moments(patches: Patches) -> tuple[Float[Array, "b cells 1"], Float[Array, "b cells 1"]]:
    """Mean and deviation of every patch; of the unbiased variance, plus `VARIANCE_EPSILON`, as in MAE."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + VARIANCE_EPSILON)


def reconstruction_losses(
    predicted: Patches, images: Images, hidden: Hidden, norm_pix_loss: bool
) -> Float32[Array, " b"]:
    """Mean squared error of each image's hidden patches (He et al. 2022, section 3); see `AutoencoderConfig`."""
    patches = patchify(images.astype(jnp.float32), _side(predicted, images))
    if norm_pix_loss:
        mean, deviation = patch_moments(patches)
        patches = (patches - mean) / deviation
    errors = jnp.mean((predicted.astype(jnp.float32) - patches) ** 2, axis=-1)
    return jnp.mean(errors, axis=1, where=hidden)


def reconstruct(predicted: Patches, images: Images, hidden: Hidden, norm_pix_loss: bool) -> Float32[Array, "b h w c"]:
    """The images with predicted patches in place of the hidden ones.

    Predictions of a normalised-pixel loss do not tell a patch's mean and deviation: these are the truth's.
    """
    patch = _side(predicted, images)
    patches, predicted = patchify(images.astype(jnp.float32), patch), predicted.astype(jnp.float32)
    if norm_pix_loss:
        mean, deviation = patch_moments(patches)
        predicted = predicted * deviation + mean
    return unpatchify(jnp.where(hidden[..., None], predicted, patches), patch)


def _side(predicted: Patches, images: Images) -> int:
    return round((predicted.shape[2] / images.shape[3]) ** 0.5)
