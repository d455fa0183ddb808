"""Depth as bytes, and readers of data sets with a second stream, over small ones of their layouts."""

import pickle

import cv2
import numpy as np
import pytest

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.packing import PackConfig, pack_frame
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.media.images import SourceError, depth_bytes, read_depth
from tests.depth_scenes import FRAMES, render, write_depthtrack


@pytest.fixture(scope="module")
def depthtrack(tmp_path_factory):
    return write_depthtrack(tmp_path_factory.mktemp("depthtrack"), (0, 1))


def test_depth_becomes_bytes_of_one_scale():
    depth = np.array([0, 1, 2200, 5000, 10_000, 65_535], np.uint16)
    assert depth_bytes(depth).tolist() == [0, 1, 57, 128, 255, 255]
    everything = depth_bytes(np.arange(2**16, dtype=np.uint16)).astype(int)
    assert (np.diff(everything[1:]) >= 0).all() and everything[1:].min() == 1


def test_depthtrack(depthtrack):
    dataset = open_dataset("depthtrack", depthtrack)
    assert list(dataset.keys) == ["scene0", "scene1"]
    sequence = pickle.loads(pickle.dumps(dataset[1]))
    frame, shot = sequence.frame(3), render(3, 1)
    assert len(sequence) == FRAMES and frame.shape == (*shot.colour.shape[:2], 6)
    np.testing.assert_array_equal(frame[..., 3:], shot.frame[..., 3:])
    assert np.abs(frame[..., :3].astype(int) - shot.colour).mean() < 25  # JPEG of noise
    np.testing.assert_array_equal(sequence.boxes_xywh[3], shot.box_xywh)


def test_depth_in_metres_is_refused(tmp_path):
    path = tmp_path / "metres.tiff"
    cv2.imwrite(str(path), np.full((4, 5, 3), 2.2, np.float32))
    with pytest.raises(SourceError, match=r"metres\.tiff: depth in float32; expected millimetres in 16 bits"):
        read_depth(path)


def test_thermal_images_of_16_bits_are_no_millimetres(tmp_path):
    root = write_depthtrack(tmp_path, frames=2)
    raw = np.full((72, 96), 0x5A00, np.uint16)
    for index in (1, 2):
        cv2.imwrite(str(root / f"scene0/depth/{index:08d}.png"), raw)
    (root / "scene0/sequence").write_text("channels.color=color/%08d.jpg\nchannels.ir=depth/%08d.png\n")
    (sequence,) = open_dataset("vot_rgbd", root)
    assert (sequence.frame(0)[..., 3:] == 0x5A).all()


def test_depth_of_another_size_or_missing(tmp_path):
    root = write_depthtrack(tmp_path, frames=3)
    cv2.imwrite(str(root / "scene0/depth/00000002.png"), np.zeros((5, 7), np.uint16))
    (sequence,) = open_dataset("depthtrack", root)
    sequence.frame(0)
    with pytest.raises(SourceError, match=r"depth/00000002\.png: 7 x 5 pixels; .*color/00000002\.jpg has 96 x 72"):
        sequence.frame(1)
    (root / "scene0/depth/00000003.png").unlink()
    with pytest.raises(DatasetError, match=r"scene0/depth: 2 images; expected 3, one for every frame in .*color"):
        list(open_dataset("depthtrack", root))
    for path in (root / "scene0/depth").iterdir():
        path.unlink()
    (sequence,) = open_dataset("depthtrack", root)
    with pytest.raises(SourceError, match=r"scene0/depth: no images there; expected the frames 00000001\.png"):
        sequence.require_frames()


