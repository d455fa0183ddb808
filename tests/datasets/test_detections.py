"""Detections of files and of detectors, and what is said of those that are wrong."""

import json
import sys
import types

import numpy as np
import pytest

from mixformer_jax.datasets.detections import NOTHING, open_detections
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.mot import mot_sequences
from mixformer_jax.media.sources import TimedFrame
from tests.datasets.exports import MOT, write_mot

FRAME = np.zeros((48, 64, 3), np.uint8)


def at(detections, number):
    return detections(TimedFrame(FRAME, number, 0.0))


def refused(path, message, text, **options):
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        open_detections(str(path), 6, "walk", **options)


def test_rows_of_mot(tmp_path):
    path = tmp_path / "det.txt"
    path.write_text("2,-1,5,6,7,8,0.5\n1,-1,1,2,3,4,0.9\n\n2,-1,9,9,9,9\n")
    found = open_detections(str(path), 6, "walk", origin=1.0)
    np.testing.assert_array_equal(at(found, 2).boxes_xywh, [[4, 5, 7, 8], [8, 8, 9, 9]])
    np.testing.assert_array_equal(at(found, 2).scores, [0.5, 1])
    assert at(found, 3) is NOTHING
    other = open_detections(str(path), 6, "walk")
    assert found.about != other.about


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,-1,1,2,3,4,0.9\n1,-1,1,2,x,4,0.9\n", "det.txt, line 2: expected the numbers frame,-1,x,y,w,h,score"),
        ("1,-1,1,2,3,4,nan\n", "line 1: expected the numbers"),
        ("1,-1,1,2,3\n", "line 1: expected the numbers .* found '1,-1,1,2,3'"),
        ("0,-1,1,2,3,4,0.9\n", "line 1: the first column is the frame, counted from 1; found 0"),
        ("1e300,-1,1,2,3,4,0.9\n", "line 1: the first column is the frame, counted from 1; found 1e.300"),
        ("1,-1,1,2,3,1e200,0.9\n", "line 1: more than 1e.09 pixels in 1,-1,1,2,3,1e.200"),
        ("1,-1,1,2,1e-200,4,0.9\n", "line 1: a detection without width or height"),
        ("1,-1,1,2,0,4,0.9\n", "line 1: a detection without width or height in 1,-1,1,2,0,4"),
        ("1,-1,1,2,3,4,1\n7,-1,1,2,3,4,1\n", "line 2: a box on frame 7, but walk has 6 frames"),
        ("\n", "det.txt: holds no detection"),
    ],
)
def test_faults_of_rows_are_told_by_line(tmp_path, text, message):
    refused(tmp_path / "det.txt", message, text)


RESULTS = [
    {"image_id": 2, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.75},
    {"image_id": 2, "category_id": 3, "bbox": [5, 6, 7, 8], "score": 0.5},
]


def test_results_of_coco(tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(RESULTS))
    np.testing.assert_array_equal(at(open_detections(str(path), 6, "walk"), 2).scores, [0.75, 0.5])
    cars = open_detections(str(path), 6, "walk", categories=(3,))
    np.testing.assert_array_equal(at(cars, 2).boxes_xywh, [[5, 6, 7, 8]])
    # With images their order counts: by number, else by name.
    images = [{"id": 5, "file_name": "f10.jpg"}, {"id": 2, "file_name": "f9.jpg"}]
    path.write_text(json.dumps({"images": images, "annotations": RESULTS}))
    assert len(at(open_detections(str(path), 2, "walk"), 1).scores) == 2
    for number, image in enumerate(images):
        image["frame_id"] = number
    path.write_text(json.dumps({"images": images, "annotations": RESULTS}))
    assert len(at(open_detections(str(path), 2, "walk"), 2).scores) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([RESULTS[0] | {"image_id": 0}], r"\[0\].image_id: expected the number of a frame, from 1 to 6, as walk has"),
        ([RESULTS[0], RESULTS[1] | {"bbox": [1, 2, 3]}], r"\[1\].bbox: expected x, y, width and height"),
        ([RESULTS[1] | {"bbox": [1e200, 2, 3, 4]}], r"bbox: expected x, y, width and height, .*, all below 1e.09"),
        ({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}, "an image for each of the 6 frames"),
        ([], "holds no detection"),
        ({"annotations": 1}, "top: expected a list"),
    ],
)
def test_faults_of_coco_are_told_by_place(tmp_path, content, message):
    refused(tmp_path / "found.json", message, json.dumps(content))


def test_a_detector(monkeypatch):
    answers = {
        "found": ([[1, 2, 3, 4]], [0.5]),
        "nobody": ([], []),
        "flat": ([[1, 2, 3, 0]], [1]),
        "far": ([[1e200, 2, 3, 4]], [1]),
        "wrong": 3,
    }
    module = types.ModuleType("someones.detector")
    for name, answer in answers.items():
        setattr(module, name, lambda frame, answer=answer: answer)
    monkeypatch.setitem(sys.modules, "someones.detector", module)
    detections = open_detections("someones.detector:found", None, "walk")
    np.testing.assert_array_equal(at(detections, 9).boxes_xywh, [[1, 2, 3, 4]])
    assert at(open_detections("someones.detector:nobody", None, "walk"), 1) is NOTHING
    with pytest.raises(
        DatasetError, match=r"someones.detector:flat, frame 4: box .* with score 1; expected boxes_xywh"
    ):
        at(open_detections("someones.detector:flat", None, "walk"), 4)
    with pytest.raises(DatasetError, match=r"frame 2: box .*; expected boxes_xywh"):
        at(open_detections("someones.detector:far", None, "walk"), 2)
    with pytest.raises(DatasetError, match=r"frame 1: .*; expected boxes_xywh"):
        at(open_detections("someones.detector:wrong", None, "walk"), 1)
    with pytest.raises(DatasetError, match="has no function 'other'"):
        open_detections("someones.detector:other", None, "walk")
    with pytest.raises(DatasetError, match="No module named 'nobodys'"):
        open_detections("nobodys.detector:detect", None, "walk")


def test_sequences_of_a_folder(tmp_path):
    write_mot(tmp_path / "train" / "walk", MOT)
    (tmp_path / "train" / "walk" / "det").mkdir()
    (tmp_path / "train" / "walk" / "det" / "det.txt").touch()
    write_mot(tmp_path / "train" / "run", MOT, info=False)
    run, walk = mot_sequences(tmp_path)
    assert (run.name, run.origin, run.detections) == ("run", 0, None) and run.groundtruth.name == "gt.txt"
    assert (walk.name, walk.origin, walk.detections.name) == ("walk", 1, "det.txt")
    source = walk.open()
    assert (source.name, source.fps, source.num_frames) == ("walk", 14, 6)
    assert [each.name for each in mot_sequences(walk.folder)] == ["walk"] and mot_sequences(walk.folder / "img1") == []
    info = walk.folder / "seqinfo.ini"
    info.write_text(info.read_text().replace("imWidth=64", "imWidth=65"))
    with pytest.raises(DatasetError, match=r"imWidth and imHeight are 65x48, but the frames of .*img1 have 64x48"):
        walk.open()
    (walk.folder / "img1" / "000006.jpg").unlink()
    with pytest.raises(DatasetError, match=r"seqLength is 6, but .*img1 has 5 frames"):
        walk.open()
