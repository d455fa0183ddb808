"""Walking through a data set finds what is wrong, and names it."""

import json
import re

import cv2
import numpy as np
import pytest

from mixformer_jax.cli import main
from mixformer_jax.datasets.check import check_dataset
from mixformer_jax.datasets.sequences import open_dataset


def write_got10k(root, name, lines, absence):
    folder = root / name
    folder.mkdir(parents=True)
    for number in range(1, len(absence) + 1):
        cv2.imwrite(str(folder / f"{number:08d}.jpg"), np.full((48, 64, 3), 99, np.uint8))
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    (folder / "absence.label").write_text("\n".join(map(str, absence)) + "\n")
    return folder


def test_faults_are_found_and_named(tmp_path):
    good, empty, nan, outside = "1,2,10,10", "5,5,0,10", "nan,nan,nan,nan", "64,2,10,10"
    write_got10k(tmp_path, "a", [good, empty, nan, outside, empty], [0, 0, 0, 0, 1])
    torn = write_got10k(tmp_path, "b", [good, good, good], [0, 0, 0])
    (torn / "00000002.jpg").write_bytes((torn / "00000002.jpg").read_bytes()[:200])
    write_got10k(tmp_path, "c", [good], [0, 0])

    report = check_dataset(open_dataset("got10k", tmp_path), workers=1)

    assert (report.sequences, report.frames, report.boxes, report.absent) == (3, 5 + 2, 1 + 2, 1)
    kinds = [fault.kind for fault in report.faults]
    assert kinds == ["box empty", "box NaN", "box outside", "image", "annotations"]
    texts = [str(fault) for fault in report.faults]
    assert texts[0].startswith(f"box empty: {tmp_path}/a/groundtruth.txt, line 2: box 5,5,0,10 has no area")
    assert texts[2].startswith(f"box outside: {tmp_path}/a/00000004.jpg: box 64,2,10,10 of a in a frame of 64 x 48")
    assert "b/00000002.jpg: truncated" in texts[3]
    assert "c/groundtruth.txt: 1 boxes for 2 frames" in texts[4]
    assert dict(report.lines())["faults"] == "1 x box empty, 1 x box NaN, 1 x box outside, 1 x image, 1 x annotations"


def test_hidden_boxes_and_unmarked_absence_are_no_faults(tmp_path):
    for name, lines in (("test", ["1,2,3,4"]), ("folder", ["1,2,3,4", "nan,nan,nan,nan"])):
        folder = tmp_path / name / "seq"
        folder.mkdir(parents=True)
        for number in (1, 2):
            cv2.imwrite(str(folder / f"{number:08d}.jpg"), np.zeros((48, 64, 3), np.uint8))
        (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    for reader, root in (("got10k", "test"), ("folder", "folder")):
        report = check_dataset(open_dataset(reader, tmp_path / root))
        assert (report.boxes, report.absent, report.faults) == (1, 1, ())


def test_an_image_with_many_objects_is_decoded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "val2017").mkdir()
    for number in (1, 2):
        cv2.imwrite(str(tmp_path / "val2017" / f"{number}.jpg"), np.zeros((48, 64, 3), np.uint8))
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)]
    objects = [{"image_id": 1 + i % 2, "id": i, "bbox": [i, i, 9, 9]} for i in range(9)]
    objects.append({"image_id": 2, "id": 99, "bbox": [70, 70, 9, 9]})
    (tmp_path / "annotations").mkdir()
    text = json.dumps({"images": images, "annotations": objects})
    (tmp_path / "annotations" / "instances_val2017.json").write_text(text)
    report = check_dataset(open_dataset("coco", tmp_path, split="val2017"))
    assert (report.sequences, report.frames, report.boxes) == (10, 2, 9)
    assert [fault.kind for fault in report.faults] == ["box outside"]


def test_the_commands(tmp_path, capsys):
    for name in ("one", "two"):
        write_got10k(tmp_path / "in", name, ["1,2,10,10"] * 3, [0, 0, 0])
    arguments = [str(tmp_path / "in"), "--dataset", "got10k", "--workers", "1"]
    assert main(["data", "check", *arguments]) == 0
    out = capsys.readouterr().out
    assert "faults       none" in out and re.search(
        r"videos +decoded by \w+ [0-9.]+; interlaced ones: (right|refused)", out
    )
    assert main(["data", "pack", str(tmp_path / "in"), str(tmp_path / "out"), *arguments[1:]]) == 0
    assert f'data.datasets.NAME = {{"root": "{tmp_path / "out"}"}}' in capsys.readouterr().out
    (tmp_path / "in" / "two" / "00000001.jpg").write_bytes(b"")
    assert main(["data", "check", *arguments]) == 1
    printed = capsys.readouterr()
    assert "1 x image" in printed.out and "two/00000001.jpg: the file is empty" in printed.err
    assert main(["data", "pack", str(tmp_path / "in"), str(tmp_path / "again"), *arguments[1:]]) == 1
    assert "two/00000001.jpg: the file is empty" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path / "in"), "--dataset", "got", "--workers", "1"]) == 2
    assert "known are: coco, coco_video, cvat, depthtrack, dtb70, folder, got10k" in capsys.readouterr().err


CONFIG = """
from ml_collections import ConfigDict
from mixformer_jax.models.config import size_config

def get_config():
    config = ConfigDict()
    config.model = size_config("mixvit_nano").to_dict()
    config.tracker = {{"template_factor": 2.0, "search_factor": 4.0, "num_online_templates": 1}}
    config.data = {{"datasets": {{"mine": {{"root": "{root}", "reader": "got10k"}}}},
                   "augment": {{"occluder_probability": 0.0}}}}
    config.train = {{"steps": 1}}
    return config
"""


def test_a_sheet_of_samples(tmp_path, capsys):
    write_got10k(tmp_path / "in", "one", ["20,12,20,20"] * 25, [0] * 25)
    (tmp_path / "config.py").write_text(CONFIG.format(root=tmp_path / "in"))
    out = tmp_path / "sheet.png"
    arguments = ["data", "show", "--config", str(tmp_path / "config.py"), "--out", str(out), "--count", "3"]
    assert main([*arguments, "--columns", "3", "--config.train.seed=4"]) == 0
    assert cv2.imread(str(out)).shape == (130, 3 * (64 + 128 + 4), 3)
    assert "0: mine: templates one frames" in capsys.readouterr().out
    assert main([*arguments, f"--config.data.datasets.mine.root={tmp_path / 'nowhere'}"]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["data"], ["data", "check"], ["data", "show"], ["data", "pack", "a"]])
def test_incomplete_commands(command, capsys):
    assert main(command) == 2
    assert "mixformer: error" in capsys.readouterr().err
