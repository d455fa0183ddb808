"""`mixformer evaluate` and `mixformer report`, the two ends of a benchmark, from their command lines."""

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest

from mixformer_jax import cli
from tests.stand_ins import complaint


def report(arguments):
    return cli.main(["report", *arguments])


def run(arguments):
    return cli.main(["evaluate", *arguments])


def _arguments(dataset, *rest):
    return ["--dataset", "folder", "--root", str(dataset), *map(str, rest)]


def test_from_a_folder_to_a_table(folder_dataset, tmp_path, capsys):
    results, out = tmp_path / "results", tmp_path / "report"
    first = _arguments(folder_dataset, "--tracker", "first-box", "--out", results)
    assert run(first) == 0
    assert "3 sequences tracked, 0 were finished before, 0 failed" in capsys.readouterr().out
    assert run(first) == 0
    assert "0 sequences tracked, 3 were finished before, 0 failed" in capsys.readouterr().out
    assert run([*first, "--tracker-name", "again"]) == 0
    record = json.loads((results / "again" / "run.json").read_text())
    assert record.keys() == {"dataset", "tracker", "versions", "decoder"}
    assert (record["dataset"], record["tracker"]) == ("folder", "first-box")
    capsys.readouterr()

    assert report(_arguments(folder_dataset, "--results", results)) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {row[0]: row[1:] for row in table if row and row[0] in ("again", "first-box")}
    assert scores["again"] == scores["first-box"] and len(scores["again"]) == 5

    options = ("--trackers", "again", "--out", out, "--rules", "pytracking", "--exclude-invalid-frames")
    assert report(_arguments(folder_dataset, "--results", results, *options)) == 0
    printed = capsys.readouterr().out
    assert f"wrote {out / 'report.md'}" in printed and "first-box" not in printed
    rules = json.loads((out / "report.json").read_text())["rules"]
    assert rules["rule_set"] == "pytracking" and rules["exclude_invalid_frames"] is True


