"""What the user typed, as a tracker that is ready, with a record of what it was."""

import pickle
import sys
import types

import cv2
import numpy as np
import pytest

import mixformer_jax
from mixformer_jax import cli
from mixformer_jax.cli.console import UsageError
from mixformer_jax.cli.evaluate import _given_box
from mixformer_jax.evaluation.trackers import (
    DEFAULT_BATCH,
    FirstBoxTracker,
    OpenedTracker,
    TrackerChoice,
    announce,
    results_name,
    weights_digest,
)
from mixformer_jax.models.config import ConfigError, TrackerConfig
from mixformer_jax.tracking.lanes import Lanes, OneLane
from tests.depth_scenes import render


def test_first_box_needs_no_model():
    opened = TrackerChoice("first-box").open()
    assert isinstance(opened.lanes, OneLane) and isinstance(opened.lanes.tracker, FirstBoxTracker)
    assert (opened.name, opened.settings) == ("first-box", {"tracker": "first-box"})
    assert {"jax", "numpy", "opencv"} <= set(opened.about["versions"]) and "OpenCV" in opened.about["decoder"]["images"]
    opened.warm_up()
    for options in (
        *({"weights": "x.safetensors"}, {"device": "cpu"}, {"batch": 4}, {"dtype": "float32"}),
        *({"changes": {"search_factor": 5.0}}, {"settings_of": "mixvit_b"}),
    ):
        with pytest.raises(ValueError, match="first-box has no model"):
            TrackerChoice("first-box", **options).open()
    with pytest.raises(ValueError, match=r"'magic'; known: mixformer, first-box, opencv:CSRT"):
        TrackerChoice("magic").open()


class Loaded(FirstBoxTracker):
    """What `load` gives, without the weights."""

    device = types.SimpleNamespace(platform="cpu", device_kind="abacus")

    def __init__(self, dtype, settings):
        self.config = types.SimpleNamespace(name="mixvit_b", dtype=dtype, streams="colour")
        self.settings = settings
        self.frames = []

    def with_settings(self, **changes):
        return Loaded(self.config.dtype, TrackerConfig.from_dict(self.settings.to_dict() | changes))

    def start(self, frame, box_xywh):
        self.frames.append(frame.shape)
        return super().start(frame, box_xywh)


@pytest.fixture
def loads(monkeypatch):
    """The arguments of every call of `load`, which gives a stand-in."""
    calls = []

    def load(weights, device, dtype):
        calls.append((weights, device, dtype))
        return Loaded(dtype, TrackerConfig())

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
        "dtype": "float32",
        "matmul_precision": "default",
        "batch": DEFAULT_BATCH["cpu"],
        "settings": TrackerConfig().to_dict(),
    }
    opened.warm_up()
    assert opened.lanes.tracker.frames, "compiled before the clock runs"
    assert TrackerChoice("mixformer").open().name == "default"
    assert TrackerChoice("mixformer", dtype="bfloat16").open().settings["dtype"] == "bfloat16"
    # Float32 whatever the device is: so were the published numbers measured.
    assert loads == [(str(path), "cpu", "float32"), (None, None, "float32"), (None, None, "bfloat16")]


def test_names_of_results():
    names = {results_name(f"weights/mixvit_b_got{end}") for end in (".safetensors", ".pth", ".pth.tar", ".pt", "")}
    assert names == {"mixvit_b_got"} and results_name("runs/mine") == "mine"


def test_what_a_run_begins_with(loads):
    known = {"mixvit_b": {"search_factor": 5.05}, "mixvit_b_got": {}, "mixvit_b_online": {}, "other": {}}

    def announced(**options):
        choice = TrackerChoice("mixformer", benchmark="lasot", **{"settings": known, **options})
        opened = choice.open()
        return announce(choice, opened.settings, opened.about), opened.about

    text, about = announced(changes={"update_interval": 7})
    assert "mixvit_b, float32 on cpu (abacus), batch 1" in text
    assert "table [mixvit_b] of benchmarks.toml, lasot; changed: update_interval" in text
    assert "search_factor 5.05" in text and "update_interval 7" in text
    assert text.endswith("--settings-of mixvit_b_got")
    assert (about["model"], about["table"], about["changes"]) == ("mixvit_b", "mixvit_b", {"update_interval": 7})
    text, about = announced(settings_of="other")
    assert "table [other] of benchmarks.toml" in text and "--settings-of" not in text and about["table"] == "other"
    text, about = announced(settings={"other": {}})
    assert "settings: the weights' own; benchmarks.toml has no table [mixvit_b] with lasot\n" in text
    assert about["table"] is None and "search_factor 4.5" in text
    assert announce(TrackerChoice("first-box"), {}, {}) == "first-box, which has no settings"


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


