"""Readers over small data sets made here, and over the real ones where they are."""

import pickle

import cv2
import numpy as np
import pytest

from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.media.images import SourceError

SIZE = (48, 64)


def grey(index):
    return np.full((*SIZE, 3), 10 * index, np.uint8)


def write_boxes(folder, num_frames):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{i},{i + 0.5},10,20" for i in range(num_frames)]
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")


def write_images(folder, num_frames, name="{:08d}.jpg", first=1):
    write_boxes(folder, num_frames)
    for i in range(num_frames):
        cv2.imwrite(str(folder / name.format(i + first)), grey(i))
    return folder


def test_links_name_sequences_themselves(tmp_path, caplog):
    """Data sets on other disks are linked in under names of one's own; the targets' names may be the same."""
    for place in ("first", "second"):
        write_images(tmp_path / place / "0001", 3)
        (tmp_path / "root").mkdir(exist_ok=True)
        (tmp_path / "root" / f"{place}_walk").symlink_to(tmp_path / place / "0001")
    assert [sequence.name for sequence in open_dataset("folder", tmp_path / "root")] == ["first_walk", "second_walk"]
    assert not caplog.records
    (tmp_path / "root" / "third_walk").symlink_to(tmp_path / "third" / "0001")
    assert len(open_dataset("folder", tmp_path / "root")) == 2
    assert caplog.messages == [f"{tmp_path / 'root'}: links to what is not there, left out: third_walk"]
    (tmp_path / "alone").symlink_to(tmp_path / "first" / "0001")
    assert [sequence.name for sequence in open_dataset("folder", tmp_path / "alone")] == ["alone"]


