"""Pre-trained backbones, by the names that their authors' code gives their tensors."""

import dataclasses

import jax
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.pretrained import init_from
from mixformer_jax.convert.torch_files import write_official_safetensors
from mixformer_jax.convert.weights import WeightsError, expected_shapes
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.mixformer import build_model, variable_shapes

VIT = MixFormerConfig(
    search_size=48, template_size=32, width=24, depth=2, num_heads=3, head="corner", head_width=16, score_heads=3
)
CONVMAE = dataclasses.replace(VIT, patch_embed="convmae", early_widths=(8, 16), early_depths=(1, 2))
CVT = dataclasses.replace(
    VIT,
    backbone="cvt",
    early_widths=(8, 16),
    early_depths=(1, 2),
    early_heads=(1, 2),
    projection="depthwise",
)


def random_tensors(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def affine(name, *weight):
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def block(name, width):
    """timm's transformer block, which MAE, ConvMAE and DeiT share."""
    return (
        affine(f"{name}.norm1", width)
        | affine(f"{name}.attn.qkv", 3 * width, width)
        | affine(f"{name}.attn.proj", width, width)
        | affine(f"{name}.norm2", width)
        | affine(f"{name}.mlp.fc1", 4 * width, width)
        | affine(f"{name}.mlp.fc2", width, 4 * width)
    )


def mae(depth=2, decoder=1):
    """facebookresearch/mae, models_mae.py."""
    shapes = {"cls_token": (1, 1, 24), "pos_embed": (1, 197, 24), "mask_token": (1, 1, 512)}
    shapes |= {"decoder_pos_embed": (1, 197, 512)} | affine("patch_embed.proj", 24, 3, 16, 16)
    for i in range(depth):
        shapes |= block(f"blocks.{i}", 24)
    shapes |= affine("norm", 24) | affine("decoder_embed", 512, 24)
    for i in range(decoder):
        shapes |= block(f"decoder_blocks.{i}", 512)
    return random_tensors(shapes | affine("decoder_norm", 512) | affine("decoder_pred", 768, 512))


def timm(rows=197, scale=None):
    """A classifier of timm's, or DeiT3's (models_v2.py)."""
    shapes = {"cls_token": (1, 1, 24), "pos_embed": (1, rows, 24)} | affine("patch_embed.proj", 24, 3, 16, 16)
    for i in range(2):
        shapes |= block(f"blocks.{i}", 24)
        if scale is not None:
            shapes |= {f"blocks.{i}.{scale.format(k)}": (24,) for k in (1, 2)}
    return random_tensors(shapes | affine("norm", 24) | affine("head", 1000, 24))


def convmae():
    """Alpha-VL/ConvMAE, models_convmae.py."""
    shapes = {"pos_embed": (1, 196, 24), "mask_token": (1, 1, 512), "decoder_pos_embed": (1, 196, 512)}
    inputs = 3
    for i, (width, side) in enumerate(((8, 4), (16, 2), (24, 2)), start=1):
        shapes |= affine(f"patch_embed{i}.proj", width, inputs, side, side) | affine(f"patch_embed{i}.norm", width)
        inputs = width
    shapes |= affine("patch_embed4", 24, 24)
    shapes |= affine("stage1_output_decode", 24, 8, 4, 4) | affine("stage2_output_decode", 24, 16, 2, 2)
    for stage, width, depth in ((1, 8, 1), (2, 16, 2)):
        for i in range(depth):
            name = f"blocks{stage}.{i}"
            shapes |= affine(f"{name}.norm1", width) | affine(f"{name}.norm2", width)
            shapes |= affine(f"{name}.conv1", width, width, 1, 1) | affine(f"{name}.conv2", width, width, 1, 1)
            shapes |= affine(f"{name}.attn", width, 1, 5, 5)
            shapes |= affine(f"{name}.mlp.fc1", 4 * width, width, 1, 1)
            shapes |= affine(f"{name}.mlp.fc2", width, 4 * width, 1, 1)
    for i in range(2):
        shapes |= block(f"blocks3.{i}", 24)
    shapes |= affine("norm", 24) | affine("decoder_embed", 512, 24) | block("decoder_blocks.0", 512)
    return random_tensors(shapes | affine("decoder_norm", 512) | affine("decoder_pred", 768, 512))


def cvt(last=2):
    """microsoft/CvT, cls_cvt.py."""
    shapes, inputs = {}, 3
    for stage, (width, depth, side) in enumerate(((8, 1, 7), (16, 2, 3), (24, last, 3))):
        shapes |= affine(f"stage{stage}.patch_embed.proj", width, inputs, side, side)
        shapes |= affine(f"stage{stage}.patch_embed.norm", width)
        for i in range(depth):
            name = f"stage{stage}.blocks.{i}"
            shapes |= affine(f"{name}.norm1", width) | affine(f"{name}.norm2", width)
            for part in "qkv":
                bn = f"{name}.attn.conv_proj_{part}.bn"
                shapes |= {f"{name}.attn.conv_proj_{part}.conv.weight": (width, 1, 3, 3)} | affine(bn, width)
                shapes |= {f"{bn}.running_mean": (width,), f"{bn}.running_var": (width,)}
                shapes |= {f"{bn}.num_batches_tracked": ()} | affine(f"{name}.attn.proj_{part}", width, width)
            shapes |= affine(f"{name}.attn.proj", width, width)
            shapes |= affine(f"{name}.mlp.fc1", 4 * width, width) | affine(f"{name}.mlp.fc2", width, 4 * width)
        inputs = width
    shapes |= {"stage2.cls_token": (1, 1, 24)} | affine("norm", 24) | affine("head", 1000, 24)
    return random_tensors(shapes)


def backbone_names(config):
    return {name for name in expected_shapes(config) if name.split("/")[1] == "backbone"}


@pytest.mark.parametrize(
    ("source", "config", "ignored"),
    [
        (mae(), VIT, {"cls_token", "pos_embed", "mask_token", "norm.bias", "decoder_blocks.0.attn.qkv.weight"}),
        (mae(depth=3), VIT, {"blocks.2.norm1.weight", "blocks.2.mlp.fc2.bias"}),
        (timm(), VIT, {"cls_token", "pos_embed", "head.weight", "norm.weight"}),
        (timm(rows=196, scale="gamma_{}"), dataclasses.replace(VIT, layer_scale=True), {"cls_token", "head.bias"}),
        (timm(rows=196, scale="ls{}.gamma"), dataclasses.replace(VIT, layer_scale=True), {"pos_embed"}),
        (convmae(), CONVMAE, {"stage1_output_decode.weight", "decoder_pred.bias", "norm.weight", "mask_token"}),
        (cvt(), CVT, {"stage2.cls_token", "stage0.blocks.0.attn.conv_proj_q.bn.num_batches_tracked", "head.bias"}),
        (cvt(last=4), CVT, {"stage2.blocks.2.norm1.weight", "stage2.blocks.3.attn.conv_proj_v.bn.running_var"}),
        (cvt(), dataclasses.replace(CVT, projection_norm="batch"), {"norm.bias"}),
    ],
    ids=["mae", "mae-deeper", "timm", "deit3", "deit3-timm", "convmae", "cvt", "cvt24w", "cvt-batch"],
)
def test_all_of_the_backbone_is_taken(source, config, ignored):
    found = init_from(source, config)
    assert set(found.taken) == backbone_names(config)
    assert all(name.split("/")[1] in ("head", "score") for name in found.fresh)
    assert ignored <= set(found.ignored)
    used = set(source) - set(found.ignored)
    assert sum(source[name].size for name in used) == sum(
        value.size for value in flatten_dict(found.variables).values()
    )


def test_what_is_not_finite_is_refused():
    source = mae()
    source["blocks.1.mlp.fc1.bias"][3] = np.nan
    with pytest.raises(WeightsError, match=r"state dict: NaN or infinite values.*backbone/blocks_1/mlp/fc1/bias"):
        init_from(source, VIT)


def test_values_and_the_rest_of_the_model():
    source = cvt()
    found = init_from(source, CVT)
    before = jax.tree.map(lambda shape: np.full(shape.shape, 7.0, np.float32), variable_shapes(build_model(CVT)))
    after = unflatten_dict(flatten_dict(before) | flatten_dict(found.variables))
    backbone = after["params"]["backbone"]
    np.testing.assert_array_equal(
        backbone["blocks_3"]["attention"]["q"]["kernel"], source["stage2.blocks.0.attn.proj_q.weight"].T
    )
    kernel = rearrange(source["stage1.blocks.1.attn.conv_proj_k.conv.weight"], "c 1 h w -> h w c")
    np.testing.assert_array_equal(backbone["blocks_2"]["attention"]["depthwise_k"]["kernel"], kernel)
    frozen = after["constants"]["backbone"]["blocks_0"]["attention"]["depthwise_v"]["norm"]
    np.testing.assert_array_equal(frozen["var"], source["stage0.blocks.0.attn.conv_proj_v.bn.running_var"])
    np.testing.assert_array_equal(after["params"]["score"]["token"], before["params"]["score"]["token"])
    assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, before)


