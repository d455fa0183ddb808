"""Masked autoencoders: the official MAE's numbers, what passes the encoder, and who sees whom."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from mixformer_jax.convert.pretrained import autoencoder_to_mae
from mixformer_jax.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    draw_masking,
    patchify,
    reconstruct,
    reconstruction_losses,
    unpatchify,
)
from mixformer_jax.models.config import ConfigError, MixFormerConfig, size_config
from mixformer_jax.models.layers import random_masking
from mixformer_jax.models.mixformer import build_model, init_variables, variable_shapes
from tests.compilation import QUICK
from tests.convert.layouts import autoencoder_from_mae

TOLERANCE = 1e-4
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)

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
CONVMAE = dataclasses.replace(VIT, patch_embed="convmae", early_widths=(8, 12), early_depths=(1, 1))
SMALL = {"decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
CONFIGS = {
    "mae": AutoencoderConfig(VIT, **SMALL),
    "mae_class_token": AutoencoderConfig(VIT, class_token=True, **SMALL),
    "mae_convolutional": AutoencoderConfig(dataclasses.replace(VIT, patch_embed="convolutional"), **SMALL),
    "mae_convmae": AutoencoderConfig(CONVMAE, **SMALL),
    "trackmae": AutoencoderConfig(dataclasses.replace(VIT, positions="learnable"), num_templates=1, **SMALL),
    "trackmae_two": AutoencoderConfig(VIT, num_templates=2, class_token=True, mask_ratio=0.5, **SMALL),
    "trackmae_convmae": AutoencoderConfig(CONVMAE, num_templates=1, **SMALL),
    "trackmae_symmetric": AutoencoderConfig(
        dataclasses.replace(VIT, attention="symmetric", mixed_blocks=1), num_templates=2, **SMALL
    ),
}
TRACKMAE = [name for name in CONFIGS if name.startswith("trackmae")]


@functools.cache
def built(name):
    """Model, variables, inputs, and the forward pass with its intermediate values, compiled once."""
    config = CONFIGS[name]
    model = Autoencoder(config)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        values = 0.2 * rng.standard_normal(leaf.shape).astype(np.float32)
        return np.abs(values) + 0.5 if path[-1].key == "scale" else values

    variables = jax.tree_util.tree_map_with_path(value, variable_shapes(model))
    keys = jax.random.split(jax.random.key(0), 3)
    search = jax.random.normal(keys[0], (2, 64, 64, 3))
    templates = jax.random.normal(keys[1], (2, config.num_templates, 32, 32, 3)) if config.num_templates else None
    masking = draw_masking(config, keys[2], 2)
    return model, variables, search, templates, masking, quick_jit(functools.partial(model.apply, mutable=True))


def run(name, **changes):
    """Reconstruction and intermediates; `changes` replace search, templates or masking."""
    _model, variables, search, templates, masking, apply = built(name)
    inputs = {"search": search, "masking": masking, "templates": templates} | changes
    found, state = apply(variables, inputs["search"], inputs["masking"], inputs["templates"])
    return found, state["intermediates"]["backbone"]


def hidden_pixels(masking):
    return masking.hidden.reshape(2, 4, 4, 1).repeat(16, 1).repeat(16, 2)


# --- the official numbers ---


def golden_autoencoder(arrays, mask_ratio, norm_pix_loss=True):
    meta = json.loads(str(arrays["meta"]))
    model = MixFormerConfig(
        name="mae",
        search_size=meta["img_size"],
        template_size=meta["patch_size"],
        patch_size=meta["patch_size"],
        width=meta["embed_dim"],
        depth=meta["depth"],
        num_heads=meta["num_heads"],
        mlp_ratio=meta["mlp_ratio"],
        drop_path=0.0,
    )
    return AutoencoderConfig(
        model,
        mask_ratio=mask_ratio,
        decoder_depth=meta["decoder_depth"],
        decoder_width=meta["decoder_embed_dim"],
        decoder_heads=meta["decoder_num_heads"],
        norm_pix_loss=norm_pix_loss,
        class_token=True,
    )


def golden_inputs(arrays, mask_ratio):
    state = {name.removeprefix("state/"): arrays[name] for name in arrays.files if name.startswith("state/")}
    images = jnp.asarray(rearrange(arrays["in/imgs"], "b c h w -> b h w c"))
    return state, images, random_masking(jnp.asarray(arrays["in/noise"]), mask_ratio)


@pytest.mark.parametrize(("case", "mask_ratio"), [("", 0.75), ("r50/", 0.5)])
def test_official_mae(golden, case, mask_ratio):
    arrays = golden("mae.npz")
    config = golden_autoencoder(arrays, mask_ratio)
    state, images, masking = golden_inputs(arrays, mask_ratio)
    variables = autoencoder_from_mae(state, config)
    found = jax.jit(Autoencoder(config).apply)(variables, images, masking)
    np.testing.assert_array_equal(masking.hidden, arrays[f"{case}mask"] == 1)
    # Their class token comes first, ours last.
    np.testing.assert_allclose(jnp.roll(found.latent, 1, axis=1), arrays[f"{case}latent"], atol=TOLERANCE)
    np.testing.assert_allclose(found.patches, arrays[f"{case}pred"], atol=TOLERANCE)
    np.testing.assert_array_equal(patchify(images, 16), arrays["target_patches"])
    for normalised in (True, False):
        loss = reconstruction_losses(found.patches, images, masking.hidden, normalised).mean()
        np.testing.assert_allclose(loss, arrays[f"normpix{normalised:d}/{case}loss"], atol=TOLERANCE)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_official_gradients(golden, norm_pix_loss):
    arrays = golden("mae.npz")
    config = golden_autoencoder(arrays, 0.75, norm_pix_loss)
    state, images, masking = golden_inputs(arrays, 0.75)

    def loss(variables):
        found = Autoencoder(config).apply(variables, images, masking, train=True)
        return reconstruction_losses(found.patches, images, masking.hidden, norm_pix_loss).mean()

    gradients = autoencoder_to_mae(quick_jit(jax.grad(loss))(autoencoder_from_mae(state, config)), config)
    prefix = f"normpix{norm_pix_loss:d}/grad/"
    names = [name.removeprefix(prefix) for name in arrays.files if name.startswith(prefix)]
    assert "cls_token" in names and "mask_token" in names
    for name in names:
        expected = arrays[prefix + name]
        np.testing.assert_allclose(gradients[name], expected, atol=TOLERANCE * max(1.0, np.abs(expected).max()))


# --- what passes the encoder ---


@pytest.mark.parametrize("name", CONFIGS)
def test_only_visible_tokens_pass_the_encoder(name):
    config = CONFIGS[name]
    found, stages = run(name)
    visible = 8 if config.mask_ratio == 0.5 else 4
    assert found.latent.shape == (2, visible + config.class_token, 24)
    assert found.patches.shape == (2, 16, 768)
    for index in range(2):
        # Of each block, the queries of the search stream are what was kept last.
        queries = stages[f"blocks_{index}"]["attention"]["queries"][-1]
        assert queries.shape == (2, 3, visible + config.class_token, 8)


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_pixels_are_not_read(name):
    """A value that is no number would spoil whatever it touches."""
    _model, _variables, search, _templates, masking, _apply = built(name)
    hidden = hidden_pixels(masking)
    expected, _ = run(name)
    found, _ = run(name, search=jnp.where(hidden, jnp.nan, search))
    assert np.isfinite(expected.patches).all()
    np.testing.assert_array_equal(found.latent, expected.latent)
    np.testing.assert_array_equal(found.patches, expected.patches)
    other, _ = run(name, search=jnp.where(hidden, search, search + 1.0))
    assert np.abs(other.latent - expected.latent).max() > 1e-3


@pytest.mark.parametrize("name", ["mae_class_token", "trackmae_convmae", "trackmae_symmetric"])
def test_order_of_visible_cells_does_not_matter(name):
    masking = built(name)[4]
    expected, _ = run(name)
    found, _ = run(name, masking=masking._replace(visible=masking.visible[:, ::-1]))
    np.testing.assert_allclose(found.patches, expected.patches, atol=1e-4)


def test_cost_of_the_masked_search_stream():
    """The issue's figure: at most 30% of the unmasked stream, by XLA's count of operations. MixViT-B's is 23.8%."""
    config = AutoencoderConfig(dataclasses.replace(size_config("mixvit_b"), depth=2), num_templates=1)
    model = Autoencoder(config)
    variables = variable_shapes(model)
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    search = shape((1, 288, 288, 3))

    def operations(name, *args):
        def call(variables, *args):
            return model.apply(variables, *args, method=lambda m, *a: getattr(m.backbone, name)(*a, train=False))

        return jax.jit(call).lower(variables, *args).cost_analysis()["flops"], jax.eval_shape(call, variables, *args)

    masking = jax.eval_shape(lambda key: draw_masking(config, key, 1), jax.random.key(0))
    templates = shape((1, 1, 128, 128, 3))
    of_templates, cache = operations("encode_templates", templates, None)
    whole, _found = operations("locate", cache, search)
    masked = operations("joint_visible", templates, search, masking, None)[0] - of_templates
    assert 0.2 < masked / whole < 0.3


