import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.evaluation.results import (
    ResultsError,
    SequenceResult,
    check_names,
    claim_folder,
    read_boxes,
    result_paths,
    write_result,
)
from mixformer_jax.evaluation.runner import is_finished
from mixformer_jax.tracking.result_files import ResultFiles
from mixformer_jax.tracking.tracker import Tracked

BOXES = np.array([[1.0, 2, 30, 40], [1.23456, 2.5, 30, 40], [-7, 0, 0, 1e5]])


def _result(scores=None):
    return SequenceResult(BOXES.copy(), np.array([0.5, 0.25, 0.125]), scores)


def test_files_are_the_toolkits(tmp_path):
    write_result(result_paths("pytracking", tmp_path, "car"), _result(np.array([1, 0.75, 0.5])))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["car.txt", "car_score.txt", "car_time.txt"]
    assert (tmp_path / "car.txt").read_text() == (
        "1.0000,2.0000,30.0000,40.0000\n1.2346,2.5000,30.0000,40.0000\n-7.0000,0.0000,0.0000,100000.0000\n"
    )
    assert (tmp_path / "car_time.txt").read_text() == "0.50000000\n0.25000000\n0.12500000\n"
    assert (tmp_path / "car_score.txt").read_text() == "1.00000000\n0.75000000\n0.50000000\n"
    np.testing.assert_allclose(read_boxes(tmp_path / "car.txt"), BOXES, atol=5e-5)


def test_without_scores_there_is_no_score_file(tmp_path):
    write_result(result_paths("pytracking", tmp_path, "car"), _result())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["car.txt", "car_time.txt"]


def test_the_boxes_come_last(tmp_path, monkeypatch):
    # Where the boxes are, the sequence counts as finished: everything else must be there before.
    order = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(to.name), replace(self, to))[1])
    write_result(result_paths("pytracking", tmp_path, "car"), _result(np.ones(3)))
    assert order == ["car_time.txt", "car_score.txt", "car.txt"]


# Parser -------------------------------------------------------------------------------------------------

_number = st.one_of(
    st.integers(-(10**6), 10**6).map(str),
    st.floats(-1e6, 1e6).map(lambda value: f"{value:.4f}"),
    st.floats(-1e6, 1e6).map(repr),
)
_size = _number.map(lambda text: text.lstrip("-"))
_row = st.tuples(_number, _number, _size, _size)
_separator = st.sampled_from([",", "\t", " ", "  ", ", ", " ,"])


def _write(folder, content):
    path = folder / "boxes.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parser")


@given(
    rows=st.lists(_row, min_size=1, max_size=8),
    separator=_separator,
    end=st.sampled_from(["\n", "\r\n"]),
    data=st.data(),
)
def test_well_formed_files_give_their_numbers(folder, rows, separator, end, data):
    tail = data.draw(st.sampled_from(["", end, end * 3]))
    boxes_xywh = read_boxes(_write(folder, end.join(separator.join(row) for row in rows) + tail))
    np.testing.assert_array_equal(boxes_xywh, [[float(value) for value in row] for row in rows])


_breakages = {
    "too few": lambda row: row[:3],
    "too many": lambda row: (*row, "1"),
    "empty column": lambda row: (row[0], "", *row[2:]),
    "not a number": lambda row: ("x1", *row[1:]),
    "nan": lambda row: ("nan", *row[1:]),
    "all nan": lambda row: ("NaN",) * 4,
    "infinite": lambda row: (*row[:3], "inf"),
    "overflow": lambda row: ("1e999", *row[1:]),
    "no pixels": lambda row: ("1e12", *row[1:]),
    "negative size": lambda row: (*row[:2], "-3", row[3]),
    "blank": lambda row: (),
    "semicolons": lambda row: (";".join(row),),
}


@pytest.mark.parametrize("breakage", sorted(_breakages))
@pytest.mark.parametrize("number", [1, 3])  # not the last line: blank lines may end a file
def test_a_broken_line_is_named(folder, breakage, number):
    rows = [("1", "2.5", "30", "4e1")] * 4
    lines = [",".join(_breakages[breakage](row) if i == number else row) for i, row in enumerate(rows, start=1)]
    path = _write(folder, "\n".join(lines))
    with pytest.raises(ResultsError, match=rf"boxes\.txt, line {number}: "):
        read_boxes(path)


@given(content=st.one_of(st.binary(max_size=60), st.text("0123456789.,-+ \t\nenaif", max_size=60).map(str.encode)))
def test_any_bytes_are_boxes_or_a_clear_error(folder, content):
    path = _write(folder, content)
    try:
        boxes_xywh = read_boxes(path)
    except ResultsError as error:
        assert str(path) in str(error)
    else:
        assert boxes_xywh.ndim == 2 and boxes_xywh.shape[1] == 4
        assert np.isfinite(boxes_xywh).all() and (boxes_xywh[:, 2:] >= 0).all()
        assert len(boxes_xywh) == len(content.rstrip().splitlines())


@pytest.mark.parametrize(
    "content",
    [b"", b"\n \n", "1,2,3,4\n".encode("utf-16"), b"1,2,3,4\n\xff\xfe"],
    ids=["empty", "blank", "utf16", "bytes"],
)
def test_files_that_are_no_text_are_named(tmp_path, content):
    with pytest.raises(ResultsError, match=r"boxes\.txt"):
        read_boxes(_write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ResultsError, match=r"gone\.txt"):
        read_boxes(tmp_path / "gone.txt")


