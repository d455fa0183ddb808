"""Whole pre-trainings on a few small frames: learning, looking, and handing over to the tracker."""

import functools
import json
import logging
import shutil

import cv2
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mixformer_jax import cli
from mixformer_jax.convert.pretrained import autoencoder_to_mae, load_autoencoder
from mixformer_jax.convert.torch_files import write_official_safetensors
from mixformer_jax.convert.weights import load_weights
from mixformer_jax.media.images import read_image
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.mixformer import init_variables
from mixformer_jax.training.loop import train
from mixformer_jax.training.objective import Objective
from mixformer_jax.training.pretraining import MaskedPretraining, PretrainExperiment
from tests.compilation import QUICK


def main(arguments):
    return cli.main(["pretrain", *arguments])


quick_jit = functools.partial(jax.jit, compiler_options=QUICK)

MODEL = {
    "name": "small",
    "search_size": 64,
    "template_size": 32,
    "width": 48,
    "depth": 1,
    "num_heads": 3,
    "drop_path": 0.0,
    "head": "corner",
    "head_width": 16,
}


def write_sequence(folder, seed, frames=6):
    """A bright textured square that wanders over a dark background."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    background = cv2.resize(rng.integers(0, 90, (12, 16, 3), dtype=np.uint8), (128, 96))
    target = cv2.resize(rng.integers(150, 255, (4, 4, 3), dtype=np.uint8), (24, 20))
    lines = []
    for index in range(frames):
        x, y = 20 + 5 * index, 30 + 3 * index
        frame = background.copy()
        frame[y : y + 20, x : x + 24] = target
        cv2.imwrite(str(folder / f"{index + 1:08d}.jpg"), frame)
        lines.append(f"{x},{y},24,20")
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretraining_data")
    for seed, name in enumerate(("a", "b", "held_out")):
        write_sequence(root / "videos" / name, seed)
    return root


def section(root):
    return {
        "root": str(root),
        "exclude": ("held_out",),
        "mix": {"video": 1.0, "still": 0.0, "pasted": 0.0, "region": 0.0},
    }


def trackmae(root, **changes):
    return {
        "autoencoder": {
            "model": MODEL,
            "num_templates": 1,
            "decoder_depth": 1,
            "decoder_width": 32,
            "decoder_heads": 4,
            "norm_pix_loss": False,
        },
        "data": section(root),
        "train": {
            "steps": 30,
            "batch_size": 4,
            "learning_rate": 3e-3,
            "clip_norm": 1.0,
            "beta2": 0.95,
            "log_every": 5,
            "validate_every": 30,
            "checkpoint_every": 30,
            "validation_pairs": 4,
            "workers": 0,
            "mesh": (1, 1, 1),
            **changes,
        },
    }


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pretrained(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "trackmae"
    train(trackmae(root), out)
    return out


def test_it_learns_and_draws(pretrained):
    train_lines = [line for line in lines_of(pretrained) if line["kind"] == "train"]
    assert train_lines[-1]["loss"] < 0.8 * train_lines[0]["loss"]
    assert cv2.imread(str(pretrained / "curves.png")).std() > 5
    validation = lines_of(pretrained)[-1]
    assert validation["kind"] == "validation" and 0 < validation["pixel_error"] < 1
    assert 0 < validation["mean_colour_error"] < 1
    pictures = sorted((pretrained / "pictures").iterdir())
    assert read_image(pictures[-1]).shape == (18 + 4 * 68, 36 + 3 * 68 - 4, 3)
    assert load_autoencoder(pretrained / "model.safetensors").config.num_templates == 1


def test_a_tracker_starts_from_it(pretrained, root, tmp_path, capsys):
    """The encoder arrives bit for bit: with a backbone that does not train, it is in the tracker's weights."""
    config = {
        "model": MODEL,
        "tracker": {"search_factor": 4.0, "num_online_templates": 0},
        "data": section(root),
        "train": {
            "steps": 1,
            "batch_size": 2,
            "init": str(pretrained),
            "freeze": ("backbone/",),
            "validation_pairs": 2,
            "workers": 0,
            "mesh": (1, 1, 1),
        },
    }
    tracker = flatten_dict(load_weights(train(config, tmp_path / "tracker")).variables["params"]["backbone"])
    encoder = load_autoencoder(pretrained / "model.safetensors").variables["params"]["backbone"]
    for path, value in flatten_dict(encoder).items():
        np.testing.assert_array_equal(tracker.pop(path), value)
    assert not tracker
    printed = capsys.readouterr().out
    assert "taken: backbone (14); fresh: head" in printed and "ignored:" in printed


