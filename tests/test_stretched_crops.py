"""The stretched crop of mask networks and the way back, against the official code; masks on frames and as text."""

import json

import cv2
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays_of

from mixformer_jax import crops
from mixformer_jax.crops import box_in_stretched_crop, paste_map, stretched_crop, stretched_rectangle
from mixformer_jax.masks import decode_rle, encode_rle, fit_to_frame, mask_box_xywh
from mixformer_jax.pixels import normalise

THRESHOLD = 0.6


@pytest.fixture(scope="module")
def geometry(golden):
    arrays = golden("alpha_refine/geometry.npz")
    return {name: arrays[name] for name in arrays.files}


def cases(geometry):
    meta = json.loads(str(geometry["meta"]))
    return [(case, size) for case, sizes in meta["sizes"].items() for size in sizes]


def test_crops_are_the_official_ones_bit_for_bit(geometry):
    assert len(cases(geometry)) > 20
    for case, size in cases(geometry):
        box_xywh = geometry[f"{case}/box"]
        rectangle = stretched_rectangle(box_xywh, 2.0)
        assert rectangle == tuple(geometry[f"{case}/x1_y1_ws_hs"]), case
        factors = size / np.array([rectangle.height, rectangle.width])
        np.testing.assert_array_equal(factors, geometry[f"{case}/{size}/factors_hw"])
        found = stretched_crop(geometry["frame"], box_xywh, 2.0, size)
        np.testing.assert_array_equal(found, geometry[f"{case}/{size}/crop"], err_msg=case)
        if f"{case}/{size}/normalised" in geometry:
            expected = geometry[f"{case}/{size}/normalised"][0, 0].transpose(1, 2, 0)
            np.testing.assert_allclose(normalise(found), expected, atol=1e-6)


def test_masks_are_pasted_back_as_official_ones(geometry):
    pasted = 0
    for case, size in cases(geometry):
        if f"{case}/{size}/pasted" not in geometry:
            continue
        rectangle = stretched_rectangle(geometry[f"{case}/box"], 2.0)
        found = paste_map(geometry[f"mask_{size}"], rectangle, geometry["frame"].shape[:2])
        expected = geometry[f"{case}/{size}/pasted"]
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=case)
        decided = np.abs(expected - THRESHOLD) > 1e-6
        np.testing.assert_array_equal((found > THRESHOLD)[decided], geometry[f"{case}/{size}/final"][decided] == 1)
        pasted += 1
    assert pasted > 15


def test_boxes_in_crops(geometry):
    names = sorted({name.split("/")[1] for name in geometry if name.startswith("t2c/")})
    assert "clamped" in names and "jitter" in names
    for name in names:
        box_in, around, (_, _, size), expected = (
            geometry[f"t2c/{name}/{part}"].astype(np.float64)
            for part in ("box_in", "box_extract", "factors_hw_size", "out")
        )
        np.testing.assert_allclose(box_in_stretched_crop(box_in, around, 2.0, int(size)), expected, atol=2e-5)


def test_masks_of_the_vot_toolkit(geometry):
    for i in range(4):
        width, height = geometry[f"vot/full{i}/size_wh"].tolist()
        full = fit_to_frame(geometry[f"vot/full{i}/in"] > 0, (height, width))
        np.testing.assert_array_equal(full, geometry[f"vot/full{i}/out"] > 0)
        np.testing.assert_array_equal(mask_box_xywh(full), geometry[f"vot/full{i}/rect_xywh"])
    with pytest.raises(ValueError, match="empty mask has no box"):
        mask_box_xywh(np.zeros((3, 4), bool))


NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_huge_boxes_are_cropped_without_the_memory_of_their_rectangle():
    box_xywh = np.array([-5e5, -4e5, 1e6, 8e5])
    assert stretched_crop(NOISE, box_xywh, 2.0, 64).shape == (64, 64, 3)
    assert stretched_crop(NOISE[..., 0], box_xywh, 2.0, 64).shape == (64, 64)
    pasted = paste_map(np.full((64, 64), 0.75, np.float32), stretched_rectangle(box_xywh, 2.0), (60, 80))
    assert (pasted == 0.75).all()
    # Where both ways are open, they agree.
    rectangle = crops.Rectangle(-70, -50, 230, 170)
    expected = cv2.resize(crops._cut(NOISE, rectangle), (64, 64), interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(crops._sampled(NOISE, rectangle, 64).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "box_xywh", [(1, 2, 0, 4), (1, 2, 3, -1), (np.nan, 2, 3, 4), (1, 2, np.inf, 4), (1, 2, 1e18, 4)]
)
def test_boxes_that_cannot_be_cropped_around(box_xywh):
    with pytest.raises(ValueError, match="cannot crop around box"):
        stretched_crop(NOISE, np.array(box_xywh, np.float64), 2.0, 64)


def test_masks_far_from_the_frame_leave_it_empty():
    ones = np.ones((8, 8), np.float32)
    assert not paste_map(ones, crops.Rectangle(100, 5, 10, 10), (60, 80)).any()
    assert not paste_map(ones, crops.Rectangle(5, -30, 10, 10), (60, 80)).any()


masks = arrays_of.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(masks)
def test_run_lengths_there_and_back(mask):
    record = json.loads(json.dumps(encode_rle(mask)))
    np.testing.assert_array_equal(decode_rle(record), mask)
    # Zeros first, then ones in turn; none is empty but the first.
    assert sum(record["counts"][1::2]) == mask.sum() and all(record["counts"][1:])


def test_run_lengths_are_column_by_column():
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    assert encode_rle(mask) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
