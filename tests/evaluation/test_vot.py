"""VOT's short-term measures on two synthetic workspaces, against vot-toolkit 0.7.4 and so 0.9.0; and its regions."""

import gzip
import json
import shutil
import struct
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.vot import (
    Run,
    SequenceRuns,
    accuracy_robustness,
    average_unsupervised,
    eao,
    eao_curve,
    find_progress,
    read_sequences,
    score_runs,
    score_unsupervised,
    sequence_eao,
    unsupervised_accuracy,
)
from mixformer_jax.evaluation.vot_regions import (
    Mask,
    Polygon,
    Rectangle,
    Special,
    is_empty,
    parse_region,
    read_regions,
    region_overlaps,
)

DATA = Path(__file__).resolve().parents[1] / "data" / "evalgold"
FRACTION = 1e-6


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vot")
    with zipfile.ZipFile(DATA / "vot.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module", params=["rect", "mask"])
def scored(request, workspaces):
    """(golden, sequences, runs by tracker, the tracker's folder)."""
    golden = json.loads((workspaces / "golden" / f"{request.param}.json").read_text())
    root = workspaces / request.param
    sequences = read_sequences(root)
    runs = {
        tracker: [score_runs(root / "results" / tracker / "baseline", sequence) for sequence in sequences]
        for tracker in golden["trackers"]
    }
    return golden, sequences, runs, root / "results"


def test_sequences_are_as_the_toolkit_read_them(scored):
    golden, sequences, _, _ = scored
    read = {s.name: {"length": len(s.groundtruth), "width": s.size[0], "height": s.size[1]} for s in sequences}
    assert read == golden["sequences"]


def test_every_run(scored):
    golden, sequences, runs, results = scored
    seen = 0
    for tracker, scores in runs.items():
        for sequence, score in zip(sequences, scores, strict=True):
            unbounded = score_runs(results / tracker / "baseline", sequence, bounded=False)
            for (anchor, backward), run, free in zip(sequence.anchors, score.runs, unbounded.runs, strict=True):
                expected = golden["runs"][f"{tracker}/{sequence.name}_{anchor:08d}"]
                seen += 1
                assert expected["direction"] == ("backward" if backward else "forward")
                assert len(run.overlaps) == expected["length"]
                assert (run.progress, run.failed) == (expected["progress"], expected["failed"])
                if "overlaps_bounded" in expected:
                    np.testing.assert_allclose(run.overlaps, expected["overlaps_bounded"], atol=FRACTION)
                if "overlaps_unbounded" in expected:
                    np.testing.assert_allclose(free.overlaps, expected["overlaps_unbounded"], atol=FRACTION)
    assert seen == len(golden["runs"])


def test_every_sequence(scored):
    golden, sequences, runs, _ = scored
    for tracker, scores in runs.items():
        for sequence, score in zip(sequences, scores, strict=True):
            expected = golden["per_sequence"][f"{tracker}/{sequence.name}"]
            assert score.accuracy == pytest.approx(expected["accuracy"], abs=FRACTION)
            assert score.robustness == pytest.approx(expected["robustness"], abs=FRACTION)
            assert score.accuracy_weight == expected["weight_accuracy"]
            assert score.length == expected["weight_robustness"]
            phi, active = sequence_eao(score.runs, high=400)
            count = len(expected["eao_phi"])
            np.testing.assert_allclose(phi[:count], expected["eao_phi"], atol=FRACTION)
            np.testing.assert_array_equal(active[:count], expected["eao_active"])
            assert not active[count:].any()


def test_every_analysis_of_the_baseline(scored):
    golden, sequences, runs, results = scored
    analyses = {name: analysis["values"] for name, analysis in golden["experiments"]["baseline"].items()}
    assert len(analyses) == 7
    for index, (tracker, scores) in enumerate(runs.items()):
        for name, high in (("curve_755", 755), ("curve_120", 120)):
            np.testing.assert_allclose(eao_curve(scores, high), analyses[name][index][0], atol=FRACTION)
        for name, low, high in (("eao_official_115_755", 115, 755), ("eao_30_120", 30, 120)):
            score = eao(eao_curve(scores, high), low, high)
            assert score == pytest.approx(analyses[name][index][0], abs=FRACTION)
        free = [score_runs(results / tracker / "baseline", sequence, bounded=False) for sequence in sequences]
        for name, measured in (("ar", scores), ("ar_unbounded", free)):
            accuracy, robustness, point, accuracy_weight, robustness_weight = analyses[name][index]
            assert accuracy_robustness(measured) == pytest.approx((accuracy, robustness), abs=FRACTION)
            assert point == [robustness, accuracy]
            assert sum(score.accuracy_weight for score in measured) == accuracy_weight
            assert sum(score.length for score in measured) == robustness_weight
        for place, score in enumerate(scores):
            accuracy, robustness, _, *weights = analyses["ar_per_sequence"][index * len(sequences) + place]
            assert (score.accuracy, score.robustness) == pytest.approx((accuracy, robustness), abs=FRACTION)
            assert [score.accuracy_weight, score.length] == weights


