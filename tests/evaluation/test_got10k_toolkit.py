"""Our adapter run by the real got10k toolkit, beside our own runner on the same sequences."""

import json

import cv2
import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.cli import main as command
from mixformer_jax.evaluation.results import read_boxes


def run(arguments):
    return cli.main(["evaluate", *arguments])


pytest.importorskip("got10k", reason="needs the toolkit: pip install -e '.[got10k]'")


@pytest.fixture(scope="module")
def got10k_root(tmp_path_factory):
    """GOT-10k's layout with two validation sequences of a bright square on noise."""
    root = tmp_path_factory.mktemp("GOT-10k")
    rng = np.random.default_rng(5)
    names = []
    for number, (length, velocity) in enumerate([(8, (3, 1)), (6, (-2, 2))], start=1):
        name = f"GOT-10k_Val_{number:06d}"
        names.append(name)
        folder = root / "val" / name
        folder.mkdir(parents=True)
        ground = cv2.GaussianBlur(rng.integers(0, 90, (120, 160, 3), dtype=np.uint8), (5, 5), 0)
        rows = []
        for index in range(length):
            x, y = 60 + velocity[0] * index, 40 + velocity[1] * index
            image = ground.copy()
            image[y : y + 24, x : x + 30] = (40, 200, 230)
            cv2.imwrite(str(folder / f"{index + 1:08d}.jpg"), image)
            rows.append(f"{x},{y},30,24")
        (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
        for label, value in (("absence", 0), ("cover", 8), ("cut_by_image", 0)):
            (folder / f"{label}.label").write_text(f"{value}\n" * length)
        (folder / "meta_info.ini").write_text("[METAINFO]\nanno_fps: 10Hz\nresolution: (160, 120)\n")
    (root / "val" / "list.txt").write_text("\n".join(names) + "\n")
    return root


def test_the_toolkit_runs_ours_and_its_files_are_those_of_our_runner(got10k_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    results, reports = tmp_path / "results", tmp_path / "reports"
    options = ["--root", str(got10k_root), "--subset", "val", "--results", str(results), "--reports", str(reports)]
    assert command(["toolkit", "got10k", *options]) == 0
    told = capsys.readouterr().out
    assert "mixvit_tiny_online, float32 on cpu" in told and "no table [mixvit_tiny_online] with got10k" in told
    (report,) = reports.rglob("performance.json")
    overall = json.loads(report.read_text())["MixFormer"]["overall"]
    assert overall["ao"] > 0.5 and overall["speed_fps"] > 0

    out = tmp_path / "ours"
    assert run(["--dataset", "got10k", "--root", str(got10k_root / "val"), "--out", str(out)]) == 0
    assert "no table [mixvit_tiny_online] with got10k" in capsys.readouterr().out
    record = json.loads((out / "default" / "run.json").read_text())
    assert (record["dtype"], record["device"], record["model"], record["table"]) == (
        *("float32", "cpu"),
        *("mixvit_tiny_online", None),
    )
    assert record["settings"]["search_factor"] and record["versions"]["jax"] and "OpenCV" in record["decoder"]["video"]
    theirs = sorted(
        path.relative_to(results / "GOT-10k" / "MixFormer") for path in (results / "GOT-10k").rglob("*.txt")
    )
    assert len(theirs) == 4  # boxes and times of two sequences
    for path in theirs:
        assert (out / "default" / path).is_file()
        if not path.stem.endswith("_time"):
            found, expected = (
                read_boxes(folder / path) for folder in (out / "default", results / "GOT-10k" / "MixFormer")
            )
            # JPEGs are decoded by OpenCV here and by Pillow there, and the toolkit writes three decimals.
            np.testing.assert_allclose(found, expected, atol=1.0)


def test_our_runners_files_are_the_toolkits(got10k_root, tmp_path):
    """The toolkit itself scores what `eval/run.py` leaves, with several repetitions."""
    from got10k.experiments import ExperimentGOT10k

    out = tmp_path / "GOT-10k"
    options = [
        "--dataset",
        "got10k",
        "--root",
        got10k_root / "val",
        "--out",
        out,
        "--tracker",
        "first-box",
        "--repeat",
        2,
    ]
    assert run([*map(str, options)]) == 0
    experiment = ExperimentGOT10k(str(got10k_root), "val", str(tmp_path), str(tmp_path / "reports"))
    experiment.plot_curves = lambda *arguments: None
    performance = experiment.report(["first-box"])["first-box"]
    assert 0.1 < performance["overall"]["ao"] < 0.9
    assert performance["seq_wise"]["GOT-10k_Val_000001"]["length"] == 7


def test_a_tracker_that_cannot_be_opened_ends_with_a_line(got10k_root, tmp_path, capsys):
    arguments = ["--root", str(got10k_root), "--weights", "gone.safetensors", "--results", str(tmp_path)]
    assert command(["toolkit", "got10k", *arguments]) == 2
    assert "error: gone.safetensors: no such file" in capsys.readouterr().err
