"""MixViT's backbone (the paper, section 3.3): patch embedding, positions, a stack of S-MAM blocks.

Its patches are plain ones, or ConvMAE's (section 3.4; Gao et al. 2022): two stages of convolutions before the S-MAM.
"""

import functools

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.attention import MixedAttention, MixedAttentionBlock, Tokens
from mixformer_jax.models.backbone import Backbone, EarlyMaps, Search, Stream
from mixformer_jax.models.config import DECODER_WIDTH, MixFormerConfig
from mixformer_jax.models.layers import (
    TRUNCATED_NORMAL,
    ConvPatchEmbed,
    DepthwiseConv,
    Masking,
    Mlp,
    PatchEmbed,
    PositionTable,
    add_positions,
    sincos_positions,
)


class ConvBlock(nn.Module):
    """A transformer block whose attention is a 5x5 depth-wise convolution between two 1x1 ones."""

    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Float[Array, "b h w c"], masking: Masking | None = None) -> Float[Array, "b h w c"]:
        width = maps.shape[-1]
        dense = functools.partial(nn.Dense, width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        x = DepthwiseConv(5, self.dtype, name="depthwise")(dense(name="conv1")(norm(name="norm1")(maps)), masking)
        maps = maps + dense(name="conv2")(x)
        return maps + Mlp(width * self.mlp_ratio, "gelu", self.dtype, name="mlp")(norm(name="norm2")(maps))


class ConvMaePatchEmbed(nn.Module):
    """Images to tokens at a sixteenth of their size, through two stages of convolution blocks."""

    config: MixFormerConfig

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        return self.stages(images)[0]

    @nn.compact
    def stages(
        self, images: Float[Array, "b h w c"], masking: Masking | None = None
    ) -> tuple[Float[Array, "b gh gw d"], tuple[Float[Array, "b _h _w _c"], ...]]:
        """The tokens, and the maps of the stages before them; with `masking`, of the visible cells alone."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        maps, early = images, []
        stages = zip(config.early_widths, config.early_depths, strict=True)
        for stage, (width, depth) in enumerate(stages, start=1):
            maps = PatchEmbed(width, 4 if stage == 1 else 2, dtype, normed=True, name=f"embed{stage}")(maps)
            self.sow("intermediates", f"patch_embed{stage}", maps)
            for index in range(depth):
                maps = ConvBlock(config.mlp_ratio, dtype, name=f"stage{stage}_{index}")(maps, masking)
            self.sow("intermediates", f"stage{stage}", maps)
            early.append(maps)
        maps = PatchEmbed(config.width, 2, dtype, normed=True, name="embed3")(maps)
        self.sow("intermediates", "patch_embed3", maps)
        tokens = nn.Dense(config.width, dtype=dtype, kernel_init=TRUNCATED_NORMAL, name="proj")(maps)
        return tokens, tuple(early)


def slimming_block(
    config: MixFormerConfig, width: int, num_heads: int, drop_path: float, platform: str | None
) -> MixedAttentionBlock:
    """S-MAM: ViT's block, logits scaled by the width of a head; `platform` as in `choose_kernel`."""
    dtype = jnp.dtype(config.dtype)
    scale = (width // num_heads) ** -0.5
    attention = MixedAttention(
        width, num_heads, scale, config.mimetic_init, dtype, config.attention_kernel, platform, parent=None
    )
    return MixedAttentionBlock(attention, config.mlp_ratio, "gelu", 1e-6, drop_path, config.layer_scale)


class MixViTBackbone(Backbone):
    """One transformer on a grid of patches, and after it, where asked for, blocks of MAE's decoder."""

    def setup(self) -> None:
        super().setup()
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        self.patch_embed = self.make_embed()
        self.template_positions = PositionTable(config.positions, config.template_grid, config.width)
        self.search_positions = PositionTable(config.positions, config.search_grid, config.width)
        if config.decoder_blocks:
            # As MAE's own decoder gets its tokens: after the encoder's norm, projected, with positions again.
            self.decoder_norm = nn.LayerNorm(epsilon=1e-6, dtype=dtype)
            self.decoder_embed = nn.Dense(DECODER_WIDTH, dtype=dtype, kernel_init=TRUNCATED_NORMAL)

    def make_block(self, width: int, num_heads: int, drop_path: float) -> MixedAttentionBlock:
        return slimming_block(self.config, width, num_heads, drop_path, self.platform)

    def make_embed(self) -> nn.Module:
        config = self.config
        if config.patch_embed == "convmae":
            return ConvMaePatchEmbed(config)
        embed = PatchEmbed if config.patch_embed == "linear" else ConvPatchEmbed
        return embed(config.width, config.patch_size, jnp.dtype(config.dtype))

    def embed_stage(self, stage: int, maps: Float[Array, "n h w c"], stream: Stream) -> Float[Array, "_n gh gw d"]:
        if stage == 1:
            embedded = self.decoder_embed(self.decoder_norm(maps))
            return add_positions(embedded, sincos_positions(maps.shape[1], DECODER_WIDTH))
        embedded = self.embed_images(maps, self.patch_embed)
        self.sow("intermediates", f"patch_embed_{stream}", embedded)
        positions = self.search_positions if stream == "search" else self.template_positions
        return add_positions(embedded, positions())

    def embed_visible(self, search: Search, masking: Masking) -> tuple[Tokens, EarlyMaps]:
        cells = masking.take(search)
        early: EarlyMaps = ()
        match self.patch_embed:
            case ConvMaePatchEmbed():
                embedded, early = self.patch_embed.stages(cells, masking)
            case ConvPatchEmbed():
                embedded = self.patch_embed(cells, masking)
            case _:
                embedded = self.patch_embed(cells)
        table = jnp.asarray(self.search_positions(), embedded.dtype)
        tokens = rearrange(embedded, "(b n) 1 1 d -> b n d", n=masking.visible.shape[1])
        return tokens + table[masking.visible], early
