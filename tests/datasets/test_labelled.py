"""Labelled samples of the pool: shares, what negatives show, where their boxes lie."""

from collections import Counter
from dataclasses import replace
from unittest import mock

import cv2
import numpy as np
import pytest

from mixformer_jax.boxes import cxcywh_to_xyxy, iou
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, Mix, SyntheticConfig, held_out
from mixformer_jax.data.pool.pool import Clip, CutOut, HostPool, ImagePool, VideoPool, cut_out
from mixformer_jax.data.pool.scenes import BESIDE, ELSEWHERE, OTHER, SCENES
from mixformer_jax.data.samples import Material, PoolSource, TrackingSamples
from mixformer_jax.views import CropConfig, UnusableSampleError, pyramid

CROPS = CropConfig(template_size=32, search_size=64, min_target_pixels=3.0)
PLAIN = AugmentConfig(
    brightness=0.0, contrast=0.0, gamma=0.0, colour=0.0, saturation=0.0, occluder_probability=0.0, flip_probability=0.5
)
NAMES = ("a", "b", "c", "d")
GROUPS = (("a", "b"),)


def clip(name: str) -> Clip:
    """A target of 24 x 16 on a frame of one colour that tells the clip."""
    tone = 40 + 50 * NAMES.index(name)
    frames = []
    boxes = []
    for number in range(6):
        frame = np.full((120, 160, 3), tone, np.uint8)
        frame[50:66, 60 + number : 84 + number] = tone + 10
        frames.append(frame)
        boxes.append([60 + number, 50, 24, 16])
    return Clip(name, tuple(frames), np.array(boxes, np.float64), np.arange(6))


def photo(number: int) -> tuple[np.ndarray, CutOut]:
    rng = np.random.default_rng(number)
    pixels = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)
    mask = cv2.ellipse(np.zeros((120, 160), np.uint8), (80, 60), (22, 16), 0, 0, 360, 1, -1)
    found = cut_out(pixels, mask, number, "things")
    assert found is not None
    return pixels, found


@pytest.fixture(scope="module")
def pools() -> Material:
    photos = [photo(number) for number in range(3)]
    images = ImagePool(tuple(pyramid(pixels) for pixels, _ in photos), tuple(found for _, found in photos), (0, 1, 2))
    return Material(VideoPool(tuple(clip(name) for name in NAMES)), images)


def data_config(share: float | None = 0.5) -> DataConfig:
    return DataConfig(root="in memory", crops=CROPS, augment=PLAIN, groups=GROUPS, positive_share=share)


class Recorder:
    """Labelled samples of one source, and the scenes that were drawn for them."""

    def __init__(self, name, pools):
        config = data_config()
        self.name, self.source = name, PoolSource(name, HostPool(pools.videos, pools.images, config), config)

    def some(self, kind, count):
        """So many samples of a kind, each with the scenes that made it."""
        rng = np.random.default_rng(0)
        found, drawn = [], []
        draw = SCENES[self.name]

        def noted(*arguments):
            drawn.append(draw(*arguments))
            return drawn[-1]

        with mock.patch.dict(SCENES, {self.name: noted}):
            while len(found) < count:
                drawn.clear()
                try:
                    _, _, sample = self.source.sample(rng, kind)
                except UnusableSampleError:
                    continue
                found.append((sample, list(drawn)))
        return found


def overlap(a_cxcywh, b_cxcywh) -> float:
    return float(iou(cxcywh_to_xyxy(a_cxcywh), cxcywh_to_xyxy(b_cxcywh)))


def test_shares_and_determinism(pools):
    samples = TrackingSamples(pools, data_config(), seed=3)
    kinds: Counter[tuple[str, float]] = Counter()
    for index in range(600):
        sample = samples.sample(index)
        source, kind = samples.describe(index).split(", ")
        assert sample["label"].dtype == np.float32 and sample["label"] == (kind == "target")
        kinds[kind] += 1
        kinds[source, kind] += 1
    # Three standard deviations of 600 draws
    assert kinds["target"] == pytest.approx(300, abs=37) and kinds["other"] == pytest.approx(150, abs=32)
    assert all(kinds[name, kind] for name in SCENES for kind in ("target", "other", "elsewhere"))
    assert kinds["beside"] == kinds["video", "beside"] > 0
    again = TrackingSamples(pools, data_config(), seed=3)
    for index in (599, 3, 77):
        for name, value in samples.sample(index).items():
            np.testing.assert_array_equal(again.sample(index)[name], value)


def test_without_a_share_there_are_no_labels(pools):
    samples = TrackingSamples(pools, data_config(None), seed=3)
    assert all("label" not in samples.sample(index) for index in range(8))


