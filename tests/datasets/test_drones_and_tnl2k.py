"""Readers of UAV20L, UAV123@10fps, DTB70 and TNL2K over small layouts as published; training on TNL2K and LaSOT-ext."""

import json
import logging

import cv2
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, DatasetConfig
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.datasets.check import check_dataset
from mixformer_jax.datasets.large_scale import LASOT_EXT_CLASSES
from mixformer_jax.datasets.layout import read_table
from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.evaluation.metrics import RuleSet, benchmark_rules
from mixformer_jax.evaluation.scoring import find_results, score_results


def report(arguments):
    return cli.main(["report", *arguments])


def run(arguments):
    return cli.main(["evaluate", *arguments])


SIZE = (24, 32)


def write_frames(folder, pattern, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / (pattern % number)), np.full((*SIZE, 3), 5 * (number % 50), np.uint8))


def level(frame):
    return round(float(frame.mean()) / 5)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def boxes(count):
    return [f"{i + 1},2,10,8" for i in range(count)]


NAN = "NaN,NaN,NaN,NaN"


# UAV20L and UAV123@10fps ---------------------------------------------------------------------------------


def test_uav20l_takes_whole_folders_of_uav123(tmp_path):
    write_frames(tmp_path / "data_seq" / "UAV123" / "bird1", "%06d.jpg", range(1, 6))
    write_frames(tmp_path / "data_seq" / "UAV123" / "uav1", "%06d.jpg", range(1, 4))
    anno = tmp_path / "anno" / "UAV20L"
    write(anno / "bird1.txt", *boxes(3), NAN, NAN)
    write(anno / "uav1.txt", *boxes(3))
    write(anno / "att" / "bird1.txt", "1,0,0,0,1,0,0,0,0,0,0,0")
    write(anno / "att" / "uav1.txt", "0,0,0,0,0,0,0,0,0,0,1,0")
    # UAV123's parts of the same frames are other sequences.
    write(tmp_path / "anno" / "UAV123" / "bird1_1.txt", *boxes(2))
    bird, uav = open_dataset("uav20l", tmp_path)
    assert (bird.name, len(bird), bird.fps, level(bird.frame(4))) == ("bird1", 5, 30, 5)
    assert (bird.attributes, uav.attributes) == (("SV", "FOC"), ("CM",))
    np.testing.assert_array_equal(bird.has_target, [True] * 3 + [False] * 2)
    assert [each.name for each in open_dataset("uav123", tmp_path)] == ["bird1_1"]
    write(anno / "bird1.txt", *boxes(4))
    with pytest.raises(DatasetError, match=r"UAV20L/bird1\.txt: 4 boxes for 5 frames"):
        open_dataset("uav20l", tmp_path)[0]
    with pytest.raises(DatasetError, match=r"no UAV123@10fps sequences; expected anno/UAV123_10fps/bike1\.txt"):
        open_dataset("uav123_10fps", tmp_path)


# First and last frames in the configSeqs.m of the version of 10 frames a second.
FRAMES_10FPS = """
bird1 1-85 259-493 525-813
car1 1-251 251-543 543-877
car6 1-163 163-603 603-985 985-1309 1309-1621
car8 1-453 453-859
car16 1-139 139-665
group1 1-445 445-839 839-1309 1309-1625
group2 1-303 303-591 591-895
group3 1-523 523-943 943-1457 1457-1843
person2 1-397 397-875
person4 1-501 501-915
person5 1-293 293-701
person7 1-417 417-689
person8 1-359 359-509
person12 1-201 201-541
person14 1-283 283-605 605-975
person17 1-501 501-783
person19 1-415 415-931 931-1453
truck4 1-193 193-421
uav1 1-519 519-793 825-1157
"""


def test_parts_of_uav123_at_10_fps_begin_and_end_as_published(tmp_path):
    anno, frames = tmp_path / "anno" / "UAV123_10fps", tmp_path / "data_seq" / "UAV123_10fps"
    published = {}
    for folder, *parts in (line.split() for line in FRAMES_10FPS.strip().splitlines()):
        for number, part in enumerate(parts, start=1):
            first, last = published[f"{folder}_{number}"] = tuple(map(int, part.split("-")))
            write(anno / f"{folder}_{number}.txt", *boxes(last - first + 1))
            write_frames(frames / folder, "%06d.jpg", (first, last))
    assert {name.rpartition("_")[0] for name in published} == set(read_table("uav123_parts.txt"))
    for sequence in open_dataset("uav123_10fps", tmp_path):
        first, last = published[sequence.name]
        assert (len(sequence), sequence.fps) == (last - first + 1, 10)
        names = [sequence.frame.path(index).name for index in (0, len(sequence) - 1)]
        assert names == [f"{first:06d}.jpg", f"{last:06d}.jpg"]


