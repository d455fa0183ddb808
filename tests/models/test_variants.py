"""Variants that have no official golden: symmetric attention, separate integration, query head, decoder blocks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import traverse_util

from mixformer_jax.models.attention import Grid
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.models.mixformer import build_model, variable_shapes
from tests.compilation import QUICK

VIT = MixFormerConfig(
    name="vit",
    patch_size=8,
    search_size=32,
    template_size=16,
    width=48,
    depth=2,
    num_heads=3,
    drop_path=0.0,
    head="corner",
    head_width=16,
)
CVT = MixFormerConfig(
    name="cvt",
    search_size=32,
    template_size=16,
    backbone="cvt",
    patch_size=8,
    early_widths=(24,),
    early_depths=(2,),
    early_heads=(3,),
    width=48,
    depth=2,
    num_heads=6,
    drop_path=0.0,
    projection="depthwise",
    head="corner",
    head_width=16,
)

VARIANTS = {
    "vit_symmetric": dataclasses.replace(VIT, attention="symmetric", score_heads=3),
    "cvt_symmetric": dataclasses.replace(CVT, attention="symmetric", mixed_blocks=2),
    "cvt_cross": dataclasses.replace(CVT, mixed_blocks=0, cross_attention_blocks=2),
    "cvt_symmetric_cross": dataclasses.replace(CVT, attention="symmetric", mixed_blocks=0, cross_attention_blocks=1),
    "cvt_transt": dataclasses.replace(CVT, mixed_blocks=0, context_augment_layers=2),
    "cvt_query": dataclasses.replace(CVT, head="query", score_heads=6),
    "cvt_linear": dataclasses.replace(CVT, projection="linear"),
    "cvt_batch_norm": dataclasses.replace(
        CVT, projection_norm="batch", early_widths=(), early_depths=(), early_heads=(), patch_size=4
    ),
    "cvt_layer_norm": dataclasses.replace(CVT, projection_norm="layer"),
    "vit_query": dataclasses.replace(VIT, head="query"),
    "vit_decoder": dataclasses.replace(VIT, depth=3, decoder_blocks=2, head="query"),
    "vit_layer_scale": dataclasses.replace(VIT, layer_scale=True, mixed_blocks=1),
}


# These programs run a few times on small inputs: optimising them would take longer than it saves.
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def built(name):
    """The model, variables, and its joint call, compiled once. Random throughout: zero biases would hide errors."""
    model = build_model(VARIANTS[name])
    rng = np.random.default_rng(0)

    def value(path, leaf):
        values = 0.15 * rng.standard_normal(leaf.shape).astype(np.float32)
        return np.abs(values) + 0.5 if path[-1].key in ("var", "scale") else values

    variables = jax.tree_util.tree_map_with_path(value, variable_shapes(model))
    return model, variables, quick_jit(functools.partial(model.apply, mutable=["intermediates"]))


@functools.cache
def images(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return jax.random.normal(keys[0], (2, 2, 16, 16, 3)), jax.random.normal(keys[1], (2, 32, 32, 3))


FULL = jnp.asarray([[True, True]] * 2)


@pytest.mark.parametrize("name", VARIANTS)
def test_filled_slots_decide_the_box_and_empty_ones_do_not(name):
    _model, variables, apply = built(name)
    templates, search = images()
    one_empty = jnp.asarray([[True, False]] * 2)

    def boxes(templates, filled):
        return np.asarray(apply(variables, templates, search, filled)[0].boxes_cxcywh)

    full, empty = boxes(templates, FULL), boxes(templates, one_empty)
    assert np.isfinite(full).all()
    junk = templates.at[:, 1].set(7.0)
    np.testing.assert_array_equal(boxes(junk, one_empty), empty)
    assert np.abs(boxes(junk, FULL) - full).max() > 1e-6
    assert np.abs(boxes(templates.at[:, 0].set(7.0), one_empty) - empty).max() > 1e-6


@pytest.mark.parametrize("name", ["cvt_cross", "cvt_query", "vit_decoder", "vit_layer_scale"])
def test_cached_and_joint_calls_agree(name):
    model, variables, apply = built(name)
    templates, search = images()
    encode = quick_jit(functools.partial(model.apply, method="encode_templates"))
    locate = quick_jit(functools.partial(model.apply, method="locate"))
    cached = locate(variables, encode(variables, templates, FULL), search)
    joint = apply(variables, templates, search, FULL)[0]
    np.testing.assert_allclose(cached.boxes_cxcywh, joint.boxes_cxcywh, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, config in VARIANTS.items() if not config.is_cacheable])
def test_no_cache_where_templates_see_the_search_region(name):
    model, variables, _apply = built(name)
    with pytest.raises(ConfigError, match="no template cache"):
        model.apply(variables, images()[0], method="encode_templates")


def test_symmetric_attention_is_attention_over_all_tokens():
    """Equation 1: with both streams' keys for everybody, two streams are one sequence."""
    model, variables, apply = built("vit_symmetric")
    templates, search = images()

    @quick_jit
    def one_sequence(variables):
        backbone = model.bind(variables).backbone
        template_maps = backbone.embed_stage(0, rearrange(templates, "b s h w c -> (b s) h w c"), "templates")
        search_maps = backbone.embed_stage(0, search, "search")
        template_tokens = rearrange(template_maps, "(b s) h w c -> b (s h w) c", b=2)
        tokens = jnp.concatenate([template_tokens, rearrange(search_maps, "b h w c -> b (h w) c")], axis=1)
        for block in backbone.blocks:
            tokens, _own = block.step(tokens, None, grid=Grid(3, 1), train=False)
        return rearrange(tokens[:, -16:], "b (h w) c -> b h w c", h=4)

    expected = one_sequence(variables)
    found = apply(variables, templates, search, FULL)[0].features
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-5)


