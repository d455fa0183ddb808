"""The conversion of whole files: directions, the report, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.convert import Hints, convert
from mixformer_jax.convert.torch_files import read_official, write_official_safetensors
from mixformer_jax.convert.weights import WeightsError, load_weights, save_weights
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from tests.convert.layouts import random_state, read_shallow_layout

# What a run of this project trains: an official architecture, weights that no official file ever held.
TRAINED = MixFormerConfig(
    name="trained", search_size=48, template_size=32, width=24, depth=1, num_heads=3, head="corner", head_width=16
)
TOLD = Hints(num_heads=3)


@pytest.fixture(scope="module")
def trained():
    return jax.device_get(init_variables(build_model(TRAINED), jax.random.key(0)))


@pytest.fixture
def run(tmp_path, trained):
    """The folder of a training run."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_weights(folder / "model.safetensors", trained, TRAINED, TrackerConfig(search_factor=4.0))
    return folder


@pytest.fixture
def official(tmp_path):
    """An official file, without PyTorch."""
    path = tmp_path / "official.safetensors"
    write_official_safetensors(path, random_state(read_shallow_layout("mixformer_vit_online__baseline"), divisor=16))
    return path, Hints(num_heads=12, score_heads=12)


def test_a_trained_run_goes_out_and_comes_back(torch, run, tmp_path, trained):
    report = convert(run, tmp_path / "out.pth.tar")
    assert not report.carried
    assert {"backbone.pos_embed_s", "backbone.head.weight", "box_head.conv1_br.1.num_batches_tracked"} <= set(
        report.computed
    )
    convert(tmp_path / "out.pth.tar", tmp_path / "back.safetensors", hints=TOLD)
    back = load_weights(tmp_path / "back.safetensors")
    assert dataclasses.replace(back.model, name="trained") == TRAINED
    found, expected = flatten_dict(back.variables), flatten_dict(trained)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_the_report(official, tmp_path):
    path, told = official
    target = tmp_path / "ours.safetensors"
    lines = dict(convert(path, target, hints=told).lines())
    assert lines["converted"] == "official names -> mixformer_jax"
    assert lines["model"] == "mixvit: vit of 2 blocks, width 48"
    assert lines["head"] == "corner_pyramid, frozen batch norms; score module with 12 heads"
    assert lines["crops"] == "search 288, template 128 pixels"
    assert lines["tracker"] == "search factor 4.5, 2 online templates, renewed every 200 frames"
    assert lines["carried"].startswith("backbone.cls_token, backbone.pos_embed, ")
    assert lines["carried"].endswith(", 2 more")
    assert lines["file"].startswith(str(target))
    assert load_weights(target).tracker.num_online_templates == 2
    out = dict(convert(target, tmp_path / "out.safetensors", official=True).lines())
    assert out["converted"] == "mixformer_jax -> official .safetensors"
    assert "computed" not in out and "tracker" not in out


def test_between_official_formats(torch, official, tmp_path):
    path, told = official
    report = convert(path, tmp_path / "w.pth", hints=told)
    assert report.direction == "official names -> official PyTorch file"
    convert(tmp_path / "w.pth", tmp_path / "again.safetensors", official=True, hints=told)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_what_a_checkpoint_held_besides_is_told(torch, official, tmp_path):
    state = read_official(official[0]).tensors
    content = {"net": {name: torch.from_numpy(np.array(state[name])) for name in state}, "epoch": 5, "stats": None}
    torch.save(content, tmp_path / "w.pth")
    report = convert(tmp_path / "w.pth", tmp_path / "w.safetensors", hints=official[1])
    assert dict(report.lines())["left out"] == "epoch, stats"


def test_refused(run, official, tmp_path):
    ours = run / "model.safetensors"
    for source, target, match in [
        (tmp_path / "none.pth", tmp_path / "w.safetensors", r"none\.pth: no such file"),
        (tmp_path, tmp_path / "w.pth", r"a folder without model\.safetensors"),
        (run, tmp_path / "w.onnx", r"w\.onnx: expected a name that ends in \.safetensors or \.pth"),
        (run, tmp_path / "none" / "w.pth", "no such folder"),
        (run, ours, "source and target are one file"),
        (run, tmp_path / "w.safetensors", "already in this project's format"),
        (official[0], tmp_path / "w.safetensors", r"official\.safetensors: num_heads cannot be inferred"),
    ]:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(WeightsError, match=match):
            convert(source, target)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_the_official_code_does_not_have(run, tmp_path):
    weights = load_weights(run / "model.safetensors")
    symmetric = dataclasses.replace(weights.model, attention="symmetric")
    save_weights(tmp_path / "w.safetensors", weights.variables, symmetric, weights.tracker)
    with pytest.raises(WeightsError, match=r"no official counterpart.*attention 'symmetric'"):
        convert(tmp_path / "w.safetensors", tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
