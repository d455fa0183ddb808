import contextlib
import errno
import resource

import cv2
import numpy as np
import pytest

from mixformer_jax.data.packing import PackConfig, pack
from mixformer_jax.data.pool.folder import write_pool_folder
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.files import Part, is_taken, part_path, whole_file, write_atomically
from mixformer_jax.media.video import OutputError, VideoWriter
from mixformer_jax.tracking.result_files import ResultFiles
from mixformer_jax.tracking.tracker import Tracked


@contextlib.contextmanager
def full_disk(size=2000):
    """The system refuses what would make a file larger than that, in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["n" * 5000, b"n" * 5000])
def test_a_full_disk_leaves_what_was_there_and_names_the_file(tmp_path, content):
    path = tmp_path / "car.txt"
    write_atomically(path, "old\n")
    with full_disk(), pytest.raises(OSError, match=r"car\.txt") as caught:
        write_atomically(path, content)
    assert caught.value.errno == errno.EFBIG and f"'{path}'" in str(caught.value)
    assert _names(tmp_path) == ["car.txt"] and path.read_text() == "old\n"
    write_atomically(path, "new\n")
    assert _names(tmp_path) == ["car.txt"] and path.read_text() == "new\n"


def test_a_place_that_cannot_be_written_has_its_own_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/gone/car\.txt'"):
        write_atomically(tmp_path / "gone" / "car.txt", "x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError, match=r"taken'"):
        write_atomically(tmp_path / "taken", "x")
    assert _names(tmp_path) == ["taken"]


def test_whatever_ends_a_write_leaves_nothing(tmp_path):
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), whole_file(tmp_path / "car.txt") as temporary:
            temporary.write_text("half")
            raise error
    other = FileNotFoundError(errno.ENOENT, "No such file or directory", "frame.jpg")
    with pytest.raises(FileNotFoundError, match=r"frame\.jpg"), whole_file(tmp_path / "car.txt") as temporary:
        temporary.write_text("half")
        raise other
    assert _names(tmp_path) == []


def test_boxes_on_a_full_disk_keep_their_whole_lines(tmp_path):
    boxes_xywh = np.full((2, 4), 10.125)
    with full_disk(), pytest.raises(OSError, match=r"boxes_1\.txt"), ResultFiles(tmp_path / "boxes.txt", 2) as files:
        for _ in range(200):
            files.write(Tracked(boxes_xywh, np.array([0.5, 0.5]), np.array([False, True])))
    assert _names(tmp_path) == ["boxes_1.txt", "boxes_2.txt"]
    lines = (tmp_path / "boxes_1.txt").read_text().splitlines(keepends=True)
    assert len(lines) > 40 and set(lines) == {"10.125,10.125,10.125,10.125,0.5000,0\n"}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_video_on_a_full_disk_is_named(tmp_path, each_library, name):
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with full_disk(), pytest.raises(OutputError, match=name), VideoWriter(tmp_path / name, 30.0, (48, 64)) as writer:
        for _ in range(20):
            writer.write(noise)
    assert not [path for path in _names(tmp_path) if path.startswith(".")]


def _noise_sequence(root):
    folder = root / "car"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    for number in (1, 2, 3):
        cv2.imwrite(str(folder / f"{number:08d}.jpg"), noise)
    (folder / "groundtruth.txt").write_text("20,10,20,20\n" * 3)


def test_packing_on_a_full_disk_leaves_no_half_shard(tmp_path):
    _noise_sequence(tmp_path / "data")
    out = tmp_path / "out"
    dataset = open_dataset("folder", tmp_path / "data")
    with full_disk(), pytest.raises(OSError, match=r"00000\.array_record: cannot be written"):
        pack(dataset, out, PackConfig())
    assert _names(out) == ["packing.json"]
    assert pack(dataset, out, PackConfig()).frames == 3


def test_a_pool_on_a_full_disk_leaves_nothing(tmp_path):
    _noise_sequence(tmp_path / "data" / "videos")
    with full_disk(), pytest.raises(OSError, match=r"/pool'"):
        write_pool_folder(tmp_path / "data", tmp_path / "pool", num_threads=1)
    assert _names(tmp_path) == ["data"]


def test_a_part_becomes_the_file(tmp_path):
    for name, part_name in {"a.txt": "a.txt.part", "a.mp4": "a.part.mp4", "a.AVI": "a.part.AVI", "a": "a.part"}.items():
        path = tmp_path / name
        part = Part(path, overwrite=False)
        assert part.path == part_path(path) == tmp_path / part_name and is_taken(path)
        part.path.write_text("content")
        part.finish()
        assert path.read_text() == "content" and not part.path.exists() and is_taken(path)


def test_a_file_belongs_to_one_run(tmp_path):
    path = tmp_path / "a.txt"
    part = Part(path, overwrite=False)
    with pytest.raises(FileExistsError, match=r"a\.txt\.part.*another run is writing a\.txt, or was killed"):
        Part(path, overwrite=False)
    part.path.write_text("first")
    part.finish()
    with pytest.raises(FileExistsError, match=r"a\.txt: is there already.*--overwrite"):
        Part(path, overwrite=False)
    second = Part(path, overwrite=True)
    assert path.read_text() == "first", "until the second is finished"
    second.path.write_text("second")
    second.finish()
    assert path.read_text() == "second"


def test_a_file_that_came_meanwhile_stays(tmp_path):
    path = tmp_path / "a.txt"
    part = Part(path, overwrite=False)
    part.path.write_text("ours")
    path.write_text("theirs")
    with pytest.raises(FileExistsError, match=r"this run's is .*a\.txt\.part"):
        part.finish()
    assert (path.read_text(), part.path.read_text()) == ("theirs", "ours")


def test_a_part_that_another_run_took(tmp_path):
    first = Part(tmp_path / "a.txt", overwrite=False)
    first.path.write_text("first")
    second = Part(tmp_path / "a.txt", overwrite=True)
    second.path.write_text("second")
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        first.finish()
    second.finish()
    assert (tmp_path / "a.txt").read_text() == "second"


def test_an_empty_part_leaves_nothing(tmp_path):
    Part(tmp_path / "a.txt", overwrite=False).finish()
    assert list(tmp_path.iterdir()) == []