def test_every_analysis_of_the_unsupervised_experiment(scored):
    golden, sequences, runs, results = scored
    analyses = {name: analysis["values"] for name, analysis in golden["experiments"]["unsupervised"].items()}
    assert set(analyses) == {"accuracy", "accuracy_per_sequence"}
    for index, tracker in enumerate(runs):
        by_sequence = [score_unsupervised(results / tracker / "unsupervised", sequence) for sequence in sequences]
        expected = analyses["accuracy_per_sequence"][index * len(sequences) : (index + 1) * len(sequences)]
        np.testing.assert_allclose(by_sequence, np.ravel(expected), atol=FRACTION)
        average = average_unsupervised(by_sequence, sequences)
        assert average == pytest.approx(analyses["accuracy"][index][0], abs=FRACTION)


# Functions ----------------------------------------------------------------------------------------------


def test_overlaps_of_the_golden_pairs(workspaces):
    golden = json.loads((workspaces / "golden" / "functions.json").read_text())
    assert len(golden["pairs"]) == 80
    _check_pairs(golden["pairs"], tuple(golden["bounds"]))


def test_overlaps_of_random_pairs():
    # 2,500 pairs of every kind, in and outside the frame, put to the toolkit.
    golden = json.loads(gzip.decompress((DATA / "vot_overlaps.json.gz").read_bytes()))
    _check_pairs([dict(zip(golden["columns"], row, strict=True)) for row in golden["pairs"]], tuple(golden["size"]))


def _check_pairs(pairs, size):
    first, second = ([parse_region(pair[key]) for pair in pairs] for key in ("a", "b"))
    for key, bounds in (("bounded", size), ("unbounded", None)):
        np.testing.assert_allclose(region_overlaps(first, second, bounds), [pair[key] for pair in pairs], atol=2e-9)
    assert [is_empty(region) for region in first] == [bool(pair["a_empty"]) for pair in pairs]
    assert [is_empty(region) for region in second] == [bool(pair["b_empty"]) for pair in pairs]


def test_partial_eao_of_the_goldens(workspaces):
    for case in json.loads((workspaces / "golden" / "functions.json").read_text())["compute_eao_partial"]:
        # The toolkit's function takes overlaps that are cut already, and a flag.
        runs = [
            Run(np.array(overlaps), len(overlaps)) if success else _FailedRun(np.array(overlaps))
            for overlaps, success in zip(case["overlaps"], case["success"], strict=True)
        ]
        phi, active = sequence_eao(runs, case["high"])
        np.testing.assert_allclose(phi, case["phi"], atol=FRACTION)
        np.testing.assert_array_equal(active, case["active"])


class _FailedRun(Run):
    def __new__(cls, overlaps):
        return super().__new__(cls, overlaps, len(overlaps))

    failed = True


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12))
def test_progress_is_the_toolkits_countdown(frames, grace):
    left, progress = grace, len(frames)
    for index, (overlap, present) in enumerate(frames):
        if overlap <= 0.1 and present:
            left -= 1
            if left == 0:
                progress = index + 1 - grace
                break
        else:
            left = grace
    overlaps, present = np.array([f[0] for f in frames]), np.array([f[1] for f in frames])
    assert find_progress(overlaps, present, grace=grace) == progress


def test_a_tracker_that_fails_everywhere_has_no_accuracy():
    lost = SequenceRuns("a", 20, (Run(np.zeros(20), 0),))
    accuracy, robustness = accuracy_robustness([lost])
    assert np.isnan(accuracy) and robustness == 0
    assert lost.accuracy == 0
    assert eao(eao_curve([lost], 30), 5, 30) == 0


