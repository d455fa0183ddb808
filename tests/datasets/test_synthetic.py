"""Cut-outs and rendered pairs: exact boxes, filters, limits on occlusion and black border."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data.augment import AugmentConfig, Light
from mixformer_jax.data.config import DataConfig, Mix, SyntheticConfig
from mixformer_jax.data.pool.pool import CutOut, HostPool, ImagePool, cut_out
from mixformer_jax.data.samples import PoolSource, paste
from mixformer_jax.views import CropConfig, Placement, linear_map, pyramid, target_view

CROPS = CropConfig(template_size=32, search_size=64)
NO_LIGHT = AugmentConfig(brightness=0.0, contrast=0.0, gamma=0.0, colour=0.0, saturation=0.0)


def ellipse_mask(height: int, width: int, centre: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    return cv2.ellipse(np.zeros((height, width), np.uint8), centre, axes, 0, 0, 360, 1, -1)


def ellipse_cutout(colour: int, photo: int = 0, source: str = "cats") -> CutOut:
    mask = ellipse_mask(120, 160, (80, 60), (30, 18))
    found = cut_out(np.full((120, 160, 3), colour, np.uint8), mask, photo, source)
    assert found is not None
    return found


def pool(target_colour: int = 255, other_colour: int = 0, background: int = 0) -> ImagePool:
    photos = tuple(pyramid(np.full((120, 160, 3), background, np.uint8)) for _ in range(2))
    cutouts = (ellipse_cutout(target_colour, 0, "cats"), ellipse_cutout(other_colour, 1, "dogs"))
    return ImagePool(photos, cutouts, (0, 1))


def source(
    name: str,
    images: ImagePool,
    synthetic: SyntheticConfig,
    augment: AugmentConfig = NO_LIGHT,
    crops: CropConfig = CROPS,
) -> PoolSource:
    mix = Mix(**{each: float(each == name) for each in vars(Mix())})
    config = DataConfig(root="in memory", mix=mix, crops=crops, augment=augment, synthetic=synthetic)
    return PoolSource(name, HostPool(None, images, config), config)


def bounds(mask: np.ndarray) -> np.ndarray:
    x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + w, y + h], float)


def xyxy(box_cxcywh: np.ndarray, size: int) -> np.ndarray:
    cx, cy, w, h = box_cxcywh.astype(float) * size
    return np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])


def test_outline_bounds_the_mask():
    mask = ellipse_mask(120, 160, (80, 60), (30, 18))
    found = ellipse_cutout(200)
    low, high = found.outline_xy.min(0), found.outline_xy.max(0)
    np.testing.assert_array_equal([*low, *high], bounds(mask))
    low, high = found.pasted_outline_xy.min(0), found.pasted_outline_xy.max(0)
    np.testing.assert_array_equal([*low, *high], bounds(found.levels[0][..., 3] >= 128))


def test_poor_targets_are_left_out():
    image = np.zeros((100, 100, 3), np.uint8)

    def accepted(mask: np.ndarray) -> bool:
        return cut_out(image, mask, 0, "x") is not None

    good = ellipse_mask(100, 100, (50, 50), (20, 20))
    assert accepted(good)
    assert not accepted(ellipse_mask(100, 100, (50, 50), (8, 20)))  # too narrow
    assert not accepted(np.ones((100, 100), np.uint8))  # the whole image
    assert not accepted(ellipse_mask(100, 100, (50, 0), (30, 30)))  # cut by the border
    assert not accepted(np.maximum(good, ellipse_mask(100, 100, (85, 50), (8, 8))))  # two parts
    line = cv2.line(np.zeros((100, 100), np.uint8), (20, 20), (80, 80), 1, 3)
    assert not accepted(line)  # fills little of its box


@given(
    rotation=st.floats(-0.35, 0.35),
    log_aspect=st.floats(-0.15, 0.15),
    shear=st.floats(-0.1, 0.1),
    zoom=st.floats(0.7, 1.6),
    flip=st.booleans(),
)
def test_a_pasted_objects_box_is_exact(rotation, log_aspect, shear, zoom, flip):
    target = ellipse_cutout(255)
    linear = linear_map(flip, rotation, math.exp(log_aspect), shear)
    view = target_view(target.pasted_outline_xy, linear, 3.0, 96, Placement(zoom, (0.2, -0.1)))
    canvas = np.zeros((96, 96, 3), np.uint8)
    alpha = paste(canvas, target, view.matrix, Light())
    np.testing.assert_allclose(bounds(canvas[..., 0] >= 128), xyxy(view.box_cxcywh, 96), atol=1.25)
    np.testing.assert_array_equal(canvas[..., 0], alpha)  # white on black


def test_paste_blends_by_alpha_and_tolerates_the_outside():
    target = ellipse_cutout(200)
    view = target_view(target.pasted_outline_xy, linear_map(), 3.0, 64)
    canvas = np.full((64, 64, 3), 100, np.uint8)
    alpha = paste(canvas, target, view.matrix, Light()).astype(float)[..., None]
    np.testing.assert_allclose(canvas, 100 + 100 * alpha / 255 * np.ones(3), atol=1.0)
    away = view.matrix.copy()
    away[0, 2] += 500
    untouched = canvas.copy()
    assert not paste(canvas, target, away, Light()).any()
    np.testing.assert_array_equal(canvas, untouched)


def test_pasted_pairs_show_the_target_where_the_box_says():
    # Distractors and backgrounds are black, so what is bright is the target or the lit part of it.
    material = ImagePool(pool().photos, (ellipse_cutout(255, 0, "cats"), ellipse_cutout(254, 0, "cats")), (0, 1))
    config = SyntheticConfig(max_distractors=0, occluder=0.0)
    pairs = source("pasted", material, config)
    rng = np.random.default_rng(0)
    for _ in range(40):
        _, _, sample = pairs.sample(rng)
        assert sample["templates"].shape == (2, 32, 32, 3) and sample["search"].shape == (64, 64, 3)
        seen = bounds(sample["search"][..., 0] >= 128)
        np.testing.assert_allclose(seen, np.clip(xyxy(sample["box_cxcywh"], 64), 0, 64), atol=1.25)
        assert not np.array_equal(sample["templates"][0], sample["templates"][1])


def test_an_occluding_cutout_hides_at_most_its_share():
    material = ImagePool(pool().photos, (ellipse_cutout(255, 0, "a"), ellipse_cutout(0, 1, "b")), (0, 1))
    config = SyntheticConfig(max_distractors=0, occluder=1.0, max_occluded=0.5, same_source_distractor=0.0)
    pairs = source("pasted", material, config)
    rng = np.random.default_rng(0)
    hidden = []
    for _ in range(120):
        scene = pairs.draw_scene(rng)
        if scene.origin != 0:  # the black object is the occluder
            continue
        whole, seen = (pairs.render(each)["search"].sum(dtype=int) for each in (scene._replace(occluder=[]), scene))
        hidden.append(1 - seen / whole)
    assert max(hidden) <= 0.5 and (np.array(hidden) > 0).sum() > 10


def test_still_pairs_keep_the_object_in_its_photograph():
    mask = ellipse_mask(120, 160, (80, 60), (20, 14))
    photo = np.full((120, 160, 3), 60, np.uint8)
    photo[mask > 0] = 255
    found = cut_out(photo, mask, 0, "cats")
    pairs = source("still", ImagePool((pyramid(photo),), (found,), (0,)), SyntheticConfig())
    rng = np.random.default_rng(0)
    drawn = 0
    while drawn < 20:
        try:
            _, _, sample = pairs.sample(rng)
        except ValueError as error:
            assert "inside the photograph" in str(error)
            continue
        drawn += 1
        assert (sample["search"][..., 0] > 30).mean() > 0.4
        seen = bounds(sample["search"][..., 0] >= 158)
        np.testing.assert_allclose(seen, np.clip(xyxy(sample["box_cxcywh"], 64), 0, 64), atol=1.3)


def test_region_pairs_find_their_region_again():
    rng = np.random.default_rng(0)
    photo = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    config = SyntheticConfig(still_rotation_degrees=0.0, still_aspect=0.0, finer=0.0, min_seen=0.3)
    crops = CropConfig(template_size=32, search_size=64, num_online_templates=0, scale_jitter=0.0)
    pairs = source("region", ImagePool((pyramid(photo),), (), (0,)), config, AugmentConfig(), crops)
    drawn = 0
    while drawn < 10:
        try:
            _, _, sample = pairs.sample(rng)
        except ValueError:
            continue
        cx, cy, w, h = sample["box_cxcywh"].astype(float) * 64
        if min(cx - w / 2, cy - h / 2, 64 - cx - w / 2, 64 - cy - h / 2) < 4:
            continue
        drawn += 1
        # Without jitter the template is the search crop at the same scale; match the template's middle.
        middle = sample["templates"][0][12:20, 12:20]
        match = cv2.matchTemplate(sample["search"], middle, cv2.TM_SQDIFF)
        y, x = np.unravel_index(match.argmin(), match.shape)
        assert abs(x + 4 - cx) <= 1.5 and abs(y + 4 - cy) <= 1.5


def test_material_without_masks_is_an_error():
    bare = ImagePool(pool().photos, (), (0, 1))
    for name, words in (("pasted", "masks"), ("still", "annotated objects")):
        with pytest.raises(ValueError, match=words):
            source(name, bare, SyntheticConfig())
