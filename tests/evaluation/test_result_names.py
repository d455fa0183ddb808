"""Result files of other toolkits, by the names that they give to sequences."""

import pytest

from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.scoring import ResultFolder, SequenceNames, find_results, list_trackers

OTB = ("Basketball", "Human4_2", "Jogging_1", "Jogging_2", "KiteSurf")


@pytest.mark.parametrize(
    ("benchmark", "names", "other", "sequence"),
    [
        ("otb100", OTB, "Jogging-1", "Jogging_1"),  # pysot
        ("otb100", OTB, "Jogging.2", "Jogging_2"),  # the got10k toolkit
        ("otb100", OTB, "jogging_2", "Jogging_2"),
        ("otb100", OTB, "kiteSurf", "KiteSurf"),
        ("otb100", OTB, "Human4-2", "Human4_2"),
        ("otb100", OTB, "Human4", "Human4_2"),
        ("folder", OTB, "Human4", None),
        ("otb100", OTB, "Jogging", None),
        ("uav123", ("bike1", "car1_s"), "uav_bike1", "bike1"),  # pytracking
        ("uav123", ("bike1", "car1_s"), "UAV_car1-s", "car1_s"),
        ("nfs", ("Gymnastics",), "nfs_Gymnastics", "Gymnastics"),
        ("lasot", ("airplane-1",), "airplane_1", "airplane-1"),
        ("lasot", ("airplane-1",), "airplane-1_time", None),
        ("lasot", ("airplane-1",), "airplane1", None),
        # Names that only case or hyphens tell apart, as those of YouTube's videos in TrackingNet.
        ("trackingnet", ("ab-C_0", "ab-c_0", "x-y_1"), "ab-C_0", "ab-C_0"),
        ("trackingnet", ("ab-C_0", "ab-c_0", "x-y_1"), "AB-C_0", None),
        ("trackingnet", ("ab-C_0", "ab-c_0", "x-y_1"), "x_y_1", "x-y_1"),
        # A side file of one sequence is no result of another.
        ("folder", ("car", "Car-Time"), "car_time", None),
        ("folder", ("car", "Car-Time"), "Car-Time", "Car-Time"),
    ],
)
def test_other_names(benchmark, names, other, sequence):
    assert SequenceNames(names, benchmark).sequence(other) == sequence


def _write(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.txt").write_text("1,2,3,4\n")


def test_results_are_found_by_other_names(tmp_path):
    _write(tmp_path / "theirs", "basketball", "Human4-2", "Jogging-1", "Jogging.2", "kiteSurf", "Jogging-1_time")
    (files,) = find_results(tmp_path, OTB)
    assert [paths[0].name for paths in files.boxes] == [
        *("basketball.txt", "Human4-2.txt", "Jogging-1.txt", "Jogging.2.txt", "kiteSurf.txt")
    ]
    assert [len(paths) for paths in files.times] == [0, 0, 1, 0, 0]


def test_repetitions_are_found_by_other_names(tmp_path):
    folder = tmp_path / "w" / "jogging-1"
    _write(folder, "Jogging-1_002", "jogging_1_001", "Jogging-1_time", "Jogging_2_001")
    names = SequenceNames(OTB)
    found = ResultFolder(tmp_path / "w", names)
    assert [path.name for path in found.boxes("Jogging_1")] == ["jogging_1_001.txt", "Jogging-1_002.txt"]
    assert [path.name for path in found.times("Jogging_1")] == ["Jogging-1_time.txt"]
    _write(folder, "Jogging_1_002")
    with pytest.raises(ResultsError, match=r"Jogging-1_002\.txt and .*Jogging_1_002\.txt are both"):
        found.boxes("Jogging_1")
    _write(folder, "JOGGING_1_time")
    with pytest.raises(ResultsError, match=r"JOGGING_1_time\.txt and .*Jogging-1_time\.txt are both"):
        found.times("Jogging_1")


def test_two_files_of_one_sequence_are_named(tmp_path):
    _write(tmp_path / "theirs", *OTB, "jogging-1")
    with pytest.raises(ResultsError, match=r"theirs/Jogging_1\.txt and .*theirs/jogging-1\.txt are both.*Jogging_1;"):
        find_results(tmp_path, OTB)
    _write(tmp_path / "nested" / "A_B", "A_B_001")
    _write(tmp_path / "nested" / "a-b", "a-b_001")
    with pytest.raises(ResultsError, match=r"A_B_001\.txt and .*a-b_001\.txt are both"):
        ResultFolder(tmp_path / "nested", SequenceNames(["A_B"])).boxes("A_B")


def test_sequences_that_are_left_out_keep_their_files(tmp_path):
    _write(tmp_path / "ours", "Car", "car")
    known = SequenceNames(["Car", "car"])
    assert list_trackers(tmp_path, ["Car"], known) == ["ours"]
    (files,) = find_results(tmp_path, ["Car"], known_names=known)
    assert [path.name for path in files.boxes[0]] == ["Car.txt"]


def test_files_without_sequence_are_hinted_at(tmp_path):
    _write(tmp_path / "theirs", "Basketball", "Human4_2", "Jogging1", "Jogging_2", "KiteSurf", "KiteSurf_time")
    with pytest.raises(
        ResultsError,
        match=r"1 result files are missing.*Jogging_1\.txt \(1 files there .* such as .*theirs/Jogging1\.txt",
    ):
        find_results(tmp_path, OTB)


def test_a_folder_that_is_not_there_is_empty(tmp_path):
    assert ResultFolder(tmp_path / "gone", SequenceNames(OTB)).boxes("KiteSurf") == []
