"""Masks on a tracker's frozen backbone: a small decoder from its tokens, and the crop's pixels, to the target's mask.

The crop (`crops.stretched_crop`) is cut around the target's box, which is the middle of every crop, and so the prompt.
Smaller, the crop is its own template, which tells the search tokens what to look for. Tokens say what belongs to the
target, pixels where it ends: as in a feature pyramid (Lin et al. 2017) the tokens are brought to finer grids step by
step, and the pixels are added on each.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from mixformer_jax.models.alpha_refine import resize_linear
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.heads import upsample
from mixformer_jax.models.layers import PatchEmbed
from mixformer_jax.models.mixformer import build_backbone
from mixformer_jax.typed_settings import ConfigError, Range, TypedSettings

Maps = Float[Array, "b h w c"]
FLOAT32 = jnp.dtype("float32")


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig(TypedSettings):
    """The decoder's sizes, and whose tokens it reads.

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
            maps = PatchEmbed(width, 2 if i else finest, FLOAT32, name=f"patches{i}")(maps)
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
    """The tracker's backbone, frozen, and the decoder. Images come in normalised (`pixels.normalise`), NHWC float32."""

    tracker: MixFormerConfig
    config: MaskDecoderConfig

    def setup(self) -> None:
        self.config.check_tracker(self.tracker)
        self.backbone = build_backbone(self.tracker)
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