@pytest.mark.parametrize(("name", "separate"), [("cvt_symmetric", 2), ("cvt_transt", 4), ("vit_layer_scale", 2)])
def test_earlier_blocks_do_not_mix(name, separate):
    """Table 3: what the search region looks like before the first mixing block does not depend on the target."""
    model, variables, apply = built(name)
    templates, search = images()
    stages = [apply(variables, t, search, FULL)[1]["intermediates"]["backbone"] for t in (templates, images(seed=5)[0])]
    for index in range(model.config.num_blocks):
        queries = [stage[f"blocks_{index}"]["attention"]["queries"] for stage in stages]
        same = np.abs(queries[0][-1] - queries[1][-1]).max() == 0
        assert same == (index <= separate), index


def test_layer_scale_of_zero_switches_blocks_off():
    _model, variables, apply = built("vit_layer_scale")
    templates, search = images()
    flat = traverse_util.flatten_dict(variables)
    flat = {path: 0 * value if path[-1] in ("scale1", "scale2") else value for path, value in flat.items()}
    off, stages = apply(traverse_util.unflatten_dict(flat), templates, search, FULL)
    embedded = stages["intermediates"]["backbone"]["embed0_search"][0]
    np.testing.assert_array_equal(off.features, embedded)


def test_query_head_learns_through_its_token():
    model, variables, apply = built("vit_query")
    templates, search = images()
    prediction = apply(variables, templates, search, FULL)[0]
    assert prediction.top_left_logits is None and prediction.features.shape == (2, 4, 4, 48)
    assert ((prediction.boxes_cxcywh > 0) & (prediction.boxes_cxcywh < 1)).all()

    @quick_jit
    @jax.grad
    def gradient_of(params):
        return model.apply({**variables, "params": params}, templates, search).boxes_cxcywh.sum()

    assert np.abs(gradient_of(variables["params"])["backbone"]["regression_token"]).max() > 0


def test_score_judges_the_box_it_is_given():
    _model, variables, apply = built("cvt_query")
    templates, search = images()
    prediction = apply(variables, templates, search, FULL)[0]
    elsewhere = apply(variables, templates, search, FULL, jnp.asarray([[0.0, 0.0, 0.3, 0.3]] * 2))[0]
    assert np.abs(prediction.score_logits - elsewhere.score_logits).max() > 1e-6
    np.testing.assert_allclose(prediction.boxes_cxcywh, elsewhere.boxes_cxcywh, atol=1e-6)


def test_trained_batch_norm_in_the_projections_learns_statistics():
    model, variables, _apply = built("cvt_batch_norm")
    learn = quick_jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    _, updates = learn(variables, *images())
    name = ("backbone", "blocks_0", "attention", "depthwise_k", "norm", "mean")
    before, after = (traverse_util.flatten_dict(tree["batch_stats"])[name] for tree in (variables, updates))
    assert np.abs(before - after).max() > 0
