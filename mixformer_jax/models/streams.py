"""What a block does to a stream of tokens: the steps of which backbones and decoders are made.

Templates attend to themselves; the search region attends to the templates and itself (the paper, eq. 2), or both attend
to both (eq. 1). Steps take arrays first, so that they can be recomputed for the gradient (`step_runner`), and by name
what is known before a program runs.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from einops import repeat
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mixformer_jax.models.attention import Grid, KeysValues, MixedAttentionBlock


def templates_step(
    block: MixedAttentionBlock,
    templates: Float[Array, "b n c"],
    filled: Bool[Array, "b slots"] | None,
    *,
    grid: Grid,
    train: bool,
) -> tuple[Float[Array, "b n c"], KeysValues]:
    """Every template token attends to the tokens of all filled slots; what it offers to the search region."""
    queries, own = block.project(templates, grid, train=train)
    return block.advance(templates, queries, own, key_mask(filled, own, None), train=train), own


def search_step(
    block: MixedAttentionBlock,
    search: Float[Array, "b n c"],
    templates: KeysValues | None,
    filled: Bool[Array, "b slots"] | None,
    *,
    grid: Grid,
    train: bool,
) -> Float[Array, "b n c"]:
    """The search tokens attend to the templates, where there are any, and to themselves."""
    queries, own = block.project(search, grid, train=train)
    seen = own if templates is None else templates.then(own)
    return block.advance(search, queries, seen, key_mask(filled, templates, own), train=train)


def cross_step(
    block: MixedAttentionBlock,
    search: Float[Array, "b n c"],
    templates: KeysValues,
    filled: Bool[Array, "b slots"] | None,
    *,
    grid: Grid,
    train: bool,
) -> Float[Array, "b n c"]:
    """The search tokens attend to the templates alone."""
    queries, _own = block.project(search, grid, train=train)
    return block.advance(search, queries, templates, key_mask(filled, templates, None), train=train)


def joint_step(
    block: MixedAttentionBlock,
    templates: Float[Array, "b n c"],
    search: Float[Array, "b m c"],
    filled: Bool[Array, "b slots"] | None,
    *,
    template_grid: Grid,
    search_grid: Grid,
    train: bool,
) -> tuple[Float[Array, "b n c"], Float[Array, "b m c"]]:
    """Both streams attend to both."""
    template_queries, template_keys = block.project(templates, template_grid, train=train)
    search_queries, search_keys = block.project(search, search_grid, train=train)
    seen, mask = template_keys.then(search_keys), key_mask(filled, template_keys, search_keys)
    return (
        block.advance(templates, template_queries, seen, mask, train=train),
        block.advance(search, search_queries, seen, mask, train=train),
    )


def step_runner(part: Callable[..., Any], recompute: bool) -> Callable[..., Any]:
    """`part`, a function of a module and arrays; recomputed for the gradient instead of remembered, where asked for."""
    return nn.remat(part) if recompute else part


def key_mask(
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
