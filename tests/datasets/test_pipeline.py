"""The pipeline from folders to batches: determinism, resume, pools, errors."""

import contextlib
import itertools
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data.config import DataConfig, Mix
from mixformer_jax.data.pipeline import Shared, batches
from mixformer_jax.data.pool.pool import ImagePool, VideoPool
from mixformer_jax.data.samples import Material, TrackingSamples, contact_sheet
from mixformer_jax.views import CropConfig

CROPS = CropConfig(template_size=32, search_size=64, min_target_pixels=3.0)


def write_video(folder: Path, num_frames: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    background = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (120, 90))
    lines = []
    for number in range(num_frames):
        frame = background.copy()
        x, y = 20 + 4 * number, 30
        frame[y : y + 16, x : x + 24] = 255
        cv2.imwrite(str(folder / f"{number + 1:08d}.jpg"), frame)
        lines.append("nan,nan,nan,nan" if number == 1 else f"{x},{y},24,16")
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    write_video(root / "videos" / "first", 5, 0)
    write_video(root / "videos" / "second", 4, 1)
    rng = np.random.default_rng(2)
    for source, count in (("cats", 3), ("plain", 2)):
        (root / "images" / source).mkdir(parents=True)
        for number in range(count):
            photo = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (120, 90), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(root / "images" / source / f"{number}.jpg"), photo)
            if source == "cats":
                mask = cv2.ellipse(np.zeros((90, 120), np.uint8), (60, 45), (14, 12), 0, 0, 360, 3, -1)
                cv2.imwrite(str(root / "images" / source / f"{number}.png"), mask)
    return root


@pytest.fixture(scope="module")
def samples(root: Path) -> TrackingSamples:
    config = DataConfig(root=str(root), crops=CROPS)
    return TrackingSamples(Material.load(config), config, seed=7)


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_pools_hold_what_the_folders_hold(root):
    videos = VideoPool.load(root, max_target_side=10.0)
    assert [clip.name for clip in videos.clips] == ["first", "second"]
    np.testing.assert_array_equal(videos.clips[0].times, [0, 2, 3, 4])  # frame 1 has no box
    for clip in videos.clips:
        for frame, box in zip(clip.frames, clip.boxes_xywh, strict=True):
            assert np.sqrt(box[2] * box[3]) == pytest.approx(10.0, rel=0.05)
            x, y, w, h = np.round(box).astype(int)
            assert frame[y + 1 : y + h - 1, x + 1 : x + w - 1].mean() > 230
    images = ImagePool.load(root)
    assert len(images.photos) == 5 and len(images.cutouts) == 3
    assert images.backgrounds == (3, 4)


def test_pools_go_through_links(root, tmp_path):
    for kind in ("videos", "images"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "linked").symlink_to(root / kind / "first" if kind == "videos" else root / kind)
    assert [clip.name for clip in VideoPool.load(tmp_path).clips] == ["linked"]
    images = ImagePool.load(tmp_path)
    assert len(images.photos) == 5 and len(images.cutouts) == 3


def test_sequences_are_chosen_by_name(root):
    assert [c.name for c in VideoPool.load(root, include=["second"]).clips] == ["second"]
    assert [c.name for c in VideoPool.load(root, exclude=["second"]).clips] == ["first"]
    with pytest.raises(ValueError, match=r"\['third'\].*'first', 'second'"):
        VideoPool.load(root, exclude=["third"])


def test_samples_have_their_shapes_and_ranges(samples):
    sources = set()
    for index in range(80):
        source, sample, _ = samples.render(index)
        sources.add(source)
        assert sample["templates"].shape == (2, 32, 32, 3) and sample["templates"].dtype == np.uint8
        assert sample["search"].shape == (64, 64, 3) and sample["search"].dtype == np.uint8
        box = sample["box_cxcywh"]
        assert box.shape == (4,) and box.dtype == np.float32
        assert np.all((box[:2] >= 0) & (box[:2] <= 1)) and np.all(box[2:] * 64 >= 3)
    assert sources == {"video", "still", "pasted", "region"}


def test_an_index_is_one_sample_in_any_order_and_thread(samples):
    forwards = [samples.sample(i) for i in range(24)]
    with ThreadPoolExecutor(4) as threads:
        backwards = list(threads.map(samples.sample, reversed(range(24))))[::-1]
    for a, b in zip(forwards, backwards, strict=True):
        assert_equal(a, b)
    assert not np.array_equal(forwards[0]["search"], forwards[1]["search"])


def test_another_seed_is_another_sample(samples):
    other = TrackingSamples(samples._material, samples.config, seed=8)
    assert not np.array_equal(samples.sample(0)["search"], other.sample(0)["search"])


def test_worker_processes_render_one_pool(samples, monkeypatch):
    whole = list(itertools.islice(batches(samples, 3, num_threads=0), 6))
    with contextlib.closing(batches(samples, 3, workers=2)) as stream:
        stream.start()
        assert stream.get_state() == {"step": 0}, "a batch that is made is not yet drawn"
        for expected in whole[:3]:
            assert_equal(next(stream), expected)
    # Where /dev/shm is full, batches come another way.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    with contextlib.closing(batches(samples, 3, workers=1)) as stream:
        stream.set_state({"step": 4})
        stream.start()
        stream.set_state({"step": 3})
        for expected in whole[3:]:
            assert_equal(next(stream), expected)