def test_what_only_trackers_have_stays_fresh():
    query = dataclasses.replace(VIT, head="query", cross_attention_blocks=1, score_heads=0, positions="learnable")
    found = init_from(mae(), query)
    fresh = {name.split("/")[2] for name in found.fresh if name.startswith("params/backbone/")}
    assert fresh == {"regression_token", "cross_blocks_0", "search_positions", "template_positions"}


@pytest.mark.parametrize("kind", ["interpolated_frozen", "interpolated_learnable"])
def test_positions_are_resized(golden, kind):
    arrays = golden("posembed.npz")
    config = MixFormerConfig(width=8, depth=1, num_heads=2, head="corner", head_width=16, positions=kind)
    shapes = {"pos_embed": (1, 197, 8)} | affine("patch_embed.proj", 8, 3, 16, 16) | block("blocks.0", 8)
    source = random_tensors(shapes) | {"pos_embed": arrays["interp/src_197"]}
    found = init_from(source, config).variables["params"]["backbone"]
    np.testing.assert_allclose(found["search_positions"]["table"], arrays["interp/out_18"][0, 1:], atol=1e-5)
    np.testing.assert_allclose(found["template_positions"]["table"], arrays["interp/out_8"][0, 1:], atol=1e-5)
    without_class = source | {"pos_embed": source["pos_embed"][:, 1:]}
    again = init_from(without_class, config).variables["params"]["backbone"]
    np.testing.assert_array_equal(again["search_positions"]["table"], found["search_positions"]["table"])
    for wrong in (source["pos_embed"][:, 5:], source["pos_embed"][..., :4], source["pos_embed"][0]):
        with pytest.raises(WeightsError, match="misshapen pos_embed"):
            init_from(source | {"pos_embed": wrong}, config)
    del source["pos_embed"]
    with pytest.raises(WeightsError, match="missing pos_embed, which positions"):
        init_from(source, config)


