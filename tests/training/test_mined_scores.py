"""Score modules trained on what their trackers find."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.weights import load_weights, save_weights
from mixformer_jax.data.pool.clips import FRAMES, HEIGHT, WIDTH, rendered_clips
from mixformer_jax.data.pool.pool import ImagePool, cut_out
from mixformer_jax.data.samples import TrackingSamples
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.training.mined_scores import (
    SHARES,
    CalibrationError,
    _chances,
    calibration,
    mine_all,
    mine_photographs,
    score_figures,
    scores_of,
    train_scores,
)
from mixformer_jax.training.mining import (
    CONDITIONS,
    ERASED,
    FOREIGN,
    NATURAL,
    PAIR,
    Mined,
    anywhere,
    covered,
    cut_patches,
    erased,
    moved,
)

BOX_XYWH = np.array([60.0, 50.0, 24.0, 30.0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny tracker without scores."""
    config = MixFormerConfig(
        name="small", search_size=64, template_size=32, width=64, depth=1, num_heads=2, head_width=16
    )
    file = tmp_path_factory.mktemp("weights") / "boxes.safetensors"
    save_weights(file, init_variables(build_model(config), jax.random.key(0)), config, TrackerConfig(search_factor=4.0))
    return file


def sequence(name):
    rng = np.random.default_rng(len(name))
    background, target = (rng.integers(0, 256, shape, np.uint8) for shape in ((120, 160, 3), (30, 24, 3)))
    boxes_xywh = BOX_XYWH + np.arange(12)[:, None] * np.array([2.0, 1.0, 0.0, 0.0])
    boxes_xywh[5] = np.nan  # absent
    boxes_xywh[7] = [158.0, 50.0, 24.0, 30.0]  # two pixels of it are in view
    boxes_xywh[8] = [-40.0, 50.0, 24.0, 30.0]  # outside
    frames = []
    for box in boxes_xywh:
        frame = background.copy()
        if np.isfinite(box).all() and 0 <= box[0] < 130:
            x, y, w, h = box.astype(int)
            frame[y : y + h, x : x + w] = target
        frames.append(frame)
    return TrackingSequence(name, boxes_xywh, frames.__getitem__, 30.0, Path(name))


STEPS = 20
NAMES = ["one", "four", "eleven"]


def videos():
    return Dataset("made", Path("made"), NAMES, sequence)


