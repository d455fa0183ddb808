"""Faults of data sets as they are published: read all the same, told once, and named as known where they are."""

import pickle
import shutil

import cv2
import numpy as np
import pytest

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.packing import PackConfig, pack
from mixformer_jax.data.pairs import SequencePairs, WeightedDataset, absent_frames, usable_frames
from mixformer_jax.datasets.check import check_dataset
from mixformer_jax.datasets.layout import PUBLISHED
from mixformer_jax.datasets.records import KNOWN_FAULTS, known_fault
from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.media.images import SourceError
from mixformer_jax.views import CropConfig

GOOD = "10,12,8,6"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_frames(folder, pattern, numbers, size=(36, 48)):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / (pattern % number)), np.full((*size, 3), 90, np.uint8))


def write_lasot(root, name, rows, hidden=()):
    folder = root / name.rpartition("-")[0] / name
    write_frames(folder / "img", "%08d.jpg", range(1, len(rows) + 1))
    write(folder / "groundtruth.txt", "\n".join(rows) + "\n")
    write(folder / "full_occlusion.txt", ",".join(str(int(i in hidden)) for i in range(len(rows))) + "\n")
    write(folder / "out_of_view.txt", ",".join("0" * len(rows)) + "\n")
    return folder


def write_got10k(root, name, rows, absence):
    write_frames(root / name, "%08d.jpg", range(1, len(rows) + 1))
    write(root / name / "groundtruth.txt", "\n".join(rows) + "\n")
    write(root / name / "absence.label", "\n".join(map(str, absence)) + "\n")
    return root / name


def test_a_row_of_negative_size_has_no_target_and_is_told_once(tmp_path, caplog):
    folder = write_lasot(tmp_path, "lion-5", [GOOD, GOOD, GOOD, "1,1,-1,-1", "0,0,0,0", GOOD], hidden=[4])
    dataset = open_dataset("lasot", tmp_path)
    lion = dataset[0]
    np.testing.assert_array_equal(lion.boxes_xywh[3], [1, 1, -1, -1])  # as published
    np.testing.assert_array_equal(lion.has_target, [True, True, True, False, False, True])
    # Never drawn: neither as a target, nor, since nothing marks it as absent, as a frame without one.
    assert not usable_frames(lion)[3] and not usable_frames(lion, hidden_too=True)[3]
    np.testing.assert_array_equal(absent_frames(lion), [4])

    dataset._kept.cache_clear()
    assert dataset[0] is not lion
    copied = pickle.loads(pickle.dumps(dataset))  # as in a worker
    assert len(copied[0].faults) == 1
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"{folder}/groundtruth.txt, line 4: box 1,1,-1,-1 has no area" in told
    assert "known: published so, in row 553 (HengLan/LaSOT_Evaluation_Toolkit#10, #19)" in told


def test_many_rows_are_told_in_one_line(tmp_path, caplog):
    folder = write_got10k(tmp_path, "a", [GOOD, *["-1,-1,-1,-1"] * 5, GOOD, "0,0,0,0"], [0, 1, 1, 1, 1, 1, 0, 1])
    (sequence,) = open_dataset("got10k", tmp_path)
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"{folder}/groundtruth.txt, line 2: " in told and told.endswith("; and 4 more rows like it")
    assert "got-10k/toolkit#10" in told
    # Marked absent and of no size: nothing to tell.
    assert len(sequence.faults) == 5
    np.testing.assert_array_equal(absent_frames(sequence), [1, 2, 3, 4, 5, 7])