def test_which_frames_an_unsupervised_accuracy_counts():
    box = Rectangle(np.array([1, 1, 9, 9], np.float32))
    predicted = [Special(1), box, Special(0), Special(2), box, box]
    truth = [box, box, box, box, Special(0), box]
    overlaps = np.array([0.0, 0.4, 0, 0, 0.9, 0.6])
    assert unsupervised_accuracy(overlaps, predicted, truth) == pytest.approx(0.5)
    assert unsupervised_accuracy(overlaps, predicted, truth, burn_in=2) == pytest.approx(0.6)
    assert np.isnan(unsupervised_accuracy(overlaps[:1], predicted[:1], truth[:1]))


def test_overlaps_are_between_pairs():
    with pytest.raises(ValueError, match="1 regions and 2"):
        region_overlaps([Special(0)], [Special(0)] * 2, None)
    triangle = parse_region("0,0,100000,0,0,100000")
    with pytest.raises(ValueError, match="too large to be drawn"):
        region_overlaps([triangle], [triangle], None)
    assert region_overlaps([triangle], [triangle], (10, 10)).tolist() == [1]


# Parser -------------------------------------------------------------------------------------------------


def test_regions_of_every_kind():
    assert parse_region("1") == Special(1)
    assert parse_region("nan,nan,nan,nan") == parse_region("1,2,nan,4,5,6") == Special(0)
    rectangle = parse_region("1.5,-2,30,4e1")
    assert isinstance(rectangle, Rectangle)
    np.testing.assert_array_equal(rectangle.box_xywh, np.array([1.5, -2, 30, 40], np.float32))
    polygon = parse_region("0,0,4,0,4,4")
    assert isinstance(polygon, Polygon) and polygon.points_xy.shape == (3, 2)
    mask = parse_region("m10,20,4,3,5,2")  # two pixels in the second row, the rest left unsaid
    assert isinstance(mask, Mask) and mask.offset_xy == (11, 21)
    assert mask.pixels.tolist() == [[True, True]]
    empty = parse_region("m10,20,4,3,12")
    assert isinstance(empty, Mask) and empty.pixels.size == 0 and is_empty(empty)


@given(st.data())
def test_masks_come_back_from_their_runs(data):
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    bits = data.draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))
    runs, last = [0], False
    for bit in bits:
        if bit != last:
            runs.append(0)
            last = bit
        runs[-1] += 1
    pixels = np.array(bits).reshape(height, width)
    mask = parse_region(f"m-3,7,{width},{height},{','.join(map(str, runs))}")
    if pixels[:, 1:].any():
        x, y = mask.offset_xy[0] + 3, mask.offset_xy[1] - 7
        shown = np.zeros_like(pixels)
        shown[y : y + mask.pixels.shape[0], x : x + mask.pixels.shape[1]] = mask.pixels
        np.testing.assert_array_equal(shown, pixels)
    else:  # the toolkit drops masks that do not pass the first column of their window
        assert mask.pixels.size == 0


BROKEN = {
    "": "expected numbers",
    "3": "special code",
    "0.5": "special code",
    "inf": "special code",
    "1,2": "2 numbers",
    "1,2,3": "3 numbers",
    "1,2,3,4,5": "5 numbers",
    "1 2 3 4": "expected numbers",
    "1;2;3;4": "expected numbers",
    "1,,3,4": "expected numbers",
    "1_0,2,3,4": "expected numbers",
    "١,2,3,4": "expected numbers",
    "1,2,inf,4": "infinite or too large",
    "1,2,1e30,4": "infinite or too large",
    "m": "expected a mask",
    "m1,2,3": "expected a mask",
    "m1,2,3,x": "expected a mask",
    "m1,2,-3,4,1": "expected a mask",
    "m1,2,3,4,13": "cover 13 pixels",
    "m1,2,99999,99999,1": "at most",
    "m9999999999,2,3,4,1,2": "too far away",
    "m1.5,2,3,4,1": "expected a mask",
}


@pytest.mark.parametrize("line", sorted(BROKEN))
def test_a_broken_region_is_named(tmp_path, line):
    path = tmp_path / "run.txt"
    path.write_text(f"1,2,3,4\n{line}\n1,2,3,4\n", encoding="utf-8")
    with pytest.raises(ResultsError, match=rf"run\.txt, line 2: .*({BROKEN[line]})"):
        read_regions(path)


