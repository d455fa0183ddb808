"""The backbone that all families share: stages of embedding and blocks, driven for templates and search region.

Asymmetric mixed attention (the paper, eq. 2) runs the template stream once, then the search stream on any number of
search regions: two calls, with `TemplateCache` between them. Training, and symmetric attention (eq. 1), which has no
cache, run both streams at once: `joint`. All use the same blocks.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from mixformer_jax.models.attention import (
    UNMASKED,
    AttentionMasks,
    Filled,
    Grid,
    KeysValues,
    MixedAttentionBlock,
    Tokens,
    run_step,
)
from mixformer_jax.models.config import ComputeDtype, ConfigError, MixFormerConfig, RematPolicy
from mixformer_jax.models.layers import Masking
from mixformer_jax.pixels import denormalise, normalise

Stream = Literal["templates", "search"]
# Channels: RGB's three, and behind them those of a second stream, where the model reads one.
Templates = Float[Array, "b slots T T channels"]
Search = Float[Array, "b S S channels"]
EarlyMaps = tuple[Float[Array, "bn _h _w _c"], ...]


class TemplateCache(NamedTuple):
    """All that search tokens need of the templates: a pytree, one entry of `blocks` a block.

    Entries are None for blocks that do not mix; `filled` is None when every slot holds a template, and has a column a
    token for models that concatenate a second stream.
    """

    blocks: tuple[KeysValues | None, ...]
    features: Float[Array, "b slots h w c"]
    filled: Bool[Array, "b slots"] | None


class SearchFeatures(NamedTuple):
    """What the backbone makes of a search region; `token` is the query head's regression token."""

    features: Float[Array, "b h w c"]
    token: Float[Array, "b c"] | None


class VisibleFeatures(NamedTuple):
    """What the backbone makes of the visible cells of a masked search region."""

    tokens: Tokens  # of the visible cells, and behind them the extra ones
    early: EarlyMaps  # of ConvMAE's convolutional stages, a small one for each visible cell; empty for others


class _Stream(NamedTuple):
    """The tokens of a stream between two blocks."""

    tokens: Tokens
    grid: Grid

    def maps(self) -> Float[Array, "b images h w c"]:
        images, side = self.grid
        return rearrange(self.tokens[:, : self.grid.tokens], "b (s h w) c -> b s h w c", s=images, h=side)


def stream_type(residual_dtype: ComputeDtype, train: bool) -> jnp.dtype:
    """Of the tokens between the blocks of a backbone or decoder, see `Backbone`."""
    return jnp.dtype(residual_dtype if train else "float32")


