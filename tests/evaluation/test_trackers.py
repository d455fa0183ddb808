import types

import pytest

import mixformer_jax
from mixformer_jax.evaluation.runner import FirstBoxTracker
from mixformer_jax.evaluation.trackers import open_tracker, weights_digest
from mixformer_jax.models.config import TrackerConfig


def test_first_box_needs_no_model():
    opened = open_tracker("first-box")
    assert isinstance(opened.tracker, FirstBoxTracker)
    assert (opened.name, opened.settings) == ("first-box", {"tracker": "first-box"})
    with pytest.raises(ValueError, match="no model"):
        open_tracker("first-box", weights="x.safetensors")
    with pytest.raises(ValueError, match=r"'magic'; known: mixformer, first-box"):
        open_tracker("magic")


def test_weights_are_loaded_and_recorded(tmp_path, monkeypatch):
    calls = []

    class Loaded(FirstBoxTracker):
        device, config = types.SimpleNamespace(platform="cpu"), types.SimpleNamespace(name="mixvit_b")

        def __init__(self, **settings):
            self.settings = TrackerConfig(**settings)

        def with_settings(self, **changes):
            return Loaded(**self.settings.to_dict() | changes)

    def load(weights, device):
        calls.append((weights, device))
        return Loaded()

    monkeypatch.setitem(vars(mixformer_jax), "load", load)  # not setattr: it would import the model first
    path = tmp_path / "ours.safetensors"
    path.write_bytes(b"monday")
    opened = open_tracker("mixformer", str(path), "cpu")
    assert opened.name == "ours"
    assert opened.settings == {
        "tracker": "mixformer",
        "weights": weights_digest(str(path)),
        "device": "cpu",
        "settings": TrackerConfig().to_dict(),
    }
    opened = open_tracker("mixformer", str(path), "cpu", lambda model: {"update_interval": len(model)})
    assert opened.settings["settings"] == TrackerConfig(update_interval=len("mixvit_b")).to_dict()
    assert open_tracker("mixformer").name == "default"
    assert calls == [(str(path), "cpu"), (str(path), "cpu"), (None, None)]


def test_the_digest_is_of_what_the_weights_are(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"monday")
    monday = weights_digest(str(path))
    path.write_bytes(b"tuesday")
    assert weights_digest(str(path)) != monday
    path.write_bytes(b"monday")
    assert weights_digest(str(path)) == monday

    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"monday")
    before = weights_digest(str(folder))
    (folder / "log.txt").write_text("more steps")
    assert weights_digest(str(folder)) == before
    (folder / "model.safetensors").write_bytes(b"tuesday")
    assert weights_digest(str(folder)) != before
    assert weights_digest("mixvit_tiny") == weights_digest(None) != before
