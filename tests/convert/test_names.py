"""Official names against the layouts of all official builds: complete, in order, the same bits after a round trip."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.convert import convert, infer_config, tracker_settings
from mixformer_jax.convert.names import (
    Carried,
    carried_by_table,
    count_parameters,
    name_table,
    official_shape,
    variables_from_official,
    variables_to_official,
)
from mixformer_jax.convert.weights import WeightsError, expected_shapes
from mixformer_jax.models.config import SIZES, MixFormerConfig, size_config
from mixformer_jax.models.layers import sincos_positions
from tests.convert.layouts import (
    ALL_LAYOUTS,
    BASELINES,
    hints,
    module_of,
    random_state,
    read_layout,
    read_shallow_layout,
)

TINY = MixFormerConfig(
    search_size=48, template_size=32, width=24, depth=1, num_heads=3, head="corner", head_width=16, score_heads=3
)


def size_of(layout):
    """The name in SIZES of an official build."""
    build, large = layout["build"].removeprefix("mixformer_"), "large" in layout["config"]
    family, _, online = build.partition("_")
    online = f"_{online}" if online else ""
    if family == "cvt":
        return ("mixcvt_l" if large else "mixcvt") + online
    return ("mixvit_l" if large else "mixvit_b") + ("_convmae" if family == "convmae" else "") + online


def same_bits(found, expected):
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def tiny_state(config=TINY):
    """Official tensors for a tiny model, random where the position tables need not be right."""
    rng = np.random.default_rng(0)
    state = {}
    for entry in name_table(config):
        if isinstance(entry, Carried):
            state[entry.official] = entry.make(entry.shape)
        else:
            shape = official_shape(entry, expected_shapes(config)[entry.name])
            state[entry.official] = rng.standard_normal(shape).astype(np.float32)
    return state


def test_there_are_twenty_layouts():
    assert len(ALL_LAYOUTS) == 20
    for name in set(ALL_LAYOUTS) - set(BASELINES):
        baseline, layout = read_layout(name.rpartition("_")[0]), read_layout(name)
        # So what holds for a baseline holds for it.
        assert size_of(layout) == size_of(baseline)
        assert all(layout[key] == baseline[key] for key in set(layout) - {"config", "source"})


@pytest.mark.parametrize("name", BASELINES)
def test_layout(name, torch):
    """Full depth and sizes, without their memory: arrays that repeat one number, and a module without storage."""
    layout = read_layout(name)
    shapes = {name: tuple(shape) for name, shape, _ in layout["entries"]}
    state = {
        name: np.broadcast_to(np.asarray(number, dtype), shapes[name])
        for number, (name, _, dtype) in enumerate(layout["entries"])
    }
    positions = [name for name in state if name.endswith(("pos_embed_s", "pos_embed_t"))]
    for name in positions:
        _, rows, width = shapes[name]
        state[name] = sincos_positions(round(rows**0.5), width)[None].astype(np.float32)
    config = infer_config(state)
    assert config == SIZES[size_of(layout)]
    assert count_parameters(config) == layout["parameters"]
    assert tracker_settings(config).search_factor == layout["test"]["search_factor"]
    assert tracker_settings(config).template_factor == layout["test"]["template_factor"]

    variables = variables_from_official(state, config)
    found = {"/".join(path): value.shape for path, value in flatten_dict(variables).items()}
    assert found == dict(expected_shapes(config))
    back = variables_to_official(variables, config, carried_by_table(state, name_table(config)))
    assert list(back) == list(state)
    for name, value in back.items():
        assert (value.shape, value.dtype) == (shapes[name], state[name].dtype)
        assert value.flat[0] == state[name].flat[0]
    tensors = {
        name: torch.empty(value.shape, dtype=getattr(torch, str(value.dtype)), device="meta")
        for name, value in variables_to_official(variables, config).items()  # all that nobody carried is made up
    }
    module_of(torch, layout, shapes, "meta").load_state_dict(tensors, strict=True, assign=True)


@pytest.mark.parametrize("name", BASELINES)
def test_round_trip_through_files(name, torch, tmp_path):
    """Two blocks in the last stage, a sixteenth of the width: every bit, through all three kinds of file."""
    layout = read_shallow_layout(name)
    state = random_state(layout, divisor=16)
    torch.save({"net": {name: torch.from_numpy(value) for name, value in state.items()}}, tmp_path / "in.pth.tar")
    told = hints(layout)
    convert(tmp_path / "in.pth.tar", tmp_path / "ours.safetensors", hints=told)
    report = convert(tmp_path / "ours.safetensors", tmp_path / "out.pth")
    assert not report.computed
    module = module_of(torch, layout, {name: value.shape for name, value in state.items()}, "cpu")
    written = torch.load(tmp_path / "out.pth", weights_only=True)["net"]
    assert list(written) == list(state)
    module.load_state_dict(written, strict=True)
    for key, value in module.state_dict().items():
        assert same_bits(value.numpy(), state[key]), key
    convert(tmp_path / "ours.safetensors", tmp_path / "official.safetensors", official=True)
    convert(tmp_path / "official.safetensors", tmp_path / "again.safetensors", hints=told)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "ours.safetensors").read_bytes()


def test_what_nobody_carried_is_computed():
    variables = variables_from_official(tiny_state(), TINY)
    official = variables_to_official(variables, TINY)
    np.testing.assert_array_equal(official["backbone.pos_embed_s"][0], sincos_positions(3, 24).astype(np.float32))
    assert official["backbone.pos_embed"].shape == (1, 197, 24)
    assert not official["backbone.pos_embed"][0, 0].any()
    np.testing.assert_array_equal(official["backbone.pos_embed"][0, 1:], sincos_positions(14, 24).astype(np.float32))
    assert (official["backbone.norm.weight"] == 1).all() and not official["backbone.norm.bias"].any()
    assert official["backbone.head.weight"].shape == (1000, 24) and not official["backbone.head.weight"].any()
    counter = official["box_head.conv1_tl.1.num_batches_tracked"]
    assert counter.dtype == np.int64 and counter.shape == () and counter == 0


def test_carried_tensors_may_be_missing_but_not_wrong():
    state = tiny_state()
    unread = carried_by_table(state, name_table(TINY))
    assert "backbone.cls_token" in unread and "box_head.conv1_tl.1.num_batches_tracked" in unread
    used = {name: value for name, value in state.items() if name not in unread}
    variables_from_official(used, TINY)
    ten_classes = {"backbone.head.weight": np.zeros((10, 24), np.float32)}
    variables_from_official(used | ten_classes, TINY)
    narrow = {"backbone.head.weight": np.zeros((10, 23), np.float32)}
    with pytest.raises(WeightsError, match=r"misshapen backbone.head.weight: \(10, 23\)"):
        variables_from_official(used | narrow, TINY)


def test_all_official_names_are_complained_of_at_once():
    state = tiny_state()
    del state["backbone.blocks.0.attn.qkv.weight"]
    del state["score_branch.proj.1.bias"]
    state["backbone.blocks.1.attn.qkv.weight"] = np.zeros((72, 24), np.float32)
    state["box_head.conv5_tl.bias"] = np.zeros(2, np.float32)
    state["backbone.pos_embed_s"] = state["backbone.pos_embed_s"] + np.float32(0.1)
    with pytest.raises(WeightsError) as caught:
        variables_from_official(state, TINY)
    assert set(str(caught.value).split("\n  ")[1:]) == {
        "missing backbone.blocks.0.attn.qkv.weight (72, 24)",
        "missing score_branch.proj.1.bias (24,)",
        "unexpected backbone.blocks.1.attn.qkv.weight (72, 24)",
        "misshapen box_head.conv5_tl.bias: (2,), expected (1,)",
        "backbone.pos_embed_s is not the sin-cos table; use positions='interpolated_frozen'",
    }


def test_all_names_of_ours_are_complained_of_at_once():
    variables = variables_from_official(tiny_state(), TINY)
    del variables["params"]["score"]["token"]
    variables["params"]["wings"] = np.zeros(2, np.float32)
    variables["params"]["head"]["top_left"]["conv5"]["bias"] = np.zeros(2, np.float32)
    carried = {"backbone.tail": np.zeros(3, np.float32), "backbone.norm.bias": np.zeros(3, np.float32)}
    with pytest.raises(WeightsError) as caught:
        variables_to_official(variables, TINY, carried)
    assert set(str(caught.value).split("\n  ")[1:]) == {
        "missing params/score/token (24,)",
        "unexpected params/wings (2,)",
        "misshapen params/head/top_left/conv5/bias: (2,), expected (1,)",
        "unexpected carried backbone.tail (3,)",
        "misshapen backbone.norm.bias: (3,), expected (24,)",
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head": "query"}, ["head 'query'"]),
        ({"attention": "symmetric", "layer_scale": True}, ["attention 'symmetric'", "layer_scale"]),
        ({"patch_embed": "convolutional", "mixed_blocks": 1}, ["patch_embed 'convolutional'", "mixed_blocks"]),
        ({"cross_attention_blocks": 1}, ["cross_attention_blocks"]),
    ],
)
def test_models_without_official_counterpart(changes, named):
    with pytest.raises(WeightsError, match="no official counterpart") as caught:
        name_table(dataclasses.replace(TINY, **changes))
    assert all(text in str(caught.value) for text in named)


@pytest.mark.parametrize("size", ["mixcvt", "scratch_stages", "scratch_stages_depthwise"])
def test_cvt_variants_without_official_counterpart(size):
    config = size_config(size)
    if size == "mixcvt":
        config = dataclasses.replace(config, head="corner_pyramid")
    with pytest.raises(WeightsError, match="no official counterpart"):
        name_table(config)
