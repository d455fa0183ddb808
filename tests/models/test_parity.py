"""All families against the official code, stage by stage: joint pass, cached pass, any number of slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from mixformer_jax.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from mixformer_jax.convert.names import variables_from_official
from mixformer_jax.convert.weights import WeightsError
from tests.compilation import AS_USERS

FILES = [
    f"model/mixformer_{build}.npz"
    for build in (
        *("vit__corner__bn", "vit__corner_up__frozenbn"),
        *("vit_online__corner__frozenbn", "vit_online__corner_up__bn"),
        *("convmae__corner__frozenbn", "convmae__corner_up__bn"),
        *("convmae_online__corner__bn", "convmae_online__corner_up__frozenbn"),
        *("cvt__corner__bn", "cvt__corner__frozenbn"),
        *("cvt_online__corner__bn", "cvt_online__corner__frozenbn"),
    )
]
ONLINE_FILES = [name for name in FILES if "online" in name]
FEATURE_TOLERANCE = 1e-4
BOX_TOLERANCE = 1e-5
SCORE_TOLERANCE = 1e-4


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
    if f"{case}/feat_template" in arrays:  # the plain CvT build does not keep it in its cache
        close(features[:, 0], rearrange(arrays[f"{case}/feat_template"], "b c h w -> b h w c"), FEATURE_TOLERANCE)
    if f"{case}/pred_scores" in arrays:
        close(prediction.score_logits, arrays[f"{case}/pred_scores"], SCORE_TOLERANCE)
        np.testing.assert_allclose(prediction.scores, 1 / (1 + np.exp(-arrays[f"{case}/pred_scores"])), atol=1e-4)
    else:
        assert prediction.score_logits is None and prediction.scores is None


# One program for each call of a build and each shape serves all its tests; the joint one shows its stages, too.
@functools.cache
def joint_call(model):
    return jax.jit(functools.partial(model.apply, mutable=["intermediates"]))


@functools.cache
def cached_calls(model):
    return [jax.jit(functools.partial(model.apply, method=name)) for name in ("encode_templates", "locate")]


@pytest.mark.parametrize("file", FILES)
def test_joint_call(golden, golden_model, file):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    templates = slots(arrays["in/template"], arrays["in/online_template"])
    prediction, _ = joint_call(model)(variables, templates, nhwc(arrays["in/search"]))
    features = cached_calls(model)[0](variables, templates).features
    check_prediction(prediction, features, arrays, "train")
    online = rearrange(arrays["train/feat_online"], "b c h w -> b h w c")
    close(features[:, 1], online, FEATURE_TOLERANCE)


@pytest.mark.parametrize("file", ["vit_online__corner__frozenbn", "convmae_online__corner__bn", "cvt__corner__bn"])
def test_joint_call_as_users_compile_it(golden, golden_model, file):
    """One build of each family with XLA's default optimisation, which other tests do without."""
    arrays = golden(f"model/mixformer_{file}.npz")
    model, variables = golden_model(arrays)
    templates = slots(arrays["in/template"], arrays["in/online_template"])
    joint = jax.jit(model.apply, compiler_options=AS_USERS)
    features = cached_calls(model)[0](variables, templates).features
    check_prediction(joint(variables, templates, nhwc(arrays["in/search"])), features, arrays, "train")


# Of the two builds of a family with scores or without, one has one online template and the other three.
@pytest.mark.parametrize(("file", "name"), [*zip(FILES, ("cache1", "cache3") * 6, strict=True)])
def test_cached_call(golden, golden_model, file, name):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    encode, locate = cached_calls(model)
    if name == "cache1":  # the first sample of the joint call, whose program serves
        both = encode(variables, slots(arrays["in/template"], arrays["in/online_template"]))
        cache = jax.tree.map(lambda x: x[:1], both)
    else:
        online = (image[None] for image in arrays["in/online_template3"])
        cache = encode(variables, slots(arrays["in/template"][:1], *online))
    search = nhwc(arrays["in/search"][:1])
    # One program scores given boxes, then the model's own, which it scores unasked in the joint call.
    is_judged = f"{name}/pred_scores_gt" in arrays
    found = locate(variables, cache, search, *([jnp.asarray(arrays["in/gt_bboxes"][:1])] if is_judged else []))
    if is_judged:
        close(found.score_logits, arrays[f"{name}/pred_scores_gt"], SCORE_TOLERANCE)
        found = locate(variables, cache, search, cxcywh_to_xyxy(found.boxes_cxcywh))
    check_prediction(found, cache.features, arrays, name)


@pytest.mark.parametrize("file", ONLINE_FILES)
def test_every_stage(golden, golden_model, file):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    templates = slots(arrays["in/template"], arrays["in/online_template"])
    captured = joint_call(model)(variables, templates, nhwc(arrays["in/search"]))[1]
    stages = captured["intermediates"]["backbone"]
    # The official stages are those of the first sample; maps of templates are [samples * slots, ...].
    seen = {}
    if model.config.backbone == "cvt":
        for stage in range(3):
            names = {"patch_embed_": "embed{}_{}", "": "stage{}_{}"}
            for ours, theirs in (("templates", ("template", "online")), ("search", ("search",))):
                for suffix, pattern in names.items():
                    maps = stages[pattern.format(stage, ours)][0]
                    maps = maps[0] if maps.ndim == 5 else maps
                    for index, image in enumerate(theirs):
                        value = rearrange(maps[index], "h w c -> 1 c h w")
                        seen[f"inter/stage{stage}_{suffix}{image}"] = value
    else:
        embedding = stages["patch_embed"] if model.config.patch_embed == "convmae" else {}
        last = "patch_embed4" if model.config.patch_embed == "convmae" else "patch_embed"
        seen[f"inter/{last}_template"] = stages["patch_embed_templates"][0][:1]
        seen[f"inter/{last}_online"] = stages["patch_embed_templates"][0][1:2]
        seen[f"inter/{last}_search"] = stages["patch_embed_search"][0][:1]
        for name, (both, found) in embedding.items():
            for image, maps in (("template", both[:1]), ("online", both[1:2]), ("search", found[:1])):
                seen[f"inter/{name}_{image}"] = rearrange(maps, "b h w c -> b c h w")
        for index in range(model.config.depth):
            tokens = (stages[f"templates_block{index}"][0][:1], stages[f"search_block{index}"][0][:1])
            seen[f"inter/block{index}"] = jnp.concatenate(tokens, axis=1)
    assert set(seen) == {name for name in arrays.files if name.startswith("inter/")}
    for name, value in seen.items():
        close(value.reshape(arrays[name].shape), arrays[name], FEATURE_TOLERANCE)


@pytest.mark.parametrize("file", [FILES[0], FILES[-1]])
def test_empty_slots_change_nothing(golden, golden_model, file):
    arrays = golden(file)
    model, variables = golden_model(arrays)
    template, online = (jnp.asarray(nhwc(arrays[f"in/{name}"]))[:, None] for name in ("template", "online_template"))
    junk = jnp.full_like(template, 7.0)
    search = nhwc(arrays["in/search"])
    joint = joint_call(model)
    two, _ = joint(variables, jnp.concatenate([template, online], axis=1), search)
    padded = jnp.concatenate([template, junk, online, junk], axis=1)
    masked, _ = joint(variables, padded, search, jnp.asarray([[True, False, True, False]] * 2))
    unmasked, _ = joint(variables, padded, search, jnp.full((2, 4), True))
    np.testing.assert_allclose(masked.boxes_cxcywh, two.boxes_cxcywh, atol=1e-6)
    np.testing.assert_allclose(masked.features, two.features, atol=2e-5)
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
