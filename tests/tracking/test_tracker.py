"""Loading trackers, and the embedded default on moving pictures."""

import inspect
import shutil

import jax
import numpy as np
import pytest

import mixformer_jax
from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.data.sequences import open_dataset
from mixformer_jax.demo import render_demo_clip
from mixformer_jax.tracking.tracker import Tracker, find_weights


@pytest.fixture(scope="module")
def default():
    return mixformer_jax.load()


def overlaps(boxes_xywh, groundtruth_xywh):
    return iou(xywh_to_xyxy(boxes_xywh), xywh_to_xyxy(groundtruth_xywh))


def test_the_default_fits_the_package():
    path = find_weights(None)
    assert path.stat().st_size < 12e6
    assert path.with_suffix(".md").is_file()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(mixformer_jax.load().variables["params"]))
    assert parameters <= 6_000_000


def test_the_default_tracks_the_demo_clip(default):
    clip = render_demo_clip()
    state = default.start(clip.frames[0], clip.boxes_xywh[0])
    found = []
    for index in range(1, len(clip.frames)):
        state, tracked = default.step(state, clip.frames[index])
        assert tracked.score is not None and 0 <= tracked.score <= 1
        found.append(tracked.box_xywh)
    assert overlaps(np.stack(found), clip.boxes_xywh[1:]).mean() > 0.5
    assert int(state.num_refreshes) > 0  # online templates are on by default


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
    with pytest.raises(WeightsError, match="embedded: mixvit_tiny"):
        mixformer_jax.load("mixvit_huge")


def test_a_device_that_is_not_here():
    with pytest.raises(ValueError, match="JAX sees: cpu"):
        mixformer_jax.load(device="tpu")


def test_compute_type(default):
    assert default.config.dtype == "float32"
    rough = mixformer_jax.load(dtype="bfloat16")
    clip = render_demo_clip()
    frame, box = clip.frames[0], clip.boxes_xywh[0]
    boxes = [tracker.step(tracker.start(frame, box), clip.frames[1])[1].box_xywh for tracker in (default, rough)]
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
