"""Loading trackers, and the embedded default on moving pictures."""

import inspect
import logging
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import mixformer_jax
from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.cli.demo import render_demo_clip
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import ArrayFrames
from mixformer_jax.media.video import SelectedFrames
from mixformer_jax.models.config import ConfigError, TrackerConfig
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.step import clip_margins
from mixformer_jax.tracking.tracker import Tracker, find_device


@pytest.fixture(scope="module")
def default():
    return mixformer_jax.load()


def overlaps(boxes_xywh, groundtruth_xywh):
    return iou(xywh_to_xyxy(boxes_xywh), xywh_to_xyxy(groundtruth_xywh))


@pytest.mark.parametrize("name", ["mixvit_tiny", "mixvit_nano"])
def test_embedded_trackers_fit_the_package(name):
    path = find_weights(name)
    assert path.stat().st_size < 9e6
    assert path.with_suffix(".md").is_file()
    tracker = mixformer_jax.load(name)
    assert tracker.config.name == f"{name}_online"
    assert sum(leaf.size for leaf in jax.tree.leaves(tracker.variables["params"])) <= 6_000_000


@pytest.mark.parametrize(("name", "least"), [(None, 0.8), ("mixvit_nano", 0.7)])
def test_embedded_trackers_follow_the_demo_clip(name, least):
    tracker, clip = mixformer_jax.load(name), render_demo_clip()
    state = tracker.start(clip[0], clip.boxes_xywh[0])
    found = []
    for index in range(1, len(clip)):
        state, tracked = tracker.step(state, clip[index])
        assert tracked.score is not None and 0 <= tracked.score <= 1
        found.append(tracked.box_xywh)
    assert overlaps(np.stack(found), clip.boxes_xywh[1:]).mean() > least
    assert int(state.num_refreshes) > 0  # online templates are on by default


def test_the_default_finds_a_target_that_comes_back_elsewhere(default):
    clip = render_demo_clip(8, absences=True)
    frames, truth = [clip[index] for index in range(110)], clip.boxes_xywh[:110]
    hidden = np.isnan(truth[:, 0])
    assert hidden[51:81].all() and not hidden[:51].any() and not hidden[81:].any()
    back = {}
    for tracker in (default, default.with_settings(redetect_every=0)):
        state, found, lost = tracker.start(frames[0], truth[0]), [truth[0]], [False]
        for frame in frames[1:]:
            state, tracked = tracker.step(state, frame)
            found.append(tracked.box_xywh)
            lost.append(tracked.is_lost)
        back[tracker.settings.redetect_every] = overlaps(np.stack(found), truth)[95:].mean()
        if tracker is default:
            assert np.mean(lost[51:81]) > 0.4 and not any(lost[:51]) and not any(lost[95:])
    assert back[1] > 0.8 and back[0] < 0.1


def test_the_default_tracks_a_real_video(default, shared_data):
    sequences = {sequence.name: sequence for sequence in open_dataset("folder", shared_data / "smoke")}
    sequence = sequences["otb__Crossing"]
    frames = sequence.frames()
    state = default.start(next(frames), sequence.boxes_xywh[0])
    found = []
    for frame in frames:
        state, tracked = default.step(state, frame)
        found.append(tracked.box_xywh)
    assert overlaps(np.stack(found), sequence.boxes_xywh[1:]).mean() > 0.4


