"""Modules alone against the official code: heads, RoI pooling, and modules fed so small values that epsilons matter."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict

from mixformer_jax.models.attention import Grid, MixedAttention, MixedAttentionBlock
from mixformer_jax.models.cvt import ConvEmbed, WideMixedAttention
from mixformer_jax.models.heads import CornerHead, ScorePrediction, map_entropy, precise_roi_pool
from mixformer_jax.models.layers import ConvNormRelu, PatchEmbed, depthwise_convolution
from mixformer_jax.models.mixformer import Prediction
from mixformer_jax.models.vit import ConvBlock

FLOAT32 = jnp.dtype("float32")


def variables(state, names, statistics="batch_stats"):
    """Official tensors as variables: `names` maps official module names to ours, the layout follows from the rank."""
    flat = {}
    ours_of = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for official, ours in names.items():
        for suffix in ours_of:
            value = state.get(f"{official}.{suffix}")
            if value is None:
                continue
            is_norm = value.ndim == 1 and suffix == "weight"
            leaf = ours_of[suffix] if suffix != "weight" or is_norm else "kernel"
            if value.ndim == 2:
                value = value.T
            elif value.ndim == 4 and value.shape[1] == 1 and value.shape[0] > 1:
                value = rearrange(value, "c one h w -> h w (one c)")
            elif value.ndim == 4:
                value = rearrange(value, "o i h w -> h w i o")
            has_statistics = f"{official}.running_mean" in state
            moved = statistics == "constants" or suffix.startswith("running")
            collection = statistics if has_statistics and moved else "params"
            flat[(collection, *ours.split("/"), leaf)] = jnp.asarray(value)
    return unflatten_dict(flat)


def module_state(arrays, module):
    prefix = f"{module}/state/"
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def nhwc(maps):
    return jnp.asarray(rearrange(maps, "b c h w -> b h w c"))


BLOCK = {name: name.replace(".", "/") for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}


@pytest.mark.parametrize("kind", ["corner", "corner_up"])
@pytest.mark.parametrize("norm", ["bn", "frozenbn"])
def test_corner_heads(golden, kind, norm):
    arrays = golden(f"heads/{kind}__{norm}.npz")
    meta = json.loads(str(arrays["meta"]))
    state = {name.removeprefix("state/box_head."): arrays[name] for name in arrays.files if "box_head" in name}
    names = {}
    for short, branch in (("tl", "top_left"), ("br", "bottom_right")):
        names[f"conv5_{short}"] = f"{branch}/conv5"
        blocks = [(f"conv{i}_{short}", f"conv{i}") for i in range(1, 5)]
        if kind == "corner_up":
            blocks += [(f"adjust{i}_{short}", f"adjust{i}") for i in (1, 2)]
            blocks += [(f"adjust{i}_{short}.{j}", f"adjust{i}_{j}") for i, n in ((3, 3), (4, 2)) for j in range(n)]
        for official, ours in blocks:
            names |= {f"{official}.0": f"{branch}/{ours}/conv", f"{official}.1": f"{branch}/{ours}/norm"}
    values = variables(state, names, "constants" if norm == "frozenbn" else "batch_stats")
    head = CornerHead(
        "corner_pyramid" if kind == "corner_up" else "corner",
        meta["head_dim"],
        "frozen" if norm == "frozenbn" else "batch",
        FLOAT32,
    )
    found = jax.jit(functools.partial(head.apply, train=False))(values, nhwc(arrays["in/feat"]))
    np.testing.assert_allclose(found.top_left_logits, arrays["score_map_tl"][:, 0], atol=1e-4)
    np.testing.assert_allclose(found.bottom_right_logits, arrays["score_map_br"][:, 0], atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy, arrays["xyxy"], atol=1e-5)


def test_perceptron(golden):
    from mixformer_jax.models.heads import QueryHead

    arrays = golden("heads/mlp.npz")
    state = {name.removeprefix("state/box_head."): arrays[name] for name in arrays.files if "state" in name}
    values = variables(state, {f"layers.{i}": f"fc{i}" for i in range(3)})
    tokens = arrays["in/x"].reshape(-1, arrays["in/x"].shape[-1])
    boxes = QueryHead(FLOAT32).apply(values, jnp.asarray(tokens))
    np.testing.assert_allclose(boxes, 1 / (1 + np.exp(-arrays["out"].reshape(-1, 4))), atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "convmae"])
def test_slimming_block(golden, family):
    arrays = golden("modules_small_variance.npz")
    names = BLOCK | {"attn.qkv": "attention/qkv", "attn.proj": "attention/proj"}
    values = variables(module_state(arrays, f"{family}_block"), names)
    attention = MixedAttention(24, 3, 8**-0.5, False, FLOAT32, "auto", None, parent=None)
    block = MixedAttentionBlock(attention, 4, "gelu", 1e-6, 0.0, False)
    check_block(block, values, arrays, f"{family}_block", (2, 4))


@pytest.mark.parametrize("norm", ["bn", "frozenbn"])
def test_wide_block(golden, norm):
    arrays = golden("modules_small_variance.npz")
    names = BLOCK | {"attn.proj": "attention/proj"}
    for name in "qkv":
        names[f"attn.conv_proj_{name}.conv"] = f"attention/depthwise_{name}"
        names[f"attn.conv_proj_{name}.bn"] = f"attention/depthwise_{name}/norm"
        names[f"attn.proj_{name}"] = f"attention/{name}"
    values = variables(
        module_state(arrays, f"cvt_block_{norm}"), names, "constants" if norm == "frozenbn" else "batch_stats"
    )
    kind = "frozen" if norm == "frozenbn" else "batch"
    attention = WideMixedAttention(24, 3, 24**-0.5, False, FLOAT32, "auto", None, kind, parent=None)
    block = MixedAttentionBlock(attention, 4, "quick_gelu", 1e-5, 0.0, False)
    check_block(block, values, arrays, f"cvt_block_{norm}", (4, 8))


def check_block(block, values, arrays, module, sides):
    """Asymmetric mixed attention of two templates and a search region, stream by stream."""
    tokens = jnp.asarray(arrays[f"{module}/in"])
    split = 2 * sides[0] ** 2

    @jax.jit
    def output(values, tokens):
        step = functools.partial(block.apply, values, method="step", train=False)
        templates, cached = step(tokens[:, :split], None, grid=Grid(2, sides[0]))
        search, _own = step(tokens[:, split:], cached, grid=Grid(1, sides[1]))
        return jnp.concatenate([templates, search], axis=1)

    found = output(values, tokens)
    # Logits of the CvT block reach hundreds, where float32 decides near ties of the softmax; a wrong epsilon changes
    # outputs by 40% and more.
    expected = arrays[f"{module}/out"]
    np.testing.assert_allclose(found / np.abs(expected).max(), expected / np.abs(expected).max(), atol=1e-3)
    assert np.median(np.abs(found - expected) / np.abs(expected)) < 1e-5


def test_convmae_convolutions(golden):
    arrays = golden("modules_small_variance.npz")
    state = module_state(arrays, "convmae_patch_embed")
    values = variables(state, {"norm": "norm"})
    kernel = rearrange(state["proj.weight"], "o i h w -> (h w i) o")
    values["params"]["proj"] = {"kernel": kernel, "bias": state["proj.bias"]}
    found = PatchEmbed(12, 4, FLOAT32, normed=True).apply(values, nhwc(arrays["convmae_patch_embed/in"]))
    np.testing.assert_allclose(found, nhwc(arrays["convmae_patch_embed/out"]), atol=1e-5, rtol=1e-4)

    state = module_state(arrays, "convmae_cblock")
    pointwise = ("conv1", "conv2", "mlp.fc1", "mlp.fc2")
    state |= {f"{name}.weight": state[f"{name}.weight"][:, :, 0, 0] for name in pointwise}
    values = variables(state, BLOCK | {"conv1": "conv1", "conv2": "conv2", "attn": "depthwise"})
    found = jax.jit(ConvBlock(4, FLOAT32).apply)(values, nhwc(arrays["convmae_cblock/in"]))
    np.testing.assert_allclose(found, nhwc(arrays["convmae_cblock/out"]), atol=1e-5, rtol=1e-4)


def test_cvt_embedding(golden):
    arrays = golden("modules_small_variance.npz")
    values = variables(module_state(arrays, "cvt_conv_embed"), {"proj": "proj", "norm": "norm"})
    found = ConvEmbed(16, 7, 4, 2, FLOAT32).apply(values, nhwc(arrays["cvt_conv_embed/in"]))
    np.testing.assert_allclose(found, nhwc(arrays["cvt_conv_embed/out"]), atol=1e-5, rtol=1e-4)


def test_score_prediction(golden):
    arrays = golden("modules_small_variance.npz")
    state = module_state(arrays, "spm")
    names = {"norm1": "norm_token"} | {f"score_head.layers.{i}": f"fc{i}" for i in range(3)}
    for i in range(2):
        names |= {f"proj_{name}.{i}": f"attention_{i}/{name}" for name in "qkv"}
        names |= {f"proj.{i}": f"attention_{i}/proj", f"norm2.{i}": f"norm_{i}"}
    values = variables(state, names)
    values["params"]["token"] = jnp.asarray(state["score_token"][0, 0])
    search, template = nhwc(arrays["spm/in"]), nhwc(arrays["spm/in_template"])
    boxes_xyxy = jnp.asarray(arrays["spm/in_boxes_xyxy"])
    found = jax.jit(ScorePrediction(24, 3, FLOAT32).apply)(values, search, template, boxes_xyxy)
    np.testing.assert_allclose(found, arrays["spm/out"][:, 0, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["bn", "frozenbn"])
def test_head_convolution_epsilon(golden, norm):
    arrays = golden("modules_small_variance.npz")
    state = module_state(arrays, f"head_conv_{norm}")
    values = variables(state, {"0": "conv", "1": "norm"}, "batch_stats" if norm == "bn" else "constants")
    expected = nhwc(arrays[f"head_conv_{norm}/out"])
    layer = ConvNormRelu(expected.shape[-1], "batch" if norm == "bn" else "frozen", FLOAT32)
    found = layer.apply(values, nhwc(arrays[f"head_conv_{norm}/in"]), train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def pool(arrays, features, rois, bins, scale=1.0):
    pooled = jax.jit(precise_roi_pool, static_argnums=2)
    return pooled(features[arrays["rois"][:, 0].astype(int)], rois[:, 1:] * scale, bins)


def test_precise_roi_pooling(golden):
    arrays = golden("prroi.npz")
    features, rois = nhwc(arrays["feat"]), jnp.asarray(arrays["rois"])
    cases = {
        "out_4x4": ((4, 4), rois, 1.0),
        "out_3x2": ((3, 2), rois, 1.0),
        "out_4x4_scale0.5": ((4, 4), rois.at[:, 1:].multiply(2.0), 0.5),
    }
    for name, (bins, boxes, scale) in cases.items():
        found = pool(arrays, features, boxes, bins, scale)
        np.testing.assert_allclose(rearrange(found, "n i j c -> n c i j"), arrays[name], atol=1e-5)


def test_precise_roi_pooling_gradients(golden):
    arrays = golden("prroi.npz")
    cotangent = nhwc(arrays["cotangent"])

    def total(features, rois):
        return jnp.sum(pool(arrays, features, rois, (4, 4)) * cotangent)

    features, rois = nhwc(arrays["feat"]), jnp.asarray(arrays["rois"])
    by_features, by_rois = jax.jit(jax.grad(total, argnums=(0, 1)))(features, rois)
    np.testing.assert_allclose(rearrange(by_features, "b h w c -> b c h w"), arrays["grad_feat"], atol=1e-4)
    scale = np.maximum(1.0, np.abs(arrays["grad_rois"]))
    np.testing.assert_allclose(by_rois / scale, arrays["grad_rois"] / scale, atol=1e-3)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [7, 8])
def test_depthwise_convolution_is_a_convolution(size, stride, side):
    keys = jax.random.split(jax.random.key(0))
    maps, kernel = jax.random.normal(keys[0], (2, side, side, 6)), jax.random.normal(keys[1], (size, size, 6))
    expected = jax.lax.conv_general_dilated(
        *(maps, kernel[:, :, None], (stride, stride), [(size // 2, size // 2)] * 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(depthwise_convolution(maps, kernel, stride), expected, atol=1e-5)


def test_the_entropy_of_a_map_counts_its_places():
    maps = np.full((3, 4, 6), -1e9, np.float32)
    maps[0], maps[1, 2, 3], maps[2, 1:3, 5] = 7.0, 0.0, 5.0
    np.testing.assert_allclose(map_entropy(jnp.asarray(maps)), np.log([24, 1, 2]), atol=1e-6)


def test_odds_are_divided_by_how_much_wider_the_corners_are_spread():
    top_left, bottom_right = jnp.zeros((2, 4, 4)), jnp.zeros((2, 4, 4)).at[0, 1, 2].set(99.0)
    found = Prediction(jnp.zeros((2, 4)), top_left, bottom_right, jnp.zeros((2, 1, 1, 1)), jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(found.corner_entropy, np.log([16, 16 * 16]), rtol=1e-5)
    for enough in (None, jnp.full(2, 6.0), jnp.full(2, jnp.inf)):
        np.testing.assert_array_equal(found.scores_within(enough), found.scores)
    logits = [2.0, -1.0 - (np.log(256) - 3)]  # the first one's corners are within three nats
    np.testing.assert_allclose(found.scores_within(jnp.array([2.8, 3.0])), jax.nn.sigmoid(jnp.array(logits)), rtol=1e-4)
