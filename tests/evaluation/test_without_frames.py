"""Annotations alone, as toolkits ship them, give every table; a broken ground truth costs its own sequence."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.cli import main as command
from mixformer_jax.datasets.check import check_dataset
from mixformer_jax.datasets.large_scale import LASOT_ATTRIBUTES
from mixformer_jax.datasets.layout import PUBLISHED
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.reports.report import worst_strips
from tests.stand_ins import complaint


def report(arguments):
    return cli.main(["report", *arguments])


def run(arguments):
    return cli.main(["evaluate", *arguments])


COUNT = 6
BOXES = [f"{10 + 2 * i},12,8,6" for i in range(COUNT)]
RESULT = "".join(f"{10 + i},12,8,6\n" for i in range(COUNT))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lasot(root):
    write(root / "cat" / "cat-1" / "groundtruth.txt", "\n".join(BOXES) + "\n")
    for name in ("full_occlusion.txt", "out_of_view.txt"):
        write(root / "cat" / "cat-1" / name, ",".join("0" * COUNT) + "\n")
    return "cat-1"


def lasot_toolkit(root):
    write(root / "annos" / "cat-1.txt", "\n".join(BOXES) + "\n")
    write(root / "annos" / "absent" / "cat-1.txt", "0\n" * COUNT)
    write(root / "annos" / "att" / "cat-1.txt", "1,0,0,0,0,0,0,0,0,0,0,0,0,0\n")
    return "cat-1"


def got10k(root):
    folder = root / "GOT-10k_Val_000001"
    write(folder / "groundtruth.txt", "\n".join(BOXES) + "\n")
    write(folder / "absence.label", "0\n" * COUNT)
    write(folder / "cover.label", "8\n" * COUNT)
    write(folder / "meta_info.ini", "[METAINFO]\nresolution: (64, 48)\n")
    return folder.name


def otb100(root):
    write(root / "Boy" / "groundtruth_rect.txt", "\n".join(BOXES) + "\n")
    return "Boy"


def otb100_toolkit(root):
    write(root / "anno" / "skating2-1.txt", "\n".join(BOXES) + "\n")
    write(root / "anno" / "att" / "skating2-1.txt", "1,0,0,0,0,0,0,0,0,0,0\n")
    return "Skating2_1"


def uav123(root):
    write(root / "anno" / "UAV123" / "bird1_2.txt", "\n".join(BOXES) + "\n")
    return "bird1_2"


def nfs(root):
    write(root / "anno" / "nfs_bee.txt", "\n".join(BOXES) + "\n")
    return "bee"


def trackingnet(root):
    write(root / "TRAIN_0" / "anno" / "a.txt", "\n".join(BOXES) + "\n")
    return "a"


def folder(root):
    write(root / "mine" / "groundtruth.txt", "\n".join(BOXES) + "\n")
    return "mine"


LAYOUTS = [lasot, lasot_toolkit, got10k, otb100, otb100_toolkit, uav123, nfs, trackingnet, folder]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_annotations_alone_give_every_table(layout, tmp_path, capsys):
    root, results, out = tmp_path / "root", tmp_path / "results", tmp_path / "report"
    name, dataset = layout(root), layout.__name__.removesuffix("_toolkit")
    write(results / "mine" / f"{name}.txt", RESULT)
    options = ["--dataset", dataset, "--root", str(root)]
    assert report([*options, "--results", str(results), "--out", str(out)]) == 0
    assert f"{dataset}, 1 sequences" in capsys.readouterr().out
    numbers = json.loads((out / "report.json").read_text())["trackers"]["mine"]["by_sequence"]
    assert list(numbers) == [name]
    assert "its frames are not there to be shown" in (out / "index.html").read_text()

    assert run([*options, "--tracker", "first-box", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "0 sequences tracked" in printed.out and f"{name}: SourceError: " in printed.out
    assert "alone can be scored, but neither tracked nor trained on" in printed.out
    assert "Traceback" not in printed.err
    checked = check_dataset(open_dataset(dataset, root))
    assert (checked.frames, checked.boxes) == (0, COUNT)
    assert [fault.kind for fault in checked.faults] == ["image"]


def test_nfs_as_published_without_frames_has_its_published_length(tmp_path):
    # Rows of the version of 240 frames a second, under the version of 30.
    lines = [f'0 {i} 2 {i + 10} 12 {i} 0 0 0 "bee"' for i in range(45 * 8)]
    write(tmp_path / "bee" / "30" / "bee.txt", "\n".join(lines) + "\n")
    (bee,) = open_dataset("nfs", tmp_path)
    assert len(bee) == 45 and bee.boxes_xywh[1, 0] == 8 and not bee.has_frames
    shutil.move(tmp_path / "bee", tmp_path / "mine")
    shutil.move(tmp_path / "mine" / "30" / "bee.txt", tmp_path / "mine" / "30" / "mine.txt")
    _, unreadable = open_dataset("nfs", tmp_path).read_all()
    assert "boxes of 30 or of 240 frames a second" in unreadable["mine"]


def test_the_test_set_of_lasot_from_its_toolkit_s_annotations(tmp_path, capsys, caplog):
    """280 files of the published names; the two rows of negative size stand where they are published."""
    bad = {"lion-5": (553, "1,1,-1,-1"), "tiger-6": (118, "613,731,247,-11")}
    write(tmp_path / "annos" / "lion-6.txt", "1,2,3,4\n")  # of the training set
    write(tmp_path / "annos" / "absent" / "lion-6.txt", "0\n")
    listed = [line.split() for line in (PUBLISHED / "lasot_test.txt").read_text().splitlines()]
    names = [f"{kind}-{number}" for kind, *numbers in listed for number in numbers]
    for name in names:
        line, row = bad.get(name, (3, BOXES[0]))
        rows = [BOXES[0]] * line
        rows[line - 1] = row
        write(tmp_path / "annos" / f"{name}.txt", "\n".join([*rows, BOXES[1]]) + "\n")
        write(tmp_path / "annos" / "absent" / f"{name}.txt", "0\n" * (line + 1))
        write(tmp_path / "annos" / "att" / f"{name}.txt", ",".join("1" + "0" * (len(LASOT_ATTRIBUTES) - 1)) + "\n")
        write(tmp_path / "results" / "perfect" / f"{name}.txt", "\n".join([BOXES[0]] * line + [BOXES[1]]) + "\n")
    arguments = ["--dataset", "lasot", "--root", str(tmp_path), "--split", "test"]
    arguments += ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "report")]
    assert report(arguments) == 0
    printed = capsys.readouterr().out
    assert "280 sequences" in printed and "IV (280)" in printed
    assert "2 boxes of negative or no size are rows without target, in lion-5, tiger-6" in printed
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("known: published so, in row" in line for line in told)
    assert "lion-5.txt, line 553:" in told[0] and "tiger-6.txt, line 118:" in told[1]
    scores = json.loads((tmp_path / "report" / "report.json").read_text())["trackers"]["perfect"]["by_sequence"]
    best = 100 * 20 / 21
    assert len(scores) == 280 and scores["airplane-1"]["AUC"] == pytest.approx(best)
    # The row counts in no curve, as in the toolkits that ask for w > 0 and h > 0.
    assert scores["lion-5"]["AUC"] == pytest.approx(best * 553 / 554)
    assert scores["lion-5"]["average_overlap"] == 1 and scores["tiger-6"]["average_overlap"] == 1


def test_faults_are_told_once_for_several_trackers_and_their_report(tmp_path, caplog):
    folder = tmp_path / "root" / "cat" / "cat-1"
    write(folder / "groundtruth.txt", "\n".join([BOXES[0], "5,5,-1,-1"]) + "\n")
    for name in ("full_occlusion.txt", "out_of_view.txt"):
        write(folder / name, "0,0\n")
    (folder / "img").mkdir()
    for number in (1, 2):
        cv2.imwrite(str(folder / "img" / f"{number:08d}.jpg"), np.zeros((48, 64, 3), np.uint8))
    arguments = ["--dataset", "lasot", "--root", str(tmp_path / "root"), "--out", str(tmp_path / "out")]
    assert run([*arguments, "--tracker", "first-box,opencv:MIL", "--report", str(tmp_path / "report")]) == 0
    told = [line for record in caplog.records if "groundtruth.txt" in (line := record.getMessage())]
    assert len(told) == 1 and "groundtruth.txt, line 2: box 5,5,-1,-1" in told[0]


def test_a_broken_ground_truth_costs_its_own_sequence(folder_dataset, tmp_path, capsys):
    (folder_dataset / "drift" / "groundtruth.txt").write_text("x,y,w,h\n" + "10,12,10,10\n" * 5)
    options = ["--dataset", "folder", "--root", str(folder_dataset)]
    assert run([*options, "--tracker", "first-box", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "2 sequences tracked" in printed and printed.count("FAILED") == 1
    where = f"{folder_dataset}/drift/groundtruth.txt, line 1: expected four numbers"
    assert f"FAILED drift: DatasetError: {where}" in printed

    with_report = ["--tracker", "first-box", "--out", str(tmp_path / "out"), "--report", str(tmp_path / "first")]
    assert run([*options, *with_report]) == 1
    assert "drift is not scored" in (tmp_path / "first" / "report.txt").read_text()
    capsys.readouterr()

    arguments = [*options, "--results", str(tmp_path / "out"), "--out", str(tmp_path / "report")]
    assert report(arguments) == 1
    assert f"FAILED drift: {where}" in capsys.readouterr().err
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["sequences"] == ["hide", "still"]
    assert (
        f"drift is not scored, since its ground truth cannot be read: {where}"
        in (tmp_path / "report" / "report.md").read_text()
    )
    for name in ("hide", "still"):
        (folder_dataset / name / "groundtruth.txt").write_text("")
    told = complaint(capsys, report, arguments)
    assert re.search(r"drift/groundtruth\.txt, line 1.*hide/groundtruth\.txt", told)


def test_a_name_with_a_line_break_stays_in_its_line(folder_dataset, tmp_path, capsys):
    (folder_dataset / "drift").rename(folder_dataset / "dri\nft")
    write(folder_dataset / "dri\nft" / "groundtruth.txt", "words\n")
    options = ["--dataset", "folder", "--root", str(folder_dataset)]
    assert run([*options, "--tracker", "first-box", "--out", str(tmp_path / "out")]) == 1
    capsys.readouterr()
    assert report([*options, "--results", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"FAILED dri\\nft: {folder_dataset}/dri\\nft/groundtruth.txt, line 1")
    assert command(["data", "check", str(folder_dataset), "--dataset", "folder"]) == 1
    assert "/dri\\nft/groundtruth.txt, line 1" in capsys.readouterr().err


def test_a_strip_shows_no_box_of_negative_size(tmp_path):
    def draw(row):
        boxes_xywh = np.array([[25.0, 25, 10, 10], row])
        sequence = TrackingSequence("one", boxes_xywh, lambda index: np.zeros((48, 64, 3), np.uint8), 30.0, tmp_path)
        (strip,) = worst_strips({"mine": np.zeros(1)}, "AUC", [sequence], lambda *_: np.full((2, 4), np.nan), 1)
        return strip.frames[-1]

    nothing = draw([np.nan] * 4)
    np.testing.assert_array_equal(draw([40.0, 40, -20, -20]), nothing)
    assert (draw([40.0, 40, 20, 20]) != nothing).any()
