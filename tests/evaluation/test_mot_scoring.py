"""HOTA, MOTA and IDF1 are TrackEval's, on files that both read."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.boxes import iou_matrix
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.mot import read_mot_rows
from mixformer_jax.evaluation.mot_scoring import (
    MotFrame,
    count,
    frames_of,
    measures,
    read_truth,
    score_results,
    score_table,
    total,
)

NUM_FRAMES = 25


@pytest.fixture(scope="module")
def trackeval():
    """The package, which `make test` lays into a folder of its own: it wants another build of OpenCV."""
    folder = Path(sys.prefix) / "trackeval"
    if not folder.is_dir():
        pytest.skip(f"no TrackEval in {folder}: make test lays it there")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.syspath_prepend(str(folder))
        patch.setenv("MPLBACKEND", "agg")
        import trackeval
    return trackeval


def draw_truth(rng, labelled):
    """Walks that begin and end, of MOTChallenge's classes, some of them not considered; a frame in between is empty."""
    rows = []
    for track in range(1, 13):
        first, last = np.sort(rng.integers(1, NUM_FRAMES + 1, 2))
        box = rng.uniform([0, 0, 20, 20], [120, 90, 50, 50])
        label = int(rng.choice([1, 1, 1, 2, 7, 8, 12, 3, 6]))
        for frame in range(first, last + 1):
            box[:2] += rng.normal(0, 3, 2)
            if frame != 13:
                rest = [int(rng.random() > 0.1), label, 1] if labelled else [1, -1, -1, -1]
                rows.append([frame, track, *box.round(2), *rest])
    return rows


def draw_results(rng, truth):
    """What a tracker makes of it: misses, false boxes, numbers that change and are swapped, boxes that are off."""
    number, rows = {}, []
    for frame, track, *box, _considered, _label in (row[:8] for row in truth):
        if rng.random() < 0.12:
            number[track] = int(rng.integers(1, 15))
        mine = number.setdefault(track, track)
        if rng.random() < 0.85 and not any(row[:2] == [frame, mine] for row in rows):
            rows.append([frame, mine, *(np.array(box) + rng.normal(0, 4, 4)).round(2).clip(1), 0.9, -1, -1, -1])
    for frame in rng.integers(1, NUM_FRAMES + 1, 15).tolist():
        rows.append([frame, 100 + len(rows), *rng.uniform([0, 0, 20, 20], [120, 90, 50, 50]).round(2), 0.5, -1, -1, -1])
    return rows


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(",".join(f"{value:g}" for value in row) + "\n" for row in rows))


@pytest.fixture(params=["MOT17", "MOT20", "MOT15"])
def benchmark(request, tmp_path):
    """Name, folder of ground truths, folder of results: sequences, one without results that count."""
    name, rng = request.param, np.random.default_rng(len(request.param) + ord(request.param[-1]))
    for index in range(3):
        truth = draw_truth(rng, name != "MOT15")
        results = draw_results(rng, truth) if index < 2 else [[1, 1, 500, 500, 5, 5, 1, -1, -1, -1]]
        write(tmp_path / "gt" / f"{name}-0{index}" / "gt" / "gt.txt", truth)
        write(tmp_path / "out" / "ours" / "data" / f"{name}-0{index}.txt", results)
    return name, tmp_path / "gt", tmp_path / "out"


def by_trackeval(trackeval, name, truths, results):
    """TrackEval's results by sequence and "COMBINED_SEQ", as fractions and counts."""
    sequences = {path.name: NUM_FRAMES for path in sorted(truths.iterdir())}
    config = {"GT_FOLDER": str(truths), "TRACKERS_FOLDER": str(results), "BENCHMARK": name, "SEQ_INFO": sequences}
    config |= {"SKIP_SPLIT_FOL": True, "PRINT_CONFIG": False}
    quiet = ("PRINT_RESULTS", "PRINT_CONFIG", "TIME_PROGRESS", "OUTPUT_SUMMARY", "OUTPUT_DETAILED", "PLOT_CURVES")
    evaluator = trackeval.Evaluator({"USE_PARALLEL": False, "LOG_ON_ERROR": None, **dict.fromkeys(quiet, False)})
    metrics = [kind({"PRINT_CONFIG": False}) for kind in trackeval_metrics(trackeval)]
    with contextlib.redirect_stdout(io.StringIO()):
        found, _ = evaluator.evaluate([trackeval.datasets.MotChallenge2DBox(config)], metrics)
    return {sequence: each["pedestrian"] for sequence, each in found["MotChallenge2DBox"]["ours"].items()}


def trackeval_metrics(trackeval):
    return trackeval.metrics.HOTA, trackeval.metrics.CLEAR, trackeval.metrics.Identity


