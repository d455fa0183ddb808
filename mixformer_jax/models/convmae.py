"""ConvMAE's progressive patch embedding (the paper, section 3.4; Gao et al. 2022): convolutions before the S-MAM."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import TRUNCATED_NORMAL, DepthwiseConv, Mlp, PatchEmbed, gelu
from mixformer_jax.models.masking import Masking

EPSILON = 1e-5


class ConvBlock(nn.Module):
    """A transformer block whose attention is a 5x5 depth-wise convolution between two 1x1 ones."""

    mlp_ratio: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Float[Array, "b h w c"], masking: Masking | None = None) -> Float[Array, "b h w c"]:
        width = maps.shape[-1]
        x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm1")(maps)
        x = nn.Dense(width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="conv1")(x)
        x = DepthwiseConv(5, self.dtype, name="depthwise")(x, masking)
        maps = maps + nn.Dense(width, dtype=self.dtype, kernel_init=TRUNCATED_NORMAL, name="conv2")(x)
        x = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm2")(maps)
        return maps + Mlp(width * self.mlp_ratio, "gelu", self.dtype, name="mlp")(x)


class NormedPatches(PatchEmbed):
    """Non-overlapping patches, layer norm, GELU."""

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        norm = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")
        return gelu(norm(self.embed(images)))


class ConvMaePatchEmbed(nn.Module):
    """Images to tokens at a sixteenth of their size, through two stages of convolution blocks."""

    config: MixFormerConfig

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        return self.stages(images)[0]

    @nn.compact
    def stages(
        self, images: Float[Array, "b h w c"], masking: Masking | None = None
    ) -> tuple[Float[Array, "b gh gw d"], tuple[Float[Array, "b _h _w _c"], ...]]:
        """The tokens, and the maps that the stages before them made; with `masking`, of the visible cells alone."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        maps, early = images, []
        stages = zip(config.early_widths, config.early_depths, strict=True)
        for stage, (width, depth) in enumerate(stages, start=1):
            maps = NormedPatches(width, 4 if stage == 1 else 2, dtype, name=f"embed{stage}")(maps)
            self.sow("intermediates", f"patch_embed{stage}", maps)
            for index in range(depth):
                maps = ConvBlock(config.mlp_ratio, dtype, name=f"stage{stage}_{index}")(maps, masking)
            self.sow("intermediates", f"stage{stage}", maps)
            early.append(maps)
        maps = NormedPatches(config.width, 2, dtype, name="embed3")(maps)
        self.sow("intermediates", "patch_embed3", maps)
        tokens = nn.Dense(config.width, dtype=dtype, kernel_init=TRUNCATED_NORMAL, name="proj")(maps)
        return tokens, tuple(early)
