"""Fine-tuning on a few small videos: the split, the course from annotations to weights, and what is said of it."""

import json
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.cli import main
from mixformer_jax.convert.convert import convert, read_weights
from mixformer_jax.convert.weights import save_weights
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.training import progress
from mixformer_jax.training.checkpoints import Checkpoints
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.finetuning import (
    LEAST_STEPS,
    MOST_STEPS,
    FineTuning,
    begun,
    count_frames,
    default_steps,
    finetune_config,
    noticed,
    split_by_video,
)

RECIPE = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.data = {"crops": {"centre_jitter": 4.5}, "augment": {"occluder_probability": 0.3}}
    config.train = {"learning_rate": 1e-2, "backbone_rate": 1.0, "corner_weight": 0.2, "steps": 900}
    return config
"""
SETTINGS = [
    f"--config.train.{setting}"
    for setting in ("batch_size=4", "workers=0", "validation_pairs=4", "mesh=(1,1,1)", "log_every=1")
] + ["--steps=4", "--config.train.validate_every=2", "--config.train.checkpoint_every=2"]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A tiny tracker with scores in a file of the official layout."""
    folder = tmp_path_factory.mktemp("official")
    config = MixFormerConfig(
        "tiny", 64, 32, width=64, depth=1, num_heads=1, head="corner", head_width=8, head_norm="frozen", score_heads=1
    )
    ours = folder / "ours.safetensors"
    save_weights(ours, init_variables(build_model(config), jax.random.key(0)), config, TrackerConfig())
    convert(ours, folder / "official.safetensors", official=True)
    return folder / "official.safetensors"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


def test_from_annotated_videos_to_a_tracker(root, official, recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    command = ["finetune", str(root / "videos"), "--weights", str(official), "--out", str(out)]
    command += ["--config", str(recipe), "--device", "cpu", "--held-out", "held_out", *SETTINGS]
    save = Checkpoints.save

    def save_and_be_told(self, state, *others):
        save(self, state, *others)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_be_told)
        assert main(command) == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "model.safetensors").exists()

    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "goes on after step 2" in printed and "held out held_out" in printed and "pool     none" in printed
    assert "held-out IoU" in printed and "minutes  packing" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores["after"]["by_sequence"]["AUC"]) == ["held_out"]
    row = next(line.split() for line in printed.splitlines() if line.startswith("mean"))
    np.testing.assert_allclose(float(row[2]), scores["after"]["mean"]["AUC"], atol=0.06)

    before, after = read_weights(official), read_weights(out / "model.safetensors")
    assert (after.model, after.tracker) == (before.model, before.tracker), "settings are those of the weights"
    flat = [flatten_dict(each.variables, sep="/") for each in (before, after)]
    changed = {name for name in flat[0] if not np.array_equal(flat[0][name], flat[1][name])}
    assert not any("/score/" in name for name in changed), "the score module is kept"
    assert any("/backbone/" in name for name in changed) and any("/head/" in name for name in changed)
    assert not any(name.startswith("constants/head") for name in changed), "norms of the head stay constant"

    # Again: all is there, and nothing is computed anew.
    content = (out / "model.safetensors").read_bytes()
    monkeypatch.delattr(Checkpoints, "save")
    assert main(command) == 0
    assert (out / "model.safetensors").read_bytes() == content
    # Another one is refused.
    assert main([*command, "--held-out", "a"]) == 2
    assert "held_out" in (said := capsys.readouterr().err) and "give a new --out" in said


def test_of_one_video_nothing_is_held_out(root, official, recipe, tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "a").symlink_to(root / "videos" / "a")
    command = ["finetune", str(videos), "--weights", str(official), "--out", str(tmp_path / "run")]
    assert main([*command, "--config", str(recipe), "--pool", "none", "--dtype", "bfloat16", *SETTINGS]) == 0
    printed = capsys.readouterr().out
    assert "held out nothing: there is one video" in printed and "trained on  AUC before" in printed
    assert "nothing tells when the tracker has learned it by heart" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--held-out", "b2"], r"no sequence b2 to hold out; it has \['a', 'b', 'held_out'\]"),
        (["--held-out", "a", "b", "held_out"], "all 3 videos are held out"),
        (["--weights", "gone"], "gone: no such file, folder or embedded weights"),
        (["--pool", "gone"], "--pool gone: no such folder"),
        (["--config.train.stepss=3"], "did you mean train.steps"),
    ],
)
def test_what_cannot_work_is_told(root, recipe, official, tmp_path, capsys, change, message):
    command = ["finetune", str(root / "videos"), "--weights", str(official), "--out", str(tmp_path / "run")]
    assert main([*command, "--config", str(recipe), *change]) == 2
    assert re.search(message, capsys.readouterr().err)


def fake(videos):
    """A data set of sequences, each of a video."""
    names = [f"s{number}" for number in range(len(videos))]

    def read(key):
        boxes = np.ones((3, 4))
        return TrackingSequence(key, boxes, np.zeros, 30.0, Path(key), video=videos[names.index(key)])

    return Dataset("fake", Path("fake"), names, read)


@given(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=20))
def test_targets_of_a_video_stay_on_one_side(videos):
    split = split_by_video(fake(videos))
    number = {f"s{index}": video for index, video in enumerate(videos)}
    assert set(split.train) | set(split.held_out) == set(number) and split.train
    sides = [{number[key] for key in part} for part in split]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == (max(1, round(0.2 * len(set(videos)))) if len(set(videos)) > 1 else 0)


