"""eval/bench_scoring.py on a few frames; what it measures is for its own run."""

import re

import pytest

from eval.bench_scoring import main


def test_it_prints_device_times_memory_and_the_toolkits_ratio(capsys):
    pytest.importorskip("got10k")
    assert main(["--sequences", "2", "--frames", "5", "--trackers", "2", "--turns", "1"]) == 0
    printed = capsys.readouterr().out
    assert "cores; 2 sequences x 5 frames x 2 trackers" in printed
    assert len(re.findall(r"median \d+\.\d\d s .* peak \d+ MB", printed)) == 2
    difference = re.search(r"times as long; AUC differs by (\S+) at most", printed)
    assert float(difference[1]) < 1e-12


def test_numbers_of_files_are_checked(capsys):
    with pytest.raises(SystemExit):
        main(["--sequences", "0"])
    assert "expected a whole number from 1 on" in capsys.readouterr().err
