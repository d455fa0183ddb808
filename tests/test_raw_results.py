"""results/: tables in its README are what `mixformer report` makes of the archives."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from mixformer_jax import cli

RESULTS = Path(__file__).resolve().parents[1] / "results"
PLACES = {"smoke": "smoke", "held_out": "train/videos", "finetune": "train/videos"}


def test_it_is_small():
    assert sum(path.stat().st_size for path in RESULTS.glob("*.tar.gz")) < 5e6


@pytest.mark.parametrize("name", PLACES)
def test_tables_are_made_again(name, shared_data, tmp_path, capsys):
    with tarfile.open(RESULTS / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    table = (RESULTS / "README.md").read_text().partition(f"| {name} |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    trackers = [row[0] for row in rows]
    assert sorted(trackers) == sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    listed, first = tmp_path / "sequences.txt", tmp_path / trackers[0]
    names = [path.stem for path in first.glob("*.txt") if not re.search("_(time|score)$", path.stem)]
    listed.write_text("\n".join(sorted(names)))
    root = shared_data / PLACES[name]
    data = ["--dataset", "folder", "--root", str(root), "--list", str(listed)]
    assert cli.main(["report", *data, "--results", str(tmp_path), "--trackers", ",".join(trackers)]) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if line.split(" ")[0] in trackers] == rows


def test_the_table_of_long_clips_is_made_again(tmp_path, capsys):
    with tarfile.open(RESULTS / "long_clips.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    arguments = ["--dataset", "votlt", "--root", str(tmp_path), "--results", str(tmp_path / "results")]
    assert cli.main(["report", *arguments]) == 0
    found = [line.split() for line in capsys.readouterr().out.splitlines()[2:4]]
    table = (RESULTS / "README.md").read_text().partition("| long_clips |")[2].partition("\n\n")[0]
    assert found == [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def test_logs_of_the_trainings():
    with tarfile.open(RESULTS / "trainings.tar.gz") as archive:
        lines = archive.extractfile("boxes_1.metrics.jsonl").read().decode().splitlines()
    last = [json.loads(line) for line in lines if '"validation"' in line][-1]
    assert last["step"] == 14_000 and last["iou"] == pytest.approx(0.788, abs=0.001)