@pytest.mark.parametrize(
    ("reader", "file", "frames", "pattern"),
    [
        ("trackingnet", "TRAIN_0/anno/a.txt", "TRAIN_0/frames/a", "%d.jpg"),
        ("otb100", "Boy/groundtruth_rect.txt", "Boy/img", "%04d.jpg"),
        ("uav123", "anno/UAV123/bike1.txt", "data_seq/UAV123/bike1", "%06d.jpg"),
        ("nfs", "anno/nfs_bee.txt", "sequences/bee", "%05d.jpg"),
        ("got10k", "a/groundtruth.txt", "a", "%08d.jpg"),
        ("lasot", "cat-1/groundtruth.txt", "cat-1/img", "%08d.jpg"),
    ],
)
@pytest.mark.parametrize("row", ["5,5,-1,-1", "5,5,0,4", "0,0,0,0"])
def test_every_reader_of_a_published_data_set_takes_such_rows(tmp_path, caplog, reader, file, frames, pattern, row):
    write(tmp_path / file, f"{GOOD}\n{row}\n{GOOD}\n")
    first = 0 if reader == "trackingnet" else 1
    write_frames(tmp_path / frames, pattern, range(first, first + 3))
    (sequence,) = open_dataset(reader, tmp_path)
    np.testing.assert_array_equal(sequence.has_target, [True, False, True])
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"{tmp_path / file}, line 2: box {row}" in told and "known" not in told
    report = check_dataset(open_dataset(reader, tmp_path))
    assert (report.frames, report.boxes) == (3, 2)
    assert [str(fault) for fault in report.faults] == [told]


def test_vatic_corners_of_negative_size(tmp_path):
    write_frames(tmp_path / "bee" / "30" / "bee", "%05d.jpg", (1, 2))
    write(tmp_path / "bee" / "30" / "bee.txt", '0 1 2 11 12 0 0 0 0 "bee"\n0 9 9 4 4 1 0 0 0 "bee"\n')
    (bee,) = open_dataset("nfs", tmp_path)
    np.testing.assert_array_equal(bee.has_target, [True, False])
    assert "bee.txt, line 2: box 9,9,-5,-5" in bee.faults[0].where + ": " + bee.faults[0].what


def test_a_folder_of_one_s_own_is_read_strictly_and_one_mistake_costs_one_sequence(tmp_path):
    for name in ("a", "b", "c"):
        write_frames(tmp_path / name, "%08d.jpg", (1, 2))
        write(tmp_path / name / "groundtruth.txt", f"{GOOD}\n{GOOD}\n")
    write(tmp_path / "b" / "groundtruth.txt", f"{GOOD}\n20,20,-1,-1\n")
    dataset = open_dataset("folder", tmp_path)
    with pytest.raises(DatasetError, match=r"b/groundtruth\.txt, line 2: negative width or height in '20,20,-1,-1'"):
        dataset[1]
    sequences, unreadable = dataset.read_all()
    assert [each.name for each in sequences] == ["a", "c"] and list(unreadable) == ["b"]
    report = check_dataset(dataset)
    assert (report.sequences, report.frames, report.boxes) == (3, 4, 4)
    assert [fault.kind for fault in report.faults] == ["annotations"]


