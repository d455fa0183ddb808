"""Crops out of parts of frames: the tracker's own crop, and the same one from every part that shows enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.crops import context_crop
from mixformer_jax.data.packing import PackConfig, pack_frame
from mixformer_jax.datasets.frame_parts import (
    FrameArea,
    FramePart,
    PackedFrame,
    WholeFrame,
    box_within,
    context_rectangle,
    cut,
    shows_frame,
)
from mixformer_jax.views import Placement, UnusableSampleError

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
boxes = st.tuples(st.floats(-20, 85), st.floats(-20, 65), st.floats(4, 60), st.floats(4, 60)).map(np.array)
placements = st.builds(Placement, st.floats(0.4, 2.5), st.tuples(st.floats(-2.25, 2.25), st.floats(-2.25, 2.25)))


@given(boxes, st.sampled_from([2.0, 4.5, 5.0]))
def test_the_crop_is_the_tracker_s(box_xywh, factor):
    expected = context_crop(PIXELS, box_xywh, factor, 32)
    pixels, shown = cut(WholeFrame(PIXELS), context_rectangle(box_xywh, factor), 32)
    np.testing.assert_array_equal(pixels, expected.pixels)
    assert shown.width == shown.height == expected.side


@given(boxes, placements, st.floats(0.8, 1.25), st.sampled_from([2.0, 4.5]))
def test_lossless_parts_give_the_crop_of_the_whole_frame(box_xywh, placement, aspect, factor):
    rectangle = context_rectangle(box_xywh, factor, placement, aspect)
    config = PackConfig(lossless=True, max_zoom=2.5 * 1.25)
    x, y, w, h = box_xywh
    if x >= 80 or y >= 60 or x + w <= 0 or y + h <= 0:
        return  # nothing in the frame to pack
    packed = PackedFrame(pack_frame(PIXELS, box_xywh, config), "frame")
    assert packed.size == (60, 80)
    pixels, shown = cut(packed, rectangle, 32)
    expected, _ = cut(WholeFrame(PIXELS), rectangle, 32)
    np.testing.assert_array_equal(pixels, expected)
    assert shown == rectangle


@given(boxes, placements)
def test_shrunk_parts_show_nearly_what_was_asked_for(box_xywh, placement):
    rectangle = context_rectangle(box_xywh, 4.5, placement)
    part = FramePart(PIXELS[::2, ::2], FrameArea(0, 0, 80, 60))

    class Half(WholeFrame):
        def part(self, needed):
            return part

    _, shown = cut(Half(PIXELS), rectangle, 32)
    for asked, got in zip(rectangle, shown, strict=True):
        assert abs(asked - got) <= 1.0 + 1e-9  # half a pixel of the part


def test_a_smooth_picture_survives_jpeg_and_shrinking():
    y, x = np.mgrid[:360, :640]
    pixels = np.stack([x / 640, y / 360, (x + y) / 1000], axis=-1)
    pixels = (255 * pixels).astype(np.uint8)
    box_xywh = np.array([200.0, 100.0, 160.0, 120.0])
    packed = PackedFrame(pack_frame(pixels, box_xywh, PackConfig()), "frame")
    for factor, placement in ((2.0, Placement()), (4.5, Placement(0.8, (1.0, -2.0))), (4.5, Placement(2.4))):
        rectangle = context_rectangle(box_xywh, factor, placement)
        ours, shown = cut(packed, rectangle, 128)
        whole, _ = cut(WholeFrame(pixels), rectangle, 128)
        inside = (ours.max(axis=2) > 0) & (whole.max(axis=2) > 0)
        assert np.abs(ours.astype(int) - whole)[inside].mean() < 3
        assert inside.mean() > 0.95 * (whole.max(axis=2) > 0).mean()
        np.testing.assert_allclose(box_within(box_xywh, shown), box_within(box_xywh, rectangle), atol=0.01)


@given(boxes, placements)
def test_a_box_lands_where_its_pixels_do(box_xywh, placement):
    rectangle = context_rectangle(box_xywh, 4.5, placement)
    cx, cy, w, h = box_within(box_xywh, rectangle).astype(float)
    back = [
        rectangle.left + (cx - w / 2) * rectangle.width,
        rectangle.top + (cy - h / 2) * rectangle.height,
        w * rectangle.width,
        h * rectangle.height,
    ]
    np.testing.assert_allclose(back, box_xywh, atol=2e-3)


@pytest.mark.parametrize("box_xywh", [[0, 0, 0, 5], [0, 0, 5, -1], [np.nan, 0, 5, 5], [0, 0, np.inf, 5]])
def test_no_crop_around_a_box_without_area(box_xywh):
    with pytest.raises(UnusableSampleError, match="no crop around box"):
        context_rectangle(np.array(box_xywh, np.float64), 2.0)


def test_a_crop_must_show_some_of_the_frame():
    assert shows_frame((60, 80), FrameArea(-30, 10, 40, 40), 0.25)
    assert not shows_frame((60, 80), FrameArea(-31, 10, 40, 40), 0.25)
    assert not shows_frame((60, 80), FrameArea(0, 70, 40, 40), 0.1)