@pytest.fixture(scope="module")
def mined(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mined")
    return folder, mine_all(weights, videos(), (), STEPS, 0, folder)


def test_every_condition_is_mined_and_kept(weights, mined, monkeypatch):
    folder, found = mined
    assert list(found) == NAMES
    for samples in found.values():
        assert len(samples.overlaps) == STEPS * len(CONDITIONS)
        np.testing.assert_array_equal(np.bincount(samples.condition), STEPS)
        assert samples.is_absent[samples.condition == FOREIGN].all()
        assert 0 < sum(each.is_absent[each.condition == ERASED].sum() for each in found.values()) < 3 * STEPS
        is_away = np.isin([*range(1, 12), *range(1, 10)], [5, 7, 8])  # frames, from the first one on, twice
        np.testing.assert_array_equal(samples.is_absent[samples.condition == NATURAL], is_away)
        assert (samples.overlaps[samples.is_absent] == 0).all() and samples.overlaps.max() > 0
        assert samples.template.max() == len(samples.templates) - 1
    monkeypatch.setattr("mixformer_jax.training.mined_scores.mine", None)  # what is there is not mined again
    again = mine_all(weights, videos(), (), STEPS, 0, folder)
    for name, samples in found.items():
        jax.tree.map(np.testing.assert_array_equal, samples, again[name])


def test_the_module_learns_and_the_rest_stays(weights, mined):
    _, found = mined
    rng = np.random.default_rng(0)

    def labelled(samples: Mined) -> Mined:
        """The same with features that tell whether the box is right."""
        overlaps = rng.choice([0.05, 0.9], len(samples.overlaps))
        pattern = np.random.default_rng(1).normal(size=samples.features.shape[-1])
        features = np.sign(overlaps[:, None, None, None] - 0.5) * pattern + 0.1 * rng.normal(
            size=samples.features.shape
        )
        absent = np.full_like(samples.truth_cxcywh, np.nan)  # so that no other boxes are drawn
        boxes = np.tile([0.5, 0.5, 0.4, 0.4], (len(overlaps), 1))  # random weights find boxes without area
        return samples._replace(
            features=features.astype(np.float16), overlaps=overlaps, truth_cxcywh=absent, boxes_cxcywh=boxes
        )

    easy = {name: labelled(samples) for name, samples in found.items()}
    trained = train_scores(weights, {name: easy[name] for name in NAMES[1:]}, {"one": easy["one"]}, {}, (), 250, 32, 0)
    scores = scores_of(trained, easy["one"])
    figures = score_figures(scores, easy["one"].overlaps, below=0.5)
    assert figures.roc_area > 0.95 and figures.lost_called > 0.9 and figures.good_called < 0.1
    before, after = (flatten_dict(each.variables, sep="/") for each in (load_weights(weights), trained))
    for name, value in before.items():
        np.testing.assert_array_equal(after[name if name in after else f"constants/{name.partition('/')[2]}"], value)
    assert trained.model.score_heads and dataclasses.replace(trained.model, score_heads=0) != trained.model


def test_figures_of_scores():
    overlaps = np.array([0.9, 0.8, 0.6, 0.05, 0.0, 0.02])
    perfect = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    assert score_figures(perfect, overlaps, 0.5) == (1.0, 0.0, 1.0, 0.0)
    assert score_figures(1 - perfect, overlaps, 0.5) == (0.0, 1.0, 0.0, 1.0)
    constant = score_figures(np.full(6, 0.5), overlaps, 0.4)
    assert constant == (0.5, 0.0, 0.0, 0.0)
    half = score_figures(np.array([0.9, 0.1, 0.9, 0.9, 0.1, 0.1]), overlaps, 0.4)
    assert half.roc_area == pytest.approx((2 * (2 + 0.5) + 1) / 9) and half.lost_called == pytest.approx(2 / 3)
    assert half.calibration_error == pytest.approx((abs(3 * 0.1 - 1) + abs(3 * 0.1 - 1)) / 6)


def test_calibration_finds_what_logits_were_changed_by():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, 20_000)
    right = rng.random(len(logits)) < 1 / (1 + np.exp(-logits))
    changed, overlaps = (logits - 0.6) / 0.5, np.where(right, 0.8, 0.1)
    one = np.ones(len(logits))
    assert calibration(changed, overlaps, one) == pytest.approx((0.5, 0.6), abs=0.06)
    # What has no weight does not count, whatever it is; the clear ones alone count.
    more = np.concatenate([changed, changed, changed])
    of_more = np.concatenate([overlaps, np.zeros(len(logits)), np.full(len(logits), 0.4)])
    weighted = calibration(more, of_more, np.concatenate([one, 0 * one, one]))
    assert weighted == pytest.approx(calibration(changed, overlaps, one), abs=1e-6)
    heavier = calibration(changed, overlaps, np.where(right, 1.0, 3.0))
    assert heavier == pytest.approx((0.5, 0.6 - np.log(3)), abs=0.09)


def test_calibration_of_few_samples_has_an_answer():
    logits = np.array([-3.0, -2.0, 2.0, 3.0])  # separable: without Platt's targets the sharpness would be infinite
    sharpness, offset = calibration(logits, np.array([0.0, 0.1, 0.8, 0.9]), np.ones(4))
    assert 0 < sharpness < 2 and offset == pytest.approx(0, abs=1e-4)
    with pytest.raises(CalibrationError, match="none of 4 scores can be calibrated"):
        calibration(logits, np.full(4, 0.4), np.ones(4))


def test_every_kind_of_samples_has_its_share():
    kinds, condition = np.repeat([0, 1, 2], [102, 900, 6]), np.arange(1008) % len(CONDITIONS)
    chances = _chances(np.full(1008, 10), kinds, condition)
    np.testing.assert_allclose(np.bincount(kinds, chances), SHARES)
    assert chances[condition == FOREIGN].sum() / chances[condition == ERASED].sum() == pytest.approx(0.8)
    assert _chances(np.full(102, 10), kinds[:102], condition[:102]).sum() == pytest.approx(1)


