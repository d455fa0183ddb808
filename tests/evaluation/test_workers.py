"""Several processes, and runs that are killed at any moment: the same files, and nothing twice."""

import functools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.evaluation.lane_loop import Clock
from mixformer_jax.evaluation.runner import describe, run_dataset
from mixformer_jax.evaluation.workers import Workers
from tests.evaluation.stand_ins import (
    main,
    open_broken,
    open_by_mistake,
    open_diary,
    processes,
    quick_context,
    refuse,
    refuse_later,
)

NUM_SEQUENCES = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six sequences of 12 to 17 frames; the first box of sequence i is at x = i."""
    root = tmp_path_factory.mktemp("dataset")
    for index in range(NUM_SEQUENCES):
        folder = root / f"s{index}"
        folder.mkdir()
        for frame in range(12 + index):
            cv2.imwrite(str(folder / f"{frame + 1:08d}.jpg"), np.zeros((16, 24, 3), np.uint8))
        (folder / "groundtruth.txt").write_text(f"{index},2,8,8\n" * (12 + index))
    return root


def _results(folder):
    """Content of what does not differ between two runs."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("_time.txt")}


def _box_files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("s?.txt")}


def _is_running(process):
    """Whether a process is there and not a zombie; an orphan's parent may take a while to collect it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(condition, seconds=120.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)


def _start(dataset, out, diary, workers):
    """A program that tracks; what it prints will be in `printed` beside its results."""
    program = quick_context().Process(target=main, args=(out / "printed", dataset, out, diary, workers))
    program.start()
    return program


def _wait(program):
    """The exit code of a program, once it has ended."""
    program.join()
    return program.exitcode


@pytest.fixture
def quick_starts(monkeypatch):
    """A crew of this process has no need of spawned processes where how they start is not the question."""
    context = quick_context()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    assert _wait(_start(dataset, out, out / "starts", 1)) == 0
    return _results(out / "diary")


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_a_run_goes_on(dataset, uninterrupted, tmp_path, workers):
    diary, folder = tmp_path / "starts", tmp_path / "out" / "diary"
    moments = random.Random(workers)
    for _ in range(2):
        before = _box_files(folder)
        started = diary.read_text().count("\n") if diary.exists() else 0
        program = _start(dataset, tmp_path / "out", diary, workers)
        # Somewhere in the first, or between two results: a sequence takes 0.2 s. On a slow machine the run before may
        # have left nothing to do.
        begun = lambda: diary.exists() and diary.read_text().count("\n") > started  # noqa: B023, E731
        _wait_until(lambda: begun() or program.exitcode is not None)  # noqa: B023
        time.sleep(moments.uniform(0, 0.5))
        program.kill()
        _wait(program)
        _wait_until(lambda: not any(map(_is_running, processes(diary))))
        after = _box_files(folder)
        assert all(after[path] == changed for path, changed in before.items()), "a finished result was written again"

    finished = {path.stem for path in _box_files(folder)}
    starts = diary.read_text().splitlines()
    assert _wait(_start(dataset, tmp_path / "out", diary, workers)) == 0
    printed = (tmp_path / "out" / "printed").read_text()
    # On a slow machine the killed runs may have left nothing to do.
    tracked, skipped = (list(filter(None, names.split(","))) for names in printed.split("|"))
    assert set(skipped) == finished
    assert sorted(line.split()[1] for line in diary.read_text().splitlines()[len(starts) :]) == [
        name.removeprefix("s") for name in tracked
    ]
    assert {*tracked, *finished} == {f"s{index}" for index in range(NUM_SEQUENCES)}
    assert _results(folder) == uninterrupted


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_all_processes(dataset, tmp_path, number):
    diary, folder = tmp_path / "starts", tmp_path / "out" / "diary"
    program = _start(dataset, tmp_path / "out", diary, 2)
    _wait_until(lambda: _box_files(folder))
    # Ctrl-C reaches the whole group.
    os.killpg(program.pid, number) if number == signal.SIGINT else program.terminate()
    assert _wait(program) == (-signal.SIGINT if number == signal.SIGINT else 128 + signal.SIGTERM)
    assert not any(map(_is_running, processes(diary)))
    assert not list(folder.glob(".*")), "no half file is left"


def test_processes_share_the_work(dataset, tmp_path):
    diary = tmp_path / "starts"
    sequences = open_dataset("folder", dataset)
    before = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    with Workers(functools.partial(open_diary, diary, together=2), 2) as crew:
        assert (crew.name, crew.settings) == ("diary", {"tracker": "diary"})
        summary = run_dataset(crew, sequences, tmp_path / "out", "diary", crew.settings)
        assert [*crew.track([], Clock(), print)] == []
    assert len(summary.finished) == NUM_SEQUENCES and not summary.failures and summary.num_workers == 2
    assert len(processes(diary)) == 2 and os.getpid() not in processes(diary)
    assert summary.clock.frames == sum(map(len, sequences))
    assert 0 < summary.clock.tracker_s <= summary.clock.total_s and summary.clock.rest_s > 0
    assert "in 2 processes" in describe(summary) and "% in the tracker" in describe(summary)
    if before is not None:
        assert set(os.sched_getaffinity(0)) == before, "only workers are bound to cores"


def test_a_process_that_dies_costs_its_sequence(dataset, tmp_path, quick_starts):
    sequences = open_dataset("folder", dataset)
    with Workers(functools.partial(open_diary, tmp_path / "starts", 0.01, dies_at=2), 2) as crew:
        summary = run_dataset(crew, sequences, tmp_path / "out", "diary", {})
    (failure,) = summary.failures
    assert failure.sequence == "s2" and "signal 9 (SIGKILL)" in failure.reason
    assert len(summary.finished) == NUM_SEQUENCES - 1


def test_a_process_that_breaks_is_a_sentence_and_its_traceback_is_in_a_file(dataset, tmp_path, capfd):
    with Workers(open_broken, 2) as crew:
        summary = run_dataset(crew, open_dataset("folder", dataset), tmp_path / "out", "broken", {})
    assert not summary.finished and len(summary.failures) == NUM_SEQUENCES
    sentence = "not tracked: the process that tracked it failed: RuntimeError: out of memory"
    assert all(failure.reason.startswith(sentence) for failure in summary.failures)
    log = (summary.folders[0] / "failures.log").read_text()
    assert log.count("Traceback") == 1 and "warm_up" in log and "allocations" in log
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err and "allocations" not in printed.out + printed.err
    with (
        pytest.raises(RuntimeError, match=r"(?s)opens the tracker failed.*open_by_mistake.*a bug"),
        Workers(open_by_mistake, 1),
    ):
        pass


def test_when_all_processes_die_nothing_is_forgotten(dataset, tmp_path, quick_starts):
    with Workers(functools.partial(open_diary, tmp_path / "starts", dies_at=5), 1) as crew:
        summary = run_dataset(crew, open_dataset("folder", dataset), tmp_path / "out", "diary", {})
    # The longest comes first, and it is the one at x = 5.
    assert not summary.finished and len(summary.failures) == NUM_SEQUENCES
    assert sum("not tracked" in failure.reason for failure in summary.failures) == NUM_SEQUENCES - 1


def test_a_tracker_that_cannot_be_opened_is_an_error(dataset, tmp_path, quick_starts):
    with pytest.raises(ValueError, match="no weights today"), Workers(refuse, 2):
        pass
    with pytest.raises(ValueError, match="0 workers"):
        Workers(refuse, 0)
    with Workers(functools.partial(refuse_later, tmp_path / "opened"), 2) as crew:
        summary = run_dataset(crew, open_dataset("folder", dataset), tmp_path / "out", "diary", {})
    assert len(summary.finished) == NUM_SEQUENCES
