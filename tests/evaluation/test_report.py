"""Reports of every kind of measure, from golden files to documents."""

import csv
import json
import re
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.datasets.sequences import TrackingSequence, open_dataset
from mixformer_jax.evaluation.metrics import benchmark_rules
from mixformer_jax.evaluation.results import ResultsError
from mixformer_jax.evaluation.scoring import TrackerFiles, find_results
from mixformer_jax.reports.benchmarks import got10k_report, ope_report, trackingnet_report, vot_report
from mixformer_jax.reports.report import report_json, summary, to_latex, to_markdown, to_text, write_report
from tests.stand_ins import complaint


def main(arguments):
    return cli.main(["report", *arguments])


DATA = Path(__file__).resolve().parents[1] / "data" / "evalgold"


def _grey(index):
    return np.full((48, 64, 3), 100, np.uint8)


@pytest.fixture
def drawn(tmp_path):
    """Three sequences of two attributes, and two trackers' results."""
    truth = np.tile([10.0, 12, 20, 10], (5, 1))
    attributes = [("FM", "OV"), ("FM",), ()]
    sequences = [
        TrackingSequence(f"s{i}", truth, _grey, 30.0, tmp_path, np.array([True] * 4 + [False]), names)
        for i, names in enumerate(attributes)
    ]
    for tracker, shift in (("good", 0), ("b & <ad>", 8)):
        (tmp_path / "results" / tracker).mkdir(parents=True)
        for i, sequence in enumerate(sequences):
            boxes = truth + np.array([shift * i, 0, 0, 0])
            np.savetxt(tmp_path / "results" / tracker / f"{sequence.name}.txt", boxes, fmt="%.2f", delimiter=",")
    return sequences, find_results(tmp_path / "results", [s.name for s in sequences])


def test_one_pass_report(drawn):
    sequences, files = drawn
    report = ope_report("lasot", sequences, files, benchmark_rules("lasot"), worst=1)
    assert report.title == "lasot, 3 sequences"
    tables = {table.name: table for table in report.tables}
    assert [row.label for row in tables["overall"].rows] == ["good", "b & <ad>"]
    assert tables["overall"].rows[0].values == pytest.approx((100 * 20 / 21 * 0.8, 80, 80, 80, 80))
    attributes = tables["attributes"]
    assert attributes.header == ("tracker", "all", "FM (2)", "OV (1)")
    assert attributes.rows[1].values[2] == pytest.approx(tables["sequences_AUC"].rows[0].values[1])
    labels = [row.label for row in tables["rules"].rows]
    assert labels[0] == "good, mixformer" and "good, pytracking, valid frames" in labels
    assert "good, lasot-toolkit" in labels and "good, got10k-toolkit" in labels and len(labels) == 12
    rules = {row.label: row.values for row in tables["rules"].rows}
    assert rules["good, mixformer"] == tables["overall"].rows[0].values
    assert rules["good, mixformer, valid frames"][1] == 100
    assert tables["published_lasot"].rows[0].label == "good (measured)"
    assert [figure.name for figure in report.figures] == ["success", "precision", "norm_precision", "attributes"]
    assert [panel.title for panel in report.figures[3].panels] == ["FM (2 sequences)", "OV (1 sequences)"]
    # The worst of `b & <ad>` is the one farthest off; of `good`, which are alike, the first.
    assert [strip.title.split(":")[0] for strip in report.strips] == ["good on s0", "b & <ad> on s2"]
    assert [frame.shape for frame in report.strips[0].frames] == [(240, 320, 3)] * 4


def test_rules_that_do_not_apply_have_no_numbers(drawn):
    sequences, files = drawn
    hidden = [
        TrackingSequence(s.name, np.where(np.arange(5)[:, None] == 2, np.nan, s.boxes_xywh), _grey, 30.0, s.root)
        for s in sequences
    ]
    report = ope_report("uav123", hidden, files, benchmark_rules("uav123"), worst=0)
    rules = {row.label: row.values for row in next(t for t in report.tables if t.name == "rules").rows}
    assert rules["good, got10k-toolkit"][1] == 100
    assert "attributes" not in [table.name for table in report.tables] and report.strips == ()
    visible_only = [TrackingSequence(s.name, s.boxes_xywh, _grey, 30.0, s.root) for s in sequences]
    report = ope_report("otb100", visible_only, files, benchmark_rules("otb100"), worst=0)
    assert json.loads(report_json(report))["trackers"]["good"]["OP50"] == 100


