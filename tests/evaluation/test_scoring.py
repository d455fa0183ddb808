import numpy as np
import pytest

from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.evaluation.metrics import benchmark_rules
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.scoring import find_results, list_trackers, score_results

NAMES = ("drift", "hide", "still")


@pytest.fixture
def results(folder_dataset, tmp_path):
    """A perfect tracker and one that repeats the first box, on the tiny data set."""
    folder = tmp_path / "results"
    for name in ("perfect", "first-box"):
        (folder / name).mkdir(parents=True)
    for sequence in open_dataset("folder", folder_dataset):
        rows = np.nan_to_num(sequence.boxes_xywh)  # where the target is away, the tracker has an empty box
        np.savetxt(folder / "perfect" / f"{sequence.name}.txt", rows, delimiter="\t")
        first = np.tile(sequence.boxes_xywh[0], (len(sequence), 1))
        np.savetxt(folder / "first-box" / f"{sequence.name}.txt", first, delimiter=",")
    return folder


def _score(results, folder_dataset, rules=None, trackers=None):
    sequences = open_dataset("folder", folder_dataset)
    return score_results(
        find_results(results, NAMES, trackers), "folder", sequences, rules or benchmark_rules("folder")
    )


@pytest.mark.parametrize("benchmark", ["otb", "lasot", "uav", "nfs"])
def test_result_files_are_scored_like_the_toolkit(benchmark, ope_golden):
    run = ope_golden.summary["runs"][f"mixformer_{benchmark}"]
    names = ope_golden.summary["sequences"]
    sequences = [ope_golden.sequence(benchmark, name) for name in names]
    files = find_results(ope_golden.files / "results", names)
    scores = score_results(files, benchmark, sequences, benchmark_rules(benchmark))
    trackers = {tracker.name: tracker for tracker in scores.trackers}
    assert sorted(trackers) == sorted(run["trackers"])
    aucs = [tracker.headline["AUC"] for tracker in scores.trackers]
    assert aucs == sorted(aucs, reverse=True)
    toolkit = {"AUC": "AUC", "OP50": "OP50", "OP75": "OP75", "P": "Precision", "P_norm": "NormPrecision"}
    for i, name in enumerate(run["trackers"]):
        for ours, theirs in toolkit.items():
            assert trackers[name].headline[ours] == pytest.approx(run[theirs][i], abs=1e-4)
        by_sequence = np.array(run["per_sequence_AUC"])[:, i]
        np.testing.assert_allclose(trackers[name].by_sequence["AUC"], by_sequence, rtol=0, atol=1e-4)


def test_a_perfect_tracker_scores_95_and_absent_frames_count_against_it(results, folder_dataset):
    scores = _score(results, folder_dataset)
    assert [tracker.name for tracker in scores.trackers] == ["perfect", "first-box"]
    perfect, first = scores.trackers
    # drift, hide (one of six frames without target), still
    np.testing.assert_allclose(perfect.curves.auc, 100 * 20 / 21 * np.array([1, 5 / 6, 1]), atol=1e-9)
    np.testing.assert_allclose(perfect.average_overlap, 1, atol=1e-12)
    assert perfect.headline["P_norm"] == pytest.approx(100 * (1 + 5 / 6 + 1) / 3)
    # On the still target the first box is perfect; the drifting one moves by 3 px: IoU (10 - d) / (10 + d).
    overlaps = np.array([(10 - d) / (10 + d) for d in (0, 3, 6, 9)] + [0])
    assert first.curves.auc[2] == pytest.approx(100 * 20 / 21)
    assert first.average_overlap[0] == pytest.approx(overlaps.mean())
    assert first.curves.op50[0] == pytest.approx(100 * 2 / 5)
    assert perfect.subset([2]).headline["AUC"] == pytest.approx(100 * 20 / 21)


def test_runs_and_repetitions_of_a_tracker_are_averaged(results, folder_dataset):
    # As two runs of pytracking: perfect_000 and perfect_001 become `both`.
    (results / "perfect").rename(results / "both_000")
    (results / "first-box").rename(results / "both_001")
    scores = _score(results, folder_dataset)
    assert [tracker.name for tracker in scores.trackers] == ["both"]
    apart = find_results(results, NAMES, separate_runs=True)
    assert [tracker.name for tracker in apart] == ["both_000", "both_001"]
    sequences = open_dataset("folder", folder_dataset)
    runs = score_results(apart, "folder", sequences, benchmark_rules("folder")).trackers
    mean = (runs[0].curves.success + runs[1].curves.success) / 2
    np.testing.assert_allclose(scores.trackers[0].curves.success, mean, atol=1e-12)
    by_name = _score(results, folder_dataset, trackers=["both"])
    assert by_name.trackers[0].headline == scores.trackers[0].headline
    # The same as two repetitions in GOT-10k's layout.
    for name in NAMES:
        (results / "nested" / name).mkdir(parents=True)
        for number, run in enumerate(("both_000", "both_001"), start=1):
            content = (results / run / f"{name}.txt").read_bytes()
            (results / "nested" / name / f"{name}_{number:03d}.txt").write_bytes(content)
    assert _score(results, folder_dataset, trackers=["nested"]).trackers[0].headline == scores.trackers[0].headline