def write_video(folder, num_frames, fps=25.0):
    write_boxes(folder, num_frames)
    writer = cv2.VideoWriter(str(folder / "video.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), fps, SIZE[::-1])
    for i in range(num_frames):
        writer.write(grey(i))
    writer.release()
    return folder


def levels(sequence):
    return [round(float(frame.mean()) / 10) for frame in sequence.frames()]


def test_folder_reads_images_and_videos(tmp_path):
    write_video(tmp_path / "b_video", 5, fps=12.0)
    write_images(tmp_path / "a_images", 4)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no sequence")
    (tmp_path / ".hidden").mkdir()
    write_images(tmp_path / ".hidden" / "x", 1)

    images, video = open_dataset("folder", tmp_path)

    assert (images.name, len(images), images.root) == ("a_images", 4, tmp_path / "a_images")
    assert (video.name, len(video), video.fps) == ("b_video", 5, 12.0)
    assert images.visible is None
    np.testing.assert_array_equal(images.boxes_xywh, [[i, i + 0.5, 10, 20] for i in range(4)])
    assert levels(images) == [0, 1, 2, 3]
    assert levels(video) == [0, 1, 2, 3, 4]
    again = pickle.loads(pickle.dumps(video))
    assert levels(again) == levels(video)
    np.testing.assert_array_equal(again.boxes_xywh, video.boxes_xywh)


def test_folder_orders_images_by_number(tmp_path):
    write_images(tmp_path / "seq", 12, name="frame{}.png", first=0)
    (sequence,) = open_dataset("folder", tmp_path)
    assert levels(sequence) == list(range(12))


def test_folder_that_is_itself_a_sequence(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "alone", 3)
    monkeypatch.chdir(folder)
    for root in (folder, "."):
        (sequence,) = open_dataset("folder", root)
        assert (sequence.name, len(sequence)) == ("alone", 3)


@pytest.mark.parametrize("write", [write_images, write_video])
@pytest.mark.parametrize("num_boxes", [4, 8])
def test_folder_length_differs(tmp_path, write, num_boxes):
    write(tmp_path / "seq", 6)
    write_boxes(tmp_path / "seq", num_boxes)
    with pytest.raises(DatasetError, match=f"{num_boxes} boxes for 6 frames"):
        open_dataset("folder", tmp_path)[0]


def test_folder_header_count_is_not_trusted(tmp_path, monkeypatch):
    write_video(tmp_path / "seq", 6)
    monkeypatch.setattr(
        "mixformer_jax.media.video.VideoFile.num_frames", property(lambda _: 9, lambda *_: None), raising=False
    )
    monkeypatch.setattr("mixformer_jax.media.video.MISSING_FRAMES", 100)
    (sequence,) = open_dataset("folder", tmp_path)
    assert len(sequence) == 6


@pytest.mark.parametrize("write", [write_images, write_video])
@pytest.mark.parametrize("inside", [True, False])
def test_folder_without_groundtruth(tmp_path, write, inside):
    folder = write(tmp_path / "seq", 3)
    (folder / "groundtruth.txt").unlink()
    with pytest.raises(DatasetError, match=r"seq/groundtruth\.txt: no such file"):
        open_dataset("folder", folder if inside else tmp_path)[0]


def test_folder_without_frames_or_with_both(tmp_path):
    write_boxes(tmp_path / "seq", 3)
    (sequence,) = open_dataset("folder", tmp_path)
    assert len(sequence) == 3
    with pytest.raises(SourceError, match=r"seq: no frames.*video\.mp4"):
        sequence.frame(0)
    write_images(tmp_path / "seq", 3)
    write_video(tmp_path / "seq", 3)
    with pytest.raises(DatasetError, match="both"):
        open_dataset("folder", tmp_path)[0]


def test_folder_without_sequences(tmp_path):
    with pytest.raises(DatasetError, match="no sequences"):
        open_dataset("folder", tmp_path)
    write_images(tmp_path / "videos" / "seq", 2)
    with pytest.raises(DatasetError, match=f"give {tmp_path / 'videos'} as the root"):
        open_dataset("folder", tmp_path)


def test_folder_with_a_broken_video(tmp_path):
    write_boxes(tmp_path / "seq", 3)
    (tmp_path / "seq" / "video.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match=r"video\.mp4"):
        open_dataset("folder", tmp_path)[0]


def write_got10k(root, name, absence, meta="[METAINFO]\nanno_fps: 10Hz\nresolution: (64, 48)\nnote: 50%\n"):
    folder = write_images(root / name, len(absence))
    (folder / "absence.label").write_text("\n".join(map(str, absence)) + "\n")
    (folder / "cover.label").write_text("8\n" * len(absence))
    (folder / "meta_info.ini").write_text(meta)
    return folder


def test_got10k_in_list_order_with_visibility(tmp_path):
    write_got10k(tmp_path, "GOT-10k_Val_000001", [0, 1, 0])
    write_got10k(tmp_path, "GOT-10k_Val_000002", [0, 0], meta="[METAINFO]\nanno_fps: 5Hz\n")
    write_got10k(tmp_path, "GOT-10k_Val_000003", [0])
    (tmp_path / "list.txt").write_text("GOT-10k_Val_000002\nGOT-10k_Val_000001\n")

    second, first = open_dataset("got10k", tmp_path)

    assert (first.name, second.name) == ("GOT-10k_Val_000001", "GOT-10k_Val_000002")
    np.testing.assert_array_equal(first.visible, [True, False, True])
    assert first.visible.dtype == bool
    assert (first.fps, second.fps) == (10.0, 5.0)
    assert levels(first) == [0, 1, 2]
    (tmp_path / "list.txt").unlink()
    assert [sequence.name[-1] for sequence in open_dataset("got10k", tmp_path)] == ["1", "2", "3"]


def test_got10k_test_subset_keeps_its_boxes_hidden(tmp_path):
    folder = write_images(tmp_path / "GOT-10k_Test_000001", 4)
    write_boxes(folder, 1)
    (sequence,) = open_dataset("got10k", tmp_path)
    assert len(sequence) == 4
    assert sequence.visible is None
    np.testing.assert_array_equal(sequence.boxes_xywh[0], [0, 0.5, 10, 20])
    assert np.isnan(sequence.boxes_xywh[1:]).all()


@pytest.mark.parametrize("num_boxes", [1, 2, 4])
def test_got10k_lengths_differ(tmp_path, num_boxes):
    write_boxes(write_got10k(tmp_path, "seq", [0, 0, 0]), num_boxes)
    with pytest.raises(DatasetError, match=f"{num_boxes} boxes for 3 frames"):
        open_dataset("got10k", tmp_path)[0]


def test_got10k_errors(tmp_path):
    with pytest.raises(DatasetError, match="no GOT-10k sequences"):
        open_dataset("got10k", tmp_path)
    folder = write_got10k(tmp_path / "val", "seq", [0, 0])
    with pytest.raises(DatasetError, match=str(tmp_path / "val")):
        open_dataset("got10k", tmp_path)
    (tmp_path / "val" / "list.txt").write_text("seq\nother\n")
    with pytest.raises(DatasetError, match=r"1 of 2 listed sequences.*other"):
        open_dataset("got10k", tmp_path / "val")
    (tmp_path / "val" / "list.txt").unlink()
    (folder / "meta_info.ini").write_text("[METAINFO]\nanno_fps: fast\n")
    with pytest.raises(DatasetError, match="'fast'"):
        open_dataset("got10k", tmp_path / "val")[0]
    (folder / "absence.label").write_text("0\n")
    with pytest.raises(DatasetError, match="1 labels for 2 frames"):
        open_dataset("got10k", tmp_path / "val")[0]


def test_a_list_of_sequences_that_are_named_by_numbers(tmp_path):
    for name in ("0001", "0002", "10"):
        (tmp_path / "data" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "data" / name / "1.jpg"), np.zeros((8, 8, 3), np.uint8))
        (tmp_path / "data" / name / "groundtruth.txt").write_text("1,1,2,2\n")
    for lines, names in (("10\n0001\n", ["10", "0001"]), ("2\n0\n", ["10", "0001"])):
        (tmp_path / "list.txt").write_text(lines)
        chosen = open_dataset("folder", tmp_path / "data", list_file=tmp_path / "list.txt")
        assert [sequence.name for sequence in chosen] == names


def test_real_sequences(shared_data):
    smoke = open_dataset("folder", shared_data / "smoke")
    assert [len(sequence) for sequence in smoke] == [60, 106, 120, 113, 400, 196]
    assert smoke[-1].name == "vot15__bag"
    assert smoke[-1].frame(195).shape == (360, 480, 3)
    train = open_dataset("folder", shared_data / "train" / "videos")
    assert len(train) >= 107 and sum(map(len, train)) >= 23_099  # the collection grows
    absent = sum(int(np.isnan(sequence.boxes_xywh).any(axis=1).sum()) for sequence in train)
    assert absent > 0
    forward = list(train[0].frames())
    assert len(forward) == len(train[0])
    np.testing.assert_array_equal(train[0].frame(30), forward[30])
    np.testing.assert_array_equal(train[0].frame(3), forward[3])
