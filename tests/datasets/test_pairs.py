"""Which frames make a sample of a data set on disk, and what comes of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data.augment import AugmentConfig, Random, disturb
from mixformer_jax.data.pairs import (
    SequencePairs,
    WeightedDataset,
    absent_frames,
    centre_box,
    draw_frames,
    usable_frames,
)
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.views import CropConfig, UnusableSampleError

CROPS = CropConfig(template_size=32, search_size=64, search_factor=4.5, centre_jitter=4.5, scale_jitter=0.5)
PLAIN = AugmentConfig(**dict.fromkeys(vars(AugmentConfig()), 0.0))
marks = st.lists(st.booleans(), min_size=2, max_size=60).map(np.array)


@given(marks, st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**32))
def test_causal_frames(usable, interval, num_online, seed):
    try:
        (template, *online), search = draw_frames(
            np.random.default_rng(seed), "causal", usable, usable, interval, num_online
        )
    except UnusableSampleError:
        frames = np.flatnonzero(usable)
        # Where the target is not seen to the end, the last frame that shows it may be drawn, each time.
        assert len(frames) < 3 or num_online > 0 or not usable[-1]
        return
    assert len(online) == num_online
    assert usable[[template, search, *online]].all()
    assert all(frame < template for frame in online) and template < search
    seen = np.flatnonzero(usable)
    # The interval only grows where nothing lies within it.
    if (np.diff(seen) < interval).all():
        assert search - template < interval and all(template - frame <= interval for frame in online)


@given(marks, st.integers(1, 40), st.integers(0, 3), st.integers(0, 2**32), st.sampled_from(["trident", "trident_pro"]))
def test_trident_frames(usable, interval, num_online, seed, scheme):
    known = usable | (np.arange(len(usable)) % 2 == 0)
    rng = np.random.default_rng(seed)
    if not usable.any():
        return
    try:
        (template, *online), search = draw_frames(rng, scheme, usable, known, interval, num_online)
    except UnusableSampleError:
        return
    assert usable[template] and usable[search]
    allowed = known if scheme == "trident_pro" else usable
    for frame in online:
        assert allowed[frame]
        if template >= search:
            assert search <= frame < search + interval
        else:
            assert search - interval <= frame < search


def test_frames_are_drawn_evenly():
    rng = np.random.default_rng(0)
    usable = np.ones(30, bool)
    usable[10:15] = False
    counts = Counter(draw_frames(rng, "causal", usable, usable, 5, 1)[0][0] for _ in range(5000))
    frames = set(np.flatnonzero(usable).tolist()) - {0, 29}
    assert set(counts) <= frames
    free = [frame for frame in frames if not 8 <= frame <= 20 and 2 <= frame <= 26]
    assert np.std([counts[frame] for frame in free]) < 4 * np.sqrt(5000 / 25)


def white_square(index):
    frame = np.zeros((90, 120, 3), np.uint8)
    frame[30:50, 40 + index : 60 + index] = 255
    return frame


def sequence(name="moving", count=30, hidden=(), is_still=False):
    boxes_xywh = np.array([[40.0 + i, 30.0, 20.0, 20.0] for i in range(count)])
    visible = np.ones(count, bool)
    visible[list(hidden)] = False
    return TrackingSequence(name, boxes_xywh, white_square, 30.0, Path("/nowhere"), visible, is_still=is_still)


def dataset(*sequences):
    by_name = {each.name: each for each in sequences}
    return Dataset("made", Path("/nowhere"), list(by_name), by_name.__getitem__, kept=0)


def pairs(*sources, crops=CROPS, augment=PLAIN, **options):
    return SequencePairs(
        [WeightedDataset(f"set{i}", each, 1.0 + i) for i, each in enumerate(sources)], crops, augment, **options
    )


def assert_white(pixels, box_cxcywh):
    """The box is where the white square is."""
    size = pixels.shape[0]
    cx, cy, w, h = (float(value) * size for value in box_cxcywh)
    rows, columns = np.nonzero(pixels[..., 0] > 127)
    low, high = np.maximum([cx - w / 2, cy - h / 2], 0), np.minimum([cx + w / 2, cy + h / 2], size)
    if len(rows):
        np.testing.assert_allclose([columns.min(), rows.min()], low, atol=2.0)
        np.testing.assert_allclose([columns.max() + 1, rows.max() + 1], high, atol=2.0)


@pytest.mark.parametrize(
    "augment",
    [PLAIN, AugmentConfig(**{**vars(PLAIN), "flip_probability": 0.5, "separate_flip_probability": 0.5, "aspect": 0.2})],
)
def test_boxes_fit_their_pixels(augment):
    source = pairs(dataset(sequence(hidden=range(5, 9))), augment=augment)
    rng = np.random.default_rng(0)
    centres = []
    for _ in range(60):
        try:
            _, _, sample = source.sample(rng)
        except UnusableSampleError:  # the rounded corner of a crop can leave the target's centre just outside
            continue
        assert_white(sample["search"], sample["box_cxcywh"])
        for template in sample["templates"]:
            assert_white(template, [0.5, 0.5, 0.5, 0.5])
        centres.append(sample["box_cxcywh"][:2])
    assert "label" not in sample
    # The official jitter takes the target's centre anywhere in the crop.
    assert np.min(centres) < 0.1 and np.max(centres) > 0.9


def test_draws_follow_ratios_and_leave_out_what_is_short():
    short = sequence("short", 19)
    first, second = dataset(sequence("a"), sequence("b"), short), dataset(sequence("c"))
    source = pairs(first, second)
    rng = np.random.default_rng(0)
    names = Counter(source.draw(rng).search.sequence.name for _ in range(900))
    assert set(names) == {"a", "b", "c"}
    assert abs(names["c"] - 600) < 60 and abs(names["a"] - 150) < 50  # ratios 1 and 2
    with pytest.raises(UnusableSampleError, match="none of 100 drawn sequences has 20 frames"):
        pairs(dataset(short)).draw(rng)


def test_a_still_is_template_and_search():
    still = sequence("still", 3, is_still=True)
    draw = pairs(dataset(still)).draw(np.random.default_rng(1))
    assert {shot.frame for shot in (*draw.templates, draw.search)} == {draw.search.frame}
    assert str(
        draw
    ) == f"set0: templates still frames {draw.search.frame}, {draw.search.frame}; search still frame " + str(
        draw.search.frame
    )


def test_labels():
    hides, never = sequence("hides", hidden=range(20, 25)), sequence("never")
    source = pairs(dataset(hides), dataset(never), scheme="trident_pro", positive_share=0.5)
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(300):
        draw = source.draw(rng)
        ours, theirs = draw.templates[0].sequence.name, draw.search.sequence.name
        seen[draw.label, ours, theirs, draw.search.has_box] += 1
        sample = source.render(rng, draw) if draw.label else None
        if sample is not None:
            assert sample["label"].shape == () and sample["label"].dtype == np.float32
    assert set(seen) == {
        (1.0, "hides", "hides", True),
        (1.0, "never", "never", True),
        (0.0, "hides", "hides", False),  # a frame in which the target is absent, around its middle
        (0.0, "never", "hides", True),  # another sequence
    }
    assert abs(sum(count for key, count in seen.items() if key[0]) - 150) < 40
    with pytest.raises(UnusableSampleError, match="no other sequence than never"):
        for _ in range(50):
            pairs(dataset(never), scheme="trident", positive_share=0.5).draw(rng)


def test_negative_samples_have_their_label():
    source = pairs(dataset(sequence("hides", hidden=range(20, 25))), scheme="trident", positive_share=1e-9)
    _, _, sample = source.sample(np.random.default_rng(0))
    assert sample["label"] == 0
    box_xywh = centre_box((90, 120))
    np.testing.assert_array_equal(box_xywh, [52, 39, 15, 11])
    assert 0 < sample["box_cxcywh"][2] < 1


def test_small_targets_are_not_absent():
    boxes_xywh = np.array([[40.0, 30.0, 20.0, 20.0]] * 30)
    boxes_xywh[::2, 2:] = 8.0
    boxes_xywh[29] = np.nan
    small = TrackingSequence("shrinks", boxes_xywh, white_square, 30.0, Path("/nowhere"))
    np.testing.assert_array_equal(absent_frames(small), [29])
    source = SequencePairs(
        [WeightedDataset("set", dataset(small), 1.0, min_side=10.0)], CROPS, PLAIN, "trident_pro", positive_share=0.5
    )
    rng = np.random.default_rng(0)
    draws = [source.draw(rng) for _ in range(60)]
    assert {draw.search.frame for draw in draws if not draw.label} == {29}
    assert {shot.frame % 2 for draw in draws if draw.label for shot in (*draw.templates, draw.search)} == {1}


def test_negative_samples_of_two_data_sets_with_sequences_of_one_name():
    def coloured(channel):
        def frame(index):
            pixels = np.zeros((90, 120, 3), np.uint8)
            pixels[..., channel] = 200
            return pixels

        return frame

    boxes_xywh = np.array([[50.0, 35.0, 20.0, 20.0]] * 24)
    sets = [
        dataset(TrackingSequence("car", boxes_xywh, coloured(channel), 30.0, Path(f"/{name}")))
        for channel, name in enumerate(("first", "second"))
    ]
    source = pairs(*sets, scheme="trident", positive_share=0.2)
    rng = np.random.default_rng(0)
    same_frame = 0
    for _ in range(150):
        draw = source.draw(rng)
        try:
            sample = source.render(rng, draw)
        except UnusableSampleError:  # a crop beside the frame
            continue
        shown = {int(sample[name].reshape(-1, 3).max(axis=0).argmax()) for name in ("templates", "search")}
        assert len(shown) == (1 if draw.label else 2)
        if not draw.label:
            same_frame += draw.search.frame in {shot.frame for shot in draw.templates}
            assert f"in {draw.search.sequence.root}" in str(draw)
    assert same_frame > 2


def test_a_data_set_that_is_given_twice_is_no_negative_of_itself(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    boxes_xywh = np.array([[50.0, 35.0, 20.0, 20.0]] * 24)
    twice = [
        dataset(TrackingSequence("car", boxes_xywh, white_square, 30.0, tmp_path / name)) for name in ("real", "link")
    ]
    rng = np.random.default_rng(0)
    with pytest.raises(UnusableSampleError, match="no other sequence than car"):
        for _ in range(20):
            pairs(*twice, scheme="trident", positive_share=0.5).draw(rng)


def test_usable_frames():
    boxes_xywh = np.array([[0, 0, 5, 5], [0, 0, 0, 5], [np.nan] * 4, [0, 0, 9, 4]], np.float64)
    visible = np.array([False, True, True, True])
    made = TrackingSequence("made", boxes_xywh, white_square, 30.0, Path("/nowhere"), visible)
    np.testing.assert_array_equal(usable_frames(made), [False, False, False, True])
    np.testing.assert_array_equal(usable_frames(made, hidden_too=True), [True, False, False, True])
    np.testing.assert_array_equal(usable_frames(made, 4.5, hidden_too=True), [True, False, False, False])


def test_each_crop_is_flipped_and_lit_by_itself():
    def half_white(_index):
        picture = np.zeros((90, 120, 3), np.uint8)
        picture[:, 60:] = 128
        return picture

    boxes_xywh = np.tile([50.0, 35.0, 20.0, 20.0], (40, 1))
    still_target = TrackingSequence("made", boxes_xywh, half_white, 30.0, Path("/nowhere"))
    augment = AugmentConfig(**{**vars(PLAIN), "separate_flip_probability": 0.5, "separate_gain": 0.2})
    source = pairs(dataset(still_target), augment=augment)
    rng = np.random.default_rng(0)
    flips, levels = Counter(), []
    for _ in range(80):
        templates = source.render(rng, source.draw(rng))["templates"]
        flips[tuple(bool(template[0, 0, 0]) for template in templates)] += 1
        lit, _ = disturb(Random(rng), templates, templates[0], augment)
        levels.append([int(template.max()) for template in lit])
    assert set(flips) == {(a, b) for a in (False, True) for b in (False, True)}
    first, second = np.array(levels).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.4
    assert min(levels) >= [round(0.8 * 128) - 1] * 2 and first.max() - first.min() > 30


def test_official_disturbances():
    official = AugmentConfig.official()
    assert (official.flip_probability, official.separate_flip_probability) == (0.5, 0.5)
    assert (official.separate_gain, official.grey_probability) == (0.2, 0.05)
    rest = {name: value for name, value in vars(official).items() if value and not name.endswith("flip_probability")}
    assert set(rest) == {"separate_gain", "grey_probability"}
