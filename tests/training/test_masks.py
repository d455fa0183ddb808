"""Training a mask network: its samples, a short run that learns, and what the run leaves."""

import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.convert.alpha_refine import load_alpha_refine, save_alpha_refine
from mixformer_jax.convert.convert import convert, find_weights, read_weights
from mixformer_jax.convert.mask_decoder import load_mask_decoder
from mixformer_jax.convert.weights import WeightsError, save_weights
from mixformer_jax.data.mask_samples import MaskDataConfig, MaskSamples, read_labels
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.masks import encode_rle, mask_box_xywh
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig
from mixformer_jax.models.masks import MaskDecoderConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.tracking.masks import DecoderSegmenter, load_segmenter
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.loop import train
from mixformer_jax.training.masks import MaskExperiment, mask_objective
from mixformer_jax.training.program import learning_rate_schedule
from tests.stand_ins import mask_iou

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
    objective = mask_objective(MaskExperiment.from_mapping(settings(root)))
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
        mask_objective(MaskExperiment.from_mapping(wider)).start_from(trained)


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


TRACKER = MixFormerConfig(
    name="small",
    search_size=SIZE,
    template_size=32,
    width=16,
    depth=1,
    num_heads=2,
    head_width=8,
    mlp_ratio=1,
    patch_embed="convolutional",
)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """Weights of a tracker, and of another of the same sizes."""
    folder = tmp_path_factory.mktemp("tracker")
    for seed, name in enumerate(("tracker", "other")):
        variables = init_variables(build_model(TRACKER), jax.random.key(seed))
        save_weights(folder / f"{name}.safetensors", variables, TRACKER, TrackerConfig())
    return folder / "tracker.safetensors"


def decoder_settings(root, tracker):
    config = settings(root, steps=60, validate_every=60, checkpoint_every=60, ema_decay=0.9)
    del config["alpha_refine"]
    config["data"] |= {"flip": 0.5}
    return config | {"mask_decoder": {"name": "small", "tracker": str(tracker), "widths": (16, 8, 8, 8)}}