def test_one_folder_with_a_number_is_a_tracker(results, folder_dataset):
    (results / "perfect").rename(results / "perfect_000")
    assert [tracker.name for tracker in find_results(results, NAMES)] == ["first-box", "perfect_000"]
    (results / "perfect_001").symlink_to(results / "perfect_000")
    assert [tracker.name for tracker in find_results(results, NAMES)] == ["first-box", "perfect"]
    (results / "perfect").mkdir()
    names = [tracker.name for tracker in find_results(results, NAMES)]
    assert names == ["first-box", "perfect_000", "perfect_001"]


def test_missing_results_are_all_named(results, folder_dataset):
    (results / "perfect" / "hide.txt").unlink()
    (results / "first-box" / "drift.txt").unlink()
    with pytest.raises(ResultsError, match=r"2 result files are missing.*first-box/drift\.txt.*perfect/hide\.txt"):
        find_results(results, NAMES)
    with pytest.raises(ResultsError, match=r"3 result files are missing.*nobody"):
        find_results(results, NAMES, ["nobody"])


def test_a_result_of_another_length(results, folder_dataset):
    path = results / "perfect" / "still.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    headline = _score(results, folder_dataset).trackers[0].headline
    assert headline["AUC"] == pytest.approx(89.947, abs=1e-3)  # the toolkits' rule: cut
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ResultsError, match=r"still\.txt.*3 predicted boxes for 4 frames"):
        _score(results, folder_dataset)


def test_boxes_that_one_toolkit_allows(results, folder_dataset):
    path = results / "perfect" / "still.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], "nan,nan,nan,nan"]))
    with pytest.raises(ResultsError, match=r"still\.txt, line 4"):
        _score(results, folder_dataset)
    scores = _score(results, folder_dataset, benchmark_rules("folder", "lasot-toolkit"))
    assert scores.trackers[0].curves.auc[2] == pytest.approx(100 * 20 / 21)


def test_no_results_at_all(results, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match=r"expected <tracker>/drift\.txt"):
        list_trackers(tmp_path / "empty", NAMES)
    with pytest.raises(ResultsError, match="no such folder"):
        list_trackers(tmp_path / "gone", NAMES)


def test_rgbt234_takes_the_better_annotation_of_each_frame(tmp_path):
    """MPR and MSR (Li et al. 2019): the smaller distance, and the larger overlap, frame by frame."""
    folder, results = tmp_path / "data" / "car", tmp_path / "results"
    for part in ("visible", "infrared"):
        (folder / part).mkdir(parents=True)
    visible = ["0,0,10,10", "0,0,10,10", "0,0,10,10", "0,0,0,0", "0,0,0,0"]
    infrared = ["5,0,10,10", "50,0,10,10", "5,0,10,10", "5,0,10,10", "0,0,0,0"]
    (folder / "visible.txt").write_text("\n".join(visible))
    (folder / "infrared.txt").write_text("\n".join(infrared))
    (results / "still").mkdir(parents=True)
    boxes = ["0,0,10,10", "0,0,10,10", "5,0,10,10", "30,0,10,10", "5,0,10,10"]
    (results / "still" / "car.txt").write_text("\n".join(boxes))

    def score(rule_set="mixformer"):
        sequences = open_dataset("rgbt234", tmp_path / "data")
        rules = benchmark_rules("rgbt234", rule_set)
        return score_results(find_results(results, ["car"]), "rgbt234", sequences, rules).trackers[0]

    # Perfect by either, by the visible one, by the thermal one; a miss 25 pixels off the only one; and no target.
    assert score().headline["AUC"] == pytest.approx(100 * 20 / 21 * 3 / 5)
    assert score().headline["P"] == pytest.approx(100 * 3 / 5)
    assert score().average_overlap[0] == pytest.approx(3 / 4)
    assert score("got10k-toolkit").headline["AUC"] < 100 * 20 / 21 * 3 / 5, "which has one annotation"
    (folder / "infrared.txt").unlink()
    with pytest.raises(ResultsError, match=r"no thermal annotation, which these rules need: infrared\.txt"):
        score()
