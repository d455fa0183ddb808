"""What the user typed, as a tracker that is ready, with a record of what it was."""

import pickle
import types

import numpy as np
import pytest

import mixformer_jax
from mixformer_jax.evaluation.first_box import FirstBoxTracker
from mixformer_jax.evaluation.lane_loop import OneLane
from mixformer_jax.evaluation.trackers import DEFAULT_BATCH, TrackerChoice, weights_digest
from mixformer_jax.models.config import ConfigError, TrackerConfig
from mixformer_jax.tracking.lanes import Lanes


def test_first_box_needs_no_model():
    opened = TrackerChoice("first-box").open()
    assert isinstance(opened.lanes, OneLane) and isinstance(opened.lanes.tracker, FirstBoxTracker)
    assert (opened.name, opened.settings) == ("first-box", {"tracker": "first-box"})
    opened.warm_up()
    for options in ({"weights": "x.safetensors"}, {"device": "cpu"}, {"batch": 4}, {"changes": {"search_factor": 5.0}}):
        with pytest.raises(ValueError, match="first-box has no model"):
            TrackerChoice("first-box", **options).open()
    with pytest.raises(ValueError, match=r"'magic'; known: mixformer, first-box, opencv:CSRT"):
        TrackerChoice("magic").open()


class Loaded(FirstBoxTracker):
    """What `load` gives, without the weights."""

    device, config = types.SimpleNamespace(platform="cpu"), types.SimpleNamespace(name="mixvit_b")

    def __init__(self, **settings):
        self.settings = TrackerConfig(**settings)
        self.frames = []

    def with_settings(self, **changes):
        return Loaded(**TrackerConfig.from_dict(self.settings.to_dict() | changes).to_dict())

    def start(self, frame, box_xywh):
        self.frames.append(frame.shape)
        return super().start(frame, box_xywh)


@pytest.fixture
def loads(monkeypatch):
    """The arguments of every call of `load`, which gives a stand-in."""
    calls = []

    def load(weights, device):
        calls.append((weights, device))
        return Loaded()

    monkeypatch.setitem(vars(mixformer_jax), "load", load)  # not setattr: it would import the model first
    return calls


def test_weights_are_loaded_and_recorded(tmp_path, loads):
    path = tmp_path / "ours.safetensors"
    path.write_bytes(b"monday")
    opened = TrackerChoice("mixformer", str(path), "cpu").open()
    assert opened.name == "ours" and isinstance(opened.lanes, OneLane)
    assert opened.settings == {
        "tracker": "mixformer",
        "weights": weights_digest(str(path)),
        "device": "cpu",
        "batch": DEFAULT_BATCH["cpu"],
        "settings": TrackerConfig().to_dict(),
    }
    opened.warm_up()
    assert opened.lanes.tracker.frames, "compiled before the clock runs"
    assert TrackerChoice("mixformer").open().name == "default"
    assert loads == [(str(path), "cpu"), (None, None)]


def test_settings_of_the_benchmark_and_then_of_the_user(loads):
    known = {"mixvit_b": {"update_interval": 7, "search_factor": 4.5}, "other": {"update_interval": 9}}

    def settings(**options):
        return TrackerChoice("mixformer", settings=known, **options).open().settings["settings"]

    assert settings() == TrackerConfig(update_interval=7, search_factor=4.5).to_dict()
    assert settings(changes={"search_factor": 5.0}) == TrackerConfig(update_interval=7, search_factor=5.0).to_dict()
    assert settings(settings_of="other") == TrackerConfig(update_interval=9).to_dict()
    assert settings(settings_of="nobody") == TrackerConfig().to_dict()
    with pytest.raises(ConfigError, match="did you mean 'search_factor'"):
        settings(changes={"search_facter": 5.0})


def test_a_choice_goes_to_other_processes():
    choice = TrackerChoice("mixformer", settings={"m": {"update_interval": 3}}, changes={"search_factor": 5.0})
    assert pickle.loads(pickle.dumps(choice)) == choice


def test_the_embedded_tracker_in_lanes_is_ready_before_the_clock_runs():
    opened = TrackerChoice("mixformer", device="cpu", batch=2).open()
    assert isinstance(opened.lanes, Lanes) and opened.settings["batch"] == 2
    opened.warm_up()
    frame = np.full((48, 64, 3), 90, np.uint8)
    state = opened.lanes.start(None, 1, frame, np.array([20.0, 20, 10, 10]))
    _, found = opened.lanes.step(state, {1: frame})
    assert list(found) == [1] and np.isfinite(found[1].box_xywh).all()


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