@pytest.mark.parametrize("name", ["video", "pasted", "still", "region"])
def test_another_object_is_of_another_scene(pools, name):
    recorder = Recorder(name, pools)
    for sample, drawn in recorder.some(OTHER, 30):
        assert drawn[0].origin != drawn[-1].origin and sample["label"] == 0
        first, last = recorder.source.render(drawn[0]), recorder.source.render(drawn[-1])
        np.testing.assert_array_equal(sample["templates"], first["templates"])
        np.testing.assert_array_equal(sample["search"], last["search"])
        np.testing.assert_array_equal(sample["box_cxcywh"], last["box_cxcywh"])
        if name == "video":
            # The frames' colours tell the clip: a and b are one group.
            tones = [round((int(picture.max()) - 50) / 50) for picture in (sample["templates"], sample["search"])]
            assert len({max(tone, 1) for tone in tones}) == 2


@pytest.mark.parametrize("name", ["video", "pasted", "still", "region"])
def test_a_box_elsewhere_is_not_on_the_target(pools, name):
    on_distractors, recorder = 0, Recorder(name, pools)
    for sample, (drawn,) in recorder.some(ELSEWHERE, 60):
        box, target = sample["box_cxcywh"], drawn.box_cxcywh
        assert sample["label"] == 0 and box.dtype == np.float32
        assert overlap(box, target) < 0.1 and np.all((box[:2] >= 0) & (box[:2] <= 1))
        np.testing.assert_array_equal(sample["search"], recorder.source.render(drawn)["search"])
        on_distractor = any(np.array_equal(box, other) for other in drawn.distractors_cxcywh or ())
        on_distractors += on_distractor
        assert on_distractor or np.all(np.abs(np.log(box[2:] / target[2:])) <= 0.2 + 1e-5)
    assert (on_distractors > 10) == (name == "pasted")


def test_beside_the_target_it_is_at_most_partly_in_view(pools):
    samples = Recorder("video", pools).some(BESIDE, 60)
    for sample, (drawn,) in samples:
        target = drawn.box_cxcywh
        distance = np.abs(target[:2] - 0.5).max()
        assert 0.5 - 1e-5 <= distance <= 1 + 1e-5
        assert overlap(sample["box_cxcywh"], target) < 0.1 and sample["label"] == 0
        assert (sample["search"] > 0).mean() > 0.4
    assert len({tuple(sample["box_cxcywh"]) for sample, _ in samples}) == 60


def test_a_distractors_box_bounds_it():
    _, target = photo(0)
    mask = (target.levels[0][..., 3] >= 128).astype(np.uint8)
    black, white = (cut_out(np.full((*mask.shape, 3), tone, np.uint8), mask, tone % 2, "things") for tone in (0, 255))
    ground = pyramid(np.zeros((120, 160, 3), np.uint8))
    images = ImagePool((ground, ground), (black, white), (0, 1))
    synthetic = SyntheticConfig(max_distractors=1, occluder=0.0, same_source_distractor=0.0)
    config = replace(data_config(None), mix=Mix(0.0, 0.0, 1.0, 0.0), synthetic=synthetic)
    source = PoolSource("pasted", HostPool(None, images, config), config)
    rng, checked = np.random.default_rng(0), 0
    while checked < 20:
        scene = source.draw_scene(rng)
        if scene.origin != 0 or not scene.distractors_cxcywh:
            continue
        search = source.render(scene._replace(search_pasted=scene.search_pasted[:1]))["search"]
        box = np.clip(cxcywh_to_xyxy(scene.distractors_cxcywh[0]) * 64, 0, 64)
        x, y, w, h = cv2.boundingRect((search[..., 0] >= 128).astype(np.uint8))
        np.testing.assert_allclose([x, y, x + w, y + h], box, atol=1.25)
        checked += 1


def test_one_scene_alone_gives_no_negatives(pools):
    assert pools.videos is not None
    alone = Material(VideoPool(pools.videos.clips[:2]))
    config = DataConfig(
        root="in memory", crops=CROPS, augment=PLAIN, groups=GROUPS, positive_share=0.5, mix=Mix(1.0, 0.0, 0.0, 0.0)
    )
    with pytest.raises(ValueError, match="'video' of the pool has targets of one sequence, group"):
        TrackingSamples(alone, config, seed=0)


def test_held_out_sequences_keep_labels_and_groups():
    config = DataConfig(root="pool", exclude=("c", "d"), groups=GROUPS, positive_share=0.25)
    kept = held_out(config)
    assert kept is not None and kept.positive_share == 0.25 and kept.groups == GROUPS
    plain = held_out(DataConfig(root="pool", exclude=("c", "d"), groups=GROUPS))
    assert plain is not None and plain.positive_share is None and plain.groups == ()