def test_a_decoder_learns_on_a_frozen_backbone(root, tracker, tmp_path):
    out = tmp_path / "run"
    weights = train(decoder_settings(root, tracker), out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps, held_out = ([line for line in lines if line["kind"] == kind] for kind in ("train", "validation"))
    assert steps[-1]["loss"] < 0.7 * steps[0]["loss"]
    assert 0.3 < held_out[-1]["given_box_iou"] < held_out[-1]["box_iou"] < held_out[-1]["iou"]

    # The file has the decoder alone; the backbone is the tracker's, bit for bit.
    segmenter, found = load_segmenter(out), load_mask_decoder(weights)
    assert isinstance(segmenter, DecoderSegmenter)
    image, labels = scene(np.random.default_rng(7))
    box_xywh = mask_box_xywh(labels == 1)
    masks = segmenter.segment(segmenter.start(image, box_xywh[None]), image, np.stack([box_xywh, box_xywh + 2]))
    assert masks.shape == (2, *labels.shape) and mask_iou(masks[0], labels == 1) > 0.8

    objective = mask_objective(MaskExperiment.from_mapping(decoder_settings(root, tracker)))
    start = objective.start_from(out)
    assert not start.fresh
    backbone = jax.jit(objective.init)(jax.random.key(1))["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, backbone, found.variables["params"]["backbone"])
    deeper = decoder_settings(root, tracker)
    deeper["mask_decoder"]["depth"] = 2
    with pytest.raises(WeightsError, match="a mask decoder of other sizes"):
        mask_objective(MaskExperiment.from_mapping(deeper)).start_from(out)
    deeper["mask_decoder"]["widths"] = (8,) * 7
    with pytest.raises(ConfigError, match="widths has 7 grids; expected 2 or more, each halving the 16 pixels"):
        mask_objective(MaskExperiment.from_mapping(deeper)).batch_shapes(1)
    for kind in ("added", "alone"):
        with pytest.raises(ConfigError, match=f"masks are found in colour, and depth .*'{kind}'"):
            MaskDecoderConfig().check_tracker(MixFormerConfig(name="depth", second_stream=kind))

    tracker.write_bytes(tracker.with_stem("other").read_bytes())
    with pytest.raises(WeightsError, match="trained on another backbone"):
        load_segmenter(out)
    tracker.unlink()
    with pytest.raises(WeightsError, match=r"needs the tracker .*tracker.safetensors.* on which it was trained"):
        load_segmenter(out)


def test_a_config_has_one_network(root, tracker):
    both = decoder_settings(root, tracker) | {"alpha_refine": {}}
    with pytest.raises(ConfigError, match="one of alpha_refine, mask_decoder; this one has alpha_refine, data, mask_"):
        MaskExperiment.from_mapping(both)


def test_mirrored_pairs(root):
    config = MaskDataConfig(root=str(root), min_pixels=300, brightness=0.0)
    plain, mirrored = (MaskSamples(dataclasses.replace(config, flip=flip), SIZE, 0) for flip in (0.0, 1.0))
    one, other = plain.sample(3), mirrored.sample(3)
    for name in ("template", "search", "mask"):
        np.testing.assert_array_equal(one[name], other[name][:, ::-1])
    left, top, right, bottom = one["box_xyxy"]
    np.testing.assert_allclose(other["box_xyxy"], [SIZE - right, top, SIZE - left, bottom])


def coco_file(folder, *regions):
    """One photograph of 40 x 30 pixels with regions of COCO, and a second one without."""
    cv2.imwrite(str(folder / "one.jpg"), np.full((30, 40, 3), 80, np.uint8))
    images = [{"id": i, "file_name": f"{name}.jpg", "width": 40, "height": 30} for i, name in ((7, "one"), (3, "no"))]
    annotations = [{"id": i, "image_id": 7, **region} for i, region in enumerate(regions)]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_regions_of_coco(tmp_path):
    def square(left, top, right, bottom):
        return [left, top, right, top, right, bottom, left, bottom]

    runs = np.zeros((30, 40), bool)
    runs[20:28, 2:9] = True
    two_parts = [square(12, 2, 20, 8), square(16, 4, 24, 10)]
    path = coco_file(
        tmp_path,
        {"segmentation": [square(4, 3, 8, 6)], "area": 12.0},  # before the large one in the file, painted over it
        {"segmentation": [square(2, 1, 11, 17)], "area": 144.0},
        {"segmentation": two_parts, "area": 80.0},
        {"segmentation": encode_rle(runs), "area": 56.0},
        {"segmentation": encode_rle(~runs), "area": 999.0, "iscrowd": 1},
    )
    config = MaskDataConfig(root=str(tmp_path), coco=str(path), min_pixels=40, held_out_every=0)
    samples = MaskSamples(config, SIZE, 0)
    ((still,),) = samples._photographs
    labels = still.labels[0].labels(still.labels[1])
    boxes_xywh = [mask_box_xywh(labels == label).tolist() for label in (1, 2, 3, 4)]
    assert boxes_xywh == [[2, 1, 9, 16], [12, 2, 12, 8], [2, 20, 7, 8], [4, 3, 4, 3]]
    assert [np.count_nonzero(labels == label) for label in (1, 2, 3, 4)] == [9 * 16 - 12, 80, 56, 12]
    assert set(np.unique(samples.sample(0)["mask"])) == {0, 1}

    broken = {"segmentation": {"size": [30, 40], "counts": "abc"}, "area": 1.0}
    for regions, complaint in (([broken], "compressed run lengths"), ([{"area": 1.0}], "no regions")):
        with pytest.raises(DatasetError, match=complaint):
            MaskSamples(dataclasses.replace(config, coco=str(coco_file(tmp_path, *regions))), SIZE, 0).sample(0)
    path.write_text("[]")
    with pytest.raises(DatasetError, match="not COCO's instances"):
        MaskSamples(config, SIZE, 0)
    with pytest.raises(ConfigError, match="of the photographs under"):
        MaskDataConfig(videos="v", coco="c")


def test_messages_name_the_kind_of_our_files(tmp_path):
    with pytest.raises(WeightsError, match="weights of a tracker; expected weights of"):
        load_segmenter("mixvit_tiny")
    with pytest.raises(WeightsError, match="weights of a mask decoder; expected weights written by"):
        read_weights(find_weights("mixvit_tiny_masks"))
    for name in ("masks.pth", "masks.safetensors"):
        with pytest.raises(WeightsError, match="weights of a mask decoder, which official files do not have"):
            convert("mixvit_tiny_masks", tmp_path / name)
