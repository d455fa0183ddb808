"""Single images: every one once an epoch, cut at random inside its borders, the same whenever asked."""

import contextlib
import logging
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data import pipeline
from mixformer_jax.data.pipeline import BadDataError, batches
from mixformer_jax.data.single_images import (
    CentreCrops,
    ImageFolder,
    ImageSamples,
    ImagesConfig,
    open_images,
    random_part,
)
from mixformer_jax.datasets.groundtruth import DatasetError


def grey(level, height=40, width=60):
    return np.full((height, width, 3), level, np.uint8)


@pytest.fixture
def folder(tmp_path):
    for index in range(7):
        path = tmp_path / ("cats" if index % 2 else "dogs/small") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), grey(30 * index))
    (tmp_path / "dogs" / "labels.txt").write_text("no image")
    return tmp_path


def test_every_image_once_an_epoch(folder):
    images = open_images(str(folder), None)
    assert len(images) == 7
    samples = ImageSamples(ImagesConfig(str(folder)), images, 16, seed=3)
    drawn = [samples.sample(index)["search"] for index in range(21)]
    assert all(crop.shape == (16, 16, 3) and crop.dtype == np.uint8 for crop in drawn)
    levels = [int(crop[0, 0, 0]) for crop in drawn]
    epochs = [levels[:7], levels[7:14], levels[14:]]
    assert all(sorted(epoch) == [30 * index for index in range(7)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = pickle.loads(pickle.dumps(samples))
    for index in (20, 3, 8):
        np.testing.assert_array_equal(again.sample(index)["search"], drawn[index])
    other = ImageSamples(ImagesConfig(str(folder)), images, 16, seed=4)
    assert [int(other.sample(index)["search"][0, 0, 0]) for index in range(7)] != epochs[0]


def test_mirrored_crops():
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (40, 60, 3))
    for probability, rising in ((0.0, True), (1.0, False)):
        samples = ImageSamples(ImagesConfig("", flip_probability=probability), [ramp], 16, seed=0)
        assert (np.diff(samples.sample(0)["search"][8, :, 0].astype(int)).mean() > 0) == rising


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    min_area=st.floats(0.05, 1.0),
    max_aspect=st.floats(1.0, 3.0),
    seed=st.integers(0, 99),
)
def test_parts_lie_inside_the_image(height, width, min_area, max_aspect, seed):
    places = np.arange(height * width).reshape(height, width)
    image = np.stack([places // 256 % 256, places % 256, places // 65536], axis=-1).astype(np.uint8)
    config = ImagesConfig("", min_area=min_area, max_aspect=max_aspect)
    part = random_part(np.random.default_rng(seed), image, config)
    h, w = part.shape[:2]
    assert 1 <= h <= height and 1 <= w <= width
    corner = int(part[0, 0, 0]) * 256 + int(part[0, 0, 1])
    top, left = divmod(corner, width)
    np.testing.assert_array_equal(part, image[top : top + h, left : left + w])
    # Rounding to whole pixels moves a side by half a pixel at most.
    assert max((h - 0.5) / (w + 0.5), (w - 0.5) / (h + 0.5)) <= max_aspect * 1.0001


def test_validation_crops_are_fixed_and_spread():
    images = [grey(2 * index, 32, 64) for index in range(100)]
    images[50][:, :16] = 255  # outside the middle
    crops = CentreCrops(images, 28)
    levels = [int(crops.sample(index)["search"].max()) // 2 for index in range(10)]
    assert levels == [int(crops.sample(index)["search"].max()) // 2 for index in range(10)]
    assert np.diff([0, *sorted(levels), 100]).max() < 25


def test_an_image_that_cannot_be_read_is_replaced_and_named(folder, caplog, monkeypatch):
    config = ImagesConfig(str(folder))

    def make(**changes):
        return ImageSamples(replace(config, **changes), open_images(str(folder), None), 16, seed=0)

    whole = [make().sample(index)["search"] for index in range(14)]
    path = folder / "cats" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    samples = make()
    rendered = [samples.render(index) for index in range(14)]
    bad = [index for index, each in enumerate(rendered) if each.faults]
    assert len(bad) == 2 and all("1.png: truncated" in rendered[index].faults[0] for index in bad)
    for index, each in enumerate(rendered):
        if index not in bad:
            np.testing.assert_array_equal(each.sample["search"], whole[index])
    with caplog.at_level(logging.WARNING), contextlib.closing(batches(samples, 7, workers=1)) as stream:
        for number in range(2):
            drawn = next(stream)["search"]
            np.testing.assert_array_equal(drawn, [each.sample["search"] for each in rendered[7 * number :][:7]])
        assert (stream.drawn, stream.replaced) == (14, 2)
    assert "replaced a sample: " in caplog.text and "1.png" in caplog.text

    monkeypatch.setattr(pipeline, "MIN_JUDGED", 7)
    message = r"1 of 7 samples had to be replaced, more than images\.max_bad_share = 0\.01 allows; copy"
    with contextlib.closing(batches(samples, 7, num_threads=0)) as stream, pytest.raises(BadDataError, match=message):
        next(stream)
    with contextlib.closing(batches(make(max_bad_share=0.5), 7, num_threads=0)) as stream:
        next(stream)


def test_validation_goes_on_beside_a_broken_image(folder):
    (folder / "cats" / "3.png").write_bytes(b"no png")
    crops = CentreCrops(open_images(str(folder), None), 16)
    rendered = [crops.render(index) for index in range(7)]
    assert sum(len(each.faults) for each in rendered) >= 1
    np.testing.assert_array_equal(
        [each.sample["search"] for each in rendered], [crops.sample(index)["search"] for index in range(7)]
    )


def test_errors(folder, tmp_path):
    with pytest.raises(DatasetError, match="no such folder; expected one with images"):
        open_images(str(tmp_path / "nowhere"), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no images in this folder nor below"):
        ImageFolder(tmp_path / "empty")
    with pytest.raises(DatasetError, match="split 'train' is asked for, but a folder of images has none"):
        open_images(str(folder), "train")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no png")
    with pytest.raises(DatasetError, match=r"none of 50 drawn images can be read; the last one: .*\.png: cannot be"):
        ImageSamples(ImagesConfig(str(folder)), open_images(str(folder), None), 16, seed=0).sample(0)
    for setting in ({"min_area": 0.0}, {"max_aspect": 0.5}, {"flip_probability": 2.0}, {"max_bad_share": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
            ImagesConfig("", **setting)
