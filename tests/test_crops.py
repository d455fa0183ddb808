import json
import math
import tracemalloc

import cv2
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given

from mixformer_jax import boxes, crops
from mixformer_jax.pixels import normalise

crop_on_device = jax.jit(crops.context_crop_on_device, static_argnames=("factor", "size"))

NOISE = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def official(golden):
    arrays = golden("crops.npz")
    return arrays["image"], [
        (case["key"], arrays[f"{case['key']}/box"], arrays[f"{case['key']}/crop"], case)
        for case in json.loads(str(arrays["meta"]))["cases"]
    ]


def test_host_crop_equals_the_official_one_bit_for_bit(official):
    image, cases = official
    assert len(cases) == 21
    for key, box, pixels, case in cases:
        crop = crops.context_crop(image, box, case["factor"], case["output_sz"])
        np.testing.assert_array_equal(crop.pixels, pixels, err_msg=key)
        assert (crop.scale, crop.side) == (case["resize_factor"], case["crop_sz"]), key


@given(
    side=st.integers(200, 6000),
    left=st.integers(-3000, 140),
    top=st.integers(-3000, 100),
    size=st.sampled_from([32, 64, 127, 128]),
)
def test_a_sampled_square_is_the_square_that_is_resized(side, left, top, size):
    rectangle = crops.Rectangle(left, top, side, side)
    square = crops._cut(NOISE, rectangle)
    expected = cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR)
    difference = np.abs(crops._sampled(NOISE, rectangle, size).astype(int) - expected)
    # Weights that lie between two multiples of 1 / 2048 may be rounded to the other one.
    assert difference.max() <= 1 and np.mean(difference > 0) < 1e-2


def test_an_absurd_box_costs_no_memory():
    # The square of 90,000 pixels a side would be 23 GiB.
    box_xywh = np.array([-9900.0, -9950.0, 20000.0, 20000.0])
    tracemalloc.start()
    try:
        crop = crops.context_crop(NOISE, box_xywh, 4.5, 128)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert (crop.side, crop.pixels.shape) == (90000, (128, 128, 3))
    assert crop.scale == pytest.approx(128 / 90000)
    on_device, _ = crop_on_device(NOISE, jnp.asarray(box_xywh, jnp.float32), factor=4.5, size=128)
    np.testing.assert_array_equal(crop.pixels, on_device)
    for extent in (1e30, 1e200):
        with pytest.raises(ValueError, match="pixels that can be counted"):
            crops.context_crop(NOISE, np.array([0.0, 0.0, extent, extent]), 4.5, 128)
    with pytest.raises(ValueError, match="pixels that can be counted"):
        crops.context_crop(NOISE, np.array([-1e30, 0.0, 20.0, 20.0]), 4.5, 128)


def test_device_crop_equals_the_official_one(official):
    image, cases = official
    for key, box, pixels, case in cases:
        box = jnp.asarray(box, jnp.float32)
        crop, scale = crop_on_device(image, box, factor=case["factor"], size=case["output_sz"])
        assert crop.dtype == jnp.uint8 and scale.dtype == jnp.float32
        difference = np.abs(np.asarray(crop, np.int32) - pixels)
        assert difference.max() <= 1, key
        assert np.mean(difference > 0) < 1e-3, key
        np.testing.assert_allclose(scale, case["resize_factor"], rtol=1e-6, err_msg=key)


def float32_square_is_certain(box, factor):
    """Whether the float64 square is far enough from rounding boundaries for float32 to find the same one."""
    x, y, w, h = (float(v) for v in box)
    side = math.sqrt(w * h) * factor
    corners = (x + 0.5 * w - 0.5 * math.ceil(side), y + 0.5 * h - 0.5 * math.ceil(side))
    return abs(side - round(side)) > 1e-3 and all(abs(c - math.floor(c) - 0.5) > 1e-3 for c in corners)


@given(
    box=st.tuples(
        st.floats(-150, 150, width=32),
        st.floats(-150, 150, width=32),
        st.floats(0.5, 200, width=32),
        st.floats(0.5, 200, width=32),
    )
)
def test_device_crop_equals_host_crop_anywhere(box):
    box = np.array(box, np.float32)
    assume(float32_square_is_certain(box, 4.5))
    host = crops.context_crop(NOISE, box, 4.5, 48)
    pixels, scale = crop_on_device(NOISE, jnp.asarray(box), factor=4.5, size=48)
    assert np.abs(np.asarray(pixels, np.int32) - host.pixels).max() <= 1
    np.testing.assert_allclose(scale, host.scale, rtol=1e-6)


