"""Pool folders: what is kept, how it is read again, and what is said of broken ones."""

import dataclasses

import cv2
import numpy as np
import pytest

from mixformer_jax.cli import main
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.folder import PoolFolderConfig, is_pool_folder, read_images, read_videos, write_pool_folder
from mixformer_jax.data.pool.pool import ImagePool, VideoPool
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.views import CropConfig


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 256, (9, 12, 3), np.uint8), (240, 180), interpolation=cv2.INTER_CUBIC)
    for name, count in (("long", 12), ("short", 3)):
        (root / "videos" / name).mkdir(parents=True)
        lines = []
        for number in range(count):
            frame = ground.copy()
            x, y = 60 + 4 * number, 50
            frame[y : y + 40, x : x + 50] = 255
            cv2.imwrite(str(root / "videos" / name / f"{number + 1:08d}.png"), frame)
            lines.append(f"{x},{y},50,40")
        (root / "videos" / name / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    for source, number in (("cats", 0), ("cats", 1), ("plain", 2)):
        (root / "images" / source).mkdir(parents=True, exist_ok=True)
        photo = ground[:, ::-1].copy()
        if source == "cats":
            mask = cv2.ellipse(np.zeros((180, 240), np.uint8), (120, 90), (40, 30), 0, 0, 360, 7, -1)
            photo[mask > 0] = (0, 200, 0)
            cv2.imwrite(str(root / "images" / source / f"{number}.png"), mask)
        cv2.imwrite(str(root / "images" / source / f"{number}.jpg"), photo)
    return root


SMALL = PoolFolderConfig(target_side=32.0, context=4.0, max_frames=5, photo_side=120, cutout_side=32.0, quality=90)


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "pool"
    report = write_pool_folder(root, out, SMALL)
    assert (report.clips, report.frames, report.frames_left_out, report.photos, report.cutouts) == (2, 8, 7, 3, 2)
    assert report.nbytes == sum(path.stat().st_size for path in out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["pool"]
    return out


def test_videos_are_thinned_shrunk_and_cut(root, folder):
    assert is_pool_folder(folder) and not is_pool_folder(root)
    whole = VideoPool.load(root, max_target_side=32.0, context=4.0)
    kept = read_videos(folder)
    assert [clip.name for clip in kept.clips] == ["long", "short"]
    np.testing.assert_array_equal(kept.clips[0].times, [0, 3, 5, 8, 11])
    for clip, original in zip(kept.clips, whole.clips, strict=True):
        of_time = {time: row for row, time in enumerate(original.times)}
        for frame, box, time in zip(clip.frames, clip.boxes_xywh, clip.times, strict=True):
            np.testing.assert_allclose(box, original.boxes_xywh[of_time[time]], atol=1e-9)
            assert frame.shape == original.frames[of_time[time]].shape
            assert np.abs(frame.astype(float) - original.frames[of_time[time]]).mean() < 6
    assert [clip.name for clip in read_videos(folder, exclude=["short"]).clips] == ["long"]
    with pytest.raises(ValueError, match="no sequence named"):
        read_videos(folder, exclude=["other"])


def test_photographs_and_cutouts_are_shrunk_with_their_outlines(root, folder):
    whole, kept = ImagePool.load(root), read_images(folder)
    assert kept.backgrounds == whole.backgrounds
    assert [levels[0].shape for levels in kept.photos] == [(90, 120, 3)] * 3
    for cutout, original in zip(kept.cutouts, whole.cutouts, strict=True):
        assert (cutout.photo, cutout.source) == (original.photo, original.source)
        np.testing.assert_allclose(cutout.outline_xy, original.outline_xy / 2)
        low, high = cutout.pasted_outline_xy.min(0), cutout.pasted_outline_xy.max(0)
        x, y, w, h = cv2.boundingRect((cutout.levels[0][..., 3] >= 128).astype(np.uint8))
        np.testing.assert_allclose([*low, *high], [x, y, x + w, y + h], atol=1.0)
        inside = cutout.levels[0][cutout.levels[0][..., 3] == 255][:, :3]
        np.testing.assert_allclose(inside.mean(axis=0), (0, 200, 0), atol=12)


def test_the_host_renders_from_a_pool_folder(folder):
    config = DataConfig(root=str(folder), exclude=("short",), crops=CropConfig(template_size=32, search_size=64))
    samples = TrackingSamples(Material.load(config), config, seed=0)
    assert samples.sample(3)["search"].shape == (64, 64, 3)


def test_a_folder_is_written_once_and_broken_ones_are_named(root, folder, tmp_path):
    with pytest.raises(DatasetError, match="exists"):
        write_pool_folder(root, folder)
    with pytest.raises(DatasetError, match="neither videos"):
        write_pool_folder(tmp_path, tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    shard = broken / "frames_000.bin"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"frames_000\.bin: broken"):
        read_videos(broken)
    shard.unlink()
    with pytest.raises(DatasetError, match=r"frames_000\.bin: cannot be read"):
        read_videos(broken)
    (broken / "pool.npz").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"pool\.npz"):
        read_images(broken)


def test_the_command_writes_a_folder(root, tmp_path, capsys):
    out = tmp_path / "pool"
    assert main(["data", "pool", str(root), str(out), "--max-frames", "4"]) == 0
    assert "7; 8 left out" in capsys.readouterr().out
    assert len(read_videos(out).clips[0]) == 4


def test_the_command_has_the_defaults_of_the_library(root, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(
        "mixformer_jax.data.pool.folder.write_pool_folder",
        lambda root, out, config, threads: found.append(config) or _stop(),
    )
    assert main(["data", "pool", str(root), str(tmp_path / "pool")]) == 2
    assert dataclasses.asdict(found[0]) == dataclasses.asdict(PoolFolderConfig())


def _stop():
    raise DatasetError("enough")
