import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.datasets.sequences import DatasetError, TrackingSequence
from mixformer_jax.evaluation.evaluation_servers import (
    SUCCESS_THRESHOLDS,
    FrameLabels,
    Got10kScores,
    clip_to_frame,
    read_frame_labels,
    sequence_overlaps,
)
from mixformer_jax.evaluation.metrics import benchmark_rules, continuous_overlap, frame_errors

ARCHIVE = Path(__file__).resolve().parents[1] / "data" / "evalgold" / "got10k.zip"
FRACTION = 1e-6


@pytest.fixture(scope="module")
def got10k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("got10k")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def _numbers(path):
    return np.loadtxt(path, delimiter=",", ndmin=2)


def _sequence(folder):
    boxes_xywh = _numbers(folder / "groundtruth.txt")
    return TrackingSequence(folder.name, boxes_xywh, lambda index: None, 10.0, folder)


def _scores(got10k, tracker):
    names = (got10k / "GOT-10k" / "val" / "list.txt").read_text().split()
    overlaps, times = [], []
    for name in names:
        sequence = _sequence(got10k / "GOT-10k" / "val" / name)
        labels = read_frame_labels(sequence)
        results = got10k / "results" / "GOT-10k" / tracker / name
        runs = [
            sequence_overlaps(_numbers(path), sequence.boxes_xywh, labels)
            for path in sorted(results.glob("*_0[0-9][0-9].txt"))
        ]
        overlaps.append(np.concatenate(runs))
        clock = results / f"{name}_time.txt"
        times.append(_numbers(clock).ravel() if clock.exists() else None)
    return names, Got10kScores(tuple(overlaps), tuple(times))


@pytest.mark.parametrize("tracker", ["steady", "laggy", "drifty", "fragile", "scalebad"])
def test_every_value_of_the_toolkit(got10k, tracker):
    golden = json.loads((got10k / "golden" / "got10k.json").read_text())
    report, extended = golden["report"][tracker], golden["extended"][tracker]
    names, scores = _scores(got10k, tracker)
    np.testing.assert_allclose(SUCCESS_THRESHOLDS, golden["thresholds"], atol=1e-12)

    overall = report["overall"]
    assert overall.keys() == {"ao", "sr", "speed_fps", "succ_curve"}
    headline = scores.headline
    assert headline["AO"] == pytest.approx(100 * overall["ao"], abs=100 * FRACTION)
    assert headline["SR0.5"] == pytest.approx(100 * overall["sr"], abs=100 * FRACTION)
    assert headline["FPS"] == pytest.approx(overall["speed_fps"], abs=1e-6)
    np.testing.assert_allclose(scores.success_curve, overall["succ_curve"], rtol=0, atol=FRACTION)
    assert headline["SR0.75"] == pytest.approx(100 * extended["overall"]["sr75"], abs=100 * FRACTION)
    assert 100 * scores.success_curve[75] == pytest.approx(headline["SR0.75"], abs=1e-10)
    assert sum(map(len, scores.overlaps)) == extended["overall"]["frames"]

    by_sequence = [report["seq_wise"][name] for name in names]
    more = [extended[name] for name in names]
    assert len(by_sequence) == len(report["seq_wise"]) == 12
    for ours, golden_values in (
        (scores.by_sequence["AO"] / 100, [values["ao"] for values in by_sequence]),
        (scores.by_sequence["SR0.5"] / 100, [values["sr"] for values in by_sequence]),
        (scores.by_sequence["SR0.75"] / 100, [values["sr75"] for values in more]),
        (scores.toolkit_fps, [values["speed_fps"] for values in by_sequence]),
    ):
        np.testing.assert_allclose(ours, golden_values, rtol=0, atol=FRACTION)
    assert [len(overlaps) for overlaps in scores.overlaps] == [values["frames"] for values in more]


def test_a_missing_time_file_is_no_speed_but_the_toolkits_is_that_of_the_sequence_before(got10k):
    _, scores = _scores(got10k, "laggy")
    missing = [i for i, times in enumerate(scores.times_s) if times is None]
    assert missing == [4]
    assert np.isnan(scores.by_sequence["FPS"][4])
    assert scores.toolkit_fps[4] == scores.by_sequence["FPS"][3]


def test_every_value_of_the_rectangle_functions(got10k):
    golden = json.loads((got10k / "golden" / "rect_functions.json").read_text())
    a, b, bound = np.array(golden["a"]), np.array(golden["b"]), tuple(golden["bound"])
    before = a.copy(), b.copy()
    np.testing.assert_allclose(continuous_overlap(a, b), golden["iou"], atol=1e-9)
    bounded = continuous_overlap(clip_to_frame(a, bound), clip_to_frame(b, bound))
    np.testing.assert_allclose(bounded, golden["iou_bounded"], atol=1e-9)
    np.testing.assert_array_equal((a, b), before)
    # The first frame of a sequence is its ground truth, so the pairs come second.
    start = np.ones((1, 4))
    errors = frame_errors(
        np.concatenate([start, a]), np.concatenate([start, b]), None, benchmark_rules("otb", "got10k-toolkit")
    )
    np.testing.assert_allclose(errors.center[1:], golden["center_error"], atol=1e-9)
    np.testing.assert_allclose(errors.norm_center[1:], golden["normalized_center_error_b_is_gt"], atol=1e-9)


def test_which_frames_count():
    truth = np.tile([10.0, 10, 20, 20], (4, 1))
    cover = np.array([8, 8, 0, 1])
    boxes = truth.copy()
    boxes[1] = (200, 200, 20, 20)  # outside the frame of 100 x 100
    labels = FrameLabels(cover, (100, 100))
    np.testing.assert_array_equal(sequence_overlaps(boxes, truth, labels), [0, 1])
    assert cover.tolist() == [8, 8, 0, 1]
    with pytest.raises(ValueError, match="3 predicted boxes for 4"):
        sequence_overlaps(boxes[:3], truth, labels)
    truth[3] = np.nan
    with pytest.raises(ValueError, match="hidden"):
        sequence_overlaps(boxes, truth, labels)


def test_clipping_moves_a_box_as_the_toolkit_does():
    clipped = clip_to_frame(np.array([[-10.0, 5, 50, 30], [90, 90, 20, 20], [120, 0, 5, 5]]), (100, 100))
    np.testing.assert_array_equal(clipped, [[0, 5, 50, 30], [90, 90, 10, 10], [100, 0, 0, 5]])


def test_no_frames_and_no_times_are_not_a_number():
    scores = Got10kScores((np.empty(0),), (None,))
    assert np.isnan([*scores.headline.values(), *scores.success_curve]).all()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "no such file"),
        ("resolution: (3, 4)", "no `resolution"),
        ("[METAINFO]\nurl: x", "no `resolution"),
        ("[METAINFO]\nresolution: 320x240", "'320x240'; expected"),
        ("[METAINFO]\nresolution: (0, 240)", r"'\(0, 240\)'; expected"),
    ],
)
def test_unusable_labels_are_named(tmp_path, meta, message):
    (tmp_path / "groundtruth.txt").write_text("1,2,3,4\n")
    (tmp_path / "cover.label").write_text("8\n")
    if meta is not None:
        (tmp_path / "meta_info.ini").write_text(meta)
    with pytest.raises(DatasetError, match=f"meta_info.ini: .*{message}"):
        read_frame_labels(_sequence(tmp_path))
    (tmp_path / "cover.label").write_text("8\n8\n")
    with pytest.raises(DatasetError, match=r"cover\.label: 2 labels for 1 frames"):
        read_frame_labels(_sequence(tmp_path))
