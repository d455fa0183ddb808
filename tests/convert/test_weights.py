import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from mixformer_jax.convert.weights import WeightsError, load_weights, save_weights
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables

MODEL = MixFormerConfig(
    name="small",
    search_size=32,
    template_size=16,
    width=24,
    depth=1,
    num_heads=3,
    head="corner",
    head_width=16,
    head_norm="batch",
)
TRACKER = TrackerConfig(search_factor=4.0, num_online_templates=2)


@pytest.fixture(scope="module")
def variables():
    return jax.device_get(init_variables(build_model(MODEL), jax.random.key(0)))


@pytest.fixture
def saved(tmp_path, variables):
    path = tmp_path / "weights.safetensors"
    save_weights(path, variables, MODEL, TRACKER)
    return path


def rewrite(path, change, header_change=None):
    """The file again, after `change` to its tensors and `header_change` to its header."""
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    change(tensors)
    save_file(tensors, path, metadata=header | (header_change or {}))


def test_round_trip(saved, variables):
    weights = load_weights(saved)
    assert (weights.model, weights.tracker) == (MODEL, TRACKER)
    found, expected = flatten_dict(weights.variables), flatten_dict(variables)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_transposed_arrays_survive(tmp_path, variables):
    turned = jax.tree.map(lambda x: np.asarray(x).T.copy().T, variables)
    save_weights(tmp_path / "w.safetensors", turned, MODEL, TRACKER)
    found = flatten_dict(load_weights(tmp_path / "w.safetensors").variables)
    for path, value in flatten_dict(variables).items():
        np.testing.assert_array_equal(found[path], value)


def test_half_precision_halves_the_file(tmp_path, saved, variables):
    path = tmp_path / "half.safetensors"
    save_weights(path, variables, MODEL, TRACKER, store="float16")
    assert path.stat().st_size < 0.6 * saved.stat().st_size
    found = flatten_dict(load_weights(path).variables)
    for name, value in flatten_dict(variables).items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_carried_tensors_stand_apart(tmp_path, variables, store):
    carried = {
        "backbone.cls_token": np.arange(24, dtype=np.float32).reshape(24, 1, 1).T,
        "box_head.conv1_tl.1.num_batches_tracked": np.asarray(1 << 40, np.int64),
    }
    path = tmp_path / "w.safetensors"
    save_weights(path, variables, MODEL, TRACKER, store=store, carried=carried)
    weights = load_weights(path)
    assert flatten_dict(weights.variables).keys() == flatten_dict(variables).keys()
    assert weights.carried.keys() == carried.keys()
    for name, value in carried.items():
        assert weights.carried[name].dtype == value.dtype and weights.carried[name].shape == value.shape
        np.testing.assert_array_equal(weights.carried[name], value)


