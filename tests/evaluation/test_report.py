import json

import numpy as np
import pytest

from mixformer_jax.data.sequences import open_dataset
from mixformer_jax.evaluation.report import (
    list_trackers,
    score_results,
    tables,
    to_json,
    to_markdown,
    to_text,
    write_report,
)
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.rules import benchmark_rules
from mixformer_jax.evaluation.runner import Alone, run_dataset
from mixformer_jax.evaluation.trackers import TrackerChoice

HEADLINES = {"AUC": "AUC", "OP50": "OP50", "OP75": "OP75", "P": "Precision", "P_norm": "NormPrecision"}


@pytest.fixture
def scored(folder_dataset, tmp_path):
    """A perfect tracker and the first-box tracker on the tiny data set."""
    sequences = open_dataset("folder", folder_dataset)
    results = tmp_path / "results"
    run_dataset(Alone(TrackerChoice("first-box").open()), sequences, results, "first-box", {})
    (results / "perfect").mkdir()
    for sequence in sequences:
        rows = np.nan_to_num(sequence.boxes_xywh)  # where the target is away, the tracker has an empty box
        np.savetxt(results / "perfect" / f"{sequence.name}.txt", rows, delimiter="\t")
    return results, sequences


def _score(scored, **kwargs):
    results, sequences = scored
    return score_results(results, "folder", sequences, benchmark_rules("folder"), **kwargs)


@pytest.mark.parametrize("benchmark", ["otb", "lasot", "uav", "nfs"])
def test_result_files_are_scored_like_the_toolkit(benchmark, ope_golden):
    run = ope_golden.summary["runs"][f"mixformer_{benchmark}"]
    names = ope_golden.summary["sequences"]
    sequences = [ope_golden.sequence(benchmark, name) for name in names]
    report = score_results(ope_golden.files / "results", benchmark, sequences, benchmark_rules(benchmark))
    assert sorted(tracker.name for tracker in report.trackers) == sorted(run["trackers"])
    aucs = [tracker.headline["AUC"] for tracker in report.trackers]
    assert aucs == sorted(aucs, reverse=True)
    record = json.loads(to_json(report))
    for i, name in enumerate(run["trackers"]):
        for ours, theirs in HEADLINES.items():
            assert record["trackers"][name][ours] == pytest.approx(run[theirs][i], abs=1e-4)
        by_sequence = [record["trackers"][name]["by_sequence"][s]["AUC"] for s in names]
        np.testing.assert_allclose(by_sequence, np.array(run["per_sequence_AUC"])[:, i], rtol=0, atol=1e-4)


def test_a_perfect_tracker_scores_95_and_absent_frames_count_against_it(scored):
    report = _score(scored)
    assert [tracker.name for tracker in report.trackers] == ["perfect", "first-box"]
    perfect, first = report.trackers
    # drift, hide (one of six frames without target), still
    np.testing.assert_allclose(perfect.curves.auc, 100 * 20 / 21 * np.array([1, 5 / 6, 1]), atol=1e-9)
    np.testing.assert_allclose(perfect.average_overlap, 1, atol=1e-12)
    assert perfect.headline["P_norm"] == pytest.approx(100 * (1 + 5 / 6 + 1) / 3)
    # On the still target the first box is perfect; the drifting one moves by 3 px: IoU (10 - d) / (10 + d).
    overlaps = np.array([(10 - d) / (10 + d) for d in (0, 3, 6, 9)] + [0])
    assert first.curves.auc[2] == pytest.approx(100 * 20 / 21)
    assert first.average_overlap[0] == pytest.approx(overlaps.mean())
    assert first.curves.op50[0] == pytest.approx(100 * 2 / 5)


def test_tables_say_the_same_in_every_form(scored):
    report = _score(scored)
    headline, by_sequence = tables(report)
    assert headline.header == ("tracker", "AUC", "OP50", "OP75", "P", "P_norm")
    assert headline.rows[0][:2] == ("perfect", "89.9")
    assert [row[0] for row in by_sequence.rows] == ["drift", "hide", "still"]
    assert by_sequence.rows[1][:2] == ("hide", "79.4")
    text, markdown = to_text(report), to_markdown(report)
    for cells in (*headline.rows, *by_sequence.rows):
        assert f"| {' | '.join(cells)} |" in markdown
        assert "  ".join(cells).split() in [line.split() for line in text.splitlines()]
    for document in (text, markdown):
        assert "mixformer rules: target present where w > 0 and h > 0" in document
    record = json.loads(to_json(report))
    assert record["rules"]["invalid_norm_error"] == "inf"
    assert record["trackers"]["perfect"]["AUC"] == pytest.approx(89.947, abs=1e-3)
    assert len(record["trackers"]["perfect"]["curves"]["success"]) == 21


def test_the_rules_are_an_option_of_the_report(scored):
    results, sequences = scored
    rules = benchmark_rules("folder", "pytracking", exclude_invalid_frames=True)
    report = score_results(results, "folder", sequences, rules, ["perfect"])
    assert report.trackers[0].headline["AUC"] == pytest.approx(100 * 20 / 21)
    assert "pytracking rules: target present where x, y, w and h > 0; rates over valid frames only" in to_text(report)


def test_the_written_report(scored, tmp_path):
    report = _score(scored)
    out = scored[0] / "report"
    paths = write_report(report, out)
    assert {path.name for path in paths} == {path.name for path in out.iterdir()}
    assert (out / "report.txt").read_text() == to_text(report)
    assert (out / "report.md").read_text() == to_markdown(report)
    assert json.loads((out / "report.json").read_text())["benchmark"] == "folder"
    for name in ("success.png", "precision.png", "norm_precision.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    # A report among the results is no tracker.
    assert list_trackers(scored[0], report.sequences) == ["first-box", "perfect"]


def test_missing_results_are_all_named(scored):
    results, _ = scored
    (results / "perfect" / "hide.txt").unlink()
    (results / "first-box" / "drift.txt").unlink()
    with pytest.raises(ResultsError, match=r"2 result files are missing.*first-box/drift\.txt.*perfect/hide\.txt"):
        _score(scored)
    (results / "first-box" / "hide.txt").unlink()
    with pytest.raises(ResultsError, match=r"1 result files are missing.*nobody"):
        score_results(results, "folder", scored[1][:1], benchmark_rules("folder"), ["nobody"])


def test_a_result_of_another_length(scored):
    path = scored[0] / "perfect" / "still.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]))
    assert _score(scored).trackers[0].headline["AUC"] == pytest.approx(89.947, abs=1e-3)  # the toolkits' rule: cut
    path.write_text("".join(lines[:-1]))
    with pytest.raises(ResultsError, match=r"still\.txt.*3 predicted boxes for 4 frames"):
        _score(scored)


def test_no_results_at_all(scored, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match=r"expected <tracker>/drift\.txt"):
        score_results(tmp_path / "empty", "folder", scored[1], benchmark_rules("folder"))
    with pytest.raises(ResultsError, match="no such folder"):
        score_results(tmp_path / "gone", "folder", scored[1], benchmark_rules("folder"))
