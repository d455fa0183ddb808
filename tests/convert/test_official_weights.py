"""Official files where weights are expected: converted in memory, or one sentence that says what is missing."""

import sys

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import mixformer_jax
from mixformer_jax.convert.convert import Hints, convert, read_weights, variant_words
from mixformer_jax.convert.torch_files import write_official_safetensors, write_torch
from mixformer_jax.convert.weights import WeightsError, load_weights, save_weights
from mixformer_jax.models.config import SIZES, ConfigError
from mixformer_jax.tracking.tracker import check_dtype
from tests.convert.layouts import random_state, read_shallow_layout


@pytest.fixture(scope="module")
def state():
    """An official state dict of one block whose widths tell the numbers of heads."""
    return random_state(read_shallow_layout("mixformer_vit_online__baseline", depth=1), divisor=12)


@pytest.fixture
def official(tmp_path, state):
    path = tmp_path / "official.safetensors"
    write_official_safetensors(path, state)
    return path


@pytest.fixture
def pth(torch, tmp_path, state):
    path = tmp_path / "official.pth.tar"
    write_torch(path, state.items())
    return path


def check_equal(found, expected):
    found, expected = flatten_dict(found), flatten_dict(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), value)


def test_official_files_are_what_convert_makes_of_them(official, pth, tmp_path):
    convert(official, tmp_path / "ours.safetensors")
    expected = load_weights(tmp_path / "ours.safetensors")
    assert (expected.model.score_heads, expected.tracker.num_online_templates) == (1, 2)
    for path in (official, pth, tmp_path / "ours.safetensors"):
        weights = read_weights(path)
        assert (weights.model, weights.tracker) == (expected.model, expected.tracker)
        check_equal(weights.variables, expected.variables)


def test_load_takes_them(pth, tmp_path):
    tracker = mixformer_jax.load(pth, device="cpu", dtype="bfloat16")
    assert tracker.has_scores and tracker.config.dtype == "bfloat16"
    # Not views of the file, which may be written anew while the tracker runs.
    before = flatten_dict(read_weights(pth).variables)
    held = flatten_dict(tracker.variables)
    pth.write_bytes(bytes(pth.stat().st_size))
    for path, value in before.items():
        np.testing.assert_array_equal(np.asarray(held[path]), value.astype(held[path].dtype))


def test_the_content_decides_and_not_the_name(pth, tmp_path):
    expected = read_weights(pth).variables
    for name in ("renamed.ckpt", "renamed", "renamed.safetensors"):
        pth = pth.rename(tmp_path / name)
        if not name.endswith("safetensors"):
            check_equal(read_weights(pth).variables, expected)
    with pytest.raises(WeightsError, match=r"rename it to end in \.pth"):
        read_weights(pth)


def test_without_pytorch(pth, official, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError) as caught:
        mixformer_jax.load(pth, device="cpu")
    message = str(caught.value)
    assert str(pth) in message and "`mixformer convert official.pth.tar NAME.safetensors`" in message
    assert "mixformer-jax[torch]" in message and "pip install -e '" in message and "\n" not in message
    assert read_weights(official).model.name == "mixvit", "official names in .safetensors need no PyTorch"


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_what_is_not_finite_is_refused(tmp_path, state, value):
    spoilt = dict(state) | {"box_head.conv5_tl.bias": np.full_like(state["box_head.conv5_tl.bias"], value)}
    write_official_safetensors(tmp_path / "w.safetensors", spoilt)
    with pytest.raises(WeightsError, match=r"w\.safetensors: NaN or infinite values.* params/head/top_left/conv5/bias"):
        read_weights(tmp_path / "w.safetensors")
    for options in ({}, {"official": True}):  # nor copied from one official file to another
        with pytest.raises(WeightsError, match=r"w\.safetensors: NaN or infinite values"):
            convert(tmp_path / "w.safetensors", tmp_path / "other.safetensors", **options)
        assert not (tmp_path / "other.safetensors").exists()


def test_files_that_are_neither(tmp_path):
    for name, content, complaint in (
        ("page.pth", b"<html>Not found</html>", "not a file of PyTorch's, nor .safetensors"),
        ("page.pth.tar", b"", "an empty file"),
        ("page.safetensors", b"<html>Not found</html>", "not a readable .safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}: {complaint}"):
            read_weights(tmp_path / name)
    write_official_safetensors(tmp_path / "backbone.safetensors", {"blocks.0.norm1.weight": np.ones(3, np.float32)})
    with pytest.raises(WeightsError, match=r"backbone\.safetensors: not an official state dict: .*backbone without"):
        read_weights(tmp_path / "backbone.safetensors")


@pytest.mark.parametrize(
    ("size", "told", "words"),
    [
        ("mixcvt_online", "mixformer_cvt_online_22k.pth.tar", ()),
        ("mixcvt_online", "mixformer_cvt_online_22k_got.pth.tar", ("got",)),
        ("mixcvt_online", "mixformer_cvt_online_1k.pth.tar", ("1k",)),
        ("mixcvt_online", "mixformer_cvt_online_got_1k.pth.tar", ("1k", "got")),
        ("mixvit_b_online", "MixFormer_ep0500.pth.tar baseline_got", ("got",)),
        ("mixvit_b_online", "mixvit-GOT10k.pth", ("got",)),
        ("mixvit_b_online", "gotham_1k.pth", ()),
    ],
)
def test_names_tell_how_a_model_was_trained(size, told, words):
    """The files of the official scripts and experiments; weights of such models have the same names and shapes."""
    assert variant_words(SIZES[size], told) == words


def test_the_name_of_a_published_model(tmp_path, monkeypatch, official):
    """Its file's name becomes part of it, and the user has the last word."""
    from mixformer_jax.convert import convert as module

    def infer_published(state, hints, infer=module.infer_config):
        import dataclasses

        return dataclasses.replace(infer(state, hints), name="mixvit_b_online")

    monkeypatch.setattr(module, "infer_config", infer_published)
    got = official.rename(tmp_path / "mixvit_b_online_got.safetensors")
    report = convert(got, tmp_path / "ours.safetensors")
    assert report.model.name == load_weights(tmp_path / "ours.safetensors").model.name == "mixvit_b_online_got"
    assert ("", "so called after 'got' in the file's name or experiment; --name gives another") in report.lines()
    assert read_weights(got).model.name == "mixvit_b_online_got"
    assert report.tracker.search_factor == 4.5
    report = convert(got, tmp_path / "ours.safetensors", hints=Hints(name="mine"))
    assert report.model.name == "mine" and report.named_after == ()


def test_compute_types():
    check_dtype("float32")
    check_dtype("bfloat16")
    for dtype in ("float16", "float64", "half", None):
        with pytest.raises(ConfigError, match=f"dtype is {dtype!r}; expected float32 or bfloat16"):
            check_dtype(dtype)


def test_our_own_files_in_another_format_are_named(tmp_path, official):
    weights = read_weights(official)
    save_weights(tmp_path / "w.safetensors", weights.variables, weights.model, weights.tracker)
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(tmp_path / "w.safetensors", framework="numpy") as file:
        header = file.metadata() | {"format": "mixformer_jax_autoencoder"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    save_file(tensors, tmp_path / "w.safetensors", metadata=header)
    with pytest.raises(WeightsError, match="expected weights written by `mixformer train`"):
        read_weights(tmp_path / "w.safetensors")