def test_what_is_shared_is_not_copied(samples):
    shared = Shared(samples)
    sent = pickle.dumps(shared)
    pixels = sum(level.nbytes for levels in samples.pool.pictures for level in levels)
    assert len(sent) < 0.1 * pixels
    received = pickle.loads(sent).open()
    assert not any(level.flags.writeable for levels in received.pool.pictures for level in levels)
    assert_equal(received.sample(5), samples.sample(5))
    clip, cutout = received._material.videos.clips[0], received._material.images.cutouts[0]
    assert received.pool.pictures[0][0] is clip.frames[0] and received.pool.cutouts[0] is cutout, "it is there once"


@given(
    values=st.lists(
        hypothesis.extra.numpy.arrays(
            st.sampled_from([np.uint8, np.float64, np.bool_]),
            hypothesis.extra.numpy.array_shapes(min_dims=0, min_side=0, max_side=5),
        )
    )
)
def test_arrays_come_back(values):
    turned = [value.T[..., ::-1] if value.ndim else value for value in values]
    found = pickle.loads(pickle.dumps(Shared((values, turned)))).open()
    for ours, theirs in zip((*values, *turned), (*found[0], *found[1]), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_resume_by_step_number(samples, num_threads):
    whole = list(itertools.islice(batches(samples, 3, num_threads=0), 5))
    resumed = list(itertools.islice(batches(samples, 3, start_step=3, num_threads=num_threads), 2))
    for a, b in zip(whole[3:], resumed, strict=True):
        assert_equal(a, b)
    assert whole[0]["templates"].shape == (3, 2, 32, 32, 3)
    assert_equal({k: v[1] for k, v in whole[4].items()}, samples.sample(4 * 3 + 1))


def test_unusable_samples_are_drawn_again_and_counted(root):
    # Zooms of up to 3 around targets that are a quarter of the crop: about half fall below 15 px.
    crops = CropConfig(template_size=32, search_size=64, min_target_pixels=13.0)
    config = DataConfig(root=str(root), crops=crops, mix=Mix(video=1.0, still=0.0, pasted=0.0, region=0.0))
    samples = TrackingSamples(Material.load(config), config, seed=0)
    for index in range(40):
        assert np.all(samples.sample(index)["box_cxcywh"][2:] * 64 >= 13.0)
    assert samples.redrawn()["video"] > 5
    hopeless = CropConfig(template_size=32, search_size=64, min_target_pixels=60.0)
    config = DataConfig(root=str(root), crops=hopeless, mix=config.mix)
    with pytest.raises(ValueError, match="sample 0 of seed 0: source 'video' gave no usable sample"):
        TrackingSamples(Material.load(config), config, seed=0).sample(0)


def test_a_source_without_material_is_an_error(root):
    config = DataConfig(root=str(root), crops=CROPS)
    with pytest.raises(ValueError, match="no videos are loaded"):
        TrackingSamples(Material(), config, seed=0)
    with pytest.raises(ValueError, match="must not all be 0"):
        Mix(video=0.0, still=0.0, pasted=0.0, region=0.0)


def test_a_mask_of_another_size_is_named(root, tmp_path):
    folder = tmp_path / "images" / "odd"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((40, 50, 3), np.uint8))
    cv2.imwrite(str(folder / "a.png"), np.zeros((40, 40), np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: shape \(40, 40\)"):
        ImagePool.load(tmp_path)
    with pytest.raises(ValueError, match=r"no NAME\.jpg"):
        ImagePool.load(tmp_path / "images" / "nowhere")


def test_contact_sheet_draws_the_boxes(samples):
    drawn = [samples.sample(i) for i in range(3)]
    sheet = contact_sheet(drawn, names=["a", "b", "c"], columns=2)
    assert sheet.shape == (2 * 66, 2 * (32 + 64 + 4), 3)
    green = (sheet[..., 1].astype(int) - np.maximum(sheet[..., 0], sheet[..., 2])) > 150
    assert green.sum() > 60
    np.testing.assert_array_equal(sheet[:32, :32], drawn[0]["templates"][0])


def test_real_videos_make_samples(shared_data):
    names = ("davis16__libby", "dtb70__MountainBike6")
    mix = Mix(video=1.0, still=0.0, pasted=0.0, region=0.0)
    config = DataConfig(root=str(shared_data / "train"), include=names, crops=CROPS, mix=mix)
    pools = Material.load(config)
    assert pools.videos is not None and sorted(c.name for c in pools.videos.clips) == sorted(names)
    for clip in pools.videos.clips:
        assert np.sqrt(clip.boxes_xywh[:, 2] * clip.boxes_xywh[:, 3]).max() <= 64.5
    batch = next(batches(TrackingSamples(pools, config, seed=0), 8, num_threads=0))
    assert batch["search"].shape == (8, 64, 64, 3) and batch["search"].std() > 10
