"""MixViT's backbone (the paper, section 3.3): patch embedding, positions, a stack of S-MAM blocks."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.attention import KeysValues, MixedAttentionBlock
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import ConvPatchEmbed, PatchEmbed
from mixformer_jax.models.positions import PositionEmbedding


class TemplateCache(NamedTuple):
    """All that search tokens need of the templates: a pytree, one entry of `blocks` a block.

    `filled` is None when every slot holds a template: then no mask is computed.
    """

    blocks: tuple[KeysValues, ...]
    features: Float[Array, "b slots h w c"]
    filled: Bool[Array, "b slots"] | None


class MixViTBackbone(nn.Module):
    """One transformer for templates and search region, called once for each."""

    config: MixFormerConfig

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.patch_embed = (
            PatchEmbed(config.width, config.patch_size, dtype)
            if config.patch_embed == "linear"
            else ConvPatchEmbed(config.width, config.patch_size, dtype)
        )
        self.template_positions = PositionEmbedding(config.positions, config.template_grid, config.width)
        self.search_positions = PositionEmbedding(config.positions, config.search_grid, config.width)
        self.blocks = [
            MixedAttentionBlock(
                config.width, config.num_heads, config.mlp_ratio, float(rate), config.mimetic_init, dtype
            )
            for rate in np.linspace(0.0, config.drop_path, config.depth)
        ]

    def encode_templates(
        self, templates: Float[Array, "b slots T T 3"], filled: Bool[Array, "b slots"] | None, *, train: bool
    ) -> TemplateCache:
        """Runs the template stream: every template token attends to the tokens of all filled slots."""
        slots, grid = templates.shape[1], self.config.template_grid
        embedded = self.patch_embed(rearrange(templates, "b s h w c -> (b s) h w c"))
        self.sow("intermediates", "patch_embed_templates", embedded)
        tokens = self.template_positions(rearrange(embedded, "bs h w c -> bs (h w) c"))
        tokens = rearrange(tokens, "(b s) n c -> b (s n) c", s=slots)
        mask = None if filled is None else repeat(filled, "b s -> b (s n)", n=grid * grid)
        cache = []
        for index, block in enumerate(self.blocks):
            tokens, keys_values = block(tokens, None, mask, train=train)
            self.sow("intermediates", f"templates_block{index}", tokens)
            cache.append(keys_values)
        features = rearrange(tokens, "b (s h w) c -> b s h w c", s=slots, h=grid)
        return TemplateCache(tuple(cache), features, filled)

    def locate(self, cache: TemplateCache, search: Float[Array, "b S S 3"], *, train: bool) -> Float[Array, "b h w c"]:
        """Runs the search stream against the cache; returns the search region's feature map."""
        grid = self.config.search_grid
        embedded = self.patch_embed(search)
        self.sow("intermediates", "patch_embed_search", embedded)
        tokens = self.search_positions(rearrange(embedded, "b h w c -> b (h w) c"))
        mask = None
        if cache.filled is not None:
            template_mask = repeat(cache.filled, "b s -> b (s n)", n=self.config.template_grid**2)
            mask = jnp.concatenate([template_mask, jnp.ones(tokens.shape[:2], bool)], axis=1)
        for index, (block, keys_values) in enumerate(zip(self.blocks, cache.blocks, strict=True)):
            tokens, _ = block(tokens, keys_values, mask, train=train)
            self.sow("intermediates", f"search_block{index}", tokens)
        return rearrange(tokens, "b (h w) c -> b h w c", h=grid)