def test_why_there_are_no_numbers_under_other_rules(drawn, tmp_path):
    sequences, _ = drawn
    # Short, which LaSOT's and the got10k toolkit's rules do not allow, of one tracker alone.
    path = tmp_path / "results" / "good" / "s1.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    files = find_results(tmp_path / "results", [s.name for s in sequences])
    report = ope_report("otb100", sequences, files, benchmark_rules("otb100"), worst=0)
    rules = {row.label: row.values for row in next(t for t in report.tables if t.name == "rules").rows}
    assert rules["good, got10k-toolkit"] == (None,) * 5 and None not in rules["b & <ad>, got10k-toolkit"]
    (note,) = [note for note in report.notes if "no numbers" in note]
    assert note.startswith("no numbers of good under the rules of lasot-toolkit; got10k-toolkit: ")
    assert note.endswith("s1.txt on sequence s1: 3 predicted boxes for 5 frames; every frame needs one")
    assert any("1 of 3 result files lack rows at the end" in note for note in report.notes)
    assert note in json.loads(report_json(report))["notes"]


def test_one_reason_for_all_trackers_is_one_note(drawn):
    sequences, files = drawn
    # Rates over valid frames need one.
    absent = [
        *sequences[:2],
        TrackingSequence("s2", sequences[2].boxes_xywh * [1, 1, 0, 0], _grey, 30.0, sequences[2].root),
    ]
    report = ope_report("otb100", absent, files, benchmark_rules("otb100"), worst=0)
    (note,) = [note for note in report.notes if "no numbers" in note]
    assert note.startswith("no numbers of good, b & <ad> under the rules of mixformer, valid frames; pytracking, valid")
    assert "no valid frame" in note


def test_results_in_another_format_are_told_in_every_report(drawn, tmp_path):
    sequences, _ = drawn
    folder = tmp_path / "results" / "swapped"
    folder.mkdir()
    for sequence in sequences:
        x, y, w, h = sequence.boxes_xywh.T
        np.savetxt(folder / f"{sequence.name}.txt", np.stack([x, y, x + w, y + h], 1), delimiter=",")
    files = find_results(tmp_path / "results", [s.name for s in sequences])
    for report in (
        ope_report("lasot", sequences, files, benchmark_rules("lasot"), worst=0),
        trackingnet_report(sequences, files, worst=0),
    ):
        (line,) = [line for line in summary(report).splitlines() if "corners" in line]
        assert line.startswith("warning: swapped: 3 of 3 result files look like corners x1,y1,x2,y2")
        assert [tracker for tracker in ("good", "ad") if f"warning: {tracker}" in summary(report)] == []


def test_names_that_would_break_documents(drawn, tmp_path):
    sequences, _ = drawn
    name = "a|b\nc\\|d $x_$ \udcff"
    (tmp_path / "results" / "good").rename(tmp_path / "results" / name)
    named = [
        TrackingSequence(f"{s.name}|\n{i}", s.boxes_xywh, _grey, 30.0, s.root, s.visible, s.attributes)
        for i, s in enumerate(sequences)
    ]
    for old, new in zip(sequences, named, strict=True):
        for path in (tmp_path / "results").glob(f"*/{old.name}.txt"):
            path.rename(path.with_name(f"{new.name}.txt"))
    files = find_results(tmp_path / "results", [s.name for s in named])
    report = ope_report("lasot", named, files, benchmark_rules("lasot"), worst=1)
    write_report(report, tmp_path / "out")
    for table in report.tables:
        if table.place == "detail":
            continue
        lines = to_markdown(table).splitlines()
        assert len(lines) == 4 + len(table.rows), "a row is a line"
        # As GitHub reads it: a backslash goes with what follows it, and the bars that are left part the cells.
        cells = [re.sub(r"\\.", "", line).count("|") for line in lines[2:]]
        assert set(cells) == {len(table.header) + 1}
        assert len(to_text(table).splitlines()) == 2 + len(table.rows)
        assert len(to_latex(table).splitlines()) == 7 + len(table.rows)
    text = (tmp_path / "out" / "report.txt").read_text()
    assert r"a|b\nc\|d $x_$ \udcff" in text and (tmp_path / "out" / "overall.csv").is_file()
    assert r"a\|b\\nc\\\|d" in (tmp_path / "out" / "report.md").read_text()