def test_pairs_are_samples_too(weights, tmp_path):
    class Pairs(TrackingSamples):
        """Every third search shows another target."""

        def __init__(self):
            self.seed = 7

        def sample(self, index):
            box, number = np.array([0.5, 0.5, 0.4, 0.4], np.float32), np.random.default_rng(index).integers(256)
            templates, search = (np.full(shape, number, np.uint8) for shape in ((2, 32, 32, 3), (64, 64, 3)))
            label = np.float32(index % 3 != 0)
            return {"templates": templates, "search": search, "box_cxcywh": box, "label": label}

    (samples,) = mine_photographs(weights, Pairs(), 20, tmp_path).values()
    assert len(samples.overlaps) == len(samples.templates) == 20
    np.testing.assert_array_equal(samples.is_absent, np.arange(20) % 3 == 0)
    assert (samples.overlaps[samples.is_absent] == 0).all() and (samples.condition == PAIR).all()
    np.testing.assert_allclose(samples.truth_cxcywh[1], [0.5, 0.5, 0.4, 0.4], atol=1e-6)
    assert [file.name[:17] for file in tmp_path.iterdir()] == ["photographs_20_7_"]


@pytest.mark.parametrize("box_xywh", [BOX_XYWH, np.array([2.0, 1.0, 120.0, 100.0])])  # the second: no room beside it
def test_what_is_done_to_a_frame_stays_around_the_target(box_xywh):
    frame = sequence("frame").frame(0)
    frame_before = frame.copy()
    x, y, w, h = box_xywh.astype(int)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        gone = erased(rng, frame, box_xywh)
        inside = np.s_[y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4]
        assert (gone[inside] != frame[inside]).mean() > 0.9
        far = np.ones(frame.shape[:2], bool)
        far[max(0, y - h) : y + 2 * h, max(0, x - w) : x + 2 * w] = False
        np.testing.assert_array_equal(gone[far], frame[far])
        for how in range(4):
            shown = covered(frame, box_xywh, how, rng.uniform(-1, 1, 3), np.zeros((16, 16, 3), np.uint8))
            assert how > 1 or (shown != frame).any()
            assert how or (shown[inside] == 0).all()
    np.testing.assert_array_equal(frame, frame_before)


def test_moved_boxes_can_be_cropped():
    rng = np.random.default_rng(0)
    for _ in range(100):
        for box_xywh in (moved(rng, BOX_XYWH, (120, 160)), anywhere(rng, BOX_XYWH, (120, 160))):
            x, y, w, h = box_xywh
            assert min(w, h) >= 4 and x + w > 0 and y + h > 0 and x < 160 and y < 120


def test_rendered_clips_hide_their_target_and_are_the_same_for_a_seed():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (96, 128, 3), np.uint8)
    mask = np.zeros((96, 128), np.uint8)
    mask[20:70, 30:90] = 1
    pool = ImagePool(((photo,),), (cut_out(photo, mask, 0, "made"),), (0,))
    clips = rendered_clips(pool, 2)
    for clip in clips:
        absent = np.isnan(clip.boxes_xywh).any(axis=1)
        assert len(clip) == FRAMES and 0 < absent.sum() <= 0.8 * FRAMES
        assert clip.frame(0).shape == (HEIGHT, WIDTH, 3)
        seen = clip.boxes_xywh[~absent]
        assert (seen[:, 2:] > 0).all() and (seen[:, :2] >= 0).all() and (seen[:, 0] + seen[:, 2] <= WIDTH).all()
    again = rendered_clips(pool, 1)[0]
    np.testing.assert_array_equal(again.frame(3), clips[0].frame(3))
    assert not np.array_equal(again.frame(3), clips[1].frame(3))
    with pytest.raises(ValueError, match="no photograph of the pool has an instance mask"):
        rendered_clips(ImagePool(((photo,),), (), (0,)), 1)


def test_what_cannot_be_mined_is_told(weights, tmp_path):
    with pytest.raises(DatasetError, match="sequences of one scene"):
        mine_all(weights, videos(), (NAMES,), 2, 0, tmp_path)
    for nowhere in (np.nan, -50.0):
        hidden = dataclasses.replace(sequence("one"), boxes_xywh=np.full((12, 4), nowhere))
        with pytest.raises(DatasetError, match="one: no box has sides"):
            cut_patches(hidden, 2.0, 32)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_samples_that_cannot_be_read_are_told(weights, mined, content, tmp_path):
    folder = shutil.copytree(mined[0], tmp_path / "mined")
    file = min(folder.iterdir())
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{file.name}: cannot be read; delete it"):
        mine_all(weights, videos(), (), STEPS, 0, folder)
