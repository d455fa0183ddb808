import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.datasets.sequences import TrackingSequence, open_dataset
from mixformer_jax.evaluation.lane_loop import Job, LaneLoop
from mixformer_jax.evaluation.results import ResultsError, read_boxes, read_times
from mixformer_jax.evaluation.runner import describe, passes, run_dataset
from mixformer_jax.evaluation.trackers import BoxPrediction, FirstBoxTracker, OpenedTracker
from mixformer_jax.evaluation.workers import Alone
from mixformer_jax.tracking.lanes import LaneError, OneLane, TrackerLike


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
        return state, BoxPrediction(state, self.score)


class Returning(FirstBoxTracker):
    """Returns the given boxes and scores, one a step, and none when they are used up."""

    def __init__(self, *predictions):
        self.predictions = iter(predictions)

    def step(self, state, frame):
        return state, next(self.predictions)


def alone(tracker):
    return Alone(OpenedTracker(OneLane(tracker), "x", {"tracker": "x"}))


def track(tracker, sequence, on_frames=lambda count: None):
    """The outcome of one sequence."""
    jobs = iter([Job(7, sequence)])
    (outcome,) = LaneLoop(OneLane(tracker), lambda: next(jobs, None), on_frames).outcomes()
    assert outcome.number == 7 and (outcome.result is None) == bool(outcome.reason)
    return outcome


def _sequence(length=3, first=(1.0, 2.0, 3.0, 4.0), name="car"):
    boxes_xywh = np.tile(np.array(first), (length, 1))
    return TrackingSequence(name, boxes_xywh, lambda index: np.zeros((8, 8, 3), np.uint8), 30.0, Path("/nowhere"))


def _files(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.endswith("_time.txt")}


def test_the_harness_sees_trackers():
    assert isinstance(FirstBoxTracker(), TrackerLike)
    assert not isinstance(object(), TrackerLike)


def test_a_sequence_is_tracked_from_its_first_box(folder_dataset):
    drift = open_dataset("folder", folder_dataset)[0]
    seen = []
    result = track(BrightTracker(score=0.5), drift, seen.append).result
    np.testing.assert_array_equal(result.boxes_xywh, drift.boxes_xywh)
    np.testing.assert_array_equal(result.scores, [1, 0.5, 0.5, 0.5, 0.5])
    assert result.times_s.shape == (5,) and (result.times_s > 0).all()
    assert seen == [1] * 5

    first = track(FirstBoxTracker(), drift).result
    np.testing.assert_array_equal(first.boxes_xywh, np.tile(drift.boxes_xywh[0], (5, 1)))
    assert first.scores is None