# DTB70 ---------------------------------------------------------------------------------------------------


def test_dtb70(tmp_path):
    for name, count in (("Animal1", 4), ("ManRunning2", 3)):
        write_frames(tmp_path / name / "img", "%05d.jpg", range(1, count + 1))
        write(tmp_path / name / "groundtruth_rect.txt", *boxes(count))
    (tmp_path / "results").mkdir()  # no sequence
    animal, man = open_dataset("dtb70", tmp_path)
    assert (animal.name, len(animal), level(man.frame(2)), man.attributes) == ("Animal1", 4, 3, None)
    (tmp_path / "Animal1" / "img" / "00004.jpg").unlink()
    with pytest.raises(DatasetError, match=r"Animal1/groundtruth_rect\.txt: 4 boxes for 3 frames"):
        open_dataset("dtb70", tmp_path)[0]
    with pytest.raises(DatasetError, match=r"no DTB70 sequences; expected Animal1/groundtruth_rect\.txt"):
        open_dataset("dtb70", tmp_path / "Animal1")
    write_frames(tmp_path / "Tree1" / "img", "%05d.jpg", range(1, 3))
    with pytest.raises(DatasetError, match=r"Tree1/groundtruth_rect\.txt: no such file; expected the ground truth"):
        open_dataset("dtb70", tmp_path)[2]
    with pytest.raises(DatasetError, match="dtb70 has no splits"):
        open_dataset("dtb70", tmp_path, split="test")


# TNL2K ---------------------------------------------------------------------------------------------------


def write_tnl2k(folder, count=3, pattern="%05d.png", first=1, rows=None):
    write_frames(folder / "imgs", pattern, range(first, first + count))
    write(folder / "groundtruth.txt", *(rows or boxes(count)))
    write(folder / "language.txt", "the white bird")


def test_tnl2k_names_its_frames_as_it_likes_and_marks_absence_by_zeros(tmp_path):
    write_tnl2k(tmp_path / "Bird_28-Done", 3, rows=["1,2,10,8", "0,0,0,0", "3,2,10,8"])
    write_tnl2k(tmp_path / "INF_bike", 11, "%d.jpg", first=0)  # 10.jpg after 9.jpg
    write_tnl2k(tmp_path / "CM_bus6_done---", 2, "img%04di.png", first=7)
    bird, bus, bike = open_dataset("tnl2k", tmp_path)
    assert [each.name for each in (bird, bus, bike)] == ["Bird_28-Done", "CM_bus6_done---", "INF_bike"]
    np.testing.assert_array_equal(bird.visible, [True, False, True])
    assert not bird.faults and bird.attributes is None
    assert [level(bike.frame(index)) for index in range(11)] == list(range(11))
    assert level(bus.frame(1)) == 8
    checked = check_dataset(open_dataset("tnl2k", tmp_path))
    assert (checked.boxes, checked.absent, checked.faults) == (15, 1, ())
    (tmp_path / "INF_bike" / "imgs" / "4.jpg").unlink()
    with pytest.raises(DatasetError, match=r"INF_bike/groundtruth\.txt: 11 boxes for 10 frames"):
        open_dataset("tnl2k", tmp_path)[2]
    (tmp_path / "INF_bike" / "groundtruth.txt").unlink()
    with pytest.raises(DatasetError, match=r"INF_bike/groundtruth\.txt: no such file"):
        open_dataset("tnl2k", tmp_path)[2]