@pytest.mark.parametrize(("reader", "names"), [("lasher", "v{:06d}"), ("rgbt234", "{:05d}v")])
def test_thermal(tmp_path, reader, names):
    folder = tmp_path / "2girl"
    shots = [render(index) for index in range(3)]
    for part, letter in (("visible", "v"), ("infrared", "i")):
        (folder / part).mkdir(parents=True)
        for index, shot in enumerate(shots):
            image = shot.colour if part == "visible" else shot.frame[..., 3:]
            cv2.imwrite(str(folder / part / (names.format(index).replace("v", letter) + ".png")), image[..., ::-1])
    for number, file in enumerate(("init.txt", "visible.txt")):
        (folder / file).write_text("".join(f"{index},{number},10,20\n" for index in range(3)))
    (folder / "infrared.txt").write_text("".join(f"{index},2,10,20\n" for index in range(3)))
    (sequence,) = open_dataset(reader, tmp_path)
    np.testing.assert_array_equal(sequence.frame(2), shots[2].frame)
    assert sequence.boxes_xywh[0].tolist() == [0, 0 if reader == "lasher" else 1, 10, 20]
    if reader == "lasher":
        assert sequence.thermal_xywh is None and sequence.faults == ()
    else:
        assert sequence.thermal_xywh[1].tolist() == [1, 2, 10, 20]
    # One thermal image is missing, and another one is too many.
    gone, *_, last = sorted((folder / "infrared").iterdir())
    last.with_name(last.name.replace("2", "3")).write_bytes(last.read_bytes())
    gone.unlink()
    assert open_dataset(reader, tmp_path)[0].faults == (), "numbered from another number on"
    last.rename(last.with_name(last.name.replace("2", "7")))
    (fault,) = open_dataset(reader, tmp_path)[0].faults
    assert "paired with" in fault.what and fault.where.endswith("infrared")


def test_vot_rgbd(tmp_path):
    root = write_depthtrack(tmp_path, frames=4)
    (root / "list.txt").write_text("scene0\n")
    channels = "channels.color=color/%08d.jpg\nchannels.depth=depth/%08d.png\n"
    (root / "scene0/sequence").write_text(f"{channels}fps=30\nlength=4\n")
    (both,), (colour,) = open_dataset("vot_rgbd", root), open_dataset("vot", root)
    np.testing.assert_array_equal(both.frame(1)[..., 3:], render(1).frame[..., 3:])
    np.testing.assert_array_equal(both.frame(1)[..., :3], colour.frame(1))
    # VOT-D2022: depth alone.
    (root / "scene0/sequence").write_text("channels.depth=depth/%08d.png\n")
    for path in (root / "scene0/color").iterdir():
        path.unlink()
    (alone,) = open_dataset("vot_rgbd", root)
    np.testing.assert_array_equal(alone.frame(1), read_depth(root / "scene0/depth/00000002.png"))


def samples(streams, **datasets):
    config = DataConfig.from_dict(
        {
            "datasets": {name: {"root": str(root)} for name, root in datasets.items()},
            "crops": {"streams": streams, "centre_jitter": 2.0},
            "augment": {**AugmentConfig().to_dict(), "occluder_probability": 0.0},
        }
    )
    return TrackingSamples(Material.load(config), config, seed=0)


def test_samples_carry_both_streams_and_disturb_colour_alone(depthtrack):
    both, colour, second = (samples(streams, depthtrack=depthtrack) for streams in ("both", "colour", "second"))
    for index in range(3):
        whole, plain, alone = (kind.sample(index) for kind in (both, colour, second))
        assert whole["templates"].shape == (2, 64, 64, 6) and whole["search"].shape == (128, 128, 6)
        for name in ("templates", "search"):
            np.testing.assert_array_equal(whole[name][..., :3], plain[name])
            np.testing.assert_array_equal(whole[name][..., 3:], alone[name])
            assert (np.ptp(alone[name].astype(int), axis=-1) == 0).all()
    # The target is nearer than the wall: its depth lies where the colour's box is.
    cx, cy, _w, _h = alone["box_cxcywh"] * 128
    assert 0 < alone["search"][int(cy), int(cx), 0] < 60


def test_colour_alone_has_nothing_measured(tmp_path):
    folder = write_depthtrack(tmp_path) / "scene0"
    for path in sorted((folder / "color").iterdir()):
        path.rename(folder / path.name)
    assert not samples("both", folder=tmp_path).sample(0)["search"][..., 3:].any()
    with pytest.raises(DatasetError, match="scene0 has no second stream"):
        samples("second", folder=tmp_path).sample(0)


def test_frames_with_a_second_stream_are_not_packed():
    with pytest.raises(DatasetError, match="are not packed"):
        pack_frame(render(0).frame, np.array([[20.0, 24, 15, 15]]), PackConfig())