def drifting_patch(width, height, count=16):
    rng = np.random.default_rng(3)
    background = cv2.resize(rng.integers(60, 120, (30, 40, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    frames, boxes_xywh = [], []
    for index in range(count):
        x, y = 60 + index, 50
        frame = background.copy()
        frame[y : y + height, x : x + width] = (250, 240, 40)
        frames.append(frame)
        boxes_xywh.append([x, y, width, height])
    return frames, np.array(boxes_xywh, np.float64)


def follow(tracker, frames, box_xywh):
    state, found = tracker.start(frames[0], box_xywh), []
    for frame in frames[1:]:
        state, tracked = tracker.step(state, frame)
        found.append(tracked.box_xywh)
    return np.stack(found)


def test_the_default_has_small_boxes_for_small_targets(default, caplog):
    frames, boxes_xywh = drifting_patch(5, 4)
    with caplog.at_level(logging.WARNING):
        ours = follow(default, frames, boxes_xywh[0])
        assert not caplog.records
        official = follow(default.with_settings(clip_share=0.0), frames, boxes_xywh[0])
    assert "5 x 4 pixels" in caplog.text and "--tracker.clip_margin=2" in caplog.text
    assert (official[:, 2:] >= 10).all() and (overlaps(official, boxes_xywh[1:]) <= 0.2).all()
    assert (ours[:, 2:] < 10).all() and overlaps(ours, boxes_xywh[1:]).mean() > 0.35
    # What the warning names helps as well.
    by_hand = default.with_settings(clip_share=0.0, clip_margin=2)
    np.testing.assert_array_equal(follow(by_hand, frames, boxes_xywh[0]), ours)


def test_margins_by_target():
    boxes_xywh = np.array([[0, 0, 5, 4], [0, 0, 30, 12], [0, 0, 50, 60], [0, 0, 0.5, 8]], np.float64)
    np.testing.assert_array_equal(clip_margins(TrackerConfig(), boxes_xywh), [10, 10, 10, 10])
    np.testing.assert_array_equal(clip_margins(TrackerConfig(clip_share=0.5), boxes_xywh), [2, 6, 10, 1])
    with pytest.raises(ConfigError, match="clip_share is 2"):
        TrackerConfig(clip_share=2.0)


def test_frames_may_come_in_other_forms(default):
    frames, boxes_xywh = drifting_patch(24, 20, 3)
    expected = follow(default, frames, boxes_xywh[0])
    # As PyTorch's tensors, whose `mode` is no PIL image's.
    tensor_type = type("Tensor", (np.ndarray,), {"mode": lambda self: None})
    forms = (jnp.asarray, np.ndarray.tolist, Image.fromarray, lambda frame: frame[:, ::-1][:, ::-1])
    for form in (*forms, lambda frame: frame.view(tensor_type)):
        found = follow(default, [form(frame) for frame in frames], jnp.asarray(boxes_xywh[0]))
        np.testing.assert_array_equal(found, expected)
    lanes = Lanes(default, 1)
    state = lanes.start(None, 0, Image.fromarray(frames[0]), boxes_xywh[0].tolist())
    _, found = lanes.step(state, {0: jnp.asarray(frames[1])})
    np.testing.assert_array_equal(found[0].box_xywh, expected[0])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((0, 0, 3), np.uint8), "0 x 0 pixels"),
        (np.zeros((20, 0, 3), np.uint8), "0 x 20 pixels"),
        ([], "type float64 and shape"),
        (None, "type NoneType"),
        ("frame.png", "shape ()"),
        (np.zeros((20, 30, 3)), "type float64"),
        (np.zeros((20, 30, 3), np.int64), "type int64"),
        (np.zeros((20, 30), np.uint8), "shape \\(20, 30\\)"),
        (np.zeros((3, 20, 30), np.uint8), "shape \\(3, 20, 30\\)"),
        (np.full((4, 5, 3), 300).tolist(), "type int64"),
        (np.full((4, 5, 3), 0.5).tolist(), "type float64"),
        ([[[1, 2, 3]], [[1, 2]]], "type list is no array"),
        (Image.new("L", (30, 20)), "mode 'L'.*convert"),
        (Image.new("YCbCr", (30, 20)), "mode 'YCbCr'.*convert"),
    ],
)
def test_frames_that_are_none(default, frame, message):
    state = default.start(np.zeros((20, 30, 3), np.uint8), [5, 5, 10, 10])
    for call in (lambda: default.start(frame, [5, 5, 10, 10]), lambda: default.step(state, frame)):
        with pytest.raises(ValueError, match=f"{message}.*expected uint8 RGB of shape"):
            call()


def test_what_is_said_about_a_frame_keeps_no_jax_array_alive(default):
    frames, boxes_xywh = drifting_patch(24, 20, 2)
    _, tracked = default.step(default.start(frames[0], boxes_xywh[0]), frames[1])
    for values in tracked[:3]:
        assert values.flags.owndata and values.base is None


