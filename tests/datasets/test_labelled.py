"""Labelled samples of the pool: shares, what negatives show, where their boxes lie."""

from collections import Counter

import cv2
import numpy as np
import pytest

from mixformer_jax.boxes import cxcywh_to_xyxy, iou
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, Mix, held_out
from mixformer_jax.data.labelled import LabelledPairs
from mixformer_jax.data.pool.pool import Clip, CutOut, ImagePool, VideoPool, cut_out
from mixformer_jax.data.pool.synthetic import PastedPairs, RegionPairs, StillPairs, SyntheticConfig
from mixformer_jax.data.samples import Pools, TrackingSamples
from mixformer_jax.data.sampling import Drawn, VideoPairs
from mixformer_jax.views import CropConfig, UnusableSampleError, linear_map, pyramid, target_view

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
def pools() -> Pools:
    photos = [photo(number) for number in range(3)]
    images = ImagePool(tuple(pyramid(pixels) for pixels, _ in photos), tuple(found for _, found in photos), (0, 1, 2))
    return Pools(VideoPool(tuple(clip(name) for name in NAMES)), images)


def data_config(share: float | None = 0.5) -> DataConfig:
    return DataConfig(root="in memory", crops=CROPS, augment=PLAIN, groups=GROUPS, positive_share=share)


def sources(pools: Pools) -> dict[str, VideoPairs | PastedPairs | StillPairs | RegionPairs]:
    assert pools.images is not None and pools.videos is not None
    synthetic = SyntheticConfig()
    return {
        "video": VideoPairs(pools.videos, CROPS, PLAIN, groups=GROUPS),
        "pasted": PastedPairs(pools.images, CROPS, PLAIN, synthetic),
        "still": StillPairs(pools.images, CROPS, PLAIN, synthetic),
        "region": RegionPairs(pools.images, CROPS, PLAIN, synthetic),
    }


class Recorder(LabelledPairs):
    """Notes everything that the source has drawn."""

    def __init__(self, name, source):
        super().__init__(name, source, CROPS, 0.5)
        self.drawn: list[Drawn] = []
        draw = source.draw

        def noted(rng, **how):
            self.drawn.append(draw(rng, **how))
            return self.drawn[-1]

        source.draw = noted

    def some(self, kind, count):
        """So many samples of a kind, each with the draws that made it."""
        rng = np.random.default_rng(0)
        found = []
        while len(found) < count:
            self.drawn.clear()
            try:
                sample = self.draw(rng, kind)
            except UnusableSampleError:
                continue
            found.append((sample, list(self.drawn)))
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
    assert all(kinds[name, kind] for name in sources(pools) for kind in ("target", "other", "elsewhere"))
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
    for sample, drawn in Recorder(name, sources(pools)[name]).some("other", 30):
        first, last = drawn[0], drawn[-1]
        assert first.origin != last.origin and sample["label"] == 0
        np.testing.assert_array_equal(sample["templates"], first.sample["templates"])
        np.testing.assert_array_equal(sample["search"], last.sample["search"])
        np.testing.assert_array_equal(sample["box_cxcywh"], last.sample["box_cxcywh"])
        if name == "video":
            # The frames' colours tell the clip: a and b are one group.
            tones = [round((int(picture.max()) - 50) / 50) for picture in (sample["templates"], sample["search"])]
            assert len({max(tone, 1) for tone in tones}) == 2


@pytest.mark.parametrize("name", ["video", "pasted", "still", "region"])
def test_a_box_elsewhere_is_not_on_the_target(pools, name):
    on_distractors = 0
    for sample, (drawn,) in Recorder(name, sources(pools)[name]).some("elsewhere", 60):
        box, target = sample["box_cxcywh"], drawn.sample["box_cxcywh"]
        assert sample["label"] == 0 and box.dtype == np.float32
        assert overlap(box, target) < 0.1 and np.all((box[:2] >= 0) & (box[:2] <= 1))
        np.testing.assert_array_equal(sample["search"], drawn.sample["search"])
        on_distractor = any(np.array_equal(box, other) for other in drawn.distractors_cxcywh)
        on_distractors += on_distractor
        assert on_distractor or np.all(np.abs(np.log(box[2:] / target[2:])) <= 0.2 + 1e-5)
    assert (on_distractors > 10) == (name == "pasted")


def test_beside_the_target_it_is_at_most_partly_in_view(pools):
    samples = Recorder("video", sources(pools)["video"]).some("beside", 60)
    for sample, (drawn,) in samples:
        target = drawn.sample["box_cxcywh"]
        distance = np.abs(target[:2] - 0.5).max()
        assert 0.5 - 1e-5 <= distance <= 1 + 1e-5
        assert overlap(sample["box_cxcywh"], target) < 0.1 and sample["label"] == 0
        assert (sample["search"] > 0).mean() > 0.4
    assert len({tuple(sample["box_cxcywh"]) for sample, _ in samples}) == 60


def test_a_distractors_box_bounds_it():
    _, target = photo(0)
    mask = (target.levels[0][..., 3] >= 128).astype(np.uint8)
    white = cut_out(np.full((*mask.shape, 3), 255, np.uint8), mask, 1, "things")
    assert white is not None
    black = pyramid(np.zeros((120, 160, 3), np.uint8))
    pairs = PastedPairs(ImagePool((black,), (white,), (0,)), CROPS, PLAIN, SyntheticConfig())
    view = target_view(target.pasted_outline_xy, linear_map(), 4.0, 64)
    rng = np.random.default_rng(0)
    for _ in range(20):
        canvas = np.zeros((64, 64, 3), np.uint8)
        box = cxcywh_to_xyxy(pairs._paste_distractor(rng, canvas, target, view)) * 64
        x, y, w, h = cv2.boundingRect((canvas[..., 0] >= 128).astype(np.uint8))
        np.testing.assert_allclose([x, y, x + w, y + h], np.clip(box, 0, 64), atol=1.25)


def test_one_scene_alone_gives_no_negatives(pools):
    assert pools.videos is not None
    alone = Pools(VideoPool(pools.videos.clips[:2]))
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
