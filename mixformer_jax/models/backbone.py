"""The backbone that all families share: stages of embedding and blocks, driven for templates and search region.

Asymmetric mixed attention (the paper, eq. 2) needs the template stream once, then the search stream on any number of
search regions: two calls, with `TemplateCache` between them. Training, and symmetric attention (eq. 1), which has no
cache, run both streams as one: `joint`. All use the same blocks.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.attention import (
    Grid,
    KeysValues,
    MixedAttentionBlock,
    cross_step,
    joint_step,
    search_step,
    step_runner,
    templates_step,
)
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.models.masking import Masking

Stream = Literal["templates", "search"]


class TemplateCache(NamedTuple):
    """All that search tokens need of the templates: a pytree, one entry of `blocks` a block.

    Entries are None for blocks that do not mix. `filled` is None when every slot holds a template: then no mask is
    computed.
    """

    blocks: tuple[KeysValues | None, ...]
    features: Float[Array, "b slots h w c"]
    filled: Bool[Array, "b slots"] | None


class SearchFeatures(NamedTuple):
    """What the backbone makes of a search region; `token` is the query head's regression token."""

    features: Float[Array, "b h w c"]
    token: Float[Array, "b c"] | None


class VisibleFeatures(NamedTuple):
    """What the backbone makes of the visible cells of a masked search region.

    Attributes:
        tokens: of the visible cells, and behind them the extra ones.
        early: the maps of ConvMAE's convolutional stages, a small one for each visible cell; empty for others.
    """

    tokens: Float[Array, "b n c"]
    early: tuple[Float[Array, "bn _h _w _c"], ...]


class _Tokens(NamedTuple):
    """A stream between two blocks."""

    tokens: Float[Array, "b n c"]
    grid: Grid

    def maps(self) -> Float[Array, "b images h w c"]:
        images, side = self.grid
        return rearrange(self.tokens[:, : self.grid.tokens], "b (s h w) c -> b s h w c", s=images, h=side)


