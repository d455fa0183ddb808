"""Frame choice and video pairs: intervals, group weights, exact boxes."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data.augment import AugmentConfig, Random
from mixformer_jax.data.config import DataConfig, Mix
from mixformer_jax.data.pool.pool import Clip, HostPool, VideoPool, clip_weights
from mixformer_jax.data.pool.scenes import draw_clip_frames
from mixformer_jax.data.samples import PoolSource
from mixformer_jax.views import CropConfig, UnusableSampleError

GEOMETRY_ONLY = AugmentConfig(aspect=0.3)


def clip(name: str, num_frames: int, times: np.ndarray | None = None) -> Clip:
    """A bright rectangle that wanders over black frames; its brightness tells the frame."""
    frames, boxes = [], []
    for number in range(num_frames):
        frame = np.zeros((100, 140, 3), np.uint8)
        x, y = 30 + number % 50, 40
        frame[y : y + 20, x : x + 30] = 100 + number % 100
        frames.append(frame)
        boxes.append([x, y, 30, 20])
    return Clip(
        name,
        tuple(frames),
        np.array(boxes, np.float64),
        np.arange(num_frames) if times is None else times,
    )


def source(clip: Clip, max_interval: int = 100, **settings: object) -> PoolSource:
    config = DataConfig(root="in memory", mix=Mix(1.0, 0.0, 0.0, 0.0), max_interval=max_interval, **settings)
    return PoolSource("video", HostPool(VideoPool((clip,)), None, config), config)


def draw_frames(rng: np.random.Generator, source: PoolSource, num_between: int) -> list[int]:
    """Template, online templates, search."""
    frames, search = draw_clip_frames(Random(rng), source.pool.tables, 0, num_between)
    return [*map(int, frames), int(search)]


def test_weights_grow_with_the_root_of_the_length_and_groups_share():
    clips = [clip("long", 16), clip("short", 4), clip("scene_1", 3), clip("scene_2", 1)]
    weights = clip_weights(clips, groups=[("scene_1", "scene_2")])
    np.testing.assert_allclose(weights, np.array([4, 2, 1.5, 0.5]) / 8)


TIMES = np.array([0, 1, 2, 5, 9, 10, 30, 31])
SPACED = source(clip("spaced", 8, TIMES), max_interval=6)


@given(seed=st.integers(0, 10_000), num_between=st.integers(0, 3))
def test_three_frame_scheme(seed, num_between):
    path = draw_frames(np.random.default_rng(seed), SPACED, num_between)
    template, search = path[0], path[-1]
    assert template != search and abs(TIMES[template] - TIMES[search]) <= 6
    assert len(path) == num_between + 2
    assert path == sorted(path) or path == sorted(path, reverse=True)


def test_every_frame_within_the_interval_is_drawn_both_ways():
    rng, four = np.random.default_rng(0), source(clip("four", 4), max_interval=2)
    drawn = {tuple(draw_frames(rng, four, 0)) for _ in range(500)}
    assert drawn == {(a, b) for a in range(4) for b in range(4) if 0 < abs(a - b) <= 2}


def test_a_lonely_frame_is_refused():
    lonely = source(clip("lonely", 2, np.array([0, 10])), max_interval=3)
    with pytest.raises(UnusableSampleError, match="within max_interval"):
        draw_frames(np.random.default_rng(0), lonely, 0)


def test_the_box_bounds_the_target_in_every_pair():
    crops = CropConfig(template_size=32, search_size=64, num_online_templates=2)
    pairs = source(clip("a", 12), crops=crops, augment=GEOMETRY_ONLY)
    rng = np.random.default_rng(0)
    flipped = set()
    for _ in range(60):
        _, _, sample = pairs.sample(rng)
        assert sample["templates"].shape == (3, 32, 32, 3) and sample["templates"].dtype == np.uint8
        assert sample["search"].shape == (64, 64, 3) and sample["search"].dtype == np.uint8
        assert sample["box_cxcywh"].shape == (4,) and sample["box_cxcywh"].dtype == np.float32
        box = sample["box_cxcywh"].astype(float) * 64
        expected = np.array([box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2])
        seen = sample["search"][..., 0]
        x, y, w, h = cv2.boundingRect((seen > seen.max() / 2).astype(np.uint8))
        np.testing.assert_allclose([x, y, x + w, y + h], np.clip(expected, 0, 64), atol=1.0)
        assert np.all((sample["box_cxcywh"][:2] >= 0) & (sample["box_cxcywh"][:2] <= 1))
        for template in sample["templates"]:
            # Centred, and sqrt(w * h) half of the crop.
            x, y, w, h = cv2.boundingRect((template[..., 0] > template.max() / 2).astype(np.uint8))
            assert abs(x + w / 2 - 16) <= 1 and abs(y + h / 2 - 16) <= 1
            assert np.sqrt(w * h) == pytest.approx(16, abs=1.5)
        flipped.add(tuple(np.round(sample["box_cxcywh"], 3)))
    assert len(flipped) == 60


def test_all_crops_of_a_sample_are_flipped_together():
    moving = clip("a", 6)
    for frame, box in zip(moving.frames, moving.boxes_xywh.astype(int), strict=True):
        frame[40:60, box[0] : box[0] + 15] //= 2  # the left half is darker
    crops = CropConfig(template_size=32, search_size=64, centre_jitter=0.0, scale_jitter=0.0)
    pairs = source(moving, crops=crops, augment=AugmentConfig(aspect=0.0))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        _, _, sample = pairs.sample(rng)
        left_darker = {bool(t[16, 10, 0] < t[16, 21, 0]) for t in sample["templates"]}
        left_darker.add(bool(sample["search"][32, 26, 0] < sample["search"][32, 37, 0]))
        assert len(left_darker) == 1
        seen |= left_darker
    assert seen == {False, True}