def test_pretrainings_start_from_each_other_and_from_mae(pretrained, root, tmp_path):
    config = trackmae(root)
    config["autoencoder"] |= {"num_templates": 0, "class_token": True}
    single = MaskedPretraining(PretrainExperiment.from_mapping(config))
    start = single.start_from(pretrained)
    assert start.fresh == ("params/class_token",) and not start.ignored
    config["autoencoder"] |= {"decoder_heads": 2}
    other_decoder = MaskedPretraining(PretrainExperiment.from_mapping(config)).start_from(pretrained)
    assert all("backbone" in name for name in other_decoder.taken)

    variables = jax.device_get(init_variables(single.model, jax.random.key(0)))
    write_official_safetensors(
        tmp_path / "mae.safetensors", autoencoder_to_mae(variables, single.experiment.autoencoder)
    )
    assert not single.start_from(tmp_path / "mae.safetensors").fresh
    objective = MaskedPretraining(PretrainExperiment.from_mapping(trackmae(root)))
    assert isinstance(objective, Objective)
    start = objective.start_from(tmp_path / "mae.safetensors")
    assert not start.fresh and "cls_token" in start.ignored


def test_program_on_single_images(root, tmp_path, capsys):
    config = trackmae(root, steps=2, validate_every=2, checkpoint_every=2)
    del config["data"]
    config["autoencoder"]["num_templates"] = 0
    config["images"] = {"root": str(root / "videos" / "a"), "validation_root": str(root / "videos" / "held_out")}
    text = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config!r})\n"
    (tmp_path / "mae.py").write_text(text)
    arguments = ["--config", str(tmp_path / "mae.py"), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--config.images.min_area=0.5", "--config.autoencoder.mask_ratio=0.5"]) == 0
    assert "weights" in capsys.readouterr().out
    assert load_autoencoder(tmp_path / "run" / "model.safetensors").config.mask_ratio == 0.5
    assert lines_of(tmp_path / "run")[-1]["kind"] == "validation"
    assert main([*arguments, "--config.images.min_aria=0.5"]) == 2
    assert "did you mean images.min_area?" in capsys.readouterr().err


def test_a_broken_photograph_ends_no_pretraining(root, tmp_path, caplog):
    images = tmp_path / "images"
    shutil.copytree(root / "videos" / "a", images)
    (images / "00000003.jpg").write_bytes(b"no jpeg")
    config = trackmae(root, steps=3, validate_every=3, checkpoint_every=3)
    del config["data"]
    config["autoencoder"]["num_templates"] = 0
    config["images"] = {"root": str(images), "validation_root": str(images)}
    with caplog.at_level(logging.WARNING):
        assert train(config, tmp_path / "run").is_file()
    assert "replaced a sample: " in caplog.text and "00000003.jpg" in caplog.text


def test_validation_masks_do_not_change(root):
    objective = MaskedPretraining(PretrainExperiment.from_mapping(trackmae(root)))
    variables = init_variables(objective.model, jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 256, shape.shape, np.uint8) for name, shape in objective.batch_shapes(3).items()}
    measure, loss = quick_jit(objective.measure), quick_jit(objective.loss)
    jax.tree.map(np.testing.assert_array_equal, measure(variables, batch), measure(variables, batch))
    losses = [loss(variables, batch, jax.random.key(seed))[0] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"root": "here"}}, "one of data .* and images"),
        ({"data": None}, "has autoencoder, train"),
        ({"data": None, "images": {"root": "here"}}, "single images have no templates"),
        ({"tracker": {}}, "this one has autoencoder, data, tracker, train"),
    ],
)
def test_configs_that_cannot_work(root, changes, message):
    config = {name: value for name, value in {**trackmae(root), **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        PretrainExperiment.from_mapping(config)


def test_crop_sizes_are_the_model_s(root):
    config = trackmae(root)
    config["data"]["crops"] = {"search_size": 96}
    with pytest.raises(ConfigError, match=r"data\.crops may not set search_size: the autoencoder does"):
        PretrainExperiment.from_mapping(config)


def test_what_the_file_system_says_is_one_sentence(capsys):
    assert main(["--config", "n" * 300]) == 2
    assert capsys.readouterr().err.count("\n") == 1
