"""The backbone that all families share: stages of embedding and blocks, driven for templates and search region.

Asymmetric mixed attention (the paper, eq. 2) needs the template stream once, then the search stream on any number of
search regions: two calls, with `TemplateCache` between them. Symmetric attention (eq. 1) needs both streams in step:
`joint`. Both use the same blocks; they differ in which keys and values are handed to them.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.attention import Grid, KeysValues, MixedAttentionBlock
from mixformer_jax.models.config import ConfigError, MixFormerConfig

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
    """

    config: MixFormerConfig

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
            state = self._enter(stage, templates, state, "templates")
            for index in blocks:
                tokens, own = self._self_step(index, state, filled, train=train)
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
            state = self._enter(stage, search[:, None], state, "search")
            for index in blocks:
                block, cached = self.blocks[index], cache.blocks[index]
                queries, own = block.project(state.tokens, state.grid, train=train)
                seen = own if cached is None else cached.then(own)
                mask = _key_mask(cache.filled, cached, own)
                state = state._replace(tokens=block.advance(state.tokens, queries, seen, mask, train=train))
                self.sow("intermediates", f"search_block{index}", state.tokens)
            self.sow("intermediates", f"stage{stage}_search", state.maps())
        assert state is not None
        for block, cached in zip(self.cross_blocks, cache.blocks[len(self.blocks) :], strict=True):
            assert cached is not None
            queries, _own = block.project(state.tokens, state.grid, train=train)
            mask = _key_mask(cache.filled, cached, None)
            state = state._replace(tokens=block.advance(state.tokens, queries, cached, mask, train=train))
        return self._finish(state)

    def joint(
        self,
        templates: Float[Array, "b slots T T 3"],
        search: Float[Array, "b S S 3"],
        filled: Bool[Array, "b slots"] | None,
        *,
        train: bool,
    ) -> tuple[TemplateCache, SearchFeatures]:
        """Both streams: one after the other where attention is asymmetric, in step where it is symmetric.

        The cache of a symmetric model holds the templates' features and no keys.
        """
        if self.config.attention == "asymmetric":
            cache = self.encode_templates(templates, filled, train=train)
            return cache, self.locate(cache, search, train=train)
        ours: _Tokens | None = None
        theirs: _Tokens | None = None
        for stage, blocks in self._stages():
            ours = self._enter(stage, templates, ours, "templates")
            theirs = self._enter(stage, search[:, None], theirs, "search")
            for index in blocks:
                if not self._mixes(index):
                    tokens, _own = self._self_step(index, ours, filled, train=train)
                    found, _own = self._self_step(index, theirs, None, train=train)
                else:
                    block = self.blocks[index]
                    our_queries, our_keys = block.project(ours.tokens, ours.grid, train=train)
                    queries, keys = block.project(theirs.tokens, theirs.grid, train=train)
                    seen, mask = our_keys.then(keys), _key_mask(filled, our_keys, keys)
                    tokens = block.advance(ours.tokens, our_queries, seen, mask, train=train)
                    found = block.advance(theirs.tokens, queries, seen, mask, train=train)
                ours, theirs = ours._replace(tokens=tokens), theirs._replace(tokens=found)
        assert ours is not None and theirs is not None
        for block in self.cross_blocks:
            seen = block.project(ours.tokens, ours.grid, train=train)[1]
            queries, _own = block.project(theirs.tokens, theirs.grid, train=train)
            mask = _key_mask(filled, seen, None)
            theirs = theirs._replace(tokens=block.advance(theirs.tokens, queries, seen, mask, train=train))
        return TemplateCache((), ours.maps(), filled), self._finish(theirs)

    def _stages(self) -> list[tuple[int, range]]:
        ends = np.cumsum(self.stage_depths()).tolist()
        return [(stage, range(start, end)) for stage, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]

    def _mixes(self, index: int) -> bool:
        mixed = self.config.mixed_blocks
        return mixed is None or index >= len(self.blocks) - mixed

    def _enter(
        self, stage: int, images: Float[Array, "b images S S 3"], before: _Tokens | None, stream: Stream
    ) -> _Tokens:
        """The tokens of a stage, from images for the first and from the stage before for the others."""
        maps = images if before is None else before.maps()
        count = maps.shape[1]
        embedded = self.embed_stage(stage, rearrange(maps, "b s h w c -> (b s) h w c"), stream)
        self.sow("intermediates", f"embed{stage}_{stream}", embedded)
        tokens = rearrange(embedded, "(b s) h w c -> b (s h w) c", s=count)
        if stream == "search" and self.config.head == "query" and stage == len(self.stage_depths()) - 1:
            token = repeat(self.regression_token.astype(tokens.dtype), "c -> b 1 c", b=len(tokens))
            tokens = jnp.concatenate([tokens, token], axis=1)
        return _Tokens(tokens, Grid(count, embedded.shape[1]))

    def _self_step(
        self, index: int, state: _Tokens, filled: Bool[Array, "b slots"] | None, *, train: bool
    ) -> tuple[Float[Array, "b n c"], KeysValues | None]:
        """A block in which a stream attends to itself; where it does not mix, every image to itself."""
        block, (tokens, grid) = self.blocks[index], state
        if self._mixes(index):
            queries, own = block.project(tokens, grid, train=train)
            tokens = block.advance(tokens, queries, own, _key_mask(filled, own, None), train=train)
            self.sow("intermediates", f"templates_block{index}", tokens)
            return tokens, own
        alone = Grid(1, grid.side)
        tokens = rearrange(tokens, "b (s n) c -> (b s) n c", s=grid.images)
        queries, own = block.project(tokens, alone, train=train)
        tokens = block.advance(tokens, queries, own, None, train=train)
        return rearrange(tokens, "(b s) n c -> b (s n) c", s=grid.images), None

    def _finish(self, state: _Tokens) -> SearchFeatures:
        token = state.tokens[:, -1] if self.config.head == "query" else None
        return SearchFeatures(state.maps()[:, 0], token)


def _key_mask(
    filled: Bool[Array, "b slots"] | None, templates: KeysValues | None, own: KeysValues | None
) -> Bool[Array, "b k"] | None:
    """Which keys may be attended to: those of filled slots, and all of the own ones behind them."""
    if filled is None or templates is None:
        return None
    batch, slots = filled.shape
    mask = repeat(filled, "b s -> b (s n)", n=templates.keys.shape[2] // slots)
    if own is None:
        return mask
    return jnp.concatenate([mask, jnp.ones((batch, own.keys.shape[2]), bool)], axis=1)
