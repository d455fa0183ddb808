"""Models with a second stream: how it enters, which of its tokens count, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.convert.names import name_table
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.autoencoder import AutoencoderConfig
from mixformer_jax.models.backbone import colour_mapped, jet, measured_patches
from mixformer_jax.models.config import ConfigError, MixFormerConfig, size_config
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.pixels import normalise

SMALL = MixFormerConfig(
    name="small",
    search_size=64,
    template_size=32,
    width=24,
    depth=1,
    num_heads=2,
    mlp_ratio=2,
    head="corner",
    head_width=8,
    score_heads=2,
    head_norm="frozen",
)
CVT = dataclasses.replace(
    SMALL,
    backbone="cvt",
    patch_size=8,
    early_widths=(12,),
    early_depths=(1,),
    early_heads=(1,),
    projection="depthwise",
)


def images(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def concatenated():
    """A model, variables of which none is what it starts with, and its two passes, compiled."""
    model = build_model(dataclasses.replace(SMALL, second_stream="concatenated", colour_map=True))
    noise = np.random.default_rng(0)
    variables = jax.eval_shape(model.initial_values, jax.random.key(0))
    variables = jax.tree.map(lambda x: noise.normal(0, 0.1, x.shape).astype(np.float32), variables)

    def cached(variables, templates, search, filled):
        cache = model.apply(variables, normalise(templates), filled, method="encode_templates")
        return model.apply(variables, cache, normalise(search), method="locate"), cache

    def joint(variables, templates, search, filled):
        return model.apply(variables, normalise(templates), normalise(search), filled)

    return variables, jax.jit(cached), jax.jit(joint)


def test_cached_and_joint_passes_agree_and_see_the_second_stream(concatenated):
    variables, cached, joint = concatenated
    templates, search = images((2, 2, 32, 32, 6)), images((2, 64, 64, 6), 1)
    templates[0, 1, :16, :, 3:] = search[1, 20:, :, 3:] = 0  # nothing measured
    filled = np.array([[True, True], [True, False]])
    found, cache = cached(variables, templates, search, filled)
    whole = joint(variables, templates, search, filled)
    np.testing.assert_allclose(found.boxes_cxcywh, whole.boxes_cxcywh, atol=1e-5)
    np.testing.assert_allclose(found.score_logits, whole.score_logits, atol=1e-4)
    assert found.features.shape == (2, 4, 4, 24) and cache.features.shape == (2, 2, 2, 2, 24)
    # RGB and depth of the first template, then of the second one: of it half is measured, and it is there or not.
    half = [False, False, True, True]
    assert cache.filled.tolist() == [[True] * 12 + half, [True] * 8 + [False] * 8]

    other = search.copy()
    other[..., 3:] = np.where(search[..., 3:] > 0, 255 - search[..., 3:] // 2, 0)
    assert np.abs(joint(variables, templates, other, filled).features - whole.features).max() > 1e-3


def test_where_nothing_is_measured_the_boxes_are_those_of_colour_alone(concatenated):
    """Up to rounding: keys of no weight change the order in which the others are added up."""
    variables, _cached, joint = concatenated
    backbone = {name: part for name, part in variables["params"]["backbone"].items() if name != "second_embed"}
    of_colour = variables | {"params": variables["params"] | {"backbone": backbone}}
    templates, search = images((2, 2, 32, 32, 6)), images((2, 64, 64, 6), 1)
    templates[..., 3:] = search[..., 3:] = 0
    filled = np.ones((2, 2), bool)
    found = joint(variables, templates, search, filled)
    plain = jax.jit(build_model(SMALL).apply)
    alone = plain(of_colour, normalise(templates[..., :3]), normalise(search[..., :3]), filled)
    np.testing.assert_allclose(found.boxes_cxcywh, alone.boxes_cxcywh, atol=1e-6)
    np.testing.assert_allclose(found.features, alone.features, atol=1e-4)


def test_a_regression_token_reads_an_added_stream():
    """The query head has no maps of its own: depth reaches it through attention alone."""
    model = build_model(dataclasses.replace(SMALL, head="query", second_stream="added"))
    noise = np.random.default_rng(0)
    variables = jax.eval_shape(model.initial_values, jax.random.key(0))
    variables = jax.tree.map(lambda x: noise.normal(0, 0.1, x.shape).astype(np.float32), variables)
    templates, search = normalise(images((1, 1, 32, 32, 6))), normalise(images((1, 64, 64, 6), 1))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def found(params, templates, search):
        whole = model.apply({**variables, "params": params}, templates, search, None)
        cache = model.apply({**variables, "params": params}, templates, None, method="encode_templates")
        cached = model.apply({**variables, "params": params}, cache, search, method="locate")
        return whole.boxes_cxcywh.sum(), (whole.boxes_cxcywh, cached.boxes_cxcywh)

    (_, boxes), slopes = found(variables["params"], templates, search)
    np.testing.assert_allclose(*boxes, atol=1e-5)
    other = np.concatenate([search[..., :3], -search[..., 3:]], axis=-1)
    (_, otherwise), _ = found(variables["params"], templates, other)
    assert np.abs(otherwise[0] - boxes[0]).max() > 1e-6
    for name in ("second_scale", "second_embed"):
        assert all(np.abs(slope).max() > 1e-7 for slope in jax.tree.leaves(slopes["backbone"][name])), name


def test_what_counts_as_measured():
    shown = np.zeros((1, 32, 32, 3), np.uint8)
    shown[0, 15, 16, 2] = 1
    assert measured_patches(normalise(jnp.asarray(shown)), 16).tolist() == [[[False, True], [False, False]]]


def test_a_colour_map_is_black_where_nothing_is_measured():
    levels = np.arange(256, dtype=np.uint8)
    grey = jnp.asarray(np.repeat(levels, 3).reshape(1, 16, 16, 3))
    mapped = colour_mapped(normalise(grey))
    np.testing.assert_array_equal(mapped.reshape(256, 3), normalise(jet()))
    colours = jet()
    assert colours[0].tolist() == [0, 0, 0] and len(np.unique(colours, axis=0)) > 250
    assert [int(colours[level].argmax()) for level in (1, 128, 255)] == [2, 1, 0]


def test_alone_is_a_model_of_three_channels():
    alone = dataclasses.replace(SMALL, second_stream="alone")
    assert (alone.channels, alone.streams) == (3, "second")
    shapes = [variable_shapes(build_model(config)) for config in (alone, SMALL)]
    assert jax.tree.map(lambda x: x.shape, shapes[0]) == jax.tree.map(lambda x: x.shape, shapes[1])


def test_the_second_embedding_is_of_the_kind_of_the_first():
    for config, first in ((SMALL, "patch_embed"), (CVT, "embed_0")):
        backbone = variable_shapes(build_model(dataclasses.replace(config, second_stream="added")))["params"][
            "backbone"
        ]
        ours, theirs = (jax.tree.map(lambda x: x.shape, backbone[name]) for name in ("second_embed", first))
        assert ours == theirs


def test_what_is_refused():
    with pytest.raises(ConfigError, match="second_stream 'concatenated' goes with the backbone 'vit'"):
        dataclasses.replace(CVT, second_stream="concatenated")
    with pytest.raises(ConfigError, match="second_stream 'concatenated' goes with"):
        dataclasses.replace(SMALL, second_stream="concatenated", mixed_blocks=0, cross_attention_blocks=1)
    with pytest.raises(ConfigError, match="second_stream is 'none'"):
        dataclasses.replace(SMALL, colour_map=True)
    added = dataclasses.replace(size_config("mixvit_b"), second_stream="added")
    with pytest.raises(WeightsError, match="no official counterpart: the official code has no second_stream 'added'"):
        name_table(added)
    with pytest.raises(ConfigError, match="masked autoencoders see RGB alone"):
        AutoencoderConfig(added)
    added = dataclasses.replace(SMALL, second_stream="added")
    model = build_model(added)
    with pytest.raises(ConfigError, match=r"images of 3 channels; the model 'small' reads 6"):
        jax.eval_shape(model.apply, variable_shapes(model), *_crops_of_colour())


def _crops_of_colour():
    return normalise(images((1, 1, 32, 32, 3))), normalise(images((1, 64, 64, 3)))
