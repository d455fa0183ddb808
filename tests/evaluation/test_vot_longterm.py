"""VOT's long-term measures, on random answers and on our tracker's, against vot-toolkit 0.7.4 and 0.9.0."""

import json
import re
import shutil
import sys
import zipfile

import cv2
import numpy as np
import pytest

from eval.long_term import run_study
from mixformer_jax import cli
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.trackers import BoxPrediction, FirstBoxTracker, OpenedTracker
from mixformer_jax.evaluation.vot import (
    LongTermRun,
    confidence_thresholds,
    precision_recall,
    read_confidences,
    read_long_term_run,
    read_sequences,
    score_long_runs,
    score_long_term,
)
from mixformer_jax.reports.benchmarks import long_term_report
from mixformer_jax.reports.report import report_json
from mixformer_jax.tracking.lanes import OneLane
from tests.depth_scenes import write_depthtrack
from tests.evaluation.test_vot_toolkit import CURRENT, REPOSITORY, TOOLKIT, _need, _toolkit

# Frames of the sequences in the order in which they are shown, and when nothing is to be seen. `box` alone has so many
# that thresholds part them.
ORDERS = {"ball": [*range(30)], "box": [*range(40), *range(38, 0, -1), *range(23)]}
AWAY = {"ball": {*range(20, 30)}, "box": {5, 6, *range(30, 42), *range(80, 90)}}
STACK = """
title: long videos
experiments:
  longterm:
    type: unsupervised
    repetitions: 1
    analyses:
    - type: average_tpr
      name: average_tpr
    - type: pr_curve
    - type: f_curve
"""
RANDOM = ("Random", "Astray")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Two sequences with absences, answered at random by two trackers, and by one that has no confidences."""
    folder = tmp_path_factory.mktemp("long") / "workspace"
    with zipfile.ZipFile(REPOSITORY / "tests" / "data" / "evalgold" / "vot_workspace.zip") as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("sequences/")])
    for name, order in ORDERS.items():
        _show(folder / "sequences" / name, order, AWAY[name])
    _answer_at_random(folder)
    arguments = ["--dataset", "votlt2022", "--root", str(folder), "--out", str(folder / "results")]
    assert cli.main(["evaluate", *arguments, "--tracker", "first-box", "--tracker-name", "FirstBox"]) == 0
    return folder


def _show(sequence, order, away):
    """The frames in another order; grey, and without a box, where the target is away."""
    for path in (sequence / "anchor.value", *sequence.glob("*.tag")):
        path.unlink()
    frames = [path.read_bytes() for path in sorted((sequence / "color").iterdir())]
    rows = (sequence / "groundtruth.txt").read_text().split()
    shutil.rmtree(sequence / "color")
    (sequence / "color").mkdir()
    grey = cv2.imencode(".jpg", np.full((120, 160, 3), 127, np.uint8))[1].tobytes()
    for number, index in enumerate(order):
        (sequence / "color" / f"{number + 1:08d}.jpg").write_bytes(grey if number in away else frames[index])
    truth = ["nan,nan,nan,nan" if number in away else rows[index] for number, index in enumerate(order)]
    (sequence / "groundtruth.txt").write_text("\n".join(truth) + "\n")
    about = (sequence / "sequence").read_text()
    (sequence / "sequence").write_text(re.sub(r"length=\d+", f"length={len(order)}", about))


def _answer_at_random(folder):
    """Boxes near the truth, codes for unknown, equal confidences and missing ones."""
    rng = np.random.default_rng(0)
    for name in RANDOM:
        for sequence in open_dataset("votlt", folder):
            truth = np.nan_to_num(sequence.boxes_xywh, nan=20.0)
            noise = rng.normal(0, 6, truth.shape) + (300 if name == "Astray" else 0)
            lines = [",".join(f"{x:.4f}" for x in row) for row in np.maximum(truth + noise, [-50, -50, 1, 1])]
            for frame in rng.choice(len(lines), 4, replace=False):
                lines[frame] = "0"
            lines[0] = "1"
            values = [f"{value:.2f}" for value in rng.random(len(lines))]
            values[0] = values[3] = ""
            place = folder / "results" / name / "longterm" / sequence.name
            place.mkdir(parents=True)
            (place / f"{sequence.name}_001.txt").write_text("\n".join(lines) + "\n")
            (place / f"{sequence.name}_001_confidence.value").write_text("\n".join(values) + "\n")


def test_files_are_as_the_toolkit_has_them(workspace):
    folder = workspace / "results" / "FirstBox" / "longterm" / "ball"
    assert {path.name for path in folder.iterdir()} == {"ball_001.txt", "ball_001_time.value"}
    first, *rows = (folder / "ball_001.txt").read_text().splitlines()
    assert first == "1" and len(rows) == 29 and len(set(rows)) == 1


def _run(workspace, stack, sequences, command, version=None):
    """Runs a command of the toolkit with a stack on some of the sequences."""
    registry = (REPOSITORY / "eval" / "vot" / "trackers.ini").read_text()
    entry = registry[registry.index("[MixFormerLT]") :]
    entry = entry.replace("python = python", f"python = {sys.executable}\npaths = {REPOSITORY}")
    entry = re.sub(r"env_jax.*\n", "", entry)  # the programs of this run of the tests
    others = [f"[{name}]\nprotocol = traxpython\ncommand = nothing\n" for name in (*RANDOM, "FirstBox")]
    (workspace / "trackers.ini").write_text("\n".join([entry, *others]))
    (workspace / "stack.yaml").write_text(STACK)
    (workspace / "config.yaml").write_text(f"stack: {stack}\nregistry:\n- ./trackers.ini\n")
    (workspace / "sequences" / "list.txt").write_text("\n".join(sequences) + "\n")
    _toolkit(workspace, command, version)


@pytest.mark.parametrize(
    ("version", "stack", "sequences", "trackers"),
    [
        (None, "./stack.yaml", ("ball", "box"), (*RANDOM, "FirstBox")),
        (CURRENT, "vot2022/longterm", ("box",), ("MixFormerLT", "Random")),
    ],
)
def test_the_toolkit_finds_the_same_numbers(workspace, tmp_path, version, stack, sequences, trackers):
    _need(TOOLKIT if version is None else version)
    copy, only = tmp_path / "workspace", ""
    shutil.copytree(workspace, copy)
    if "MixFormerLT" in trackers:
        pytest.importorskip("trax", reason="needs vot-trax: pip install -e '.[vot]'")
        only = "--experiments longterm"  # the other one of the challenge's stack does not start in the toolkit
        _run(copy, stack, sequences, f"evaluate --workspace . {only} MixFormerLT", version)
    command = f"analysis --workspace . {only} --format json --name ours {' '.join(trackers)}"
    _run(copy, stack, sequences, command, version)
    (path,) = (copy / "analysis").rglob("ours*.json")
    averages, curves, f_curves = json.loads(path.read_text())["results"]["longterm"]["results"]
    found = {}
    for index, tracker in enumerate(trackers):
        scores = found[tracker] = score_long_term(copy / "results" / tracker / "longterm", read_sequences(copy))
        precision, recall, f = averages[index]
        assert scores.headline == pytest.approx({"F": f, "Pr": precision, "Re": recall}, abs=1e-6)
        points = np.array(curves[index][0])
        np.testing.assert_allclose(scores.recall, points[:, 0], atol=1e-6)
        np.testing.assert_allclose(scores.precision, points[:, 1], atol=1e-6)
        np.testing.assert_allclose(scores.f_score, np.nan_to_num(np.array(f_curves[index][0], float)), atol=1e-6)
        assert len(points) == 100
    if "MixFormerLT" in trackers:
        run = read_long_term_run(copy / "results" / "MixFormerLT" / "longterm", read_sequences(copy)[0])
        assert found["MixFormerLT"].headline["F"] > 0.6, "it follows the target"
        assert run.confidences[[36, 38, 41, 86, 89]].max() < 0.25 < np.median(run.confidences), (
            "and knows when it is away"
        )


def test_the_program_reports_them(workspace, capsys):
    arguments = ["--dataset", "votlt2022", "--root", str(workspace), "--results", str(workspace / "results")]
    assert cli.main(["report", *arguments]) == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "votlt2022, 2 sequences, fractions" and header.split() == ["tracker", "F", "Pr", "Re"]
    assert [row.split()[0] for row in rows[:3]] == ["Random", "FirstBox", "Astray"]
    drawn = open_dataset("votlt", workspace)
    report = long_term_report("votlt", workspace, workspace / "results", ["Random"], drawn, 1)
    assert len(report.strips) == 1 and len(report.figures[0].panels) == 3
    record = json.loads(report_json(report))["trackers"]["Random"]
    assert max(record["curves"]["F"]) == record["F"] and set(record["by_sequence"]) == set(ORDERS)


def test_precision_and_recall_by_hand():
    run = LongTermRun(np.array([0.0, 0.5, 0.0, 1.0]), np.array([0.0, 0.9, 0.8, 0.4]), 3)
    thresholds = confidence_thresholds(run.confidences)
    np.testing.assert_array_equal(thresholds, [np.inf, 0.9, 0.8, 0.4, 0, -np.inf])
    precision, recall = precision_recall(run, thresholds)
    np.testing.assert_allclose(precision, [1, 0.5, 0.25, 0.5, 0.375, 0.375])
    np.testing.assert_allclose(recall, np.array([0, 0.5, 0.5, 1.5, 1.5, 1.5]) / 3)
    assert score_long_runs([run]).headline == pytest.approx({"F": 0.5, "Pr": 0.5, "Re": 0.5})
    nothing = score_long_runs([run._replace(overlaps=np.zeros(4))])
    assert nothing.headline == {"F": 0.0, "Pr": 1.0, "Re": 0.0}, "not a number where nothing is right"


def test_what_cannot_be_scored_is_named(workspace, tmp_path):
    sequences = read_sequences(workspace)
    with pytest.raises(ResultsError, match=r"ball_001.txt .or .bin.: no such file"):
        score_long_term(tmp_path, sequences)
    file = tmp_path / "c.value"
    for text, reason in (("\n0.5\nhigh\n", "line 3: .*'high'"), ("\nnan\n0\n", "line 2"), ("\n1\n", "2 values for 3")):
        file.write_text(text)
        with pytest.raises(ResultsError, match=reason):
            read_confidences(file, 3)
    file.write_text("\n0.5\n\n")
    np.testing.assert_array_equal(read_confidences(file, 3), [0, 0.5, 0])
    empty = sequences[0]._replace(groundtruth=tuple(sequences[0].groundtruth[20:21]) * 3)
    with pytest.raises(DatasetError, match="no frame has a target"):
        score_long_term(workspace / "results" / "Random" / "longterm", [empty])
    with pytest.raises(ResultsError, match=r"no results of long videos; expected <tracker>/longterm"):
        long_term_report("votlt", workspace, tmp_path)


class Wary(FirstBoxTracker):
    """Is certain of its box on every other frame."""

    def start(self, frame, box_xywh):
        return (box_xywh, 0)

    def step(self, state, frame):
        box_xywh, count = state
        return (box_xywh, count + 1), BoxPrediction(box_xywh, count % 2)


def test_the_study_on_rendered_clips(tmp_path):
    boxes_xywh = np.full((20, 4), [10.0, 10.0, 20.0, 20.0])
    boxes_xywh[1::2] = np.nan
    clips = [
        TrackingSequence(f"seed{seed}", boxes_xywh, lambda index: np.zeros((40, 40, 3), np.uint8), 30.0, tmp_path)
        for seed in range(2)
    ]
    opened = {
        name: lambda tracker=tracker: OpenedTracker(OneLane(tracker), "tracker", {"tracker": "stand-in"})
        for name, tracker in (("never_looks", FirstBoxTracker()), ("long_term", Wary()))
    }
    table = run_study(tmp_path, clips, opened)
    confidences = tmp_path / "results" / "long_term" / "longterm" / "seed1" / "seed1_001_confidence.value"
    assert confidences.read_text().splitlines()[:3] == ["", "0.00000000", "1.00000000"]
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in table.splitlines()}
    assert "2 rendered clips of 20 frames; the target is away on 50% of them" in table
    assert rows["never_looks"][2:4] == ["45.0", "90.0"]
    assert rows["long_term"][1:4] == ["94.7", "100.0", "90.0"] and rows["long_term"][5].endswith("± 0.0")
    assert run_study(tmp_path, clips, opened) == table == (tmp_path / "long_term.md").read_text()


def test_depthtrack_has_the_same_measures(tmp_path, capsys):
    """In a workspace of the toolkit, whose list has another order than the folders."""
    write_depthtrack(tmp_path / "sequences", (0, 1), frames=5)
    (tmp_path / "sequences" / "list.txt").write_text("scene1\nscene0\n")
    truth = tmp_path / "sequences" / "scene1" / "groundtruth.txt"
    truth.write_text("\n".join(truth.read_text().splitlines()[:3] + ["nan,nan,nan,nan"] * 2))
    where = ["--dataset", "depthtrack", "--root", str(tmp_path)]
    results = tmp_path / "results"
    assert cli.main(["evaluate", *where, "--tracker", "first-box", "--out", str(results)]) == 0
    (results / "first-box" / "rgbd-unsupervised" / "scene0" / "scene0_001_confidence.value").write_text(
        "\n9\n8\n7\n6\n"
    )
    report = [*where, "--results", str(results), "--worst", "1", "--out", str(tmp_path / "report")]
    assert cli.main(["report", *report]) == 0
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["sequences"] == ["scene0", "scene1"]
    assert "first-box on scene1" in (tmp_path / "report" / "index.html").read_text(), "the worse one"

    shutil.copytree(results / "first-box" / "rgbd-unsupervised", results / "first-box" / "longterm")
    toolkits = long_term_report("votlt", tmp_path, results).numbers["trackers"]["first-box"]
    ours = found["trackers"]["first-box"]
    assert 0 < ours["F"] < 1
    assert {name: ours[name] for name in ("F", "Pr", "Re")} == {name: toolkits[name] for name in ("F", "Pr", "Re")}