def test_blocks_of_the_decoder():
    config = dataclasses.replace(VIT, decoder_blocks=1, score_heads=0)
    source = mae(decoder=2)
    found = init_from(source, config)
    assert set(found.taken) == backbone_names(config)
    backbone = found.variables["params"]["backbone"]
    np.testing.assert_array_equal(backbone["decoder_norm"]["scale"], source["norm.weight"])
    np.testing.assert_array_equal(backbone["decoder_embed"]["kernel"], source["decoder_embed.weight"].T)
    np.testing.assert_array_equal(
        backbone["blocks_2"]["attention"]["qkv"]["kernel"], source["decoder_blocks.0.attn.qkv.weight"].T
    )
    assert "decoder_blocks.1.norm1.weight" in found.ignored
    with pytest.raises(WeightsError, match=r"missing decoder_blocks\.2\.norm1\.weight"):
        init_from(source, dataclasses.replace(config, decoder_blocks=3))


def test_all_that_does_not_fit_is_listed(tmp_path):
    source = timm(scale="gamma_{}")
    del source["blocks.1.mlp.fc2.bias"]
    source["patch_embed.proj.weight"] = np.zeros((24, 3, 14, 14), np.float32)
    source["blocks.0.attn.relative_position_bias_table"] = np.zeros((3, 3), np.float32)
    write_official_safetensors(tmp_path / "vit.safetensors", source)
    with pytest.raises(WeightsError, match=r"vit\.safetensors: does not fit the backbone of") as caught:
        init_from(tmp_path / "vit.safetensors", VIT)
    hint = ": it has LayerScale, set layer_scale=True"
    assert set(str(caught.value).split("\n  ")[1:]) == {
        "missing blocks.1.mlp.fc2.bias (24,)",
        "misshapen patch_embed.proj.weight: (24, 3, 14, 14), expected (24, 3, 16, 16)",
        "unexpected blocks.0.attn.relative_position_bias_table (3, 3)",
        *(f"unexpected blocks.{i}.gamma_{k} (24,){hint}" for i in (0, 1) for k in (1, 2)),
    }


def test_sources_of_another_kind():
    with pytest.raises(WeightsError, match="a whole tracker, not a backbone"):
        init_from({f"backbone.{name}": value for name, value in mae().items()}, VIT)
    with pytest.raises(WeightsError, match=r"missing blocks\.0\.norm1\.weight"):
        init_from(cvt(), VIT)
    with pytest.raises(WeightsError, match="CvT's has depth-wise projections and batch norms"):
        init_from(cvt(), dataclasses.replace(CVT, projection_norm="layer"))
    with pytest.raises(WeightsError, match=r"missing blocks\.2\.norm1\.weight"):
        init_from(mae(), dataclasses.replace(VIT, depth=3))