class Backbone(nn.Module):
    """Stages of an embedding and blocks; a family makes a block, and embeds.

    Attributes:
        config: of the whole model.
        remat: in training, keep only what goes from block to block and what the policy saves, and compute the rest
            again for the gradient; None keeps all.
        platform: for which this is compiled, see `choose_kernel`.
        residual_dtype: of the stream between blocks in training; elsewhere it is float32, whatever the compute type: in
            bfloat16 it is rounded at every block.
    """

    config: MixFormerConfig
    remat: RematPolicy | None = None
    platform: str | None = None
    residual_dtype: ComputeDtype = "float32"

    def setup(self) -> None:
        config = self.config
        stages, rising = config.stages, np.linspace(0.0, config.drop_path, config.depth)
        last = len(stages) - 1 - bool(config.decoder_blocks)
        self.blocks = [
            self.make_block(width, heads, float(rising[i]) if stage == last else 0.0)
            for stage, (depth, width, heads) in enumerate(stages)
            for i in range(depth)
        ]
        self.cross_blocks = [
            self.make_block(config.width, config.num_heads, 0.0) for _ in range(config.cross_attention_blocks)
        ]
        if config.head == "query":
            # DETR starts its queries so.
            self.regression_token = self.param("regression_token", nn.initializers.normal(1.0), (config.output_width,))
        if config.streams == "both":
            self.second_embed = self.make_embed()
        if config.second_stream == "added":
            # Zeros: a model that starts from RGB's weights begins as that model.
            self.second_scale = self.param("second_scale", nn.initializers.zeros, (stages[0][1],))

    def make_block(self, width: int, num_heads: int, drop_path: float) -> MixedAttentionBlock:
        raise NotImplementedError

    def make_embed(self) -> nn.Module:
        """Images of three channels to the tokens of the first stage."""
        raise NotImplementedError

    def embed_stage(self, stage: int, maps: Float[Array, "n h w c"], stream: Stream) -> Float[Array, "_n gh gw d"]:
        """Images, by `embed_images`, or the maps of the stage before, as the tokens of a stage."""
        raise NotImplementedError

    def embed_images(self, images: Float[Array, "n h w channels"], embed: nn.Module) -> Float[Array, "_n gh gw d"]:
        """The tokens of images: of RGB by `embed`, and of a second stream as `MixFormerConfig.second_stream` says;
        concatenated ones are images of their own, each behind that of RGB. ConfigError for other channels."""
        config = self.config
        if images.shape[-1] != config.channels:
            raise ConfigError(
                f"images of {images.shape[-1]} channels; the model {config.name!r} reads {config.channels} "
                f"(second_stream is {config.second_stream!r})"
            )
        if config.second_stream == "none":
            return embed(images)
        colour, second = images[..., :-3], images[..., -3:]
        second = colour_mapped(second) if config.colour_map else second
        if config.second_stream == "alone":
            return embed(second)
        tokens, beside = embed(colour), self.second_embed(second)
        if config.second_stream == "added":
            return tokens + self.second_scale.astype(beside.dtype) * beside
        return rearrange([tokens, beside], "two n h w d -> (n two) h w d")

    def embed_visible(self, search: Search, masking: Masking) -> tuple[Tokens, EarlyMaps]:
        """The visible cells of a search region as the tokens of the first stage; see `VisibleFeatures`."""
        raise NotImplementedError

    def encode_templates(self, templates: Templates, filled: Filled, *, train: bool) -> TemplateCache:
        """Runs the template stream: every template token attends to the tokens of all filled slots.

        Raises ConfigError for symmetric attention, whose templates depend on the search region.
        """
        if self.config.attention == "symmetric":
            raise ConfigError("symmetric attention has no template cache: call the model on templates and search")
        cache: list[KeysValues | None] = []
        maps, filled = templates, self._keys(templates, filled)
        for stage, blocks in self._stages():
            state = self._enter(stage, maps, "templates", train=train)
            for index in blocks:
                state, own = self._templates_step(index, state, filled, train=train)
                self.sow("intermediates", f"templates_block{index}", state.tokens)
                cache.append(own)
            maps = state.maps()
            self.sow("intermediates", f"stage{stage}_templates", maps)
        cache += [block.project(state.tokens, state.grid, train=train)[1] for block in self.cross_blocks]
        return TemplateCache(tuple(cache), self._of_colour(maps), filled)

    def locate(self, cache: TemplateCache, search: Search, *, train: bool) -> SearchFeatures:
        """Runs the search stream against the cache."""
        maps = search[:, None]
        masks = AttentionMasks(cache.filled, self._keys(maps, None))
        for stage, blocks in self._stages():
            state = self._enter(stage, maps, "search", train=train)
            for index in blocks:
                state, _own = self._step(index, state, cache.blocks[index], masks, train=train)
                self.sow("intermediates", f"search_block{index}", state.tokens)
            maps = state.maps()
            self.sow("intermediates", f"stage{stage}_search", maps)
        return self._finish(state, cache.blocks[len(self.blocks) :], cache.filled, train=train)

    def joint(
        self, templates: Templates, search: Search, filled: Filled, *, train: bool
    ) -> tuple[TemplateCache, SearchFeatures]:
        """Both streams at once, for training; the cache holds the templates' features and no keys."""
        maps, search_maps = templates, search[:, None]
        masks = AttentionMasks(self._keys(maps, filled), self._keys(search_maps, None))
        for stage, blocks in self._stages():
            ours = self._enter(stage, maps, "templates", train=train)
            theirs = self._enter(stage, search_maps, "search", train=train)
            ours, theirs = self._joint_steps(blocks, ours, theirs, masks, train=train)
            maps, search_maps = ours.maps(), theirs.maps()
            self.sow("intermediates", f"stage{stage}_templates", maps)
            self.sow("intermediates", f"stage{stage}_search", search_maps)
        cached = (block.project(ours.tokens, ours.grid, train=train)[1] for block in self.cross_blocks)
        cache = TemplateCache((), self._of_colour(maps), masks.filled)
        return cache, self._finish(theirs, cached, masks.filled, train=train)

    def joint_visible(
        self,
        templates: Templates | None,
        search: Search,
        masking: Masking,
        extra: Float[Array, "b k c"] | None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b slots h w c"] | None, VisibleFeatures]:
        """The templates, where there are any, the visible cells of a masked search region, and `extra` tokens."""
        ours = None if templates is None else self._enter(0, templates, "templates", train=train)
        theirs, early = self._enter_visible(search, masking, extra, train=train)
        if ours is None:
            for index in range(len(self.blocks)):
                theirs, _own = self._step(index, theirs, None, train=train)
            return None, VisibleFeatures(theirs.tokens, early)
        ours, theirs = self._joint_steps(range(len(self.blocks)), ours, theirs, UNMASKED, train=train)
        return ours.maps(), VisibleFeatures(theirs.tokens, early)

    def _stages(self) -> list[tuple[int, range]]:
        ends = np.cumsum([depth for depth, _width, _heads in self.config.stages]).tolist()
        return [(stage, range(start, end)) for stage, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]

    def _mixes(self, index: int) -> bool:
        mixed = self.config.mixed_blocks
        return mixed is None or index >= len(self.blocks) - mixed

    def _keys(self, images: Float[Array, "b images h w channels"], filled: Filled) -> Bool[Array, "b _keys"] | None:
        """Which slots, or tokens, of images may be attended to: concatenated ones where anything was measured."""
        config = self.config
        if config.second_stream != "concatenated":
            return filled
        count = images.shape[1]
        second = rearrange(images[..., 3:], "b s h w c -> (b s) h w c")
        measured = rearrange(measured_patches(second, config.patch_size), "(b s) h w -> b s (h w)", s=count)
        keys = jnp.stack([jnp.ones_like(measured), measured], axis=2)
        keys = keys if filled is None else keys & filled[:, :, None, None]
        return rearrange(keys, "b s two n -> b (s two n)")

    def _of_colour(self, maps: Float[Array, "b images h w c"]) -> Float[Array, "b slots h w c"]:
        """The maps without those of a second stream's own tokens."""
        return maps[:, ::2] if self.config.second_stream == "concatenated" else maps

    def _run(self, step: Callable[..., Any], index: int, *args: Any, train: bool, **fixed: Any) -> Any:
        return run_step(step, self.remat if train else None, self.blocks[index], *args, train=train, **fixed)

    def _enter(self, stage: int, maps: Float[Array, "b images h w c"], stream: Stream, *, train: bool) -> _Stream:
        """The tokens of a stage."""

        def embed(backbone: Backbone, maps: Array) -> Array:
            return backbone.embed_stage(stage, maps, stream)

        embedded = run_step(embed, self.remat if train else None, self, rearrange(maps, "b s h w c -> (b s) h w c"))
        count = len(embedded) // len(maps)
        self.sow("intermediates", f"embed{stage}_{stream}", embedded)
        tokens = rearrange(embedded, "(b s) h w c -> b (s h w) c", s=count).astype(
            stream_type(self.residual_dtype, train)
        )
        if stream == "search" and self.config.head == "query" and stage == len(self.config.stages) - 1:
            token = repeat(self.regression_token.astype(tokens.dtype), "c -> b 1 c", b=len(tokens))
            tokens = jnp.concatenate([tokens, token], axis=1)
        return _Stream(tokens, Grid(count, embedded.shape[1]))

    def _enter_visible(
        self, search: Search, masking: Masking, extra: Float[Array, "b k c"] | None, *, train: bool
    ) -> tuple[_Stream, EarlyMaps]:
        """Visible cells and extra tokens as a stream: each cell counts as an image of one token."""

        def embed(backbone: Backbone, search: Array, masking: Masking) -> tuple[Array, EarlyMaps]:
            return backbone.embed_visible(search, masking)

        tokens, early = run_step(embed, self.remat if train else None, self, search, masking)
        tokens, grid = tokens.astype(stream_type(self.residual_dtype, train)), Grid(tokens.shape[1], 1)
        if extra is not None:
            tokens = jnp.concatenate([tokens, extra.astype(tokens.dtype)], axis=1)
        return _Stream(tokens, grid), early

    def _step(
        self, index: int, state: _Stream, templates: KeysValues | None, masks: AttentionMasks = UNMASKED, *, train: bool
    ) -> tuple[_Stream, KeysValues]:
        """A block in which a stream attends to templates, where there are any, and to itself."""
        tokens, grid = state
        tokens, own = self._run(MixedAttentionBlock.step, index, tokens, templates, masks, grid=grid, train=train)
        return _Stream(tokens, grid), own

    def _templates_step(
        self, index: int, state: _Stream, filled: Filled, *, train: bool
    ) -> tuple[_Stream, KeysValues | None]:
        """A block in which the templates attend to themselves; where it does not mix, every image to itself."""
        if self._mixes(index):
            return self._step(index, state, None, AttentionMasks(present=filled), train=train)
        tokens, (images, side) = state
        alone = _Stream(rearrange(tokens, "b (s n) c -> (b s) n c", s=images), Grid(1, side))
        alone, _own = self._step(index, alone, None, train=train)
        return state._replace(tokens=rearrange(alone.tokens, "(b s) n c -> b (s n) c", s=images)), None

    def _joint_steps(
        self, blocks: Iterable[int], ours: _Stream, theirs: _Stream, masks: AttentionMasks, *, train: bool
    ) -> tuple[_Stream, _Stream]:
        """Blocks for both streams at once; where one does not mix, every image attends to itself."""
        start, step = ours.grid.tokens, MixedAttentionBlock.joint_step
        kind = {"grids": (ours.grid, theirs.grid), "symmetric": self.config.attention == "symmetric"}
        both = jnp.concatenate([ours.tokens, theirs.tokens], axis=1)
        for index in blocks:
            if self._mixes(index):
                both = self._run(step, index, both, masks, train=train, **kind)
            else:
                alone, _own = self._templates_step(index, ours._replace(tokens=both[:, :start]), None, train=train)
                found, _own = self._step(index, theirs._replace(tokens=both[:, start:]), None, train=train)
                both = jnp.concatenate([alone.tokens, found.tokens], axis=1)
            self.sow("intermediates", f"templates_block{index}", both[:, :start])
            self.sow("intermediates", f"search_block{index}", both[:, start:])
        return ours._replace(tokens=both[:, :start]), theirs._replace(tokens=both[:, start:])

    def _finish(
        self, state: _Stream, cached: Iterable[KeysValues | None], filled: Filled, *, train: bool
    ) -> SearchFeatures:
        """The cross-attention blocks, and what heads read."""
        tokens, grid = state
        for block, templates in zip(self.cross_blocks, cached, strict=True):
            assert templates is not None
            tokens = block.cross_step(tokens, templates, filled, grid=grid, train=train)
        token = tokens[:, -1] if self.config.head == "query" else None
        return SearchFeatures(_Stream(tokens, grid).maps()[:, 0], token)


# The pixels of a second stream, depth or thermal (Tables 12 and 13 of the paper; the design is ours). A byte of 0 in
# all its channels is a pixel at which nothing was measured: what a depth camera does not see, or outside the frame.


def measured_patches(images: Float[Array, "n h w 3"], patch: int) -> Bool[Array, "n gh gw"]:
    """The patches of a normalised second stream in which anything was measured."""
    is_measured = (denormalise(images) > 0).any(axis=-1)
    return rearrange(is_measured, "n (i p) (j q) -> n i j (p q)", p=patch, q=patch).any(axis=-1)


def colour_mapped(images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 3"]:
    """Normalised images of three equal channels as those of `jet`."""
    return jnp.asarray(normalise(jet()))[denormalise(images)[..., 0]]


@functools.cache
def jet() -> UInt8[np.ndarray, "256 3"]:
    """The colour map: blue for 1 through green to red for 255; black for 0, where nothing was measured."""
    levels = np.arange(256)[:, None] / 255
    colours = np.rint(255 * np.clip(1.5 - np.abs(4 * levels - [3, 2, 1]), 0, 1)).astype(np.uint8)
    colours[0] = 0
    return colours