class Backbone(nn.Module):
    """Stages of an embedding and blocks. A family makes the blocks, tells their `stage_depths`, and embeds.

    Attributes:
        config: of the whole model.
        remat: in training, keep only what goes from block to block, and compute the rest again for the gradient.
        platform: for which this is compiled, see `choose_kernel`.
    """

    config: MixFormerConfig
    remat: bool = False
    platform: str | None = None

    def setup(self) -> None:
        config = self.config
        self.blocks = self.make_blocks()
        self.cross_blocks = [self.last_stage_block(0.0) for _ in range(config.cross_attention_blocks)]
        if config.head == "query":
            # DETR starts its queries so.
            self.regression_token = self.param("regression_token", nn.initializers.normal(1.0), (config.output_width,))

    def make_blocks(self) -> list[MixedAttentionBlock]:
        """The blocks of all stages."""
        raise NotImplementedError

    def last_stage_block(self, drop_path: float) -> MixedAttentionBlock:
        """One block as the last stage has them."""
        raise NotImplementedError

    def stage_depths(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        raise NotImplementedError

    def embed_stage(self, stage: int, maps: Float[Array, "n h w c"], stream: Stream) -> Float[Array, "n gh gw d"]:
        """Images, or the maps of the stage before, as the tokens of a stage."""
        raise NotImplementedError

    def embed_visible(
        self, search: Float[Array, "b S S 3"], masking: Masking
    ) -> tuple[Float[Array, "b n d"], tuple[Float[Array, "bn _h _w _c"], ...]]:
        """The visible cells of a search region as the tokens of the first stage; see `VisibleFeatures`."""
        raise NotImplementedError

    def encode_templates(
        self, templates: Float[Array, "b slots T T 3"], filled: Bool[Array, "b slots"] | None, *, train: bool
    ) -> TemplateCache:
        """Runs the template stream: every template token attends to the tokens of all filled slots.

        Raises:
            ConfigError: for symmetric attention, whose templates depend on the search region.
        """
        if self.config.attention == "symmetric":
            raise ConfigError("symmetric attention has no template cache: call the model on templates and search")
        cache: list[KeysValues | None] = []
        state = None
        for stage, blocks in self._stages():
            state = self._enter(stage, templates, state, "templates", train=train)
            for index in blocks:
                tokens, own = self._self_step(index, state, filled, train=train)
                self.sow("intermediates", f"templates_block{index}", tokens)
                state = state._replace(tokens=tokens)
                cache.append(own)
            self.sow("intermediates", f"stage{stage}_templates", state.maps())
        assert state is not None
        for block in self.cross_blocks:
            cache.append(block.project(state.tokens, state.grid, train=train)[1])
        return TemplateCache(tuple(cache), state.maps(), filled)

    def locate(self, cache: TemplateCache, search: Float[Array, "b S S 3"], *, train: bool) -> SearchFeatures:
        """Runs the search stream against the cache."""
        state = None
        for stage, blocks in self._stages():
            state = self._enter(stage, search[:, None], state, "search", train=train)
            for index in blocks:
                tokens = self._search_step(index, state, cache, train=train)
                state = state._replace(tokens=tokens)
                self.sow("intermediates", f"search_block{index}", state.tokens)
            self.sow("intermediates", f"stage{stage}_search", state.maps())
        assert state is not None
        for block, cached in zip(self.cross_blocks, cache.blocks[len(self.blocks) :], strict=True):
            assert cached is not None
            tokens = cross_step(block, state.tokens, cached, cache.filled, grid=state.grid, train=train)
            state = state._replace(tokens=tokens)
        return self._finish(state)

    def joint(
        self,
        templates: Float[Array, "b slots T T 3"],
        search: Float[Array, "b S S 3"],
        filled: Bool[Array, "b slots"] | None,
        *,
        train: bool,
    ) -> tuple[TemplateCache, SearchFeatures]:
        """Both streams in one, for training.

        The cache holds the templates' features and no keys.
        """
        ours: _Tokens | None = None
        theirs: _Tokens | None = None
        for stage, blocks in self._stages():
            ours = self._enter(stage, templates, ours, "templates", train=train)
            theirs = self._enter(stage, search[:, None], theirs, "search", train=train)
            ours, theirs = self._joint_steps(blocks, ours, theirs, filled, train=train)
            self.sow("intermediates", f"stage{stage}_templates", ours.maps())
            self.sow("intermediates", f"stage{stage}_search", theirs.maps())
        assert ours is not None and theirs is not None
        for block in self.cross_blocks:
            seen = block.project(ours.tokens, ours.grid, train=train)[1]
            found = cross_step(block, theirs.tokens, seen, filled, grid=theirs.grid, train=train)
            theirs = theirs._replace(tokens=found)
        return TemplateCache((), ours.maps(), filled), self._finish(theirs)

    def locate_visible(
        self,
        cache: TemplateCache | None,
        search: Float[Array, "b S S 3"],
        masking: Masking,
        extra: Float[Array, "b k c"] | None,
        *,
        train: bool,
    ) -> VisibleFeatures:
        """Runs the search stream for the visible cells of a masked search region, and for them alone.

        Args:
            cache: of the templates; None for a stream that has only itself to look at.
            search: whole crops; what is hidden in them is not read.
            masking: the visible cells.
            extra: tokens that go along with the visible ones.
            train: whether stochastic depth draws.
        """
        state, early = self._enter_visible(search, masking, extra, train=train)
        for index in range(len(self.blocks)):
            state = state._replace(tokens=self._search_step(index, state, cache, train=train))
        return VisibleFeatures(state.tokens, early)

    def joint_visible(
        self,
        templates: Float[Array, "b slots T T 3"] | None,
        search: Float[Array, "b S S 3"],
        masking: Masking,
        extra: Float[Array, "b k c"] | None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b slots h w c"] | None, VisibleFeatures]:
        """The templates, where there are any, and the visible cells of a search region: features of both."""
        if templates is None:
            return None, self.locate_visible(None, search, masking, extra, train=train)
        ours = self._enter(0, templates, None, "templates", train=train)
        theirs, early = self._enter_visible(search, masking, extra, train=train)
        ours, theirs = self._joint_steps(range(len(self.blocks)), ours, theirs, None, train=train)
        return ours.maps(), VisibleFeatures(theirs.tokens, early)

    def _stages(self) -> list[tuple[int, range]]:
        ends = np.cumsum(self.stage_depths()).tolist()
        return [(stage, range(start, end)) for stage, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]

    def _mixes(self, index: int) -> bool:
        mixed = self.config.mixed_blocks
        return mixed is None or index >= len(self.blocks) - mixed

    def _run(self, part: Callable[..., Any], module: nn.Module, *args: Any, train: bool) -> Any:
        """`part(module, *args)`, computed again for the gradient where `remat` says so."""
        return step_runner(part, self.remat and train)(module, *args)

    def _enter(
        self,
        stage: int,
        images: Float[Array, "b images S S 3"],
        before: _Tokens | None,
        stream: Stream,
        *,
        train: bool,
    ) -> _Tokens:
        """The tokens of a stage, from images for the first and from the stage before for the others."""
        maps = images if before is None else before.maps()
        count = maps.shape[1]

        def embed(backbone: Backbone, maps: Array) -> Array:
            return backbone.embed_stage(stage, maps, stream)

        embedded = self._run(embed, self, rearrange(maps, "b s h w c -> (b s) h w c"), train=train)
        self.sow("intermediates", f"embed{stage}_{stream}", embedded)
        # The residual stream is float32 whatever the compute type: in bfloat16 it would be rounded at every block.
        tokens = rearrange(embedded, "(b s) h w c -> b (s h w) c", s=count).astype(jnp.float32)
        if stream == "search" and self.config.head == "query" and stage == len(self.stage_depths()) - 1:
            token = repeat(self.regression_token.astype(tokens.dtype), "c -> b 1 c", b=len(tokens))
            tokens = jnp.concatenate([tokens, token], axis=1)
        return _Tokens(tokens, Grid(count, embedded.shape[1]))

    def _enter_visible(
        self, search: Float[Array, "b S S 3"], masking: Masking, extra: Float[Array, "b k c"] | None, *, train: bool
    ) -> tuple[_Tokens, tuple[Float[Array, "bn _h _w _c"], ...]]:
        """Visible cells and extra tokens as a stream: each cell counts as an image of one token."""

        def embed(backbone: Backbone, search: Array, masking: Masking) -> tuple[Array, tuple[Array, ...]]:
            return backbone.embed_visible(search, masking)

        tokens, early = self._run(embed, self, search, masking, train=train)
        tokens, grid = tokens.astype(jnp.float32), Grid(tokens.shape[1], 1)
        if extra is not None:
            tokens = jnp.concatenate([tokens, extra.astype(jnp.float32)], axis=1)
        return _Tokens(tokens, grid), early

    def _search_step(
        self, index: int, state: _Tokens, cache: TemplateCache | None, *, train: bool
    ) -> Float[Array, "b n c"]:
        """A block in which the search region attends to the cached templates and to itself."""
        step = functools.partial(search_step, grid=state.grid, train=train)
        cached, filled = (None, None) if cache is None else (cache.blocks[index], cache.filled)
        return self._run(step, self.blocks[index], state.tokens, cached, filled, train=train)

    def _self_step(
        self, index: int, state: _Tokens, filled: Bool[Array, "b slots"] | None, *, train: bool
    ) -> tuple[Float[Array, "b n c"], KeysValues | None]:
        """A block in which a stream attends to itself; where it does not mix, every image to itself."""
        block, (tokens, grid) = self.blocks[index], state
        if self._mixes(index):
            step = functools.partial(templates_step, grid=grid, train=train)
            tokens, own = self._run(step, block, tokens, filled, train=train)
            return tokens, own
        step = functools.partial(templates_step, grid=Grid(1, grid.side), train=train)
        tokens = rearrange(tokens, "b (s n) c -> (b s) n c", s=grid.images)
        tokens, _own = self._run(step, block, tokens, None, train=train)
        return rearrange(tokens, "(b s) n c -> b (s n) c", s=grid.images), None

    def _joint_steps(
        self,
        blocks: range,
        ours: _Tokens,
        theirs: _Tokens,
        filled: Bool[Array, "b slots"] | None,
        *,
        train: bool,
    ) -> tuple[_Tokens, _Tokens]:
        """Blocks for both streams at once; where one does not mix, every image attends to itself."""
        start, symmetric = ours.grid.tokens, self.config.attention == "symmetric"
        step = functools.partial(joint_step, grids=(ours.grid, theirs.grid), symmetric=symmetric, train=train)
        both = jnp.concatenate([ours.tokens, theirs.tokens], axis=1)
        for index in blocks:
            if self._mixes(index):
                both = self._run(step, self.blocks[index], both, filled, train=train)
            else:
                alone, _own = self._self_step(index, ours._replace(tokens=both[:, :start]), filled, train=train)
                found = self._search_step(index, theirs._replace(tokens=both[:, start:]), None, train=train)
                both = jnp.concatenate([alone, found], axis=1)
            self.sow("intermediates", f"templates_block{index}", both[:, :start])
            self.sow("intermediates", f"search_block{index}", both[:, start:])
        return ours._replace(tokens=both[:, :start]), theirs._replace(tokens=both[:, start:])

    def _finish(self, state: _Tokens) -> SearchFeatures:
        token = state.tokens[:, -1] if self.config.head == "query" else None
        return SearchFeatures(state.maps()[:, 0], token)