def test_what_is_not_finite_is_not_saved(tmp_path, variables):
    spoilt = jax.tree.map(np.array, variables)
    spoilt["params"]["head"]["top_left"]["conv5"]["bias"][0] = np.nan
    with pytest.raises(WeightsError, match="top_left/conv5/bias"):
        save_weights(tmp_path / "w.safetensors", spoilt, MODEL, TRACKER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_loaded(saved, value):
    def change(tensors):
        tensors["params/head/top_left/conv5/bias"][0] = value

    rewrite(saved, change)
    with pytest.raises(WeightsError, match=r"weights\.safetensors: NaN or infinite.*checkpoint: params/head/top_"):
        load_weights(saved)


def test_whole_numbers_are_no_weights(saved):
    def change(tensors):
        tensors["params/head/top_left/conv5/bias"] = np.zeros(1, np.int32)

    rewrite(saved, change)
    with pytest.raises(WeightsError, match="mistyped params/head/top_left/conv5/bias: int32, expected floats"):
        load_weights(saved)


@pytest.mark.parametrize(
    ("record", "changes", "complaint"),
    [
        ("tracker", {"num_online_templates": 1_000_000}, r"num_online_templates is 1000000; expected .*at most 64"),
        ("tracker", {"search_factor": 1e9}, r"search_factor is 1000000000\.0; expected .*at most 32"),
        ("tracker", {"template_factor": 1e9}, r"template_factor is .*expected .*at most 32"),
        ("tracker", {"search_factor": float("inf")}, "search_factor is inf; expected a number"),
        ("tracker", {"search_factor": "4"}, "search_factor is '4'; expected a number"),
        ("tracker", {"num_online_templates": 1.5}, r"num_online_templates is 1\.5; expected a whole number"),
        ("tracker", {"num_online_templates": True}, "num_online_templates is True; expected a whole number"),
        ("tracker", {"update_interval": 2**40}, r"update_interval is 1099511627776; expected .*below 2147483648"),
        ("tracker", {"clip_margin": 10**9}, r"clip_margin is .*expected .*at most 1000"),
        ("model", {"depth": 10**9}, r"depth is 1000000000; expected .*at most 64"),
        ("model", {"width": 3 * 10**9}, r"width is 3000000000; expected .*at most 4096"),
        ("model", {"search_size": 2**30}, r"search_size is .*expected .*at most 2048"),
        ("model", {"search_size": 2048, "patch_size": 2}, "search_size is 2048; expected .* patch_size 2, at most 128"),
        ("model", {"patch_size": 0}, r"patch_size is 0; expected .*at least 1"),
        ("model", {"head_width": 4}, r"head_width is 4; expected .*at least 8"),
        ("model", {"mlp_ratio": 10**6}, r"mlp_ratio is .*expected .*at most 32"),
        ("model", {"early_widths": [10**9] * 3}, r"early_widths\[0\] is .*expected .*at most 4096"),
        ("model", {"early_widths": [1] * 100_000}, "expected at most 8 early stages"),
        ("model", {"layer_scale": "yes"}, "layer_scale is 'yes'; expected true or false"),
        ("model", {"drop_path": None}, "drop_path is None; expected a number"),
        ("model", {"dtype": "float16"}, "dtype is 'float16'; expected one of float32, bfloat16"),
    ],
)
def test_what_a_header_may_ask_is_bounded(saved, record, changes, complaint):
    settings = {"model": MODEL, "tracker": TRACKER}[record].to_dict() | changes
    rewrite(saved, lambda tensors: None, {record: json.dumps(settings)})
    with pytest.raises(WeightsError, match=rf"weights\.safetensors: settings in the header.*{complaint}"):
        load_weights(saved)


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000, '{"depth": 1' + "0" * 5000 + "}"])
def test_headers_that_are_no_settings(saved, text):
    rewrite(saved, lambda tensors: None, {"model": text})
    with pytest.raises(WeightsError, match="settings in the header are damaged"):
        load_weights(saved)


def test_all_wrong_tensors_are_listed_at_once(saved):
    def change(tensors):
        del tensors["params/head/top_left/conv5/bias"]
        tensors["params/head/extra"] = np.zeros(3, np.float32)
        tensors["params/backbone/blocks_0/norm1/scale"] = np.ones(7, np.float32)

    rewrite(saved, change)
    with pytest.raises(WeightsError) as caught:
        load_weights(saved)
    message = str(caught.value)
    assert "missing params/head/top_left/conv5/bias" in message
    assert "unexpected params/head/extra" in message
    assert "misshapen params/backbone/blocks_0/norm1/scale: (7,), expected (24,)" in message


def test_foreign_and_damaged_files(tmp_path, saved):
    with pytest.raises(WeightsError, match="no such file"):
        load_weights(tmp_path / "nothing.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"layer.weight": np.zeros(3, np.float32)}, foreign)
    with pytest.raises(WeightsError, match="another program"):
        load_weights(foreign)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a readable"):
        load_weights(cut)
    later = {"version": "99"}
    rewrite(saved, lambda tensors: None, later)
    with pytest.raises(WeightsError, match="update mixformer-jax"):
        load_weights(saved)


def test_a_header_of_another_release(saved):
    settings = json.dumps(MODEL.to_dict() | {"wings": 2})
    rewrite(saved, lambda tensors: None, {"model": settings})
    with pytest.raises(WeightsError, match="'wings'"):
        load_weights(saved)