@pytest.mark.parametrize("factor", [2.0, 4.0, 4.5, 4.55, 4.7, 5.0, 5.05])
@pytest.mark.parametrize("extent", [(20.0, 20.0), (40.0, 10.0), (100.0, 100.0), (60.0, 15.0)])
def test_device_square_equals_host_square_for_round_numbers(factor, extent):
    box = np.array([31.0, 17.5, *extent], np.float32)
    host = crops.context_crop(NOISE, box, factor, 32)
    pixels, scale = crop_on_device(NOISE, jnp.asarray(box), factor=factor, size=32)
    np.testing.assert_allclose(scale, host.scale, rtol=1e-6)
    assert np.abs(np.asarray(pixels, np.int32) - host.pixels).max() <= 1


def test_search_crops_along_the_official_track(golden):
    """60 frames: scale and sum of every search crop, around boxes as a tracker leaves them."""
    track = golden("track/vit.npz")
    meta = json.loads(str(track["meta"]))
    factor, size = meta["search_factor"], meta["search"]
    frames = np.ascontiguousarray(np.moveaxis(track["video_hwct"], -1, 0))
    previous = np.concatenate([track["init_bbox"][None], track["plain/target_bbox"][:-1]])
    assert len(frames) == len(previous) + 1 == 60
    for i, (frame, box) in enumerate(zip(frames[1:], previous, strict=True)):
        host = crops.context_crop(frame, box, factor, size)
        assert host.scale == track["plain/resize_factor"][i]
        assert host.pixels.sum(dtype=np.int64) == track["plain/search_sum"][i]
        pixels, _ = crop_on_device(frame, jnp.asarray(box, jnp.float32), factor=factor, size=size)
        assert np.abs(np.asarray(pixels, np.int32) - host.pixels).max() <= 1


def test_device_crop_compiles_once_for_a_frame_shape():
    traces = []

    def traced(frame, box):
        traces.append(frame.shape)
        return crops.context_crop_on_device(frame, box, 4.5, 32)

    compiled = jax.jit(traced)
    for box in ([10.0, 10, 5, 5], [60.0, 40, 80, 70], [-20.0, -20, 30, 30]):
        compiled(NOISE, jnp.array(box))
    assert traces == [NOISE.shape]


def test_device_crop_maps_over_boxes():
    many = jnp.array([[10.0, 10, 5, 5], [60.0, 40, 80, 70], [-20.3, -20, 31, 30]])
    pixels, scales = jax.jit(jax.vmap(lambda box: crops.context_crop_on_device(jnp.asarray(NOISE), box, 4.5, 32)))(many)
    for i, box in enumerate(many):
        one, scale = crop_on_device(NOISE, box, factor=4.5, size=32)
        np.testing.assert_array_equal(pixels[i], one)
        assert scales[i] == scale


def test_last_row_and_column_of_the_frame_count_as_outside():
    frame = np.full((40, 50, 3), 200, np.uint8)
    touching = crops.context_crop(frame, np.array([35.0, 25.0, 10, 10]), 2.0, 20)  # the square [30, 50) x [20, 40)
    assert touching.side == 20
    assert (touching.pixels[-1] == 0).all() and (touching.pixels[:, -1] == 0).all()
    assert (touching.pixels[:-1, :-1] == 200).all()
    short = crops.context_crop(frame, np.array([34.0, 24.0, 10, 10]), 2.0, 20)
    assert (short.pixels == 200).all()


@pytest.mark.parametrize("box", [[500.0, 20, 10, 10], [-500.0, 20, 10, 10], [20.0, 500, 10, 10], [20.0, -500, 9, 9]])
def test_crop_wholly_outside_the_frame_is_black(box):
    assert not crops.context_crop(NOISE, np.array(box), 4.5, 32).pixels.any()
    assert not np.asarray(crop_on_device(NOISE, jnp.array(box), factor=4.5, size=32)[0]).any()


def test_host_crop_leaves_the_frame_alone():
    frame = NOISE.copy()
    crop = crops.context_crop(frame, np.array([50.0, 40, 16, 16]), 2.0, 32)  # side = size: nothing to resize
    crop.pixels[:] = 0
    np.testing.assert_array_equal(frame, NOISE)


@pytest.mark.parametrize(
    "box", [[1, 2, 0, 4], [1, 2, 3, -4], [math.nan, 2, 3, 4], [1, 2, math.inf, 4], [1, 2, 3, math.nan]]
)
def test_host_crop_refuses_boxes_without_area(box):
    with pytest.raises(ValueError, match="cannot crop around box"):
        crops.context_crop(NOISE, np.array(box, np.float64), 2.0, 32)


