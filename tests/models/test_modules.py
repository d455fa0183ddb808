"""Single modules against the official code: heads, and modules fed so small values that epsilons matter."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import unflatten_dict

from mixformer_jax.convert.names import _head, _to_ours
from mixformer_jax.models.attention import MixedAttentionBlock
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.heads import CornerHead
from mixformer_jax.models.layers import ConvNormRelu


@pytest.mark.parametrize("kind", ["corner", "corner_up"])
@pytest.mark.parametrize("norm", ["bn", "frozenbn"])
def test_corner_heads(golden, kind, norm):
    arrays = golden(f"heads/{kind}__{norm}.npz")
    meta = json.loads(str(arrays["meta"]))
    config = MixFormerConfig(
        head="corner_pyramid" if kind == "corner_up" else "corner",
        head_width=meta["head_dim"],
        head_norm="frozen" if norm == "frozenbn" else "batch",
    )
    paths = {
        (entry.path[0], *entry.path[2:]): _to_ours(arrays[f"state/{entry.official}"], entry.layout)
        for entry in _head(config)
    }
    head = CornerHead(config.head, config.head_width, config.head_norm, jnp.dtype("float32"))
    features = jnp.asarray(rearrange(arrays["in/feat"], "b c h w -> b h w c"))
    found = head.apply(unflatten_dict(paths), features, train=False)
    np.testing.assert_allclose(found.top_left_logits, arrays["score_map_tl"][:, 0], atol=1e-4)
    np.testing.assert_allclose(found.bottom_right_logits, arrays["score_map_br"][:, 0], atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy, arrays["xyxy"], atol=1e-5)


def test_block_epsilon(golden):
    arrays = golden("modules_small_variance.npz")
    state = {name.removeprefix("vit_block/state/"): arrays[name] for name in arrays.files if "vit_block/state" in name}
    params = {}
    for norm in ("norm1", "norm2"):
        params[norm] = {"scale": state[f"{norm}.weight"], "bias": state[f"{norm}.bias"]}
    dense = {"attn.qkv": ("attention", "qkv"), "attn.proj": ("attention", "proj")}
    dense |= {"mlp.fc1": ("mlp", "fc1"), "mlp.fc2": ("mlp", "fc2")}
    for official, (module, layer) in dense.items():
        params.setdefault(module, {})[layer] = {
            "kernel": state[f"{official}.weight"].T,
            "bias": state[f"{official}.bias"],
        }
    block = MixedAttentionBlock(24, 3, 4, 0.0, False, jnp.dtype("float32"))
    tokens = jnp.asarray(arrays["vit_block/in"])  # 4 template, 4 online template, 16 search tokens
    templates, cached = block.apply({"params": params}, tokens[:, :8], None, None, train=False)
    search, _ = block.apply({"params": params}, tokens[:, 8:], cached, None, train=False)
    found = jnp.concatenate([templates, search], axis=1)
    np.testing.assert_allclose(found, arrays["vit_block/out"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["bn", "frozenbn"])
def test_head_convolution_epsilon(golden, norm):
    arrays = golden("modules_small_variance.npz")
    prefix = f"head_conv_{norm}"
    state = {
        name.removeprefix(f"{prefix}/state/"): arrays[name]
        for name in arrays.files
        if name.startswith(f"{prefix}/state/")
    }
    affine = {"scale": state["1.weight"], "bias": state["1.bias"]}
    statistics = {"mean": state["1.running_mean"], "var": state["1.running_var"]}
    conv = {"kernel": rearrange(state["0.weight"], "o i h w -> h w i o"), "bias": state["0.bias"]}
    if norm == "bn":
        variables = {"params": {"conv": conv, "norm": affine}, "batch_stats": {"norm": statistics}}
    else:
        variables = {"params": {"conv": conv}, "constants": {"norm": affine | statistics}}
    features = rearrange(arrays[f"{prefix}/in"], "b c h w -> b h w c")
    expected = rearrange(arrays[f"{prefix}/out"], "b c h w -> b h w c")
    layer = ConvNormRelu(expected.shape[-1], "batch" if norm == "bn" else "frozen", jnp.dtype("float32"))
    found = layer.apply(variables, jnp.asarray(features), train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