def test_the_written_report(drawn, tmp_path):
    sequences, files = drawn
    out = tmp_path / "out"
    report = ope_report("lasot", sequences, files, benchmark_rules("lasot"), worst=1)
    paths = write_report(report, out)
    assert {path.name for path in paths} == {path.name for path in out.iterdir()}
    text, markdown = (out / "report.txt").read_text(), (out / "report.md").read_text()
    latex, page = (out / "report.tex").read_text(), (out / "index.html").read_text()
    for table in report.tables:
        rows = list(csv.reader((out / f"{table.name}.csv").open(newline="")))
        assert len(rows) == len(table.rows) + 1
        for row in table.rows:
            if table.place != "detail":
                assert "  ".join(table.cells(row)).split() in [line.split() for line in text.splitlines()]
                assert row.label in markdown
                assert row.label.replace("&", r"\&").replace("_", r"\_") in latex
    for name in ("success", "precision", "norm_precision", "attributes"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("<img") == 4 + 8 and "b &amp; &lt;ad&gt; on s2" in page and "http" not in page
    assert "mixformer rules: target present where w > 0 and h > 0" in text
    record = json.loads((out / "report.json").read_text())
    assert record["rules"]["invalid_center_error"] == "inf"
    assert record["attributes"] == {"FM": ["s0", "s1"], "OV": ["s0"]}
    assert len(record["trackers"]["good"]["curves"]["success"]) == 21
    assert set(record["trackers"]["good"]["by_sequence"]["s0"]) == {
        *("AUC", "OP50", "OP75", "P", "P_norm", "average_overlap")
    }
    assert "sequences" not in summary(report).splitlines()[1]


def test_more_trackers_than_colours_and_legend_entries(drawn, tmp_path):
    sequences, files = drawn
    many = [TrackerFiles(f"tracker {i}", files[0].folders, files[0].boxes) for i in range(25)]
    report = ope_report("otb100", sequences, many, benchmark_rules("otb100"), worst=0)
    write_report(report, tmp_path / "out")
    picture = cv2.imread(str(tmp_path / "out" / "success.png"))
    assert picture.shape[0] > 400 and picture.std() > 1


def test_got10k_report(tmp_path):
    with zipfile.ZipFile(DATA / "got10k.zip") as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "GOT-10k" / "val"
    names = (root / "list.txt").read_text().split()
    sequences = [
        TrackingSequence(name, np.loadtxt(root / name / "groundtruth.txt", delimiter=","), _grey, 10.0, root / name)
        for name in names
    ]
    report = got10k_report(sequences, find_results(tmp_path / "results" / "GOT-10k", names), worst=1)
    golden = json.loads((tmp_path / "golden" / "got10k.json").read_text())
    record = json.loads(report_json(report))
    for tracker, values in golden["report"].items():
        ours = record["trackers"][tracker]
        overall = values["overall"]
        assert ours["AO"] == pytest.approx(100 * overall["ao"], abs=1e-4)
        assert ours["SR0.5"] == pytest.approx(100 * overall["sr"], abs=1e-4)
        assert ours["SR0.75"] == pytest.approx(100 * golden["extended"][tracker]["overall"]["sr75"], abs=1e-4)
        assert ours["FPS"] == pytest.approx(overall["speed_fps"], abs=1e-4)
        np.testing.assert_allclose(ours["curves"]["success"], overall["succ_curve"], atol=1e-6)
        for name in names:
            assert ours["by_sequence"][name]["AO"] == pytest.approx(100 * values["seq_wise"][name]["ao"], abs=1e-4)
            toolkit_speed = ours["by_sequence"][name]["toolkit_FPS"]
            assert toolkit_speed == pytest.approx(values["seq_wise"][name]["speed_fps"], abs=1e-4)
    assert record["trackers"]["laggy"]["by_sequence"][names[4]]["FPS"] is None
    assert "laggy: no times for 1 sequences (GOT-10k_Val_000005)" in summary(report)
    assert len(report.strips) == 5
    short = tmp_path / "results" / "GOT-10k" / "steady" / names[0] / f"{names[0]}_001.txt"
    short.write_text("1,2,3,4\n")
    with pytest.raises(ResultsError, match=rf"{names[0]}_001\.txt on sequence .*1 predicted boxes for 60"):
        got10k_report(sequences, find_results(tmp_path / "results" / "GOT-10k", names, ["steady"]), worst=0)


def test_trackingnet_report(tmp_path):
    truth = {}
    with zipfile.ZipFile(DATA / "trackingnet" / "GT.zip") as archive:
        for member in archive.namelist():
            truth[Path(member).stem] = np.loadtxt(archive.open(member), delimiter=",")
    for tracker in ("steady", "laggy"):
        with zipfile.ZipFile(DATA / "trackingnet" / f"{tracker}.zip") as archive:
            archive.extractall(tmp_path / tracker)
    sequences = [TrackingSequence(name, boxes, _grey, 30.0, tmp_path) for name, boxes in truth.items()]
    report = trackingnet_report(sequences, find_results(tmp_path, list(truth)), worst=1)
    golden = json.loads((DATA / "trackingnet" / "devkit.json").read_text())["results"]
    for row in report.tables[0].rows:
        expected = [golden[row.label][key] for key in ("success", "precision", "normalized_precision", "coverage")]
        assert row.values == pytest.approx(expected, abs=1e-4)
    assert {figure.name for figure in report.figures} == {"success", "precision", "norm_precision"}
    assert len(report.strips) == 2
    path = tmp_path / "steady" / f"{next(iter(truth))}.txt"
    path.write_text(path.read_text() * 2)
    with pytest.raises(ResultsError, match=r"boxes for \d+ frames"):
        trackingnet_report(sequences, find_results(tmp_path, list(truth)), worst=0)


def test_vot_report(tmp_path):
    with zipfile.ZipFile(DATA / "vot.zip") as archive:
        archive.extractall(tmp_path)
    golden = json.loads((tmp_path / "golden" / "mask.json").read_text())
    root = tmp_path / "mask"
    frames = [
        TrackingSequence(name, np.full((info["length"], 4), np.nan), _grey, 30.0, root)
        for name, info in golden["sequences"].items()
    ]
    report = vot_report(root, root / "results", interval=(30, 120), sequences=frames, worst=1)
    record = json.loads(report_json(report))
    baseline = golden["experiments"]["baseline"]
    for index, tracker in enumerate(golden["trackers"]):
        ours = record["trackers"][tracker]
        assert ours["EAO"] == pytest.approx(baseline["eao_30_120"]["values"][index][0], abs=1e-6)
        assert (ours["A"], ours["R"]) == pytest.approx(baseline["ar"]["values"][index][:2], abs=1e-6)
        alone = golden["experiments"]["unsupervised"]["accuracy"]["values"][index][0]
        assert ours["A, no restarts"] == pytest.approx(alone, abs=1e-6)
        np.testing.assert_allclose(ours["eao_curve"], baseline["curve_120"]["values"][index][0], atol=1e-6)
    assert [table.name for table in report.tables][:3] == ["overall", "published_vot2020", "published_vot2022"]
    assert report.tables[0].cells(report.tables[0].rows[0])[1] == "0.755"
    assert len(report.strips) == len(golden["trackers"])
    paths = write_report(report, tmp_path / "out")
    assert "eao.png" in [path.name for path in paths]


def test_vot_results_of_one_experiment(tmp_path):
    with zipfile.ZipFile(DATA / "vot.zip") as archive:
        archive.extractall(tmp_path)
    root = tmp_path / "mask"
    (root / "results" / "good" / "baseline").rename(tmp_path / "elsewhere")
    report = vot_report(root, root / "results", ["good"])
    assert np.isnan(report.tables[0].rows[0].values[0]) and report.tables[0].rows[0].values[3] > 0
    assert report.figures == ()
    with pytest.raises(ResultsError, match=r"no results of nobody: expected .*nobody/baseline or"):
        vot_report(root, root / "results", ["nobody"])
    with pytest.raises(ResultsError, match="no results of VOT"):
        vot_report(root, tmp_path / "out")


def test_a_real_data_set_is_reported(folder_dataset, tmp_path):
    sequences = open_dataset("folder", folder_dataset)
    (tmp_path / "results" / "perfect").mkdir(parents=True)
    for sequence in sequences:
        np.savetxt(tmp_path / "results" / "perfect" / f"{sequence.name}.txt", np.nan_to_num(sequence.boxes_xywh))
    files = find_results(tmp_path / "results", [sequence.name for sequence in sequences])
    report = ope_report("folder", sequences, files, benchmark_rules("folder"), worst=2)
    assert [strip.title for strip in report.strips] == ["perfect on hide: AUC 79.4", "perfect on drift: AUC 95.2"]
    # Frame 2 of `drift`: a lit square of 10 x 10 pixels at 13, 12, drawn five times as large with a box around it.
    frame = report.strips[1].frames[0]
    assert frame.shape == (240, 320, 3) and frame[85, 90].min() > 240 and frame[200, 250].max() < 20


# The program ----------------------------------------------------------------------------------------------


def _main_table(capsys):
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[2 : lines.index("")]]
    return lines[1].split(), {row[0]: [float(cell) for cell in row[1:]] for row in rows}