# --- who sees whom ---


@pytest.mark.parametrize("name", TRACKMAE)
def test_templates_see_the_search_region_where_attention_is_symmetric(name):
    model, variables, search, templates, masking, _apply = built(name)

    @quick_jit
    def features(search):
        return model.apply(
            variables, search, method=lambda m, s: m.backbone.joint_visible(templates, s, masking, None, train=False)[0]
        )

    changes = np.abs(features(search) - features(search + 1.0)).max()
    assert (changes > 1e-4) == (CONFIGS[name].model.attention == "symmetric")


@pytest.mark.parametrize("name", TRACKMAE)
def test_reconstruction_learns_through_every_template(name):
    model, variables, search, templates, masking, _apply = built(name)

    @quick_jit
    @jax.grad
    def gradient(templates):
        found = model.apply(variables, search, masking, templates)
        return reconstruction_losses(found.patches, search, masking.hidden, True).mean()

    of_slots = np.abs(gradient(templates)).max(axis=(0, 2, 3, 4))
    assert (of_slots > 1e-6).all()
    permuted, _ = run(name, templates=templates[:, ::-1])
    expected, _ = run(name)
    np.testing.assert_allclose(permuted.patches, expected.patches, atol=1e-4)


def test_every_variable_of_the_encoder_is_a_tracker_s():
    for name, config in CONFIGS.items():
        shapes = variable_shapes(Autoencoder(config))["params"]
        tracker = variable_shapes(build_model(config.model))["params"]["backbone"]
        if not config.num_templates:
            tracker.pop("template_positions", None)
        assert jax.tree.map(lambda x: x.shape, shapes["backbone"]) == jax.tree.map(lambda x: x.shape, tracker), name
        assert set(shapes) == {"backbone", "decoder"} | ({"class_token"} if config.class_token else set())