def test_unreadable_sequences_are_told_before_anything_is_done(root, tmp_path):
    (tmp_path / "a").symlink_to(root / "videos" / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "groundtruth.txt").write_text("1,2,3\n")
    with pytest.raises(DatasetError, match=r"1 of 2 sequences cannot be read; the first: .*line 1"):
        split_by_video(open_dataset("folder", tmp_path))


def test_sequences_begin_where_their_target_is_seen(tmp_path):
    boxes = np.array([[np.nan] * 4, [1, 1, 9, 9], [np.nan] * 4, [2, 1, 9, 9]])
    visible = np.array([False, True, False, True])
    frames = [np.full((8, 8, 3), number, np.uint8) for number in range(4)]
    sequence = TrackingSequence("s", boxes, frames.__getitem__, 30.0, tmp_path, visible)
    (found,) = begun(Dataset("fake", tmp_path, ["s"], lambda key: sequence))
    np.testing.assert_array_equal(found.boxes_xywh, boxes[1:])
    assert [int(frame[0, 0, 0]) for frame in found.frames()] == [1, 2, 3] and list(found.visible) == [True, False, True]


def test_a_first_box_outside_the_picture_is_told_at_the_door(tmp_path):
    frames = [np.full((8, 8, 3), number, np.uint8) for number in range(3)]
    sequence = TrackingSequence("s", np.array([[0, 8, 9, 9.0]] * 3), frames.__getitem__, 30.0, tmp_path)
    with pytest.raises(DatasetError, match=r"s: its first box, 0,8,9,9 on frame 0, lies outside the picture of 8x8"):
        split_by_video(begun(Dataset("fake", tmp_path, ["s"], lambda key: sequence)))


def test_sequences_too_short_to_draw_from_are_named(tmp_path, caplog):
    def read(key):
        return TrackingSequence(key, np.ones((40 if key == "long" else 5, 4)), np.zeros, 30.0, tmp_path)

    assert count_frames(Dataset("fake", tmp_path, ["long", "short"], read), 2) == 40
    assert "no samples are drawn from short: they need 20 frames" in caplog.text


def test_steps_in_the_config_are_those_of_the_recipe(root, official, recipe, tmp_path, monkeypatch):
    configs = []

    def run(self, config):
        configs.append(config)
        raise DatasetError("enough")

    monkeypatch.setattr(FineTuning, "run", run)
    command = ["finetune", str(root / "videos"), "--weights", str(official), "--config", str(recipe), "--device", "cpu"]
    for number, steps in enumerate(("--config.train.steps=4", "--steps=4")):
        assert main([*command, "--out", str(tmp_path / f"run{number}"), steps]) == 2
    assert configs[0]["train"]["warmup_steps"] == 0 and configs[0]["train"] | {"init": ""} == configs[1]["train"] | {
        "init": ""
    }


def test_more_frames_more_steps():
    steps = [default_steps(frames) for frames in (20, 500, 2000, 20_000, 10**7)]
    assert steps == sorted(steps) and steps[0] == LEAST_STEPS and steps[-1] == MOST_STEPS


def test_half_of_the_samples_are_of_the_pool(root, official, config, tmp_path):
    """And of the pool neither what is held out here, nor what the recipe holds out, where it is there."""
    weights = read_weights(official)
    split = split_by_video(open_dataset("folder", root / "videos"), ["b"])
    recipe = {"data": {**config["data"], "exclude": ("held_out", "elsewhere")}, "train": config["train"]}
    made = finetune_config(recipe, weights, tmp_path, split, 100, root)
    experiment = Experiment.from_mapping(made)
    assert set(experiment.data.exclude) == {"b", "held_out"}
    assert experiment.data.datasets["own"].ratio == sum(vars(experiment.data.mix).values())
    assert experiment.train.learning_rate == pytest.approx(0.1 * config["train"]["learning_rate"])
    assert experiment.tracker == weights.tracker and experiment.model.score_heads == 0


def test_overfitting_is_noticed(tmp_path):
    (tmp_path / "boxes").mkdir()

    def write(overlaps, losses):
        lines = [{"kind": "train", "step": 10 * i, "loss": loss} for i, loss in enumerate(losses, start=1)]
        lines += [{"kind": "validation", "step": 10 * i, "iou": iou} for i, iou in enumerate(overlaps, start=1)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "boxes" / progress.LINES_NAME).write_text(text)
        return noticed(tmp_path, True)

    said = write([0.5, 0.7, 0.66, 0.6, 0.58, 0.55], [1.0, 0.8, 0.6, 0.4, 0.3, 0.2])
    assert said.startswith(
        "overfitting: held-out IoU 0.700 after step 20, 0.550 after step 60, while the training loss"
    )
    assert "the weights of step 20 are kept" in said
    assert "overfitting" not in write([0.5, 0.7, 0.66, 0.6, 0.58, 0.55], [1.0, 0.8, 0.9, 0.9, 1.0, 1.0])
    assert write([0.5, 0.6, 0.65, 0.7, 0.71, 0.72], [1.0, 0.8, 0.6, 0.4, 0.3, 0.2]).endswith("weights are kept")
