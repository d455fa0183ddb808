"""The doctor finds nothing wrong here, and finds what is wrong where something is."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mixformer_jax.cli.doctor as doctor
from mixformer_jax import cli
from mixformer_jax.convert.convert import DEFAULT_WEIGHTS, find_weights
from mixformer_jax.convert.weights import WeightsError, load_weights, save_weights
from mixformer_jax.extras import install_line
from tests.store_doctor import bfloat16_planes, golden_arrays

DEVICE = jax.devices("cpu")[0]


@pytest.fixture(scope="module")
def stored_arrays():
    with np.load(doctor.ASSET, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def altered(stored_arrays, tmp_path):
    """Writes an asset in which one array is another."""

    def alter(name, values):
        np.savez(tmp_path / "doctor.npz", **(stored_arrays | {name: values}))
        return tmp_path / "doctor.npz"

    return alter


def test_asset_is_that_of_the_goldens(stored_arrays):
    """Of the boxes `test_all_is_right` says whether the embedded weights are still those that found them."""
    golden = golden_arrays()
    assert set(stored_arrays) == set(golden) | {"boxes_xywh"}
    for name, values in golden.items():
        np.testing.assert_array_equal(stored_arrays[name], values, err_msg=name)
    assert doctor.ASSET.stat().st_size < 650_000


def test_all_is_right():
    # In a process of its own, compiled as users compile: these tests are not (`conftest`).
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "mixformer_jax", "doctor", "--device", "cpu"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    out = found.stdout
    assert found.returncode == 0, found.stderr
    assert "WRONG" not in out and re.search(r"all 12 checks are right\n$", out), out
    for expected in (rf"libraries +jax {jax.__version__}, ", r"\[torch\] ", "checked +cpu:0 ", f"{DEFAULT_WEIGHTS}, "):
        assert re.search(expected, out), expected


def test_wrong_weights_are_found(capsys, altered, stored_arrays, monkeypatch):
    """One weight in twenty is a percent off: everything behind it is wrong, and the status says so."""
    high, low = stored_arrays["MixCvT/planes"].astype(np.uint16)
    weights = (high << 8 | low).view(jnp.bfloat16).astype(np.float32)
    weights[::20] *= 1.01
    asset = altered("MixCvT/planes", bfloat16_planes(weights.astype(jnp.bfloat16).astype(np.float32)))
    monkeypatch.setattr(doctor, "examine", functools.partial(doctor.examine, asset=asset))
    monkeypatch.setattr(doctor, "_check_tracker", lambda *_: [])
    assert cli.main(["doctor", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    wrong = re.findall(r"^WRONG +(.*?)  ", out, re.MULTILINE)
    assert wrong == [f"MixCvT, float32: {name}" for name in ("search features", "corner logits", "box cxcywh")]
    assert "3 of 11 checks are WRONG" in out and "OK     MixViT, float32: box cxcywh" in out


def test_wrong_embedded_weights_are_found(tmp_path):
    weights = load_weights(find_weights(None))
    variables = jax.tree.map(lambda values: values * np.float32(1.003), weights.variables)
    save_weights(tmp_path / "other.safetensors", variables, weights.model, weights.tracker)
    boxes_xywh = doctor.load_stored().boxes_xywh
    (finding,) = doctor._check_tracker(boxes_xywh, str(tmp_path / "other.safetensors"), doctor.EXACT, DEVICE)
    assert not finding.is_right and str(finding).startswith("WRONG")


def test_bfloat16_is_within_its_tolerances():
    case = doctor.load_stored().cases[0]
    found = {finding.what: finding for finding in doctor._check_case(case, doctor.BFLOAT16, DEVICE)}
    assert len(found) == 5 and all(finding.is_right for finding in found.values())
    exact = doctor.BFLOAT16._replace(tolerances=doctor.EXACT.tolerances)
    assert not all(finding.is_right for finding in doctor._check_case(case, exact, DEVICE))


def test_nan_is_wrong():
    case = doctor.load_stored().cases[1]
    case = case._replace(search=np.full_like(case.search, np.nan))
    assert not any(finding.is_right for finding in doctor._check_case(case, doctor.EXACT, DEVICE))


def test_what_fails_is_wrong_and_the_rest_goes_on(altered, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_check_case", lambda *_: [])
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    found = list(doctor.examine(DEVICE, doctor.ASSET, str(tmp_path / "broken.safetensors")))
    assert [finding.is_right for finding in found] == [False, True, True, True]
    assert "failed: " in str(found[0]) and "not a readable .safetensors file" in str(found[0])

    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(doctor.ASSET.read_bytes()[:1000])
    found = list(doctor.examine(DEVICE, damaged))
    assert [finding.is_right for finding in found] == [False, True, True, True]
    assert "stored numbers" in str(found[0]) and "install mixformer-jax anew" in str(found[0])
    with pytest.raises(WeightsError, match=r"none\.npz: cannot be read"):
        doctor.load_stored(tmp_path / "none.npz")
    with pytest.raises(WeightsError, match="cannot be read"):
        doctor.load_stored(altered("MixViT/planes", np.zeros((2, 5), np.uint8)))


def test_a_codec_that_spoils_pictures_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "open_source", lambda path: Spoiled(doctor.clip()))
    whole, grey = doctor._check_video()
    assert whole.is_right and not grey.is_right
    monkeypatch.setattr(doctor, "open_source", lambda path: Spoiled(doctor.clip()[:-1]))
    (short,) = doctor._check_video()
    assert not short.is_right and short.measured == "5"


class Spoiled(list):
    """Frames with two colours exchanged."""

    def __init__(self, frames):
        super().__init__(frames[..., ::-1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def test_other_devices_are_run_in_every_precision():
    assert [way.name for way in doctor.precisions("gpu")] == ["float32", "float32 as configured", "bfloat16"]
    # TPUs multiply float32 as bfloat16.
    tolerances = [way.tolerances for way in doctor.precisions("tpu")]
    assert tolerances[1] == tolerances[2] != tolerances[0]
    (label, text), *_ = doctor.expected_precision("gpu")
    assert label == "float32" and "'highest'" in text and not doctor.expected_precision("cpu")


def test_missing_packages_are_named():
    told = doctor.environment(DEVICE, {"optax": "train", "no_such_package": "train"})
    (line,) = [text for label, text in told if label == "[train]"]
    assert line.startswith("optax ") and line.endswith(f"without no_such_package ({install_line('train')})")


def test_frames_are_the_same_everywhere():
    frames = doctor.clip()
    assert frames.shape == (6, 120, 160, 3)
    assert int(frames.astype(np.int64).sum()) == 36_445_395


def test_an_accelerator_that_jax_does_not_see_is_named(tmp_path):
    assert doctor.unseen_accelerators(tmp_path) == []
    driver = tmp_path / "proc" / "driver" / "nvidia" / "version"
    driver.parent.mkdir(parents=True)
    driver.write_text("NVRM version: 580")
    ((label, told),) = doctor.unseen_accelerators(tmp_path)
    assert label == "not used" and "NVIDIA GPU is here and JAX does not see it" in told
    assert "JAX_PLATFORMS is cpu" in told or "[cuda]" in told