def test_a_tracker_cannot_change_the_ground_truth():
    class Vandal(FirstBoxTracker):
        def start(self, frame, box_xywh):
            box_xywh[:] = 0
            return box_xywh

    sequence = _sequence()
    result = track(Vandal(), sequence).result
    np.testing.assert_array_equal(sequence.boxes_xywh[0], [1, 2, 3, 4])
    np.testing.assert_array_equal(result.boxes_xywh, [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_a_sequence_without_a_first_box_is_named():
    reason = track(FirstBoxTracker(), _sequence(first=(np.nan,) * 4)).reason
    assert "ValueError: car: the target is absent in the first frame" in reason
    reason = track(FirstBoxTracker(), _sequence(first=(1.0, 1.0, -1.0, -1.0))).reason
    assert "the target is absent in the first frame, whose box is [1.0, 1.0, -1.0, -1.0]" in reason


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
    good = BoxPrediction(np.array([1.0, 2, 3, 4]))
    tracker = Returning(good, type("Prediction", (), {"box_xywh": np.array(box), "score": None}))
    assert "ValueError: car, frame 2: the tracker returned" in track(tracker, _sequence()).reason


def test_scores_come_for_all_frames_or_none():
    box = np.array([1.0, 2, 3, 4])
    for scores in ((0.5, None), (None, 0.5)):
        tracker = Returning(*(BoxPrediction(box, score) for score in scores))
        assert "car, frame 2: the tracker gives a score on some frames" in track(tracker, _sequence()).reason


def test_an_interrupted_run_goes_on_where_it_was(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)  # drift 5, hide 6, still 4
    whole = run_dataset(alone(BrightTracker()), sequences, tmp_path / "whole", "bright", {"a": "b"})
    assert whole.finished == ("drift", "hide", "still") and not whole.skipped and not whole.failures
    assert whole.step_times_s.shape == (4 + 5 + 3,)

    with pytest.raises(KeyboardInterrupt):
        run_dataset(alone(BrightTracker(stop_at=7)), sequences, tmp_path / "parts", "bright", {"a": "b"})
    parts = tmp_path / "parts" / "bright"
    assert sorted(_files(parts)) == ["drift.txt", "run.json"]

    tracker = BrightTracker()
    rest = run_dataset(alone(tracker), sequences, tmp_path / "parts", "bright", {"a": "b"})
    assert rest.skipped == ("drift",) and rest.finished == ("hide", "still")
    assert (tracker.starts, tracker.steps) == (2, 5 + 3)
    assert _files(parts) == _files(whole.folders[0])

    nothing = run_dataset(alone(BrightTracker()), sequences, tmp_path / "parts", "bright", {"a": "b"})
    assert nothing.skipped == ("drift", "hide", "still") and not nothing.finished
    assert "frames/s" not in describe(nothing)


def test_half_a_result_is_run_again(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    folder = run_dataset(alone(BrightTracker()), sequences, tmp_path, "bright", {}).folders[0]
    whole = _files(folder)
    (folder / "hide.txt").write_text(whole["hide.txt"][:40])
    again = run_dataset(alone(BrightTracker()), sequences, tmp_path, "bright", {})
    assert again.finished == ("hide",)
    assert _files(folder) == whole


def test_a_failing_sequence_is_reported_and_the_others_go_on(folder_dataset, tmp_path, caplog):
    (folder_dataset / "hide" / "00000004.jpg").write_bytes(b"")
    sequences = open_dataset("folder", folder_dataset)
    summary = run_dataset(alone(FirstBoxTracker()), sequences, tmp_path, "first", {})
    assert summary.finished == ("drift", "still")
    (failure,) = summary.failures
    assert failure.sequence == "hide" and "00000004.jpg" in failure.reason
    assert f"FAILED hide: {failure.reason}" in describe(summary)
    assert not list(summary.folders[0].glob("hide*"))
    (message,) = caplog.messages
    assert message == f"hide failed: {failure.reason}" and "Traceback" not in caplog.text
    assert not (summary.folders[0] / "failures.log").exists()


class Failing(FirstBoxTracker):
    """Fails on some frame, as a bug does or a device."""

    def step(self, state, frame):
        raise RuntimeError("the device is gone\nallocations: 1\nallocations: 2")


def test_errors_that_nobody_foresaw_are_a_sentence_and_a_traceback_in_a_file(folder_dataset, tmp_path, caplog):
    sequences = open_dataset("folder", folder_dataset)
    summary = run_dataset(alone(Failing()), sequences, tmp_path, "first", {})
    log = summary.folders[0] / "failures.log"
    lines = describe(summary).splitlines()
    assert lines[-3:] == [
        f"FAILED {name}: RuntimeError: the device is gone (traceback in {log})" for name in ("drift", "hide", "still")
    ]
    assert "Traceback" not in caplog.text and "allocations" not in caplog.text
    text = log.read_text()
    assert text.count("Traceback") == 3 and "allocations: 2" in text and "hide\nTraceback" in text
    # It is that of the last run.
    assert not run_dataset(alone(FirstBoxTracker()), sequences, tmp_path, "first", {}).failures
    assert not log.exists()


def test_a_failure_is_one_line_whatever_the_sequence_is_named(tmp_path, caplog):
    summary = run_dataset(alone(FirstBoxTracker()), [_sequence(first=(np.nan,) * 4, name="a\nb|c")], tmp_path, "x", {})
    assert describe(summary).splitlines()[-1].startswith("FAILED a\\nb|c: ValueError: a b|c: the target is absent")
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]


def test_other_settings_are_refused(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    run_dataset(alone(FirstBoxTracker()), sequences, tmp_path, "first", {"weights": "monday"})
    with pytest.raises(ResultsError, match=r"monday.*tuesday"):
        run_dataset(alone(FirstBoxTracker()), sequences, tmp_path, "first", {"weights": "tuesday"})


def test_sequences_of_one_name_are_refused(tmp_path):
    with pytest.raises(ResultsError, match="same files: car"):
        run_dataset(alone(FirstBoxTracker()), [_sequence(), _sequence()], tmp_path, "first", {})


def test_annotations_that_cannot_be_read_are_a_failure_like_others(folder_dataset, tmp_path):
    (folder_dataset / "hide" / "groundtruth.txt").write_text("1,2,3\n" * 6)
    summary = run_dataset(
        alone(FirstBoxTracker()), open_dataset("got10k", folder_dataset), tmp_path, "first", {}, "got10k"
    )
    assert len(summary.finished) == 2
    (failure,) = summary.failures
    assert failure.sequence == "hide" and "groundtruth.txt" in failure.reason


class Wandering(FirstBoxTracker):
    """Draws its steps from a generator that goes on from run to run, as no tracker of ours does."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def step(self, state, frame):
        state = state + np.array([*self.rng.uniform(0, 1, 2), 0, 0])
        return state, BoxPrediction(state, 0.5)


def test_repetitions_are_pytrackings_runs(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    summary = run_dataset(alone(BrightTracker()), sequences, tmp_path, "bright", {}, repetitions=2)
    assert [folder.name for folder in summary.folders] == ["bright_000", "bright_001"]
    assert summary.finished[0] == "drift, repetition 1" and len(summary.finished) == 6
    first, second = map(_files, summary.folders)
    assert first == second and "drift.txt" in first
    assert "3 sequences have the same boxes in all repetitions" in describe(summary)

    (summary.folders[1] / "hide.txt").unlink()
    again = run_dataset(alone(BrightTracker()), sequences, tmp_path, "bright", {}, repetitions=2)
    assert again.finished == ("hide, repetition 2",) and len(again.skipped) == 5
    with pytest.raises(ValueError, match="0 repetitions"):
        run_dataset(alone(BrightTracker()), sequences, tmp_path, "bright", {}, repetitions=0)


def test_got10k_has_a_layout_of_its_own(folder_dataset, tmp_path, caplog):
    sequences = open_dataset("folder", folder_dataset)
    once = run_dataset(alone(Wandering()), sequences, tmp_path, "w", {}, "got10k")
    drift = once.folders[0] / "drift"
    assert sorted(path.name for path in drift.iterdir()) == ["drift_001.txt", "drift_score.txt", "drift_time.txt"]
    first_boxes, first_times = (drift / "drift_001.txt").read_text(), read_times([drift / "drift_time.txt"])

    summary = run_dataset(alone(Wandering()), sequences, tmp_path, "w", {}, "got10k", repetitions=3)
    assert summary.skipped == tuple(f"{name}, repetition 1" for name in ("drift", "hide", "still"))
    assert summary.folders == once.folders and (drift / "drift_001.txt").read_text() == first_boxes
    boxes = [read_boxes(drift / f"drift_{number:03d}.txt") for number in (1, 2, 3)]
    assert all(len(rows) == 5 for rows in boxes) and np.abs(boxes[1] - boxes[2]).max() > 0.01
    times = read_times([drift / "drift_time.txt"])
    assert times.shape == (5, 3) and np.isfinite(times).all()
    np.testing.assert_array_equal(times[:, :1], first_times)
    assert "0 sequences have the same boxes" in describe(summary)

    # The second is lost, and the file of times is damaged: what can be read of the others is kept, and the rest is NaN,
    # which the toolkit passes over.
    (drift / "drift_002.txt").unlink()
    lines = (drift / "drift_time.txt").read_text().splitlines()
    (drift / "drift_time.txt").write_text("\n".join([lines[0], "0.5,x,\udcff", *lines[2:]]), errors="surrogateescape")
    again = run_dataset(alone(Wandering()), sequences, tmp_path, "w", {}, "got10k", repetitions=3)
    assert again.finished == ("drift, repetition 2",)
    mended = read_times([drift / "drift_time.txt"])
    assert mended.shape == (5, 3) and mended[1, 0] == 0.5 and np.isnan(mended[1, 2]) and (mended[:, 1] > 0).all()
    rest = [0, 2, 3, 4]
    np.testing.assert_array_equal(mended[rest][:, [0, 2]], times[rest][:, [0, 2]])
    assert "drift_time.txt, line 2" in caplog.text


class TwoLanes:
    """Two BrightTrackers side by side; lane 1 fails on the frame that is told. A step that fails uses its state up."""

    num_lanes = 2

    def __init__(self, fails_at=None, error=None):
        self.fails_at, self.error, self.steps = fails_at, error, []

    def start(self, state, lane, frame, box_xywh):
        if state and "used up" in state:
            raise RuntimeError("Array has been deleted")
        return {**(state or {}), lane: np.array(box_xywh, float)}

    def step(self, state, frames):
        self.steps.append(sorted(frames))
        if len(self.steps) == self.fails_at:
            if not isinstance(self.error, LaneError):
                state["used up"] = True
            raise self.error
        found = {}
        for lane, frame in frames.items():
            state[lane], found[lane] = BrightTracker().step(state[lane], frame)
        return state, found


def test_lanes_are_filled_and_each_sequence_is_whole(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    crew = Alone(OpenedTracker(TwoLanes(), "x", {"tracker": "x"}))
    summary = run_dataset(crew, sequences, tmp_path / "lanes", "bright", {})
    whole = run_dataset(alone(BrightTracker()), sequences, tmp_path / "whole", "bright", {})
    assert summary.finished == whole.finished
    assert _files(summary.folders[0]) == _files(whole.folders[0])


@pytest.mark.parametrize(
    ("error", "lost"), [(LaneError(1), {"drift"}), (RuntimeError("the device is gone"), {"hide", "drift"})]
)
def test_an_error_in_a_lane_costs_its_sequence_and_another_costs_all_in_the_step(folder_dataset, tmp_path, error, lost):
    sequences = open_dataset("folder", folder_dataset)
    if isinstance(error, LaneError):
        error.__cause__ = ValueError("a bad frame")
    # The longest first: hide in lane 0, drift in lane 1.
    crew = Alone(OpenedTracker(TwoLanes(3, error), "x", {"tracker": "x"}))
    summary = run_dataset(crew, sequences, tmp_path, "bright", {})
    assert {failure.sequence for failure in summary.failures} == lost
    assert ("ValueError: a bad frame" if len(lost) == 1 else "the device is gone") in summary.failures[0].reason
    for name in set(summary.finished):
        sequence = next(s for s in sequences if s.name == name)
        present = ~np.isnan(sequence.boxes_xywh[:, 0])
        found = read_boxes(summary.folders[0] / f"{name}.txt")
        np.testing.assert_allclose(found[present], sequence.boxes_xywh[present])


@pytest.fixture
def vot_workspace(tmp_path):
    with zipfile.ZipFile(Path(__file__).resolve().parents[1] / "data" / "evalgold" / "vot_workspace.zip") as archive:
        archive.extractall(tmp_path / "workspace")
    return tmp_path / "workspace"


def test_vot_runs_from_every_anchor_in_its_direction(vot_workspace):
    sequences = open_dataset("vot", vot_workspace)
    results = vot_workspace / "results"
    summary = run_dataset(alone(FirstBoxTracker()), sequences, results, "first", {}, "vot")
    assert len(summary.finished) == 8 and summary.finished[3] == "ball, backward from frame 36"
    theirs = sorted((results / "StaticBox" / "baseline").rglob("*.txt"))
    for path in theirs:
        ours = results / "first" / path.relative_to(results / "StaticBox")
        first, *rows = ours.read_text().splitlines()
        expected, *expected_rows = path.read_text().splitlines()
        assert first == expected == "1"
        boxes, expected_boxes = (
            [[float(x) for x in row.split(",")] for row in lines] for lines in (rows, expected_rows)
        )
        np.testing.assert_allclose(boxes, expected_boxes, atol=1e-3)
        assert len(ours.with_name(f"{ours.stem}_time.value").read_text().split()) == len(boxes) + 1
    assert len(theirs) == 8

    ours.write_text("1\n1,2,3\n")
    again = run_dataset(alone(FirstBoxTracker()), sequences, results, "first", {}, "vot")
    assert len(again.finished) == 1 and len(again.skipped) == 7


def test_vot_needs_anchors_and_has_no_repetitions(vot_workspace):
    (vot_workspace / "sequences" / "box" / "anchor.value").unlink()
    sequences = open_dataset("vot", vot_workspace)
    summary = run_dataset(alone(FirstBoxTracker()), sequences, vot_workspace / "results", "first", {}, "vot")
    (failure,) = summary.failures
    assert failure.sequence == "box" and "no anchors" in failure.reason and len(summary.finished) == 5
    with pytest.raises(ValueError, match="from every anchor once"):
        run_dataset(alone(FirstBoxTracker()), sequences, vot_workspace / "results", "first", {}, "vot", 2)


def test_a_run_backward_shows_the_frames_backward(vot_workspace):
    (ball, _) = open_dataset("vot", vot_workspace)
    way = next(way for way in passes("vot", ball) if way.anchor == 36)
    assert len(way.sequence) == 37
    np.testing.assert_array_equal(way.sequence.boxes_xywh, ball.boxes_xywh[36::-1])
    frames = list(way.sequence.frames())
    np.testing.assert_array_equal(frames[0], ball.frame(36))
    np.testing.assert_array_equal(frames[-1], ball.frame(0))