@given(st.one_of(st.binary(max_size=50), st.text("0123456789.,-m \nae", max_size=50).map(str.encode)))
def test_any_bytes_are_regions_or_a_clear_error(tmp_path_factory, content):
    for suffix in (".txt", ".bin"):
        path = tmp_path_factory.getbasetemp() / f"any{suffix}"
        path.write_bytes(content)
        try:
            regions = read_regions(path)
        except ResultsError as error:
            assert str(path) in str(error)
        else:
            assert regions
            assert np.isfinite(region_overlaps(regions, regions, (64, 48))).all()


# What vot-toolkit 0.7.4 writes for: 1; 10.5,20.25,30,40; 0; 5,5,50,8,40,60; a mask of 4 x 3 at 10,12; -3,-4,5.5,6.
BINARY = bytes.fromhex(
    "010006000000000100000001000028410000a2410000f0410000204200000000000203000000a0400000a0400000484200000041"
    "0000204200007042030b000c00030003000400010005000100020001000040c0000080c00000b0400000c040"
)


def test_binary_trajectories(tmp_path):
    path = tmp_path / "run.bin"
    path.write_bytes(BINARY)
    regions = read_regions(path)
    assert [type(region) for region in regions] == [Special, Rectangle, Special, Polygon, Mask, Rectangle]
    lines = ["1", "10.5,20.25,30,40", "0", "5,5,50,8,40,60", "m10,12,4,3,2,2,1,3,2,2", "-3,-4,5.5,6"]
    again = [parse_region(line) for line in lines]
    np.testing.assert_array_equal(region_overlaps(regions[1:2], again[1:2], (99, 99)), [1])
    np.testing.assert_array_equal(region_overlaps(regions[3:5], again[3:5], (99, 99)), [1, 1])
    for broken, message in (
        (BINARY[:-1], "region 6"),
        (BINARY + b"0", "1 bytes after"),
        (b"\2" + BINARY[1:], "version 2"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ResultsError, match=message):
            read_regions(path)


# Workspace ----------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "sequences" / "one"
    folder.mkdir(parents=True)
    (tmp_path / "sequences" / "list.txt").write_text("one\n")
    (folder / "sequence").write_text("name=one\nwidth=64\nheight=48\nlength=4\n")
    (folder / "groundtruth.txt").write_text("1,2,10,10\n" * 4)
    (folder / "anchor.value").write_text("1\n0\n0\n-1\n")
    runs = tmp_path / "results" / "still" / "baseline" / "one"
    runs.mkdir(parents=True)
    for anchor in (0, 3):
        (runs / f"one_{anchor:08d}.txt").write_text("1\n" + "1,2,10,10\n" * 3)
    return tmp_path


def test_frames_of_runs(workspace):
    (sequence,) = read_sequences(workspace)
    assert sequence.anchors == ((0, False), (3, True))
    assert [list(sequence.run_frames(*anchor)) for anchor in sequence.anchors] == [[0, 1, 2, 3], [3, 2, 1, 0]]
    score = score_runs(workspace / "results" / "still" / "baseline", sequence)
    assert (score.accuracy, score.robustness) == (0.75, 1.0)


def test_size_and_length_come_from_the_frames_where_they_are_not_written(workspace):
    folder = workspace / "sequences" / "one"
    (folder / "sequence").write_text("name=one\nchannels.color=color\n")
    (folder / "groundtruth.txt").write_text("1,2,10,10\n")
    (folder / "color").mkdir()
    for number in (1, 2, 3, 4):
        cv2.imwrite(str(folder / "color" / f"{number:08d}.jpg"), np.zeros((20, 30, 3), np.uint8))
    (sequence,) = read_sequences(workspace)
    assert sequence.size == (30, 20)
    assert [is_empty(region) for region in sequence.groundtruth] == [False, True, True, True]


def test_a_workspace_until_2016_has_frames_beside_the_ground_truth(workspace):
    folder = workspace / "sequences" / "one"
    (folder / "sequence").unlink()
    for number in (1, 2, 3, 4):
        cv2.imwrite(str(folder / f"{number:08d}.jpg"), np.zeros((20, 30, 3), np.uint8))
    (sequence,) = read_sequences(workspace)
    assert sequence.size == (30, 20) and len(sequence.groundtruth) == 4


@pytest.mark.parametrize("empty", ["m0,0,0,0,0,1", "m0,0,0,0", "m0,0,0,0,0", "m5,6,0,9,0,3"])
def test_a_mask_without_pixels_is_a_frame_without_target(workspace, empty):
    lines = [f"m{x},2,3,2,0,6" for x in range(4)]
    lines[1] = empty
    (workspace / "sequences" / "one" / "groundtruth.txt").write_text("\n".join(lines) + "\n")
    (sequence,) = read_sequences(workspace)
    assert [is_empty(region) for region in sequence.groundtruth] == [False, True, False, False]
    (file,) = (workspace / "results" / "still" / "baseline" / "one").glob("one_00000000.txt")
    file.write_text("\n".join(["1", *lines[1:]]) + "\n")  # answers may be empty, too
    assert score_runs(workspace / "results" / "still" / "baseline", sequence).robustness == 1


def test_empty_masks_of_binary_files(tmp_path):
    path = tmp_path / "run.bin"
    path.write_bytes(struct.pack("<hI", 1, 1) + struct.pack("<BhhHHHHH", 3, 0, 0, 0, 0, 2, 0, 1))
    (region,) = read_regions(path)
    assert is_empty(region)


def test_objects_of_vots_are_refused_by_name(workspace):
    folder = workspace / "sequences" / "one"
    (folder / "groundtruth.txt").rename(folder / "groundtruth_red.txt")
    (sequence,) = read_sequences(workspace)
    assert len(sequence.groundtruth) == 4  # one object is one target
    (folder / "groundtruth__ignore.txt").write_text("m0,0,1,1,0,1\n" * 4)
    with pytest.raises(DatasetError, match=r"groundtruth__ignore\.txt: masks of what is to be ignored"):
        read_sequences(workspace)
    (folder / "groundtruth__ignore.txt").rename(folder / "groundtruth_blue.txt")
    with pytest.raises(DatasetError, match=r"several objects in a sequence, as in VOTS.*blue, red"):
        read_sequences(workspace)


def test_a_workspace_without_a_list_has_what_is_there(workspace):
    (workspace / "sequences" / "list.txt").unlink()
    assert [sequence.name for sequence in read_sequences(workspace)] == ["one"]
    shutil.rmtree(workspace / "sequences" / "one")
    with pytest.raises(DatasetError, match="no VOT sequences"):
        read_sequences(workspace)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sequences/list.txt", "", r"list\.txt: the list is empty"),
        ("sequences/list.txt", "two", r"list\.txt: 1 of 1 listed sequences have no folder, the first is two"),
        ("sequences/one/sequence", "length=x\n", "length=x; expected a whole number"),
        ("sequences/one/sequence", "length=4\n", "neither width and height"),
        ("sequences/one/sequence", "channels.color=%s.jpg\n", "expected a pattern"),
        ("sequences/one/groundtruth.txt", "1,2,10,10\n" * 5, "5 regions for 4 frames"),
        ("sequences/one/groundtruth.txt", "1,2,10,10\n1,2\n", r"groundtruth\.txt, line 2: 2 numbers"),
        ("sequences/one/anchor.value", "1\n" * 5, "5 values for 4 frames"),
        ("sequences/one/anchor.value", "1\nx\n", r"anchor\.value, line 2"),
        ("sequences/one/anchor.value", None, "no anchors"),
        ("results/still/baseline/one/one_00000003.txt", None, r"one_00000003\.txt \(or \.bin\): no such file"),
        ("results/still/baseline/one/one_00000003.txt", "1\n" * 3, "3 regions for a run of 4 frames"),
    ],
)
def test_what_is_wrong_with_a_workspace_is_named(workspace, file, content, message):
    if content is None:
        (workspace / file).unlink()
    else:
        (workspace / file).write_text(content)
    with pytest.raises((DatasetError, ResultsError), match=message):
        for sequence in read_sequences(workspace):
            score_runs(workspace / "results" / "still" / "baseline", sequence)


def test_repetitions_are_averaged(workspace):
    (sequence,) = read_sequences(workspace)
    folder = workspace / "results" / "still" / "unsupervised"
    with pytest.raises(ResultsError, match=r"one_001\.txt \(or \.bin\): no such file"):
        score_unsupervised(folder, sequence)
    (folder / "one").mkdir(parents=True)
    (folder / "one" / "one_001.txt").write_text("1\n" + "1,2,10,10\n" * 3)
    (folder / "one" / "one_002.txt").write_text("1\n" + "30,30,10,10\n" * 3)
    (folder / "one" / "one_003.txt").write_text("1\n0\n0\n0\n")  # nothing that counts
    assert score_unsupervised(folder, sequence) == pytest.approx(1 / 3)
