"""MixCvT's backbone (the paper, sections 3.1 and 3.2): convolutional embeddings and W-MAM blocks in stages."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.attention import (
    AttentionMasks,
    Grid,
    KeysValues,
    MixedAttention,
    MixedAttentionBlock,
    Queries,
    Tokens,
)
from mixformer_jax.models.backbone import Backbone, Stream
from mixformer_jax.models.config import NormKind
from mixformer_jax.models.layers import TRUNCATED_NORMAL, batch_norm, depthwise_convolution, depthwise_kernel

EPSILON = 1e-5


class DepthwiseProjection(nn.Module):
    """3x3 depth-wise convolution and norm: what stands before a linear projection in W-MAM."""

    stride: int
    norm: NormKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b out_h out_w c"]:
        kernel = depthwise_kernel(self, 3, x.shape[-1])
        maps = depthwise_convolution(x.astype(self.dtype), kernel, self.stride)
        if self.norm == "layer":
            return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(maps)
        return batch_norm(maps, self.norm == "frozen", self.dtype, train=train)


class WideMixedAttention(MixedAttention):
    """W-MAM's attention: depth-wise convolutions of every image before the projections; extra tokens pass them by.

    Keys and values have half the resolution of the queries.
    """

    norm: NormKind

    def setup(self) -> None:
        self.depthwise_q, self.depthwise_k, self.depthwise_v = (
            DepthwiseProjection(stride, self.norm, self.dtype) for stride in (1, 2, 2)
        )
        self.q, self.k, self.v, self.proj = (
            nn.Dense(self.width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL) for _ in range(4)
        )

    def project(self, tokens: Tokens, grid: Grid, *, train: bool) -> tuple[Queries, KeysValues]:
        images, extra = tokens[:, : grid.tokens], tokens[:, grid.tokens :]
        maps = rearrange(images, "b (s h w) c -> (b s) h w c", s=grid.images, h=grid.side)

        def projected(convolution: DepthwiseProjection, dense: nn.Dense) -> Queries:
            local = rearrange(convolution(maps, train=train), "(b s) h w c -> b (s h w) c", s=grid.images)
            if extra.shape[1]:
                local = jnp.concatenate([local, extra], axis=1)
            return rearrange(dense(local), "b n (h d) -> b h n d", h=self.num_heads)

        keys_values = KeysValues(projected(self.depthwise_k, self.k), projected(self.depthwise_v, self.v))
        return projected(self.depthwise_q, self.q), keys_values

    def joint(
        self, tokens: Tokens, grids: tuple[Grid, Grid], masks: AttentionMasks, *, symmetric: bool, train: bool
    ) -> Tokens:
        # Convolutions see one image at a time, so the streams part for the projections.
        streams = zip(jnp.split(tokens, [grids[0].tokens], axis=1), grids, strict=True)
        queries, offered = zip(*(self.project(part, grid, train=train) for part, grid in streams), strict=True)
        return self._mix_streams(queries, offered, offered[0].then(offered[1]), masks, symmetric)


class ConvEmbed(nn.Module):
    """Overlapping convolution with stride, and layer norm: the entry of a stage."""

    width: int
    size: int
    stride: int
    padding: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        window = (self.size, self.size)
        conv = nn.Conv(self.width, window, self.stride, self.padding, dtype=self.dtype, name="proj")
        return nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(conv(maps))


class MixCvTBackbone(Backbone):
    """Stages of a convolutional embedding and W-MAM blocks (Table 1); with linear projections, S-MAM in stages."""

    def setup(self) -> None:
        super().setup()
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        widths = (*config.early_widths, config.width)
        self.embed = [self.make_embed(), *(ConvEmbed(width, 3, 2, 1, dtype) for width in widths[1:])]

    def make_embed(self) -> ConvEmbed:
        return ConvEmbed(self.config.stages[0][1], 7, 4, 2, jnp.dtype(self.config.dtype))

    def make_block(self, width: int, num_heads: int, drop_path: float) -> MixedAttentionBlock:
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        # Logits are scaled by the full width, not by a head's: so CvT was trained.
        values = (width, num_heads, width**-0.5, config.mimetic_init, dtype, config.attention_kernel, self.platform)
        attention: MixedAttention
        if config.projection == "depthwise":
            attention = WideMixedAttention(*values, norm=config.projection_norm, parent=None)
        else:
            attention = MixedAttention(*values, parent=None)
        return MixedAttentionBlock(attention, config.mlp_ratio, "quick_gelu", EPSILON, drop_path, config.layer_scale)

    def embed_stage(self, stage: int, maps: Float[Array, "n h w c"], stream: Stream) -> Float[Array, "_n gh gw d"]:
        return self.embed_images(maps, self.embed[0]) if stage == 0 else self.embed[stage](maps)
