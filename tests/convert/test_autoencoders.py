"""Autoencoders in files, and their hand-over to trackers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.pretrained import hand_over, load_autoencoder, save_autoencoder, shapes_of_autoencoder
from mixformer_jax.convert.weights import WeightsError, expected_shapes, load_weights, save_weights
from mixformer_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from mixformer_jax.models.config import DECODER_HEADS, MixFormerConfig, TrackerConfig
from mixformer_jax.models.layers import Masking, resize_positions, sincos_positions
from mixformer_jax.models.mixformer import build_model, init_variables, variable_shapes
from tests.compilation import QUICK

VIT = MixFormerConfig(
    name="vit",
    search_size=64,
    template_size=32,
    width=24,
    depth=2,
    num_heads=3,
    drop_path=0.0,
    head="corner",
    head_width=16,
)

SMALL = AutoencoderConfig(VIT, num_templates=2, decoder_depth=1, decoder_width=16, decoder_heads=2)
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


def random_variables(config):
    rng = np.random.default_rng(0)

    def value(path, leaf):
        values = 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
        return np.abs(values) + 0.5 if path[-1].key == "scale" else values

    return jax.tree_util.tree_map_with_path(value, variable_shapes(Autoencoder(config)))


def test_files(tmp_path):
    config = dataclasses.replace(SMALL, model=dataclasses.replace(VIT, dtype="bfloat16"))
    variables = random_variables(config)
    path = tmp_path / "model.safetensors"
    save_autoencoder(path, variables, config)
    found = load_autoencoder(path)
    assert found.config == SMALL and not found.carried
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    with pytest.raises(WeightsError, match="weights of an autoencoder; expected weights written by"):
        load_weights(path)
    save_weights(path, init_variables(build_model(VIT), jax.random.key(0)), VIT, TrackerConfig())
    with pytest.raises(WeightsError, match="expected a masked autoencoder as a pre-training run writes it"):
        load_autoencoder(path)
    del variables["params"]["decoder"]["mask_token"]
    save_autoencoder(path, variables, config)
    with pytest.raises(WeightsError, match=r"missing params/decoder/mask_token \(16,\)"):
        load_autoencoder(path)


def test_tracker_computes_what_the_encoder_does():
    """Fig. 7, "+DN": behind the same encoder, the decoder's first blocks with the same mixed attention."""
    source = dataclasses.replace(SMALL, decoder_width=512, decoder_heads=DECODER_HEADS)
    target = dataclasses.replace(VIT, decoder_blocks=1)
    variables = random_variables(source)
    found = hand_over(variables, source, target)
    model = build_model(target)
    fresh = init_variables(model, jax.random.key(0))
    tracker = unflatten_dict(flatten_dict(fresh) | flatten_dict(found.variables))
    keys = jax.random.split(jax.random.key(1), 2)
    templates, search = jax.random.normal(keys[0], (1, 2, 32, 32, 3)), jax.random.normal(keys[1], (1, 64, 64, 3))
    everything = Masking(jnp.arange(16)[None], jnp.zeros((1, 16), bool))

    expected = quick_jit(Autoencoder(source).apply)(variables, search, everything, templates).patches
    features = quick_jit(model.apply)(tracker, templates, search).features

    @quick_jit
    def pixels(variables, features):
        def read_off(model, tokens):
            return model.decoder.pixels(model.decoder.output_norm(tokens))

        return Autoencoder(source).apply(variables, rearrange(features, "b h w c -> b (h w) c"), method=read_off)

    np.testing.assert_allclose(pixels(variables, features), expected, atol=1e-4)

    backbone = {name for name in expected_shapes(target) if name.startswith("params/backbone/")}
    assert set(found.taken) == backbone
    assert set(found.fresh) == set(expected_shapes(target)) - backbone
    assert {name.split("/")[2] for name in found.ignored} == {"mask_token", "output_norm", "pixels"}


def test_the_encoder_alone_keeps_its_names_and_bits():
    source = dataclasses.replace(SMALL, model=dataclasses.replace(VIT, depth=3), class_token=True)
    target = dataclasses.replace(VIT, search_size=96, score_heads=3, head="query")
    variables = random_variables(source)
    found = hand_over(variables, source, target)
    theirs = flatten_dict(variables)
    for path, value in flatten_dict(found.variables).items():
        np.testing.assert_array_equal(value, theirs[path])
    fresh = {name for name in found.fresh if name.startswith("params/backbone/")}
    assert fresh == {"params/backbone/regression_token"}
    assert "params/backbone/blocks_2/norm1/bias" in found.ignored and "params/class_token" in found.ignored


@pytest.mark.parametrize("num_templates", [0, 1])
def test_position_tables(num_templates):
    learnable = dataclasses.replace(VIT, positions="learnable")
    source = dataclasses.replace(SMALL, model=learnable, num_templates=num_templates)
    variables = random_variables(source)
    tables = {name: value["table"] for name, value in variables["params"]["backbone"].items() if "positions" in name}
    assert len(tables) == 1 + num_templates
    found = hand_over(variables, source, dataclasses.replace(learnable, search_size=96)).variables["params"]["backbone"]
    search = found["search_positions"]["table"]
    np.testing.assert_allclose(search, resize_positions(tables["search_positions"], 6), atol=1e-6)
    expected = tables.get("template_positions", resize_positions(tables["search_positions"], 2))
    np.testing.assert_allclose(found["template_positions"]["table"], expected, atol=1e-6)

    computed = hand_over(random_variables(SMALL), SMALL, learnable).variables["params"]["backbone"]
    np.testing.assert_allclose(computed["search_positions"]["table"], sincos_positions(4, 24), atol=1e-6)
    with pytest.raises(WeightsError, match="'learnable' there, tables that 'sincos' has no place for"):
        hand_over(variables, source, VIT)


def test_all_that_does_not_fit_is_listed():
    target = dataclasses.replace(VIT, depth=3, num_heads=4, decoder_blocks=1, patch_embed="convolutional")
    with pytest.raises(WeightsError, match="the autoencoder around 'vit' does not fit the backbone of 'vit'") as caught:
        hand_over(random_variables(SMALL), SMALL, target)
    lines = str(caught.value).split("\n  ")[1:]
    assert "num_heads: 3 there, 4 here" in lines
    assert "patch_embed: 'linear' there, 'convolutional' here" in lines
    assert "decoder_heads: 2 there; decoder_blocks have 16" in lines
    assert "misshapen params/decoder/embed/kernel: (24, 16), expected (24, 512)" in lines
    assert "missing params/backbone/blocks_2/norm1/scale (24,)" in lines
    assert "missing params/backbone/patch_embed/patchify/proj/kernel (48, 6)" in lines
    assert shapes_of_autoencoder(SMALL)["params/decoder/embed/kernel"] == (24, 16)
