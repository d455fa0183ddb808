"""Boxes as records: the same in every format, and from Python."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.media.sources import ArrayFrames
from mixformer_jax.media.video import SelectedFrames
from mixformer_jax.tracking.record import record
from mixformer_jax.tracking.result_files import ResultFiles
from mixformer_jax.tracking.tracker import RECORD_FIELDS, Tracked
from tests.stand_ins import SIDE, PairTracker, RedTracker, square_boxes, square_clip


def recorded(folder, suffix, tracker=None, num_frames=5):
    given = np.concatenate([square_boxes(1), square_boxes(1) + np.array([SIDE, 0, 0, 0])])
    source = SelectedFrames(ArrayFrames(square_clip(12), fps=20.0), start=1, end=2 * num_frames, stride=2)
    boxes = folder / f"boxes{suffix}"
    recording = record(tracker or PairTracker(), source, given[: 1 if tracker else 2], None, boxes)
    assert recording.video is None and recording.boxes == (boxes,) and list(folder.iterdir()) == [boxes]
    return boxes.read_text()


def test_every_format_has_the_same_records(tmp_path):
    lines = [json.loads(line) for line in recorded(tmp_path, ".jsonl").splitlines()]
    assert len(lines) == 10 and all(tuple(line) == RECORD_FIELDS for line in lines)
    assert lines[0] == dict(zip(RECORD_FIELDS, (1, 0.0, 1, 35.0, 42.0, 12.0, 12.0, 1.0, False), strict=True))
    assert [(line["frame"], line["time"], line["target"]) for line in lines[2:5]] == [
        (3, 0.1, 1),
        (3, 0.1, 2),
        (5, 0.2, 1),
    ]
    assert [line["score"] for line in lines[2:4]] == [0.9, 0.125] and lines[3]["lost"] is True
    (tmp_path / "boxes.jsonl").unlink()
    assert json.loads(recorded(tmp_path, ".json")) == lines
    (tmp_path / "boxes.json").unlink()
    text = recorded(tmp_path, ".csv")
    assert text.startswith("frame,time,target,x,y,w,h,score,lost\n1,0.0,1,35.0,42.0,12.0,12.0,1.0,0\n")
    rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(text.splitlines())]
    assert rows == lines


def test_trackers_without_scores(tmp_path):
    assert recorded(tmp_path, ".csv", RedTracker()).splitlines()[1].endswith(",12.0,,")
    (tmp_path / "boxes.csv").unlink()
    assert json.loads(recorded(tmp_path, ".json", RedTracker()))[0]["lost"] is None


def test_json_that_breaks_off_is_closed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        recorded(tmp_path, ".json", RedTracker(interrupt_at=3, error=ZeroDivisionError))
    assert [line["frame"] for line in json.loads((tmp_path / "boxes.json").read_text())] == [1, 3, 5]
    with ResultFiles(tmp_path / "none.json", 1):
        pass
    assert not (tmp_path / "none.json").exists()


def test_to_dict_is_what_files_have(tmp_path):
    found = Tracked(
        np.array([[1, 2, 3, 4], [5, 6, 7, 8.5]]), np.array([0.5, 1]), np.array([False, True]), frame=7, time=0.25
    )
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["frame"], told["time"]) == (7, 0.25)
    assert told["targets"][1] == {"target": 2, "x": 5, "y": 6, "w": 7, "h": 8.5, "score": 1, "lost": True}
    assert found.records()[1] == {"frame": 7, "time": 0.25, **told["targets"][1]}
    renamed = found._replace(numbers=np.array([2, 5]))
    assert [record["target"] for record in renamed.records()] == [3, 6], "as of targets that come and go"
    assert Tracked(found.boxes_xywh).records()[0]["score"] is None


def test_files_that_cannot_all_be_opened_leave_none(tmp_path, monkeypatch):
    opened, open_file = [], Path.open

    def open_one(path, mode="r", *others, **more):
        if mode == "w":
            if opened:
                raise OSError("too many open files")
            opened.append(open_file(path, mode, *others, **more))
            return opened[0]
        return open_file(path, mode, *others, **more)

    monkeypatch.setattr(Path, "open", open_one)
    with pytest.raises(OSError, match="too many open files"), ResultFiles(tmp_path / "boxes.txt", 2):
        pass
    assert opened[0].closed and not list(tmp_path.iterdir())