def test_load_takes_names_files_and_run_folders(default, tmp_path):
    shutil.copy(find_weights("mixvit_tiny"), tmp_path / "model.safetensors")
    for weights in ("mixvit_tiny", tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        assert mixformer_jax.load(weights).config == default.config
    with pytest.raises(WeightsError, match=r"without model\.safetensors"):
        mixformer_jax.load(tmp_path.parent)
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "MixFormer_ep0500.pth.tar").touch()
    with pytest.raises(WeightsError, match=r"give the file itself, such as .*official/MixFormer_ep0500\.pth\.tar"):
        mixformer_jax.load(tmp_path / "official")
    with pytest.raises(WeightsError, match="embedded: mixvit_nano, mixvit_tiny"):
        mixformer_jax.load("mixvit_huge")


def test_a_device_that_is_not_here():
    with pytest.raises(ValueError, match="JAX sees: cpu"):
        mixformer_jax.load(device="tpu")
    with pytest.raises(ValueError, match=r"no device 'cpu:99' here; JAX sees \d+ of kind 'cpu'"):
        find_device("cpu:99")
    for name in ("cpu:", ":1", "cpu:one", ""):
        with pytest.raises(ValueError, match="such as cpu, gpu or cuda:1"):
            find_device(name)


def test_one_of_several_devices(default):
    assert [find_device(name) for name in (None, "cpu", "cpu:0", "cpu:3")] == [jax.devices()[i] for i in (0, 0, 0, 3)]
    tracker = Tracker(default.config, default.settings, default.variables, find_device("cpu:3"))
    frame = render_demo_clip()[0]
    state, _tracked = tracker.step(tracker.start(frame, (300, 100, 80, 80)), frame)
    assert {leaf.device for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)} == {jax.devices()[3]}


def test_track_is_start_and_step(default, tmp_path):
    clip = render_demo_clip()
    frames = [clip[index] for index in range(6)]
    found = list(default.track(SelectedFrames(ArrayFrames(frames, fps=25.0), stride=2), clip.boxes_xywh[0]))
    assert [(tracked.frame, tracked.time) for _, tracked in found] == [(1, 0.0), (3, 0.08), (5, 0.16)]
    state = default.start(frames[0], clip.boxes_xywh[0])
    first = found[0][1]
    assert first.score == 1.0 and first.is_lost is False
    np.testing.assert_array_equal(first.box_xywh, clip.boxes_xywh[0])
    for index, (frame, tracked) in zip((2, 4), found[1:], strict=True):
        state, expected = default.step(state, frames[index])
        np.testing.assert_array_equal(frame, frames[index])
        np.testing.assert_array_equal(tracked.boxes_xywh, expected.boxes_xywh)
        assert tracked.to_dict()["targets"][0]["score"] == float(expected.scores[0])
    with pytest.raises(SourceError, match="does not exist"):
        next(default.track(tmp_path / "nowhere.mp4", clip.boxes_xywh[0]))


def test_compute_type(default):
    assert default.config.dtype == "float32"
    rough = mixformer_jax.load(dtype="bfloat16")
    clip = render_demo_clip()
    frame, box = clip[0], clip.boxes_xywh[0]
    boxes = [tracker.step(tracker.start(frame, box), clip[1])[1].box_xywh for tracker in (default, rough)]
    assert np.abs(boxes[0] - boxes[1]).max() < 2.0


def test_frames_must_be_rgb_bytes(default):
    with pytest.raises(ValueError, match="float32"):
        default.start(np.zeros((64, 64, 3), np.float32), (10, 10, 20, 20))
    grey = np.zeros((64, 64, 1), np.uint8)
    with pytest.raises(ValueError, match=r"\(64, 64, 1\)"):
        default.start(grey, (10, 10, 20, 20))


def test_random_weights_of_a_size_run():
    tracker = Tracker.random("mixvit_tiny")
    frame = np.zeros((90, 120, 3), np.uint8)
    _state, tracked = tracker.step(tracker.start(frame, (30, 30, 40, 20)), frame)
    assert tracked.box_xywh.shape == (4,)


def test_the_api_of_the_readme():
    assert list(inspect.signature(mixformer_jax.load).parameters) == ["weights", "device", "dtype"]