def test_measures_are_trackevals(trackeval, benchmark):
    name, truths, results = benchmark
    theirs = by_trackeval(trackeval, name, truths, results)
    truth = {path.name: read_truth(path / "gt" / "gt.txt", path.name) for path in truths.iterdir()}
    rows = {each: read_mot_rows(results / "ours" / "data" / f"{each}.txt", "results") for each in truth}
    counts = score_results(truth, rows, dict.fromkeys(truth, NUM_FRAMES))
    shares = ("HOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA")
    wholes = {"IDs": "IDSW", "FP": "CLR_FP", "FN": "CLR_FN", "Frag": "Frag", "MT": "MT", "PT": "PT", "ML": "ML"}
    for sequence, each in {**counts, "COMBINED_SEQ": total(list(counts.values()))}.items():
        ours, (hota, clear, identity) = measures(each), (theirs[sequence][k] for k in ("HOTA", "CLEAR", "Identity"))
        expected = {key: 100 * np.mean(hota[key]) for key in shares}
        expected |= {key: 100 * clear[key] for key in ("MOTA", "MOTP")}
        expected |= {key: 100 * identity[key] for key in ("IDF1", "IDR", "IDP")}
        expected |= {key: clear[theirs_key] for key, theirs_key in wholes.items()}
        assert set(ours) == set(expected)
        for key, value in expected.items():
            assert ours[key] == pytest.approx(value, abs=1e-6), (sequence, key)
    told = score_table(counts).splitlines()
    assert told[0].split()[:2] == ["sequence", "HOTA"] and told[-1].startswith("all ") and len(told) == 5


def test_by_hand():
    """Two targets over four frames: one found throughout, the other by two tracks and not on the last frame."""
    boxes = np.array([[0, 0, 10, 10], [50, 0, 10, 10]], np.float64)
    overlaps = iou_matrix(boxes, boxes)
    frames = [MotFrame(np.array([0, 1]), np.array([0, second]), overlaps) for second in (1, 1, 2)]
    frames.append(MotFrame(np.array([0, 1]), np.array([0]), overlaps[:, :1]))
    found = measures(count(frames))
    assert (found["IDs"], found["FP"], found["FN"], found["MT"], found["PT"]) == (1, 0, 1, 1, 1)
    assert found["MOTA"] == pytest.approx(100 * (1 - 2 / 8)) and found["DetA"] == pytest.approx(100 * 7 / 8)
    # A of the pairs: 1 four times, 2/4 twice, 1/4 once.
    assert found["AssA"] == pytest.approx(100 * (4 + 2 * 0.5 + 0.25) / 7)
    assert found["IDF1"] == pytest.approx(100 * 6 / 7.5) and found["LocA"] == 100


def test_nothing_to_find_and_nothing_found():
    nobody, one, none = np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros
    missed, false = count([MotFrame(one, nobody, none((1, 0)))]), count([MotFrame(nobody, one, none((0, 1)))])
    assert measures(missed)["FN"] == 1 and measures(missed)["ML"] == 1 and measures(missed)["HOTA"] == 0
    assert measures(false)["FP"] == 1 and measures(total([missed, false]))["MOTA"] == -100
    assert measures(count([]))["HOTA"] == 0


def test_classes_of_cvat_are_no_distractors(tmp_path):
    write(tmp_path / "gt" / "gt.txt", [[1, 1, 0, 0, 9, 9, 1, 2, 1], [1, 2, 30, 0, 9, 9, 0, 1, 1]])
    write(tmp_path / "out.txt", [[1, 5, 0, 0, 9, 9, 1]])
    results = read_mot_rows(tmp_path / "out.txt", "results")
    (theirs,) = frames_of(read_truth(tmp_path / "gt" / "gt.txt", "walk"), results)
    assert len(theirs.targets) == len(theirs.found) == 0, "somebody on a vehicle, and a row that does not count"
    (tmp_path / "gt" / "labels.txt").write_text("car\nperson\n")
    (theirs,) = frames_of(read_truth(tmp_path / "gt" / "gt.txt", "walk"), results)
    assert len(theirs.targets) == len(theirs.found) == 1


def test_results_beyond_the_video(tmp_path):
    write(tmp_path / "gt.txt", [[1, 1, 0, 0, 9, 9]])
    write(tmp_path / "out.txt", [[1, 5, 0, 0, 9, 9, 1], [4, 5, 0, 0, 9, 9, 1]])
    truth, results = read_truth(tmp_path / "gt.txt", "walk"), read_mot_rows(tmp_path / "out.txt", "results")
    with pytest.raises(DatasetError, match=r"out.txt, line 2: a box on frame 4, but walk has 3 frames"):
        score_results({"walk": truth}, {"walk": results}, {"walk": 3})


def test_frames_far_apart_take_no_memory(tmp_path):
    write(tmp_path / "gt.txt", [[1, 1, 0, 0, 9, 9]])
    write(tmp_path / "out.txt", [[1, 5, 0, 0, 9, 9, 1], [10**12, 5, 0, 0, 9, 9, 1]])
    truth, results = read_truth(tmp_path / "gt.txt", "walk"), read_mot_rows(tmp_path / "out.txt", "results")
    assert [len(frame.found) for frame in frames_of(truth, results)] == [1, 1]


def test_classes_without_pedestrians_are_told(tmp_path):
    write(tmp_path / "gt.txt", [[1, 1, 0, 0, 9, 9, 1, 3, 1]])
    with pytest.raises(DatasetError, match=r"of its classes \(3\) none is 1, .* labels.txt"):
        read_truth(tmp_path / "gt.txt", "cars")
    write(tmp_path / "gt.txt", [[1, 1, 0, 0, 9, 9, 1, 3.5, 1.25, 0]])
    assert read_truth(tmp_path / "gt.txt", "world").distractors is None, "ten columns: places in the world"
