"""Training a mask network: its samples, a short run that learns, and what the run leaves."""

import json

import cv2
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.convert.alpha_refine import load_alpha_refine, save_alpha_refine
from mixformer_jax.data.mask_samples import MaskDataConfig, MaskSamples, read_labels
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.masks import mask_box_xywh
from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.loop import train
from mixformer_jax.training.masks import MaskExperiment, MaskObjective
from mixformer_jax.training.program import learning_rate_schedule

SIZE = 64


def scene(rng, shift=0):
    """A bright ellipse, instance 1, and a darker square, instance 2, on noise."""
    image, labels = rng.integers(0, 90, (96, 128, 3), dtype=np.uint8), np.zeros((96, 128), np.uint8)
    colours = [rng.integers(150, 250, 3).tolist() for _ in range(2)]
    centre = (int(rng.integers(30, 50)) + shift, int(rng.integers(30, 60)))
    for picture, colour in ((image, colours[0]), (labels, 1)):
        cv2.ellipse(picture, centre, (22, 14), 30, 0, 360, colour, -1)
    for picture, colour in ((image, colours[1]), (labels, 2)):
        cv2.rectangle(picture, (90, 20), (115, 50), colour, -1)
    return image, labels


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    (folder / "more").mkdir()
    for number in range(12):
        image, labels = scene(rng)
        name = folder / ("more" if number % 2 else "") / f"{number:02d}"
        cv2.imwrite(f"{name}.jpg", image)
        cv2.imwrite(f"{name}.png", labels)
    cv2.imwrite(str(folder / "unmasked.jpg"), image)
    return folder


def test_a_sample_is_a_pair_of_crops_and_a_mask(root):
    samples = MaskSamples(MaskDataConfig(root=str(root), min_pixels=300), SIZE, seed=3)
    drawn = [samples.render(index) for index in range(40)]
    shapes = {"template": (SIZE, SIZE, 3), "box_xyxy": (4,), "search": (SIZE, SIZE, 3), "mask": (SIZE, SIZE)}
    for source, sample, faults in drawn:
        assert (source, faults) == ("photographs", ())
        assert {name: value.shape for name, value in sample.items()} == shapes
        assert set(np.unique(sample["mask"])) == {0, 1}
        # The template's box is the middle half of its crop.
        np.testing.assert_allclose(sample["box_xyxy"], [15.5, 15.5, 47.5, 47.5], atol=1)
    areas = np.array([mask_box_xywh(sample["mask"] > 0)[2:].prod() for _, sample, _ in drawn]) / SIZE**2
    assert 0.2 < np.median(areas) < 0.3 and areas.std() > 0.05, "boxes are jittered around half the crop's sides"
    again = MaskSamples(MaskDataConfig(root=str(root), min_pixels=300), SIZE, seed=3).sample(7)
    assert all(np.array_equal(again[name], drawn[7].sample[name]) for name in again)
    still = MaskDataConfig(root=str(root), min_pixels=300, scale_jitter=0.0, centre_jitter=0.0, brightness=0.0)
    sample = MaskSamples(still, SIZE, seed=0).sample(0)
    np.testing.assert_array_equal(sample["template"], sample["search"])
    np.testing.assert_allclose(mask_box_xywh(sample["mask"] > 0), [16, 16, 32, 32], atol=1.5)


def test_held_out_photographs_are_never_trained_on(root):
    config = MaskDataConfig(root=str(root), held_out_every=4)
    parts = [MaskSamples(config, SIZE, 0, held_out)._photographs for held_out in (False, True)]
    assert [len(part) for part in parts] == [9, 3] and not set(parts[0]) & set(parts[1])


def test_pairs_of_videos(tmp_path):
    rng, palette = np.random.default_rng(1), np.array([[0, 0, 0], [0, 0, 128], [0, 128, 0]], np.uint8)
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "clip").mkdir(parents=True)
    for number in range(6):
        image, labels = scene(rng, shift=3 * number)
        labels[labels == 2] = 2 if number < 5 else 0
        cv2.imwrite(str(tmp_path / "JPEGImages" / "clip" / f"{5 * number:05d}.jpg"), image)
        cv2.imwrite(str(tmp_path / "Annotations" / "clip" / f"{5 * number:05d}.png"), palette[labels])
    labels = read_labels(tmp_path / "Annotations" / "clip" / "00000.png")
    assert len(np.unique(labels)) == 3 and labels[0, 0] == 0
    config = MaskDataConfig(videos=str(tmp_path), held_out_every=0, min_pixels=300, max_interval=2)
    samples = MaskSamples(config, SIZE, seed=0)
    drawn = [samples.render(index) for index in range(10)]
    assert {rendered.source for rendered in drawn} == {"videos"}
    assert any(np.abs(r.sample["template"].astype(int) - r.sample["search"]).mean() > 20 for r in drawn)
    with pytest.raises(DatasetError, match="expected the folders JPEGImages and Annotations"):
        MaskSamples(MaskDataConfig(videos=str(tmp_path / "JPEGImages")), SIZE, 0)


