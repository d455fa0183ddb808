"""Packed shards: the same samples, atomic and resumable, faults in their place."""

import json
import pickle
import sys
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, DatasetConfig
from mixformer_jax.data.packing import PackConfig, pack
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.media.images import SourceError
from mixformer_jax.typed_settings import ConfigError
from mixformer_jax.views import CropConfig

COUNT = 24
CROPS = CropConfig(template_size=32, search_size=64, search_factor=4.5, centre_jitter=4.5, scale_jitter=0.5)


def write_got10k(root, names, count=COUNT, absent=(20, 21)):
    rng = np.random.default_rng(1)
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        background = cv2.resize(rng.integers(0, 256, (9, 16, 3), np.uint8), (160, 90))
        lines = []
        for number in range(count):
            frame = background.copy()
            x, y = 20 + 4 * number, 30
            frame[y : y + 24, x : x + 30] = rng.integers(100, 255, (24, 30, 3), np.uint8)
            cv2.imwrite(str(folder / f"{number + 1:08d}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 95])
            lines.append("0,0,0,0" if number in absent else f"{x},{y},30,24")
        (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")
        (folder / "absence.label").write_text("\n".join(str(int(i in absent)) for i in range(count)) + "\n")
    (root / "list.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_got10k(tmp_path_factory.mktemp("got10k"), ["one", "two", "three"])


def samples(root, reader, seed=3, **changes):
    config = DataConfig(
        datasets={"got10k": DatasetConfig(str(root), reader=reader)},
        crops=CROPS,
        augment=AugmentConfig.official(),
        max_interval=50,
        **changes,
    )
    return TrackingSamples(Material.load(config), config, seed)


@pytest.mark.parametrize("labels", [{}, {"frames": "trident_pro", "positive_share": 0.5}])
def test_lossless_shards_give_the_samples_of_the_folders(root, tmp_path, labels):
    report = pack(open_dataset("got10k", root), tmp_path / "out", PackConfig(lossless=True, frames_per_shard=30))
    assert (report.frames, report.kept_shards, report.faults) == (3 * COUNT, 0, ())
    assert len(json.loads((tmp_path / "out" / "packing.json").read_text())["shards"]) == 2
    ours, folders = samples(tmp_path / "out", "packed", **labels), samples(root, "got10k", **labels)
    for index in range(40):
        assert ours.describe(index) == folders.describe(index)
        packed, whole = ours.sample(index), folders.sample(index)
        assert packed.keys() == whole.keys()
        for name in whole:
            np.testing.assert_array_equal(packed[name], whole[name], err_msg=f"{name} of {index}")
    assert ours.redrawn() == folders.redrawn()


def test_jpeg_shards_differ_by_jpeg_and_resampling(root, tmp_path):
    pack(open_dataset("got10k", root), tmp_path / "out", PackConfig(target_side=20.0))
    ours, folders = samples(tmp_path / "out", "packed"), samples(root, "got10k")
    for index in range(30):
        packed, whole = ours.sample(index), folders.sample(index)
        if not 0.03 < whole["box_cxcywh"][:2].min() <= whole["box_cxcywh"][:2].max() < 0.97:
            continue  # at the edge of a crop half a pixel decides whether the sample is drawn again
        # Half a pixel of what was packed is at most this share of a crop.
        np.testing.assert_allclose(packed["box_cxcywh"], whole["box_cxcywh"], atol=0.03)
        blurred = [cv2.GaussianBlur(each["search"], (0, 0), 3).astype(float) for each in (packed, whole)]
        assert np.abs(blurred[0] - blurred[1]).mean() < 8


def test_packing_goes_on_where_it_stopped(root, tmp_path):
    dataset, config = open_dataset("got10k", root), PackConfig(frames_per_shard=10)
    pack(dataset, tmp_path, config)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(whole) == 1 + 2 * 3 and not [name for name in whole if name.startswith(".")]
    # As a kill leaves it: the second shard half written, the third not begun.
    (tmp_path / "shard-00001.json").unlink()
    (tmp_path / "shard-00001.array_record").rename(tmp_path / ".shard-00001.array_record.part")
    (tmp_path / "shard-00002.json").unlink()
    with pytest.raises(DatasetError, match="2 of 3 shards are missing; pack again"):
        open_dataset("packed", tmp_path)
    report = pack(dataset, tmp_path, config)
    assert (report.frames, report.kept_shards) == (2 * COUNT, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole
    with pytest.raises(DatasetError, match=r"holds something else.*quality: 90 there, 50 now"):
        pack(dataset, tmp_path, PackConfig(frames_per_shard=10, quality=50))
    for name in ("shard-00001.json", "packing.json"):
        (tmp_path / name).write_text("[[1")
        with pytest.raises(DatasetError, match=rf"{name}: damaged"):
            open_dataset("packed", tmp_path)
    with pytest.raises(DatasetError, match=r"packing\.json: damaged"):
        pack(dataset, tmp_path, config)


@pytest.mark.parametrize("others", [["one", "two", "four"], ["three", "two", "one"]])
def test_packing_does_not_go_on_with_other_sequences(root, tmp_path, others):
    write_got10k(tmp_path / "in", ["one", "two", "three", "four"])
    (tmp_path / "first.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "other.txt").write_text("\n".join(others) + "\n")
    first, other = (
        open_dataset("got10k", tmp_path / "in", list_file=tmp_path / f"{name}.txt") for name in ("first", "other")
    )
    assert len(first) == len(other) == 3
    out, config = tmp_path / "out", PackConfig(frames_per_shard=10)
    pack(first, out, config)
    (out / "shard-00002.json").unlink()
    there = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DatasetError, match=r"holds something else.*another split or list"):
        pack(other, out, config)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == there
    assert pack(first, out, config).frames == COUNT


def test_negative_samples_of_hidden_targets_show_the_middle_of_the_frame(tmp_path):
    # The target is in the far corner, has a box, and is marked absent: the middle must be packed, too.
    folder = tmp_path / "in" / "hides"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        frame = cv2.resize(rng.integers(40, 256, (18, 32, 3), np.uint8), (640, 360))
        cv2.imwrite(str(folder / f"{number + 1:08d}.jpg"), frame)
    (folder / "groundtruth.txt").write_text("600,330,8,8\n" * COUNT)
    (folder / "absence.label").write_text("\n".join(str(int(i >= 20)) for i in range(COUNT)) + "\n")
    (tmp_path / "in" / "list.txt").write_text("hides\n")
    pack(open_dataset("got10k", tmp_path / "in"), tmp_path / "out", PackConfig(lossless=True))
    labels = {"frames": "trident_pro", "positive_share": 0.2}
    ours, folders = samples(tmp_path / "out", "packed", **labels), samples(tmp_path / "in", "got10k", **labels)
    negatives = 0
    for index in range(12):
        packed, whole = ours.sample(index), folders.sample(index)
        negatives += packed["label"] == 0
        for name in whole:
            np.testing.assert_array_equal(packed[name], whole[name], err_msg=f"{name} of {index}")
    assert negatives > 3


def test_what_cannot_be_read_stands_in_its_place(tmp_path):
    root = write_got10k(tmp_path / "in", ["good", "torn", "short"])
    (root / "torn" / "00000003.jpg").write_bytes(b"no image")
    (root / "short" / "groundtruth.txt").write_text("1,2,3,4\n")
    report = pack(open_dataset("got10k", root), tmp_path / "out", PackConfig(lossless=True))
    assert len(report.faults) == 2 and "00000003.jpg" in report.faults[0] and "1 boxes for 24" in report.faults[1]
    packed = open_dataset("packed", tmp_path / "out")
    assert [len(packed[0]), len(packed[1])] == [COUNT, COUNT]
    with pytest.raises(SourceError, match=r"torn frame 2: could not be read when it was packed.*00000003\.jpg"):
        packed[1].frame(2)
    with pytest.raises(DatasetError, match="1 boxes for 24 frames"):
        packed[2]
    # Training meets the same faults, and replaces them by the same samples.
    ours, folders = samples(tmp_path / "out", "packed"), samples(root, "got10k")
    met = 0
    for index in range(30):
        ours_rendered, folders_rendered = ours.render(index), folders.render(index)
        met += len(folders_rendered.faults)
        assert len(ours_rendered.faults) == len(folders_rendered.faults)
        np.testing.assert_array_equal(ours_rendered.sample["search"], folders_rendered.sample["search"])
    assert met > 5


def test_a_packed_frame_is_shown_as_far_as_it_is_known(root, tmp_path):
    pack(open_dataset("got10k", root), tmp_path, PackConfig(lossless=True))
    packed, whole = open_dataset("packed", tmp_path)[0], open_dataset("got10k", root)[0]
    assert packed.name == whole.name and packed.fps == whole.fps
    np.testing.assert_array_equal(packed.visible, whole.visible)
    np.testing.assert_array_equal(packed.frame(5), whole.frame(5))


def test_not_a_packed_data_set(root, tmp_path):
    with pytest.raises(DatasetError, match=r"no packing\.json"):
        open_dataset("packed", root)
    with pytest.raises(ConfigError, match="quality is 0; expected a whole number, at least 1 and at most 100"):
        PackConfig(quality=0)


def test_packed_in_a_bucket(root, tmp_path, monkeypatch):
    """The samples of the folder; shards are copied once, when they are first read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack(open_dataset("got10k", root), tmp_path / "out", PackConfig(lossless=True, frames_per_shard=30))
    bucket, address = fsspec.filesystem("memory"), "memory://bucket/packed"
    bucket.put(str(tmp_path / "out"), "/bucket/packed", recursive=True)
    dataset = open_dataset("packed", address)
    assert dataset.keys == open_dataset("packed", tmp_path / "out").keys
    copies = [path.name for path in (tmp_path / "cache").rglob("shard*.array_record")]
    assert copies == [] and len(list((tmp_path / "cache").rglob("shard*.json"))) == 2
    here, there = samples(tmp_path / "out", "packed"), samples(address, "packed")
    for index in range(4):
        ours, theirs = here.render(index).sample, there.render(index).sample
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    # A config of the published layout, of which the root alone is changed.
    config = DataConfig(datasets={"got10k": DatasetConfig(address, split="vottrain")}, augment=AugmentConfig.official())
    assert Material.load(config).datasets["got10k"].name == "packed"
    # Worker processes get readers by pickle.
    pickle.loads(pickle.dumps(dataset))[2].frame(0)
    assert len(list((tmp_path / "cache").rglob("shard*.array_record"))) == 2
    bucket.rm("/bucket/packed/shard-00000.array_record")
    assert open_dataset("packed", address)[0].frame(0).shape == (90, 160, 3), "it is here already"
    # Packed anew, it is another version.
    pack(open_dataset("got10k", root), tmp_path / "new", PackConfig(lossless=True, frames_per_shard=99))
    bucket.put(str(tmp_path / "new" / "packing.json"), "/bucket/packed/packing.json")
    with pytest.raises(DatasetError, match=r"memory://bucket/packed/shard-00000.array_record: no such file"):
        open_dataset("packed", address)[0]


@pytest.mark.parametrize(
    ("name", "address", "complaint"),
    [
        ("packed", "memory://none", r"memory://none/packing.json: no such file"),
        ("packed", "s3://bucket/x", r"s3://bucket/x: nothing here opens s3:// addresses: pip install s3fs"),
        ("packed", "abc://x", r"abc://x: Protocol not known"),
        ("got10k", "gs://bucket/x", r"got10k is read from folders of this machine; pack it"),
    ],
)
def test_addresses_that_cannot_work(name, address, complaint, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DatasetError, match=complaint):
        open_dataset(name, address)


def test_an_address_is_no_place_to_write_to(root, capsys):
    address = "gs://bucket/packed"
    with pytest.raises(DatasetError, match="an address; pack into a folder of this machine"):
        pack(open_dataset("got10k", root), Path(address), PackConfig())
    assert cli.main(["train", "--config", "mixvit_b", "--out", address]) == 2
    assert "a run needs a folder that all its hosts see" in capsys.readouterr().err
    assert not Path("gs:").exists()