def test_the_program_takes_the_measures_of_the_data_set(tmp_path, capsys):
    for name in ("vot", "got10k"):
        with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
            archive.extractall(tmp_path / name)
    root = tmp_path / "vot" / "rect"
    vot = ["--dataset", "vot", "--root", str(root), "--results", str(root / "results"), "--eao-interval", "30", "120"]
    assert main([*vot, "--trackers", "good,lost"]) == 0
    header, rows = _main_table(capsys)
    assert header[:4] == ["tracker", "EAO", "A", "R"]
    assert rows["good"][:3] == [0.861, 0.885, 0.987] and list(rows) == ["good", "lost"]
    names = (root / "sequences" / "list.txt").read_text().split()
    (tmp_path / "list.txt").write_text(f"{names[1]}\n")
    assert main([*vot, "--trackers", "good", "--list", str(tmp_path / "list.txt")]) == 0
    assert capsys.readouterr().out.startswith("vot, 1 sequences, fractions\n")

    val = tmp_path / "got10k" / "GOT-10k" / "val"
    for folder in val.glob("GOT-10k_Val_*"):  # the reader counts frames
        for number in range(len((folder / "groundtruth.txt").read_text().splitlines())):
            (folder / f"{number + 1:08d}.jpg").touch()
    got10k = ["--dataset", "got10k", "--root", str(val), "--results", str(tmp_path / "got10k" / "results" / "GOT-10k")]
    assert main(got10k) == 0
    header, rows = _main_table(capsys)
    assert header == ["tracker", "AO", "SR0.5", "SR0.75", "FPS"]
    assert rows["steady"] == [90.2, 100, 99.9, 40.4]
    assert main([*got10k, "--measures", "ope", "--trackers", "steady"]) == 0
    assert _main_table(capsys)[0] == ["tracker", "AUC", "OP50", "OP75", "P", "P_norm"]


@pytest.mark.parametrize("options", [("--worst", "-1"), ("--eao-interval", "30", "30"), ("--eao-interval", "0", "5")])
def test_options_of_the_program_that_make_no_sense(tmp_path, capsys, options):
    arguments = ["--dataset", "vot", "--root", str(tmp_path), "--results", str(tmp_path), *options]
    assert "--eao-interval two from 1 on" in complaint(capsys, main, arguments)


def test_the_program_ends_with_the_reason(tmp_path, capsys):
    arguments = ["--root", str(tmp_path), "--results", str(tmp_path)]
    told = complaint(capsys, main, ["--dataset", "vot", *arguments])
    assert "no VOT sequences; expected sequences/list.txt" in told
    assert "no GOT-10k sequences" in complaint(capsys, main, ["--dataset", "got10k", *arguments])