def test_files_that_cannot_be_used(root, tmp_path):
    with pytest.raises(ConfigError, match="neither a root with photographs nor videos"):
        MaskDataConfig()
    with pytest.raises(DatasetError, match="no photograph or video with masks is left to train on"):
        MaskSamples(MaskDataConfig(root=str(tmp_path)), SIZE, 0)
    with pytest.raises(DatasetError, match=r"none of 50 draws met a target of 100000 pixels \(data.min_pixels\)"):
        MaskSamples(MaskDataConfig(root=str(root), min_pixels=100_000), SIZE, 0).sample(0)
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), np.full((96, 128, 3), 80, np.uint8))
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((96, 128 + number), 1, np.uint8))
    samples = MaskSamples(MaskDataConfig(root=str(tmp_path), held_out_every=0), SIZE, 0)
    faults = [fault for index in range(8) for fault in samples.render(index).faults]
    assert faults and all("1.png: (96, 129) pixels; expected (96, 128), as 1.jpg" in fault for fault in faults)


def settings(root, **changes):
    return {
        "alpha_refine": {"name": "small", "pool_size": 2, "depths": (1, 1, 1, 1), "stem_width": 4, "head_width": 8},
        "data": {"root": str(root), "min_pixels": 300},
        "train": {
            "steps": 30,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "schedule": "halving",
            "halve_every": 0.5,
            "weight_decay": 0.0,
            "clip_norm": 1e9,
            "log_every": 10,
            "validate_every": 30,
            "checkpoint_every": 30,
            "validation_pairs": 6,
            "workers": 0,
            "mesh": (1, 1, 1),
            **changes,
        },
    }


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "masks"
    assert train(settings(root), out) == out / "model.safetensors"
    return out


def test_it_learns_and_draws(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    train, held_out = ([line for line in lines if line["kind"] == kind] for kind in ("train", "validation"))
    assert train[-1]["loss"] < 0.8 * train[0]["loss"]
    assert set(held_out[0]) >= {"iou", "box_iou", "loss"} and 0.6 < held_out[0]["box_iou"] < 1
    (picture,) = (trained / "pictures").iterdir()
    assert cv2.imread(str(picture)).shape == (4 * SIZE, 4 * SIZE, 3)


def test_another_run_starts_from_its_weights(trained, root, tmp_path):
    objective = MaskObjective(MaskExperiment.from_mapping(settings(root)))
    start = objective.start_from(trained)
    weights = load_alpha_refine(trained / "model.safetensors")
    assert not start.fresh and len(start.taken) > 100
    kernel = start.variables["params"]["head"]["project2"]["kernel"]
    np.testing.assert_array_equal(kernel, weights.variables["params"]["head"]["project2"]["kernel"])
    assert np.any(weights.variables["batch_stats"]["backbone"]["stem"]["norm"]["mean"]), "statistics are tracked"
    save_alpha_refine(tmp_path / "same.safetensors", weights.variables, weights.config)
    assert (tmp_path / "same.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    wider = settings(root) | {"alpha_refine": {"name": "wider"}}
    with pytest.raises(ValueError, match="a mask network of other sizes"):
        MaskObjective(MaskExperiment.from_mapping(wider)).start_from(trained)


def test_the_command_takes_configs_of_masks(trained, root, tmp_path, capsys):
    config = (
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings(root)!r})\n"
    )
    (tmp_path / "mine.py").write_text(config)
    assert cli.main(["train", "--config", str(tmp_path / "mine.py"), "--out", str(trained)]) == 0
    assert "already trained for 30 steps" in capsys.readouterr().out
    arguments = ["train", "--config", str(tmp_path / "mine.py"), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--config.data.min_pixel=3"]) == 2
    assert "did you mean data.min_pixels?" in capsys.readouterr().err
    assert cli.main(["configs"]) == 0
    assert "alpha_refine_tiny" in capsys.readouterr().out


def test_the_rate_is_halved_again_and_again():
    rate = learning_rate_schedule(RunConfig(steps=80, learning_rate=1e-3, schedule="halving", halve_every=15 / 80))
    assert [float(rate(step)) for step in (0, 14, 15, 30, 79)] == pytest.approx([1e-3, 1e-3, 5e-4, 2.5e-4, 1e-3 / 32])
