"""A PyTorch implementation of MAE and TrackMAE around MixViT, for comparison.

Names are ours with PyTorch's words for weights (`load_variables`), blocks those of `torch_peer.py`. Images are NHWC, as
ours: patches are cut by one reshaping.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import Tensor, nn

from eval.torch_peer import VIT_EPSILON, Part, vit_blocks
from mixformer_jax.models.autoencoder import VARIANCE_EPSILON, AutoencoderConfig
from mixformer_jax.models.layers import count_visible, sincos_positions


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images [b, h, w, c] as patches [b, cells, pixels], by row, column, channel."""
    batch, height, width, channels = images.shape
    cut = images.view(batch, height // patch, patch, width // patch, patch, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class AutoencoderPeer(nn.Module):
    """For plain patches, sin-cos positions and asymmetric attention, without class token and layer scale."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        model, width = config.model, config.decoder_width
        self.config = config
        pixels = 3 * model.patch_size**2
        self.backbone = nn.Module()
        self.backbone.patch_embed = nn.ModuleDict({"proj": nn.Linear(pixels, model.width)})
        self.backbone.blocks = vit_blocks(model.depth, model.width, model.num_heads, model.mlp_ratio, fused=True)
        self.decoder = nn.Module()
        self.decoder.norm, self.decoder.embed = nn.LayerNorm(model.width, VIT_EPSILON), nn.Linear(model.width, width)
        self.decoder.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder.blocks = vit_blocks(config.decoder_depth, width, config.decoder_heads, model.mlp_ratio, fused=True)
        self.decoder.output_norm, self.decoder.pixels = nn.LayerNorm(width, VIT_EPSILON), nn.Linear(width, pixels)
        for name, grid in (("search", model.search_grid), ("template", model.template_grid)):
            for side, channels in (("encoder", model.width), ("decoder", width)):
                table = torch.from_numpy(sincos_positions(grid, channels).astype(np.float32))
                self.register_buffer(f"{name}_{side}_positions", table, persistent=False)

    def load_variables(self, variables: Mapping[str, Any]) -> None:
        """Ours, all of them."""
        weights = {}
        for path, value in flatten_dict(variables["params"], sep="/").items():
            name = re.sub(r"blocks_(\d+)", r"blocks.\1", path).replace("attention", "attn").replace("/", ".")
            tensor = torch.from_numpy(np.array(value))
            weights[re.sub(r"kernel$|scale$", "weight", name)] = tensor.T if name.endswith("kernel") else tensor
        self.load_state_dict(weights, strict=True)

    def forward(self, search: Tensor, visible: Tensor, templates: Tensor | None) -> Tensor:
        """Normalised search regions [b, S, S, 3], indices [b, n] of their visible cells, and templates
        [b, t, T, T, 3]: all patches [b, cells, pixels]."""
        model, count = self.config.model, self.config.num_templates
        embed, order = self.backbone.get_submodule("patch_embed.proj"), visible[:, :, None]
        cells = patchify(search, model.patch_size).take_along_dim(order, dim=1)
        tokens = embed(cells) + self.get_buffer("search_encoder_positions")[visible]
        part = Part(count, model.template_grid, 1)
        before = part.templates * part.template_side**2
        if templates is not None:
            found = embed(patchify(templates.flatten(0, 1), model.patch_size))
            found = (found + self.get_buffer("template_encoder_positions")).unflatten(0, (-1, count)).flatten(1, 2)
            tokens = torch.cat([found, tokens], dim=1)
        part = part if count else Part(0, 0, 0)
        for block in self.backbone.get_submodule("blocks").children():
            tokens = block(tokens, part)
        tokens = self.decoder.get_submodule("embed")(self.decoder.get_submodule("norm")(tokens))
        hidden = self.decoder.get_parameter("mask_token").to(tokens.dtype).expand(len(search), model.search_grid**2, -1)
        whole = hidden.scatter(1, order.expand(-1, -1, tokens.shape[2]), tokens[:, before:])
        whole = whole + self.get_buffer("search_decoder_positions")
        if count:
            positions = self.get_buffer("template_decoder_positions").repeat(count, 1)
            whole = torch.cat([tokens[:, :before] + positions, whole], dim=1)
        for block in self.decoder.get_submodule("blocks").children():
            whole = block(whole, part)
        return self.decoder.get_submodule("pixels")(self.decoder.get_submodule("output_norm")(whole[:, before:]))

    def loss(self, search: Tensor, templates: Tensor | None) -> Tensor:
        """Of random masks: the mean squared error of hidden patches."""
        config, patch = self.config, self.config.model.patch_size
        order = torch.rand(len(search), config.model.search_grid**2, device=search.device).argsort(dim=1)
        visible = count_visible(order.shape[1], config.mask_ratio)
        predicted = self(search, order[:, :visible], templates).float()
        patches = patchify(search.float(), patch)
        if config.norm_pix_loss:
            variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
            patches = (patches - mean) / (variance + VARIANCE_EPSILON).sqrt()
        errors = (predicted - patches).square().mean(dim=2)
        return errors.take_along_dim(order[:, visible:], dim=1).mean()