class Recorder(FirstBoxTracker):
    """Keeps the frames."""

    def start(self, frame, box_xywh):
        return np.array(box_xywh)

    def step(self, state, frame):
        self.seen.append(frame)
        return super().step(state, frame)


class Toolkit:
    """The protocol's server, as far as our adapter asks: two frames of two channels, then the end."""

    def __init__(self, formats, images, channels, tracker_name):
        self.channels, self.answers = channels, []
        Toolkit.last = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self):
        kind = ("initialize", "frame", "quit")[len(self.answers)]
        image = {name: types.SimpleNamespace(path=lambda name=name: Toolkit.paths[name]) for name in self.channels}
        region = types.SimpleNamespace(type="rectangle", bounds=lambda: (20.0, 24.0, 15.0, 15.0))
        return types.SimpleNamespace(type=kind, image=image, objects=[(region, {})])

    def status(self, objects):
        self.answers.append(objects)


CHANNELS = {"rgb": ["color"], "rgbd": ["color", "depth"], "depth": ["depth"]}


@pytest.mark.parametrize("given", CHANNELS)
def test_the_toolkits_channels_become_one_frame(monkeypatch, tmp_path, capsys, given):
    shot, channels = render(0), CHANNELS[given]
    Toolkit.paths = {name: str(tmp_path / f"{name}.png") for name in ("color", "depth")}
    cv2.imwrite(Toolkit.paths["color"], shot.colour[..., ::-1])
    cv2.imwrite(Toolkit.paths["depth"], shot.depth_mm)
    kinds = types.SimpleNamespace(INITIALIZE="initialize", FRAME="frame")
    create = types.SimpleNamespace(create=lambda *values: values)
    protocol = {"Server": Toolkit, "TraxStatus": kinds, "Rectangle": create, "Image": types.SimpleNamespace(PATH=0)}
    protocol["Region"] = types.SimpleNamespace(RECTANGLE="rectangle", MASK="mask")
    monkeypatch.setitem(sys.modules, "trax", types.SimpleNamespace(**protocol))
    monkeypatch.setattr("mixformer_jax.evaluation.trackers.FirstBoxTracker", Recorder)
    Recorder.seen = []
    assert cli.main(["toolkit", "vot", "--tracker", "first-box", "--channels", given]) == 0
    first = 3 if given == "depth" else 0
    np.testing.assert_array_equal(Recorder.seen[0], shot.frame[..., first : first + 3 * len(channels)])
    assert Toolkit.last.channels == channels and len(Toolkit.last.answers) == 2
    if given == "rgbd":
        cv2.imwrite(Toolkit.paths["depth"], shot.depth_mm[:50])
        assert cli.main(["toolkit", "vot", "--tracker", "first-box", "--channels", given]) == 2
        assert "depth.png: 96 x 50 pixels; " in capsys.readouterr().err
        return
    # What a model of two streams cannot read is refused before the toolkit waits for it.
    for streams, refused in (("both", given != "rgbd"), ("second", given == "rgb")):
        opened = OpenedTracker(OneLane(Recorder()), "opened", {"tracker": "first-box"}, streams=streams)
        monkeypatch.setattr(TrackerChoice, "open", lambda _choice, opened=opened: opened)
        status = cli.main(["toolkit", "vot", "--tracker", "first-box", "--channels", given])
        assert status == (2 if refused else 0)
        assert not refused or "the model reads a second stream; give --channels rgbd" in capsys.readouterr().err


def test_a_first_mask_without_a_pixel_is_refused(monkeypatch):
    kinds = types.SimpleNamespace(MASK="mask")
    monkeypatch.setitem(sys.modules, "trax", types.SimpleNamespace(Region=kinds))
    mask = np.zeros((6, 8), np.uint8)
    region = types.SimpleNamespace(type="mask", array=lambda normalize: mask)
    with pytest.raises(UsageError, match="the mask of the first frame has no pixel inside the frame"):
        _given_box(region, (4, 5))
    mask[2:4, 3:] = 1
    assert _given_box(region, (4, 5)) == [3, 2, 2, 2]
