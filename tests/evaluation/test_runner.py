import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.data.sequences import Sequence, open_dataset
from mixformer_jax.evaluation.results import ResultsError, read_boxes
from mixformer_jax.evaluation.runner import (
    FirstBoxPrediction,
    FirstBoxTracker,
    TrackerLike,
    describe,
    run_dataset,
    run_sequence,
)


class BrightTracker:
    """Boxes the bright pixels, and says which frames it was started on and given."""

    def __init__(self, score=None, stop_at=None):
        self.score, self.stop_at = score, stop_at
        self.starts, self.steps = 0, 0

    def start(self, frame, box_xywh):
        self.starts += 1
        return np.array(box_xywh, float)

    def step(self, state, frame):
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt
        rows, columns = np.nonzero(frame[..., 0] > 127)
        if len(rows):
            state = np.array([columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1], float)
        return state, FirstBoxPrediction(state, self.score)


class Returning(FirstBoxTracker):
    """Returns the given boxes and scores, one a step, and none when they are used up."""

    def __init__(self, *predictions):
        self.predictions = iter(predictions)

    def step(self, state, frame):
        return state, next(self.predictions)


def _sequence(length=3, first=(1.0, 2.0, 3.0, 4.0), name="car"):
    boxes_xywh = np.tile(np.array(first), (length, 1))
    return Sequence(name, boxes_xywh, lambda index: np.zeros((8, 8, 3), np.uint8), 30.0, Path("/nowhere"))


def _files(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.endswith("_time.txt")}


def test_the_harness_sees_trackers():
    assert isinstance(FirstBoxTracker(), TrackerLike)
    assert not isinstance(object(), TrackerLike)


def test_a_sequence_is_tracked_from_its_first_box(folder_dataset):
    drift = open_dataset("folder", folder_dataset)[0]
    seen = []
    result = run_sequence(BrightTracker(score=0.5), drift, lambda: seen.append(1))
    np.testing.assert_array_equal(result.boxes_xywh, drift.boxes_xywh)
    np.testing.assert_array_equal(result.scores, [1, 0.5, 0.5, 0.5, 0.5])
    assert result.times_s.shape == (5,) and (result.times_s > 0).all()
    assert len(seen) == 5

    first = run_sequence(FirstBoxTracker(), drift)
    np.testing.assert_array_equal(first.boxes_xywh, np.tile(drift.boxes_xywh[0], (5, 1)))
    assert first.scores is None