def test_tnl2k_splits_are_its_folders(tmp_path, caplog):
    write_tnl2k(tmp_path / "TNL2K_test_subset" / "Bird_28-Done")
    write_tnl2k(tmp_path / "TNL2K_train_subset" / "TNL2k_train_subset_p1" / "Arrow")
    write_tnl2k(tmp_path / "TNL2K_train_subset" / "TNL2k_train_subset_p2" / "Bird_27-Done")
    write(tmp_path / "TNL2K_train_subset" / "revised_annotations" / "Arrow" / "groundtruth.txt", *boxes(9))
    with caplog.at_level(logging.WARNING):
        train = open_dataset("tnl2k", tmp_path, split="train")
    assert [each.name for each in train] == ["Arrow", "Bird_27-Done"] and len(train[0]) == 3
    assert "2 sequences; TNL2K's train subset has 1300" in caplog.text
    assert list(open_dataset("tnl2k", tmp_path, split="test").keys) == ["Bird_28-Done"]
    assert list(open_dataset("tnl2k", tmp_path).keys) == ["Arrow", "Bird_27-Done", "Bird_28-Done"]
    # A subset of its own as the root.
    subset = tmp_path / "TNL2K_train_subset"
    for split in (None, "train"):
        assert list(open_dataset("tnl2k", subset, split=split).keys) == ["Arrow", "Bird_27-Done"]
    for root, split, other in ((subset, "test", "train"), (tmp_path / "TNL2K_test_subset", "train", "test")):
        with pytest.raises(DatasetError, match=f"holds TNL2K's {other} subset; expected the {split} subset"):
            open_dataset("tnl2k", root, split=split)
    with pytest.raises(DatasetError, match="no split 'val'; known are: train, test"):
        open_dataset("tnl2k", tmp_path, split="val")
    write_tnl2k(tmp_path / "TNL2K_test_subset" / "Arrow")
    with pytest.raises(DatasetError, match="two sequences of one name"):
        open_dataset("tnl2k", tmp_path)


FLAGS = "0 0 0 0 0 0 0 0 1 0 0 0 0 1 0 0 1"


@pytest.mark.parametrize("line", [FLAGS, FLAGS.replace(" ", ","), FLAGS.replace(" ", "\t"), f"1 {FLAGS}"])
def test_tnl2k_takes_absence_and_attributes_from_its_toolkit(tmp_path, caplog, line):
    for name in ("Bird_28-Done", "INF_bike"):
        write_tnl2k(tmp_path / name, 3, rows=["1,2,10,8", "2,2,10,8", "0,0,0,0"])
    write(tmp_path / "annos" / "absent" / "Bird_28-Done.txt", "0", "1", "1")
    write(tmp_path / "annos" / "att" / "Bird_28-Done_attribute.txt", line)
    with caplog.at_level(logging.WARNING):
        bird, bike = open_dataset("tnl2k", tmp_path)
    np.testing.assert_array_equal(bird.visible, [True, False, False])
    assert bird.attributes == ("SV", "FM", "MS") and bike.attributes is None
    assert "no attributes of 1 of 2 sequences: INF_bike" in caplog.text
    write(tmp_path / "annos" / "att" / "INF_bike_attribute.txt", "1 0 2")
    with pytest.raises(DatasetError, match=r"INF_bike_attribute\.txt: expected 17 times 0 or 1 \(CM, .*'1 0 2'"):
        open_dataset("tnl2k", tmp_path)[1]


def test_tnl2k_can_be_scored_from_its_toolkit_alone(tmp_path):
    for name in ("Bird_27-Done", "Bird_28-Done"):
        write(tmp_path / "annos" / "gt_rect" / f"{name}.txt", *boxes(3))
    config = tmp_path / "sequence_evaluation_config"
    write(config / "TNL2K_testing_set.txt", "Bird_28-Done")
    (bird,) = open_dataset("tnl2k", tmp_path, split="test")
    assert (bird.name, len(bird), bird.has_frames) == ("Bird_28-Done", 3, False)
    assert len(open_dataset("tnl2k", tmp_path)) == 2
    write(config / "TNL2K_testing_set.txt", "Bird_28-Done", "Bird_31-Done")
    with pytest.raises(DatasetError, match=r"1 of 2 sequences of TNL2K_testing_set\.txt .*the first is Bird_31-Done"):
        open_dataset("tnl2k", tmp_path, split="test")


# Training ------------------------------------------------------------------------------------------------