def test_what_the_system_refuses_costs_one_sequence(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_frames(tmp_path / name, "%08d.jpg", (1,))
        write(tmp_path / name / "groundtruth.txt", f"{GOOD}\n")

    def list_images(folder):
        if folder.name == "a":
            raise PermissionError(13, "Permission denied", str(folder))
        return sorted(folder.glob("*.jpg"))

    monkeypatch.setattr("mixformer_jax.datasets.layout.list_images", list_images)
    sequences, unreadable = open_dataset("folder", tmp_path).read_all()
    assert [each.name for each in sequences] == ["b"] and "Permission denied" in unreadable["a"]


def test_a_change_of_the_frame_size_is_found_and_named(tmp_path):
    for name in ("GOT-10k_Val_000135", "GOT-10k_Val_000136"):
        folder = write_got10k(tmp_path, name, [GOOD] * 5, [0] * 5)
        write_frames(folder, "%08d.jpg", (4, 5), size=(24, 32))
    report = check_dataset(open_dataset("got10k", tmp_path))
    assert (report.frames, report.boxes) == (10, 10)
    first, second = (str(fault) for fault in report.faults)
    assert "frame size: " in first and "000135/00000004.jpg: 32 x 24, after frames of 48 x 36" in first
    assert "known" not in first
    assert dict(report.lines())["known"] == "1 of them: the data set is published so"
    assert "known: published with 1920 x 1080" in second and "got-10k/toolkit#25" in second


def test_known_lengths_are_named_in_the_error(tmp_path):
    write_lasot(tmp_path, "paddle-1", [GOOD] * 3)
    write(tmp_path / "paddle" / "paddle-1" / "groundtruth.txt", f"{GOOD}\n{GOOD}\n")
    with pytest.raises(DatasetError, match=r"2 boxes for 3 frames.*known: the data set has 2,703 boxes"):
        open_dataset("lasot", tmp_path)[0]
    write(tmp_path / "paddle" / "paddle-1" / "groundtruth.txt", "x,y,w,h\n")
    with pytest.raises(DatasetError, match="expected four numbers") as error:
        open_dataset("lasot", tmp_path)[0]
    assert "; known" not in str(error.value)


def test_the_table_of_known_faults():
    assert all(known.what and known.source for known in KNOWN_FAULTS)
    lasot = [known for known in KNOWN_FAULTS if known.reader == "lasot" and known.kind == "box empty"]
    assert len(lasot) == 5 and all(min(known.box_xywh[2:]) < 0 for known in lasot)
    assert sum(known.reader == "nfs" and known.kind == "length" for known in KNOWN_FAULTS) == 10
    assert known_fault("lasot", "lion-5", "box empty", (1.0, 1.0, -1.0, -1.0)) is not None
    assert known_fault("lasot", "lion-5", "box empty", (1.0, 1.0, -1.0, -2.0)) is None
    assert known_fault("lasot", "lion-5", "box empty") is None
    assert known_fault("lasot", "lion-6", "box empty", (1.0, 1.0, -1.0, -1.0)) is None


def write_otb(root, folder, files):
    write_frames(root / folder / "img", "%04d.jpg", (1, 2))
    for file in files:
        write(root / folder / file, f"{GOOD}\n{GOOD}\n")


BOTH = ("groundtruth_rect.1.txt", "groundtruth_rect.2.txt")


def test_otb_attributes_are_found_under_the_toolkit_s_names(tmp_path, caplog):
    for folder, files in (("Jogging", BOTH), ("KiteSurf", ["groundtruth_rect.txt"]), ("Boy", ["groundtruth_rect.txt"])):
        write_otb(tmp_path, folder, files)
    for name in ("jogging-1", "jogging_2", "kiteSurf"):
        write(tmp_path / "anno" / "att" / f"{name}.txt", "1,0,0,0,0,0,0,0,0,0,0\n")
    attributes = {each.name: each.attributes for each in open_dataset("otb100", tmp_path)}
    assert attributes == {"Boy": None, "Jogging_1": ("IV",), "Jogging_2": ("IV",), "KiteSurf": ("IV",)}
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == f"{tmp_path}/anno/att: no attributes of 1 of 4 sequences: Boy"


def test_copies_of_otb_s_folders_add_no_sequences(tmp_path, caplog):
    for folder in ("Jogging", "Skating2-1", "Skating2-2", "Skating2"):
        write_otb(tmp_path, folder, BOTH)
    write_otb(tmp_path, "Jogging-1", ["groundtruth_rect.txt"])
    write_otb(tmp_path, "MyOwn", ["groundtruth_rect.txt"])
    dataset = open_dataset("otb100", tmp_path)
    assert list(dataset.keys) == ["Jogging_1", "Jogging_2", "Skating2_1", "Skating2_2"]
    assert {each.root.name for each in dataset} == {"Jogging", "Skating2"}
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.endswith("left out: MyOwn, Jogging-1, Skating2-1, Skating2-2")
    # Where the published folder is gone, its copies serve.
    shutil.rmtree(tmp_path / "Skating2")
    names = {each.name: each.root.name for each in open_dataset("otb100", tmp_path)}
    assert names["Skating2_1"] == "Skating2-1" and names["Skating2_2"] == "Skating2-2"
    assert len(set((PUBLISHED / "otb100.txt").read_text().split())) == 100


def test_nfs_with_one_frame_more_than_boxes(tmp_path, caplog):
    for name in ("bee", "parkour", "tiger"):
        write_frames(tmp_path / "sequences" / name, "%05d.jpg", range(1, 5))
        write(tmp_path / "anno" / f"nfs_{name}.txt", f"{GOOD}\n" * (2 if name == "tiger" else 3))
    bee, parkour = open_dataset("nfs", tmp_path)[:2]
    assert (len(bee), len(parkour)) == (3, 3) and bee.frame(2).shape == (36, 48, 3)
    with pytest.raises(IndexError):
        bee.frame(3)
    told = [record.getMessage() for record in caplog.records]
    assert "nfs_bee.txt: 3 boxes for 4 frames; the last one is left out" in told[0] and "known" not in told[0]
    assert told[1].endswith("known: published at 30 fps with one frame more than boxes (visionml/pytracking#160)")
    with pytest.raises(DatasetError, match=r"nfs_tiger\.txt: 2 boxes for 4 frames"):
        open_dataset("nfs", tmp_path)[2]


def test_nfs_with_one_frame_more_than_a_few_boxes_of_240_frames_a_second(tmp_path):
    lines = [f'0 {i} 2 {i + 10} 12 {i} 0 0 0 "a"' for i in range(5 * 8)]
    write(tmp_path / "parkour" / "30" / "parkour.txt", "\n".join(lines) + "\n")
    write_frames(tmp_path / "parkour" / "30" / "parkour", "%05d.jpg", range(1, 7))
    (parkour,) = open_dataset("nfs", tmp_path)
    assert parkour.boxes_xywh[:, 0].tolist() == [0, 8, 16, 24, 32]


def test_nfs_with_an_empty_folder_of_sequences(tmp_path):
    (tmp_path / "sequences").mkdir()
    with pytest.raises(DatasetError, match=r"no NfS sequences; expected NAME/30/NAME\.txt"):
        open_dataset("nfs", tmp_path)
    write(tmp_path / "anno" / "nfs_bee.txt", f"{GOOD}\n")
    assert list(open_dataset("nfs", tmp_path).keys) == ["bee"]


@pytest.mark.parametrize("published", [True, False])
def test_the_wrong_video_of_nfs_is_told_by_name(tmp_path, published):
    if published:
        write_frames(tmp_path / "dog_2" / "30" / "dog_2", "%05d.jpg", range(1, 8))
        lines = [f'0 1 2 11 12 {i} 0 0 0 "dog"' for i in range(594 * 8)]
        write(tmp_path / "dog_2" / "30" / "dog_2.txt", "\n".join(lines) + "\n")
    else:
        write_frames(tmp_path / "sequences" / "dog_2", "%05d.jpg", range(1, 8))
        write(tmp_path / "anno" / "nfs_dog_2.txt", f"{GOOD}\n" * 594)
    (dog,) = open_dataset("nfs", tmp_path)
    assert len(dog) == 594 and not dog.has_frames  # its boxes are right
    with pytest.raises(SourceError, match=r"dog_2 at 30 fps is published with the video of dog"):
        dog.require_frames()
    kinds = [fault.kind for fault in check_dataset(open_dataset("nfs", tmp_path)).faults]
    assert kinds == ["wrong video", "image"]


def test_rows_without_target_are_packed_and_never_drawn(tmp_path):
    rows = [GOOD] * 30
    rows[3] = "1,1,-1,-1"
    write_lasot(tmp_path / "in", "lion-5", rows, hidden=range(20, 30))
    dataset = open_dataset("lasot", tmp_path / "in")
    report = pack(dataset, tmp_path / "out", PackConfig())
    assert (report.frames, report.faults) == (30, ())
    packed = open_dataset("packed", tmp_path / "out")
    assert packed[0].frame(3).shape == (36, 48, 3)
    for source in (dataset, packed):
        source = SequencePairs(
            [WeightedDataset("lasot", source, 1.0)], CropConfig(), AugmentConfig(), "trident_pro", positive_share=0.5
        )
        rng = np.random.default_rng(0)
        drawn = [source.draw(rng) for _ in range(300)]
        frames = {shot.frame for draw in drawn for shot in (*draw.templates, draw.search)}
        assert frames == {*range(30)} - {3}
        assert {draw.search.frame for draw in drawn if not draw.label} == {*range(20, 30)}