def test_a_tracker_cannot_change_the_ground_truth():
    class Vandal(FirstBoxTracker):
        def start(self, frame, box_xywh):
            box_xywh[:] = 0
            return box_xywh

    sequence = _sequence()
    result = run_sequence(Vandal(), sequence)
    np.testing.assert_array_equal(sequence.boxes_xywh[0], [1, 2, 3, 4])
    np.testing.assert_array_equal(result.boxes_xywh, [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_sequence_without_a_first_box_is_named():
    with pytest.raises(ValueError, match=r"car: the target is absent \(NaN\) in the first frame"):
        run_sequence(FirstBoxTracker(), _sequence(first=(np.nan,) * 4))


@pytest.mark.parametrize(
    "box",
    [
        (1.0, 2.0, np.nan, 4.0),
        (1.0, 2.0, -3.0, 4.0),
        (np.inf, 2.0, 3.0, 4.0),
        (1.0, 2.0, 3.0),
        (1e10, 2, 3, 4),
    ],
)
def test_what_is_no_box_is_named_with_its_frame(box):
    good = FirstBoxPrediction(np.array([1.0, 2, 3, 4]))
    tracker = Returning(good, type("Prediction", (), {"box_xywh": np.array(box), "score": None}))
    with pytest.raises(ValueError, match="car, frame 2: the tracker returned"):
        run_sequence(tracker, _sequence())


def test_scores_come_for_all_frames_or_none():
    box = np.array([1.0, 2, 3, 4])
    with pytest.raises(ValueError, match="1 of 2 frames"):
        run_sequence(Returning(FirstBoxPrediction(box, 0.5), FirstBoxPrediction(box, None)), _sequence())


def test_an_interrupted_run_goes_on_where_it_was(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)  # drift 5, hide 6, still 4
    whole = run_dataset(BrightTracker(), sequences, tmp_path / "whole", "bright", {"a": "b"})
    assert whole.finished == ("drift", "hide", "still") and not whole.skipped and not whole.failures
    assert whole.step_times_s.shape == (4 + 5 + 3,)

    with pytest.raises(KeyboardInterrupt):
        run_dataset(BrightTracker(stop_at=7), sequences, tmp_path / "parts", "bright", {"a": "b"})
    parts = tmp_path / "parts" / "bright"
    assert sorted(_files(parts)) == ["drift.txt", "run.json"]

    tracker = BrightTracker()
    rest = run_dataset(tracker, sequences, tmp_path / "parts", "bright", {"a": "b"})
    assert rest.skipped == ("drift",) and rest.finished == ("hide", "still")
    assert (tracker.starts, tracker.steps) == (2, 5 + 3)
    assert _files(parts) == _files(whole.folder)

    nothing = run_dataset(BrightTracker(), sequences, tmp_path / "parts", "bright", {"a": "b"})
    assert nothing.skipped == ("drift", "hide", "still") and not nothing.finished
    assert "frames/s" not in describe(nothing)


def test_half_a_result_is_run_again(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    folder = run_dataset(BrightTracker(), sequences, tmp_path, "bright", {}).folder
    whole = _files(folder)
    (folder / "hide.txt").write_text(whole["hide.txt"][:40])
    again = run_dataset(BrightTracker(), sequences, tmp_path, "bright", {})
    assert again.finished == ("hide",)
    assert _files(folder) == whole


_KILLED = """
import os, signal, sys
from mixformer_jax.data.sequences import open_dataset
from mixformer_jax.evaluation.runner import FirstBoxTracker, run_dataset

class Killed(FirstBoxTracker):
    steps = 0
    def step(self, state, frame):
        self.steps += 1
        if self.steps == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(state, frame)

run_dataset(Killed(), open_dataset("folder", sys.argv[1]), sys.argv[2], "first", {})
"""


def test_a_killed_run_leaves_whole_files_alone(folder_dataset, tmp_path):
    repository = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _KILLED, str(folder_dataset), str(tmp_path / "out")]
    killed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "out" / "first"
    assert sorted(_files(folder)) == ["drift.txt", "run.json"]

    sequences = open_dataset("folder", folder_dataset)
    rest = run_dataset(FirstBoxTracker(), sequences, tmp_path / "out", "first", {})
    assert rest.skipped == ("drift",) and rest.finished == ("hide", "still")
    assert [len(read_boxes(folder / f"{s.name}.txt")) for s in sequences] == [5, 6, 4]


def test_a_failing_sequence_is_reported_and_the_others_go_on(folder_dataset, tmp_path, caplog):
    (folder_dataset / "hide" / "00000004.jpg").write_bytes(b"")
    sequences = open_dataset("folder", folder_dataset)
    summary = run_dataset(FirstBoxTracker(), sequences, tmp_path, "first", {})
    assert summary.finished == ("drift", "still")
    (failure,) = summary.failures
    assert failure.sequence == "hide" and "00000004.jpg" in failure.reason
    assert f"FAILED hide: {failure.reason}" in describe(summary)
    assert not list(summary.folder.glob("hide*"))
    assert "Traceback" in caplog.text and "hide" in caplog.text


def test_other_settings_are_refused(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    run_dataset(FirstBoxTracker(), sequences, tmp_path, "first", {"weights": "monday"})
    with pytest.raises(ResultsError, match=r"monday.*tuesday"):
        run_dataset(FirstBoxTracker(), sequences, tmp_path, "first", {"weights": "tuesday"})


def test_sequences_of_one_name_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="same files: car"):
        run_dataset(FirstBoxTracker(), [_sequence(), _sequence()], tmp_path, "first", {})
