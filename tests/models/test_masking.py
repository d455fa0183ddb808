"""Choices of cells, and layers that work on the visible ones alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import ConvPatchEmbed, DepthwiseConv, count_visible, random_masking
from mixformer_jax.models.vit import ConvMaePatchEmbed
from tests.compilation import QUICK


@given(grid=st.integers(2, 9), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_cells_with_the_smallest_noise_stay(grid, ratio, seed):
    noise = np.random.default_rng(seed).random((3, grid * grid), dtype=np.float32)
    masking = random_masking(jnp.asarray(noise), ratio)
    visible = count_visible(grid * grid, ratio)
    assert masking.grid == grid and masking.visible.shape == (3, visible)
    for row, chosen, hidden in zip(noise, np.asarray(masking.visible), np.asarray(masking.hidden), strict=True):
        np.testing.assert_array_equal(chosen, np.argsort(row)[:visible])
        np.testing.assert_array_equal(np.flatnonzero(~hidden), np.sort(chosen))


@settings(max_examples=6)
@given(grid=st.integers(2, 4), side=st.integers(1, 3), reach=st.integers(0, 2), seed=st.integers(0, 9))
def test_cells_go_out_and_come_back(grid, side, reach, seed):
    rng = np.random.default_rng(seed)
    maps = rng.random((2, grid * side, grid * side, 3), dtype=np.float32)
    noise = rng.random((2, grid * grid), dtype=np.float32)

    @jax.jit  # a program a shape, not one an operation
    def out_and_back(noise, maps):
        masking = random_masking(noise, 0.5)
        cells = masking.take(maps)
        tokens = cells.reshape(2, -1, side * side * 3)
        filled = masking.fill(tokens, jnp.full(tokens.shape[2], 7.0))
        return masking, cells, masking.surround(cells, reach), tokens, filled

    masking, cells, around, tokens, filled = jax.device_get(out_and_back(noise, maps))
    hidden = np.asarray(masking.hidden).reshape(2, grid, grid).repeat(side, 1).repeat(side, 2)
    padded = np.pad(np.where(hidden[..., None], 0, maps), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    for index, (cell, window) in enumerate(zip(cells, around, strict=True)):
        sample, token = divmod(index, masking.visible.shape[1])
        row, column = (side * int(place) for place in divmod(int(masking.visible[sample, token]), grid))
        np.testing.assert_array_equal(cell, maps[sample, row : row + side, column : column + side])
        wide = side + 2 * reach
        np.testing.assert_array_equal(window, padded[sample, row : row + wide, column : column + wide])
    np.testing.assert_array_equal(filled[np.asarray(masking.hidden)], 7.0)
    np.testing.assert_array_equal(np.take_along_axis(filled, np.asarray(masking.visible)[..., None], axis=1), tokens)


quick_jit = functools.partial(jax.jit, compiler_options=QUICK)

CONVMAE = MixFormerConfig(patch_embed="convmae", early_widths=(8, 12), early_depths=(1, 2), width=24, num_heads=2)


@pytest.mark.parametrize("kind", ["convmae", "convolutional"])
def test_embeddings_of_visible_cells_are_masked_convolutions(kind):
    """Gao et al. 2022: whole maps, and zeros in hidden cells before each convolution that reaches beyond a cell."""
    embed = ConvMaePatchEmbed(CONVMAE) if kind == "convmae" else ConvPatchEmbed(24, 16, jnp.dtype("float32"))
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(keys[0], (2, 64, 64, 3))
    masking = random_masking(jax.random.uniform(keys[1], (2, 16)), 0.5)
    shapes = jax.eval_shape(embed.init, keys[2], images)
    rng = np.random.default_rng(0)  # random throughout: zero biases would hide errors
    variables = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)

    def hide(next_function, args, kwargs, context):
        if isinstance(context.module, DepthwiseConv | nn.Conv) and context.method_name == "__call__":
            side = args[0].shape[1] // 4
            visible = ~masking.hidden.reshape(2, 4, 4, 1).repeat(side, 1).repeat(side, 2)
            args = (args[0] * visible, *args[1:])
        return next_function(*args, **kwargs)

    method = ConvMaePatchEmbed.stages if kind == "convmae" else None
    with nn.intercept_methods(hide):
        whole = quick_jit(functools.partial(embed.apply, method=method))(variables, images)
    nan = jnp.where(masking.hidden.reshape(2, 4, 4, 1).repeat(16, 1).repeat(16, 2), jnp.nan, images)
    apply = quick_jit(functools.partial(embed.apply, method=method))
    alone = apply(variables, masking.take(nan), masking)
    whole, alone = jax.tree.leaves(whole), jax.tree.leaves(alone)
    assert len(whole) == len(alone) == (3 if kind == "convmae" else 1)
    for expected, found in zip(whole, alone, strict=True):
        np.testing.assert_allclose(found, masking.take(expected), atol=2e-5)
    unmasked = jax.tree.leaves(apply(variables, images))[0]
    assert np.abs(masking.take(unmasked) - alone[0]).max() > 1e-3
