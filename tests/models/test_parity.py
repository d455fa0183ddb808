"""MixViT against the official code, stage by stage: joint pass, cached pass, any number of slots."""

import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from mixformer_jax.boxes import xyxy_to_cxcywh
from mixformer_jax.convert.names import variables_from_official
from mixformer_jax.convert.weights import WeightsError

FILES = [
    "model/mixformer_vit__corner__bn.npz",
    "model/mixformer_vit__corner_up__frozenbn.npz",
    "model/mixformer_vit_online__corner__frozenbn.npz",
    "model/mixformer_vit_online__corner_up__bn.npz",
]
FEATURE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-5


def nhwc(images):
    return jnp.asarray(rearrange(images, "b c h w -> b h w c"))


def slots(*images):
    """Crops [b, c, h, w] of one slot each -> [b, slots, h, w, c]."""
    return jnp.stack([nhwc(image) for image in images], axis=1)


def close(ours, golden, tolerance):
    scale = max(1.0, np.abs(golden).max())
    np.testing.assert_allclose(np.asarray(ours) / scale, golden / scale, atol=tolerance, rtol=0)


def check_prediction(prediction, features, arrays, case):
    close(prediction.features, rearrange(arrays[f"{case}/feat_search"], "b c h w -> b h w c"), FEATURE_TOLERANCE)
    close(prediction.top_left_logits, arrays[f"{case}/score_map_tl"][:, 0], FEATURE_TOLERANCE)
    close(prediction.bottom_right_logits, arrays[f"{case}/score_map_br"][:, 0], FEATURE_TOLERANCE)
    close(prediction.boxes_cxcywh, arrays[f"{case}/pred_boxes"][:, 0], BOX_TOLERANCE)
    close(xyxy_to_cxcywh(arrays[f"{case}/head_xyxy"]), arrays[f"{case}/pred_boxes"][:, 0], BOX_TOLERANCE)
    close(features[:, 0], rearrange(arrays[f"{case}/feat_template"], "b c h w -> b h w c"), FEATURE_TOLERANCE)


@pytest.mark.parametrize("file", FILES)
def test_training_call(golden, golden_model, file):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    templates = slots(arrays["in/template"], arrays["in/online_template"])
    prediction = model.apply(variables, templates, nhwc(arrays["in/search"]))
    cache = model.apply(variables, templates, method="encode_templates")
    check_prediction(prediction, cache.features, arrays, "train")
    online = rearrange(arrays["train/feat_online"], "b c h w -> b h w c")
    close(cache.features[:, 1], online, FEATURE_TOLERANCE)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("case", ["cache1", "cache3"])
def test_cached_call(golden, golden_model, file, case):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    online = arrays["in/online_template"][:1] if case == "cache1" else arrays["in/online_template3"]
    templates = slots(arrays["in/template"][:1], *(image[None] for image in online))
    cache = model.apply(variables, templates, method="encode_templates")
    prediction = model.apply(variables, cache, nhwc(arrays["in/search"][:1]), method="locate")
    check_prediction(prediction, cache.features, arrays, case)


@pytest.mark.parametrize("file", [name for name in FILES if "online" in name])
def test_every_stage(golden, golden_model, file):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    templates = slots(arrays["in/template"][:1], arrays["in/online_template"][:1])
    _, captured = model.apply(variables, templates, nhwc(arrays["in/search"][:1]), mutable=["intermediates"])
    stages = {name: value[0] for name, value in captured["intermediates"]["backbone"].items()}
    embedded = {
        "template": stages["patch_embed_templates"][:1],
        "online": stages["patch_embed_templates"][1:],
        "search": stages["patch_embed_search"],
    }
    for name, value in embedded.items():
        expected = arrays[f"inter/patch_embed_{name}"]
        close(value.reshape(expected.shape), expected, FEATURE_TOLERANCE)
    for index in range(model.config.depth):
        joint = jnp.concatenate([stages[f"templates_block{index}"], stages[f"search_block{index}"]], axis=1)
        close(joint, arrays[f"inter/block{index}"], FEATURE_TOLERANCE)


def test_empty_slots_change_nothing(golden, golden_model):
    arrays = golden(FILES[0])
    model, variables = golden_model(arrays)
    template, online = (jnp.asarray(nhwc(arrays[f"in/{name}"]))[:, None] for name in ("template", "online_template"))
    junk = jnp.full_like(template, 7.0)
    search = nhwc(arrays["in/search"])
    two = model.apply(variables, jnp.concatenate([template, online], axis=1), search)
    padded = jnp.concatenate([template, junk, online, junk], axis=1)
    masked = model.apply(variables, padded, search, jnp.asarray([[True, False, True, False]] * 2))
    unmasked = model.apply(variables, padded, search)
    np.testing.assert_allclose(masked.boxes_cxcywh, two.boxes_cxcywh, atol=1e-6)
    np.testing.assert_allclose(masked.features, two.features, atol=1e-5)
    assert np.abs(unmasked.features - two.features).max() > 1e-2


def test_official_names_are_checked_together(golden, golden_model, golden_state):
    arrays = golden(FILES[0])
    model, _ = golden_model(arrays)
    state = golden_state(arrays)
    del state["backbone.blocks.0.attn.qkv.weight"]
    state["backbone.blocks.9.attn.qkv.weight"] = np.zeros((2, 2), np.float32)
    state["backbone.pos_embed_s"] = state["backbone.pos_embed_s"] + 0.1
    with pytest.raises(WeightsError) as caught:
        variables_from_official(state, model.config)
    message = str(caught.value)
    assert "missing backbone.blocks.0.attn.qkv.weight" in message
    assert "unexpected backbone.blocks.9.attn.qkv.weight" in message
    assert "pos_embed_s is not the sin-cos table" in message
