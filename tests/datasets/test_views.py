"""Affine views: boxes, placement, and agreement with the tracker's own context crop."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.crops import context_crop
from mixformer_jax.data.augment import Random, draw_placement
from mixformer_jax.views import (
    CropConfig,
    Placement,
    UnusableSampleError,
    box_outline,
    check_target,
    linear_map,
    pyramid,
    seen_share,
    target_view,
    warp,
)

SMALL = st.floats(-0.3, 0.3)


def bounds_of(mask: np.ndarray) -> np.ndarray:
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + w, y + h], float)


def xyxy(box_cxcywh: np.ndarray, size: int) -> np.ndarray:
    cx, cy, w, h = box_cxcywh.astype(float) * size
    return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


@given(
    rotation=SMALL,
    log_aspect=SMALL,
    shear=SMALL,
    flip=st.booleans(),
    zoom=st.floats(0.6, 1.5),
    dx=SMALL,
    dy=SMALL,
)
def test_box_bounds_the_rendered_target(rotation, log_aspect, shear, flip, zoom, dx, dy):
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[40:70, 60:110] = 255
    outline = box_outline(np.array([60.0, 40.0, 50.0, 30.0]))
    linear = linear_map(flip, rotation, math.exp(log_aspect), shear)
    view = target_view(outline, linear, 3.0, 96, Placement(zoom, (dx, dy)))
    seen = warp((frame,), view.matrix, (96, 96)) > 127
    # The box may reach beyond the crop, what is rendered may not.
    inside = np.clip(xyxy(view.box_cxcywh, 96), 0, 96)
    np.testing.assert_allclose(bounds_of(seen[..., 0]), inside, atol=1.0)


def test_unjittered_view_is_the_trackers_crop():
    frame = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8), (0, 0), 2.0)
    box_xywh = np.array([50.0, 40.0, 16.0, 16.0])
    expected = context_crop(frame, box_xywh, 4.0, 64).pixels
    view = target_view(box_outline(box_xywh), linear_map(), 4.0, 64)
    rendered = warp((frame,), view.matrix, (64, 64))
    assert np.abs(rendered.astype(int) - expected.astype(int)).max() <= 1
    np.testing.assert_allclose(view.box_cxcywh, [0.5, 0.5, 0.25, 0.25], atol=1e-6)


def test_every_pyramid_level_shows_the_same_place():
    frame = np.zeros((200, 200, 3), np.uint8)
    frame[80:120, 60:140] = 255
    levels = pyramid(frame)
    assert [level.shape[0] for level in levels] == [200, 100, 50]
    view = target_view(box_outline(np.array([60.0, 80.0, 80.0, 40.0])), linear_map(rotation=0.2), 3.0, 40)
    coarse = warp(levels, view.matrix, (40, 40))
    fine = warp(levels, view.matrix, (40, 40), finer=2)
    assert not np.array_equal(coarse, fine)
    for seen in (coarse, fine):
        np.testing.assert_allclose(bounds_of(seen[..., 0] > 127), xyxy(view.box_cxcywh, 40), atol=1.0)


def test_placement_stays_within_its_limits():
    crops = CropConfig(scale_jitter=0.5, centre_jitter=3.0, max_zoom=2.0)
    rng = np.random.default_rng(1)
    placements = [draw_placement(Random(rng), crops) for _ in range(2000)]
    zooms = np.array([p.zoom for p in placements])
    offsets = np.array([p.offset_xy for p in placements])
    assert zooms.min() >= 0.5 and zooms.max() <= 2.0
    # The mean of two normals: deviation scale_jitter / sqrt(2), slightly less for the clipping.
    assert np.std(np.log(zooms)) == pytest.approx(0.5 / math.sqrt(2), rel=0.1)
    assert np.abs(offsets).max() <= 1.5 and np.abs(offsets).max() > 1.4
    outline = box_outline(np.array([10.0, 10.0, 20.0, 40.0]))
    for placement in placements[:200]:
        view = target_view(outline, linear_map(), crops.search_factor, crops.search_size, placement)
        assert np.all((view.box_cxcywh[:2] >= 0) & (view.box_cxcywh[:2] <= 1))


def test_seen_share_counts_the_black_border():
    view = target_view(box_outline(np.array([0.0, 0.0, 20.0, 20.0])), linear_map(), 2.0, 64)
    # The crop covers -10..30 of a picture of 0..20 by 0..100: half across, three quarters down.
    assert seen_share(view.matrix, 64, (20, 100)) == pytest.approx(0.5 * 0.75, abs=1e-4)
    rendered = warp((np.full((100, 20, 3), 255, np.uint8),), view.matrix, (64, 64))
    assert (rendered[..., 0] > 127).mean() == pytest.approx(0.375, abs=0.02)


def test_small_and_lost_targets_are_refused():
    crops = CropConfig(search_size=64, min_target_pixels=4.0)
    check_target(np.array([0.5, 0.5, 0.1, 0.1], np.float32), crops)
    with pytest.raises(UnusableSampleError, match="outside"):
        check_target(np.array([1.1, 0.5, 0.5, 0.5], np.float32), crops)
    with pytest.raises(UnusableSampleError, match=r"3\.2 x 6\.4 px"):
        check_target(np.array([0.5, 0.5, 0.05, 0.1], np.float32), crops)


def test_centre_jitter_beyond_the_crop_is_an_error():
    with pytest.raises(ValueError, match="centre_jitter"):
        CropConfig(search_factor=4.0, centre_jitter=4.5)