def test_tnl2k_and_lasot_ext_can_be_trained_on(tmp_path):
    """Their samples come from frames with the target in view, by the readers' own names."""
    rows = ["0,0,0,0" if 4 <= index < 8 else "6,6,12,10" for index in range(24)]
    write_tnl2k(tmp_path / "tnl2k" / "TNL2K_train_subset" / "Arrow", 24, rows=rows)
    write_tnl2k(tmp_path / "tnl2k" / "TNL2K_test_subset" / "Bird", 24, rows=rows)
    for kind in LASOT_EXT_CLASSES:
        for number in range(1, 11):
            (tmp_path / "ext" / kind / f"{kind}-{number}").mkdir(parents=True)
    folder = tmp_path / "ext" / "atv" / "atv-1"
    write_frames(folder / "img", "%08d.jpg", range(1, 25))
    write(folder / "groundtruth.txt", *["6,6,12,10"] * 24)
    write(folder / "full_occlusion.txt", ",".join(str(int(index < 3)) for index in range(24)))
    write(folder / "out_of_view.txt", ",".join("0" for _ in range(24)))
    write(tmp_path / "mine.txt", "atv-1")
    datasets = {
        "tnl2k": DatasetConfig(str(tmp_path / "tnl2k"), split="train"),
        "lasot_ext": DatasetConfig(str(tmp_path / "ext"), list_file=str(tmp_path / "mine.txt")),
    }
    config = DataConfig(datasets=datasets, augment=AugmentConfig.official(), max_interval=5)
    samples = TrackingSamples(Material.load(config), config, seed=0)
    said = [samples.describe(index) for index in range(40)]
    assert {text.partition(":")[0] for text in said} == {"tnl2k", "lasot_ext"}
    assert all("Arrow" in text or "atv-1" in text for text in said)
    for text in said:
        frames = [int(word) for word in text.replace(",", " ").replace(";", " ").split() if word.isdecimal()]
        hidden = range(4, 8) if "Arrow" in text else range(3)
        assert frames and not set(frames) & set(hidden)
    assert samples.sample(0)["search"].any()


# Evaluation ----------------------------------------------------------------------------------------------


def layouts(root):
    """A sequence of five frames for each data set, with the target absent in the fourth."""
    write_frames(root / "uav" / "data_seq" / "UAV123" / "bike1", "%06d.jpg", range(1, 6))
    write(root / "uav" / "anno" / "UAV20L" / "bike1.txt", *boxes(3), NAN, "5,2,10,8")
    write_frames(root / "uav" / "data_seq" / "UAV123_10fps" / "bike1", "%06d.jpg", range(1, 6))
    write(root / "uav" / "anno" / "UAV123_10fps" / "bike1.txt", *boxes(3), NAN, "5,2,10,8")
    write_frames(root / "dtb" / "Animal1" / "img", "%05d.jpg", range(1, 6))
    write(root / "dtb" / "Animal1" / "groundtruth_rect.txt", *boxes(3), "0,0,0,0", "5,2,10,8")
    write_tnl2k(root / "tnl2k" / "Bird", 5, rows=[*boxes(3), "0,0,0,0", "5,2,10,8"])
    return {"uav20l": root / "uav", "uav123_10fps": root / "uav", "dtb70": root / "dtb", "tnl2k": root / "tnl2k"}


@pytest.mark.parametrize("dataset", ["uav20l", "uav123_10fps", "dtb70", "tnl2k"])
def test_trackers_run_over_them_and_are_reported(tmp_path, dataset):
    root = str(layouts(tmp_path)[dataset])
    results = tmp_path / "results"
    assert run(["--dataset", dataset, "--root", root, "--tracker", "first-box", "--out", str(results)]) == 0
    (sequence,) = open_dataset(dataset, root)
    assert (results / "first-box" / f"{sequence.name}.txt").is_file(), "pytracking's names of files"
    out = tmp_path / "report"
    assert report(["--dataset", dataset, "--root", root, "--results", str(results), "--out", str(out)]) == 0
    assert 0 < json.loads((out / "report.json").read_text())["trackers"]["first-box"]["AUC"] < 100


@pytest.mark.parametrize(
    ("rules", "expected"),
    # Absent frames: misses in success; in the other two hits or misses, as each toolkit has it.
    [
        ("mixformer", {"uav20l": (16 / 21, 1, 1), "dtb70": (16 / 21, 0.8, 1), "tnl2k": (16 / 21, 0.8, 1)}),
        ("lasot-toolkit", {"uav20l": (16 / 21, 1, 1), "dtb70": (16 / 21, 1, 1), "tnl2k": (16 / 21, 0.8, 0.8)}),
    ],
)
def test_absent_targets_count_as_in_the_toolkits(tmp_path, rules: RuleSet, expected):
    roots = layouts(tmp_path)
    for dataset, (auc, precision, norm_precision) in expected.items():
        (sequence,) = sequences = open_dataset(dataset, roots[dataset])
        write(tmp_path / "results" / dataset / "perfect" / f"{sequence.name}.txt", *boxes(5))
        files = find_results(tmp_path / "results" / dataset, [sequence.name])
        (scores,) = score_results(files, dataset, sequences, benchmark_rules(dataset, rules)).trackers
        found = [scores.headline[name] / 100 for name in ("AUC", "P", "P_norm")]
        np.testing.assert_allclose(found, [auc, precision, norm_precision], atol=1e-6)