def test_the_boxes_files_of_track_are_read(tmp_path):
    path = tmp_path / "boxes.txt"
    with ResultFiles(path, 1) as files:
        for score in (1.0, 0.25):
            files.write(Tracked(BOXES[:1], np.array([score]), np.array([score < 0.5])))
    assert path.read_text().splitlines()[1] == "1,2,30,40,0.2500,1"
    np.testing.assert_array_equal(read_boxes(path), [BOXES[0]] * 2)
    path.write_text("nan,nan,nan,nan,0.1,1\n1,2,3,4,0.5,0\n")
    np.testing.assert_array_equal(read_boxes(path, "keep")[1], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,2,3,4,0.5,0\n1,10,20,30,40,1\n", "line 2: .* is not x,y,w,h,score,lost"),
        ("1,2,3,4,0.5,2\n", "line 1: .* with a score from 0 to 1 and lost 0 or 1"),
        ("1,2,3,4,0.5,0\n1,2,3,4\n", "line 2: expected 6 columns x,y,w,h,score,lost, found 4"),
        ("1,2,3,4\n1,2,3,4,0.5,0\n", "line 2: expected 4 columns x,y,w,h, found 6"),
        ("1,2,3,4,0.5\n", "line 1: expected 4 columns x,y,w,h, found 5"),
        ("1,2,3,-4,0.5,0\n", "line 1: .* is no box"),
    ],
)
def test_six_columns_of_another_kind_are_refused(tmp_path, rows, message):
    with pytest.raises(ResultsError, match=message):
        read_boxes(_write(tmp_path, rows))


# Folders ------------------------------------------------------------------------------------------------


def test_finished_means_all_frames_from_this_first_box(tmp_path):
    assert not is_finished(result_paths("pytracking", tmp_path, "car"), BOXES[0], 3)
    write_result(result_paths("pytracking", tmp_path, "car"), _result())
    assert is_finished(result_paths("pytracking", tmp_path, "car"), BOXES[0], 3)
    assert not is_finished(result_paths("pytracking", tmp_path, "car"), BOXES[0], 4)
    assert not is_finished(result_paths("pytracking", tmp_path, "car"), BOXES[0] + 1, 3)
    (tmp_path / "car.txt").write_text("1,2,30,40\n1,2")
    assert not is_finished(result_paths("pytracking", tmp_path, "car"), BOXES[0], 2)


def test_a_folder_belongs_to_its_settings(tmp_path):
    folder = tmp_path / "results" / "ours"
    claim_folder(folder, {"weights": "a"})
    claim_folder(folder, {"weights": "a"})
    assert json.loads((folder / "run.json").read_text()) == {"weights": "a"}
    with pytest.raises(ResultsError, match=r'"a".*"b".*--tracker-name'):
        claim_folder(folder, {"weights": "b"})
    (folder / "run.json").write_text("{")
    with pytest.raises(ResultsError, match="not JSON"):
        claim_folder(folder, {"weights": "a"})


def test_a_folder_belongs_to_its_compute_type(tmp_path):
    made = {"tracker": "mixformer", "weights": "a", "device": "gpu", "dtype": "float32", "matmul_precision": "default"}
    claim_folder(tmp_path / "new", made)
    with pytest.raises(ResultsError, match=r'made with {"dtype": "float32"}, and this run has {"dtype": "bfloat16"};'):
        claim_folder(tmp_path / "new", made | {"dtype": "bfloat16"})
    # Before it was recorded, it followed from the device.
    for device, before in (("cpu", "float32"), ("gpu", "bfloat16")):
        folder = tmp_path / device
        claim_folder(folder, {"tracker": "mixformer", "weights": "a", "device": device})
        claim_folder(folder, made | {"device": device, "dtype": before})
        other = {"float32": "bfloat16", "bfloat16": "float32"}[before]
        with pytest.raises(ResultsError, match=f'"dtype": "{before}"'):
            claim_folder(folder, made | {"device": device, "dtype": other})


def test_what_else_made_results_is_kept(tmp_path):
    folder, settings = tmp_path / "ours", {"weights": "a"}

    def record():
        return json.loads((folder / "run.json").read_text())

    first = {"table": "mixvit_b", "versions": {"jax": "1"}}
    claim_folder(folder, settings, first)
    claim_folder(folder, settings, first)
    assert record() == settings | first
    later = first | {"versions": {"jax": "2"}}
    for _ in range(2):
        claim_folder(folder, settings, later)
    assert record() == settings | first | {"resumed_with": [{"versions": {"jax": "2"}}]}
    with pytest.raises(ResultsError, match=r'made with {"weights": "a"}, and'):
        claim_folder(folder, {"weights": "b"}, later)


def test_results_of_unknown_origin_are_not_added_to(tmp_path):
    write_result(result_paths("pytracking", tmp_path, "car"), _result())
    with pytest.raises(ResultsError, match="origin is unknown"):
        claim_folder(tmp_path, {})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([".."], "plain file names"),
        (["a", "b", "a"], "same files: a"),
        (["a", "a_time"], "same files: a_time"),
        (["../a"], "plain file names"),
        (["a/b"], "plain file names"),
        ([""], "plain file names"),
    ],
)
def test_names_that_cannot_be_files(names, message):
    with pytest.raises(ResultsError, match=message):
        check_names(names, "ours")


def test_names_that_can():
    check_names(["a", "b", "time_a", "GOT-10k_Val_000001"], "ours, 2nd try")
    for tracker_name in ("", "..", "a/b"):
        with pytest.raises(ResultsError, match="plain file names"):
            check_names(["a"], tracker_name)