def test_a_list_restricts_what_is_tracked_and_scored(folder_dataset, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text("still\ndrift\n")
    out = tmp_path / "results"
    command = _arguments(folder_dataset, "--tracker", "first-box", "--out", out)
    assert run([*command, "--list", str(listed), "--report", str(tmp_path / "report")]) == 0
    assert "2 sequences tracked" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*/*[a-z].txt") if "_" not in path.name) == ["drift.txt", "still.txt"]
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["sequences"] == ["still", "drift"]
    # The list is no setting: the others may come later.
    assert run(command) == 0
    assert "1 sequences tracked, 2 were finished before" in capsys.readouterr().out
    assert report(_arguments(folder_dataset, "--results", out)) == 0
    assert "folder, 3 sequences" in capsys.readouterr().out
    assert report(_arguments(folder_dataset, "--results", out, "--list", listed)) == 0
    assert "folder, 2 sequences" in capsys.readouterr().out
    # With the second file, "still" would have two results if "Still" were not known for a sequence of its own.
    (folder_dataset / "still").rename(folder_dataset / "Still")
    shutil.copytree(folder_dataset / "Still", folder_dataset / "still")
    (out / "first-box" / "Still.txt").write_bytes((out / "first-box" / "still.txt").read_bytes())
    assert report(_arguments(folder_dataset, "--results", out, "--list", listed)) == 0
    listed.write_text("still\nnobody\n")
    for program, option in ((run, "--out"), (report, "--results")):
        told = complaint(capsys, program, _arguments(folder_dataset, option, out, "--list", listed))
        assert re.search(r"list\.txt: 1 of 2 listed sequences.*nobody", told)


def test_an_empty_list_is_told(folder_dataset, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("\n")
    arguments = _arguments(folder_dataset, "--results", tmp_path, "--list", tmp_path / "list.txt")
    told = complaint(capsys, report, arguments)
    assert "list.txt: the list is empty; expected the names of sequences, one a line" in told


def test_a_report_of_got10k_s_test_subset_tells_of_the_server(tmp_path, capsys):
    folder = tmp_path / "GOT-10k_Test_000001"
    folder.mkdir()
    (folder / "groundtruth.txt").write_text("10,12,8,6\n")
    for number in (1, 2):
        cv2.imwrite(str(folder / f"{number:08d}.jpg"), np.zeros((48, 64, 3), np.uint8))
    results = tmp_path / "results" / "t"
    results.mkdir(parents=True)
    (results / f"{folder.name}.txt").write_text("10,12,8,6\n" * 2)
    told = complaint(capsys, report, ["--dataset", "got10k", "--root", str(tmp_path), "--results", str(results.parent)])
    assert re.search(r"000001: the ground truth is hidden; .* its server \(mixformer pack\)", told)


@pytest.mark.parametrize("program", [run, report])
def test_decoders_do_not_talk_beside_our_messages(folder_dataset, tmp_path, capsys, monkeypatch, program):
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "32")
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL")  # and as it was again afterwards
    option = "--out" if program is run else "--results"
    complaint(capsys, program, _arguments(folder_dataset, option, tmp_path, "--list", tmp_path / "none.txt"))
    assert os.environ["OPENCV_FFMPEG_LOGLEVEL"] == "-8"


def test_a_failed_sequence_is_a_failed_run(folder_dataset, tmp_path, capsys):
    (folder_dataset / "drift" / "groundtruth.txt").write_text("nan,nan,nan,nan\n" + "10,12,10,10\n" * 4)
    options = ("--tracker", "first-box", "--out", tmp_path / "out", "--report", tmp_path / "report")
    assert run(_arguments(folder_dataset, *options)) == 1
    printed, told = capsys.readouterr()
    assert f"no report in {tmp_path / 'report'}: sequences without results" in told
    assert "2 sequences tracked, 0 were finished before, 1 failed" in printed
    assert "FAILED drift: ValueError: drift: the target is absent in the first frame" in printed
    told = complaint(capsys, report, _arguments(folder_dataset, "--results", tmp_path / "out"))
    assert re.search(r"1 result files are missing.*drift\.txt", told)


def test_several_trackers_in_one_command(folder_dataset, tmp_path, capsys):
    options = ("--tracker", "first-box,opencv:MIL", "--weights", "not looked at", "--out", tmp_path, "--repeat", 2)
    assert run(_arguments(folder_dataset, *options, "--report", tmp_path / "report")) == 0
    printed = capsys.readouterr().out
    assert "AUC" in printed and (tmp_path / "report" / "report.json").is_file()
    assert printed.count("6 repetitions of sequences tracked") == 2 and "% in the tracker" in printed
    assert printed.count("3 sequences have the same boxes in all repetitions") == 2
    assert len([*tmp_path.glob("*/drift.txt")]) == 4
    record = json.loads((tmp_path / "opencv-MIL_001" / "run.json").read_text())
    assert (record["tracker"], record["opencv"], record["dataset"]) == ("opencv:MIL", cv2.__version__, "folder")


def test_processes_from_the_command_line(folder_dataset, tmp_path, capsys):
    assert run(_arguments(folder_dataset, "--tracker", "first-box", "--out", tmp_path, "--workers", 2)) == 0
    printed = capsys.readouterr().out
    assert "3 sequences tracked" in printed and "in 2 processes" in printed
    assert len([*tmp_path.glob("first-box/*_time.txt")]) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "0"), "--workers: expected a whole number from 1 on, got '0'"),
        (("--tracker", "first-box,opencv:MIL", "--tracker-name", "x"), "names one tracker"),
        (("--what",), "unknown arguments: --what"),
    ],
)
def test_options_that_make_no_sense(folder_dataset, tmp_path, capsys, options, message):
    assert message in complaint(capsys, run, _arguments(folder_dataset, "--out", tmp_path / "out", *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tracker", "first-box", "--weights", "x"), "no model"),
        (("--tracker", "magic"), "unknown tracker 'magic'"),
        (("--tracker", "first-box", "--tracker-name", "a/../../b"), "plain file name"),
        (("--tracker.search_facter=5",), "did you mean search_factor"),
        (("--settings-of", "magic"), "--settings-of magic: not in"),
        (("--settings-of", "mixvit_b"), "--settings-of mixvit_b: has no folder in"),
    ],
)
def test_mistakes_of_the_user_end_with_a_line(folder_dataset, tmp_path, capsys, options, message):
    assert message in complaint(capsys, run, _arguments(folder_dataset, "--out", tmp_path / "out", *options))


def test_a_missing_data_set_ends_with_a_line(tmp_path, capsys):
    for program, folder in ((run, "--out"), (report, "--results")):
        assert "gone: no such folder" in complaint(capsys, program, _arguments(tmp_path / "gone", folder, tmp_path))