def test_host_crop_refuses_a_crop_of_less_than_a_pixel():
    with pytest.raises(ValueError, match="too small a bounding box"):
        crops.context_crop(NOISE, np.array([1.0, 2.0, 1e-200, 1e-200]), 2.0, 32)


def test_normalise_equals_the_official_preprocessor(golden):
    arrays = golden("crops.npz")
    pixels = arrays["inside_2.0_64/crop"]
    expected = arrays["normalised_inside_2.0_64"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(normalise(pixels), expected)
    np.testing.assert_allclose(jax.jit(normalise)(pixels), expected, atol=1e-6)


def test_frame_box_to_crop_equals_the_official_one(golden):
    arrays = golden("crops.npz")
    for box, crop_box, scale, size, pixels, normalised in zip(
        *(arrays[f"t2c/{name}"] for name in ("box_in", "box_extract", "resize_factor", "crop_sz")),
        *(arrays[f"t2c/{name}"] for name in ("out", "out_normalised")),
        strict=True,
    ):
        scale, size = float(scale), int(size)
        in_pixels = crops.frame_box_to_crop(box, crop_box, scale, size, normalised=False)
        assert in_pixels.dtype == np.float32
        np.testing.assert_allclose(in_pixels, pixels, rtol=1e-6)
        np.testing.assert_allclose(crops.frame_box_to_crop(box, crop_box, scale, size), normalised, rtol=1e-6)
        on_device = crops.frame_box_to_crop(jnp.asarray(box), jnp.asarray(crop_box), scale, size)
        np.testing.assert_allclose(on_device, normalised, rtol=1e-5, atol=1e-6)


positions = st.floats(-100, 500)
sides = st.floats(2, 300)
frame_boxes = st.tuples(positions, positions, sides, sides).map(np.array)


@given(box=frame_boxes, crop_box=frame_boxes, factor=st.sampled_from([2.0, 4.5, 5.0]))
def test_way_to_the_crop_and_back_is_off_by_half_a_crop_pixel(box, crop_box, factor):
    size = 96
    scale = size / math.ceil(math.sqrt(crop_box[2] * crop_box[3]) * factor)
    in_crop = crops.frame_box_to_crop(box, crop_box, scale, size)
    back = crops.crop_box_to_frame(boxes.xywh_to_cxcywh(in_crop), crop_box, scale, size)
    np.testing.assert_allclose(back, box - np.array([0.5, 0.5, 0, 0]) / scale, atol=1e-8)


@given(crop_box=frame_boxes)
def test_middle_of_the_crop_is_the_middle_of_the_previous_box(crop_box):
    box = crops.crop_box_to_frame(np.array([0.5, 0.5, 0.25, 0.125]), crop_box, 0.5, 96)
    np.testing.assert_allclose(boxes.xywh_to_cxcywh(box)[:2], boxes.xywh_to_cxcywh(crop_box)[:2], atol=1e-9)
    np.testing.assert_allclose(box[2:], [48, 24])  # a quarter and an eighth of 96 / 0.5 frame pixels


def test_mappings_take_batches_with_a_scale_each():
    many = np.array([[10.0, 20, 30, 40], [50, 60, 70, 80], [1, 2, 3, 4]])
    around = many + np.array([3.0, -2, 5, 1])
    scales = np.array([0.5, 1.0, 2.0])
    for mapping in (crops.frame_box_to_crop, crops.crop_box_to_frame):
        together = mapping(many, around, scales, 96)
        traced = jax.jit(lambda *a, mapping=mapping: mapping(*a, 96))(many, around, scales)
        for i in range(3):
            np.testing.assert_allclose(mapping(many[i], around[i], float(scales[i]), 96), together[i])
        np.testing.assert_allclose(traced, together, rtol=1e-5)


def test_tracked_boxes_come_from_raw_predictions(golden):
    """The official tracker's own loop: prediction, crop scale and previous box give the next box."""
    track = golden("track/vit.npz")
    size = json.loads(str(track["meta"]))["search"]
    height, width = track["video_hwct"].shape[:2]
    previous = np.concatenate([track["init_bbox"][None], track["plain/target_bbox"][:-1]])
    mapped = crops.crop_box_to_frame(
        track["plain/raw_pred_boxes"].astype(np.float64), previous, track["plain/resize_factor"], size
    )
    clipped = boxes.clip_box_xywh(mapped, height, width, margin=10)
    np.testing.assert_allclose(clipped, track["plain/target_bbox"], atol=1e-4)