def test_recomputing_changes_no_gradient_whatever_is_saved():
    config = CONFIGS["trackmae"]
    _model, variables, search, templates, masking, _apply = built("trackmae")

    def gradient(remat):
        def loss(variables):
            found = Autoencoder(config, remat).apply(variables, search, masking, templates, train=True)
            return reconstruction_losses(found.patches, search, masking.hidden, False).mean()

        return quick_jit(jax.grad(loss))(variables)

    kept = gradient(None)
    for policy in ("nothing_saveable", "dots_with_no_batch_dims_saveable"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), gradient(policy), kept)


def test_fresh_variables_and_bfloat16():
    config = CONFIGS["trackmae"]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    model = Autoencoder(config)
    variables = init_variables(model, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    _model, _variables, search, templates, masking, _apply = built("trackmae")
    found = quick_jit(model.apply)(variables, search, masking, templates)
    assert found.patches.dtype == jnp.bfloat16
    loss = reconstruction_losses(found.patches, search, masking.hidden, True).mean()
    # Fresh decoders predict next to nothing, and a normalised patch has variance 1.
    assert loss.dtype == jnp.float32 and 0.9 < loss < 1.1


# --- patches ---


def test_patches_are_the_image_again():
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_array_equal(unpatchify(patchify(images, 8), 8), images)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_what_minimises_the_loss_reconstructs_the_image(norm_pix_loss):
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3)).at[0, :8, :8].set(0.25)  # one flat patch
    hidden = jnp.arange(16).reshape(1, 16) % 3 > 0
    hidden = jnp.concatenate([hidden, ~hidden])
    patches = patchify(images, 8)
    deviation = np.sqrt(np.var(patches, axis=-1, ddof=1, keepdims=True) + 1e-6)
    best = (patches - patches.mean(axis=-1, keepdims=True)) / deviation if norm_pix_loss else patches
    # What stands in visible patches counts for nothing.
    predicted = jnp.where(hidden[..., None], best, jnp.nan)
    assert reconstruction_losses(jnp.where(hidden[..., None], best, 9.0), images, hidden, norm_pix_loss).mean() < 1e-9
    np.testing.assert_allclose(reconstruct(predicted, images, hidden, norm_pix_loss), images, atol=1e-5)


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.0}, r"mask_ratio is 1\.0; expected a number, above 0 and below 1"),
        ({"mask_ratio": 0.99}, "leaves others"),
        ({"num_templates": -1}, "num_templates is -1; expected a whole number, at least 0"),
        ({"decoder_width": 30}, "decoder_width is 30; expected a multiple of 4 and of decoder_heads"),
        ({"model": size_config("mixcvt")}, "masked autoencoders need 'vit'"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIGS["mae"], **changes)


def test_settings_as_json():
    for config in CONFIGS.values():
        assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="did you mean 'mask_ratio'"):
        AutoencoderConfig.from_dict({"model": {}, "mask_rate": 0.5})


def test_templates_are_counted():
    model, variables, search, _templates, masking, _apply = built("mae")
    with pytest.raises(ConfigError, match="num_templates is 0, and 1 templates came"):
        model.apply(variables, search, masking, jnp.zeros((2, 1, 32, 32, 3)))
