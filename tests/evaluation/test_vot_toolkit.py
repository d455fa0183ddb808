"""Our entry point run by the real VOT toolkit, 0.7.4 and 0.9.0, which live in an environment of their own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.boxes import iou, xywh_to_xyxy

REPOSITORY = Path(__file__).resolve().parents[2]
# Where `make test` installs the toolkit: its dependencies bring another OpenCV, which would replace ours.
TOOLKIT = Path(sys.prefix) / "vot-toolkit" / "bin" / "python"
# 0.9.0 cannot run experiments from anchors (`multistart`): "ObjectQuery.state must be a Region".
CURRENT = Path(sys.prefix) / "vot-toolkit-0.9"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace with two tiny sequences, seven anchors, and the trackers of eval/vot/trackers.ini."""
    pytest.importorskip("trax", reason="needs vot-trax: pip install -e '.[vot]'")
    _need(TOOLKIT)
    folder = tmp_path_factory.mktemp("workspace")
    with zipfile.ZipFile(REPOSITORY / "tests" / "data" / "evalgold" / "vot_workspace.zip") as archive:
        archive.extractall(folder)
    template = (REPOSITORY / "eval" / "vot" / "trackers.ini").read_text()
    # What a user of another environment changes: the interpreter.
    registry = template.replace("python = python", f"python = {sys.executable}")
    registry = registry.replace("$HOME/.cache/mixformer-jax", str(folder / "compiled"))
    (folder / "trackers.ini").write_text(registry)
    (folder / "config.yaml").write_text("stack: ./stack.yaml\nregistry:\n- ./trackers.ini\n")
    _toolkit(folder, "evaluate --workspace . FirstBox MixFormer")
    assert any((folder / "compiled").iterdir()), "programs are kept from one process to the next"
    return folder


def _need(path):
    if not path.exists():
        message = f"no {path}: make test installs the VOT toolkit there"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def _toolkit(folder, command, version=None):
    """Runs the toolkit: 0.7.4, or the one in the folder `version`."""
    environment = {**os.environ, "VOT_RESULTS_BINARY": "false", "JAX_PLATFORMS": "cpu"}
    if version is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(version), os.environ.get("PYTHONPATH")]))
    arguments = [str(TOOLKIT), "-m", "vot", *shlex.split(command)]
    run = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


def _rows(path):
    """The boxes of a run; its first line is the code of an initialisation."""
    first, *rows = path.read_text().splitlines()
    assert first == "1"
    return np.array([[float(number) for number in row.split(",")] for row in rows])


def _runs(results):
    return {str(path.relative_to(results)): _rows(path) for path in sorted(results.rglob("*.txt"))}


def test_the_first_box_is_the_static_tracker_of_the_toolkits_own_bindings(workspace):
    ours, theirs = _runs(workspace / "results" / "FirstBox"), _runs(workspace / "results" / "StaticBox")
    assert list(ours) == list(theirs) and len(ours) == 10
    for name, boxes_xywh in ours.items():
        np.testing.assert_allclose(boxes_xywh, theirs[name], atol=1e-3)


def test_mixformer_runs_forward_and_backward_from_every_anchor(workspace):
    results = workspace / "results" / "MixFormer" / "baseline"
    truths = {
        name: np.loadtxt(workspace / "sequences" / name / "groundtruth.txt", delimiter=",") for name in ("ball", "box")
    }
    overlaps = []
    for name, truth in truths.items():
        for path in (results / name).glob("*.txt"):
            anchor = int(path.stem.rpartition("_")[2])
            backward = np.loadtxt(workspace / "sequences" / name / "anchor.value")[anchor] < 0
            boxes_xywh = _rows(path)
            run = truth[anchor::-1] if backward else truth[anchor:]
            assert len(boxes_xywh) == len(run) - 1
            overlaps.append(iou(xywh_to_xyxy(boxes_xywh), xywh_to_xyxy(run[1:])))
            confidence = [float(line) for line in path.with_name(f"{path.stem}_confidence.value").read_text().split()]
            assert len(confidence) >= len(boxes_xywh) and all(0 <= value <= 1 for value in confidence)
    assert len(overlaps) == 8
    assert np.mean(np.concatenate(overlaps)) > 0.5, "it follows the targets"


def test_the_toolkits_analysis_takes_the_results(workspace):
    _toolkit(workspace, "analysis --workspace . --format json --name ours FirstBox MixFormer")
    _check_analysis(workspace, "0.7.4")


def test_the_current_toolkit_finds_the_same_numbers(workspace, tmp_path):
    _need(CURRENT)
    folder = tmp_path / "workspace"
    # Without what 0.7.4 has kept of its analysis.
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("cache", "analysis", "logs"))
    shutil.rmtree(folder / "results" / "MixFormer" / "unsupervised")
    stack = (folder / "stack.yaml").read_text()
    (folder / "stack.yaml").write_text("title: one run\nexperiments:\n" + stack[stack.index("  unsupervised:") :])
    _toolkit(folder, "evaluate --workspace . MixFormer", CURRENT)
    before, now = (_runs(root / "results" / "MixFormer" / "unsupervised") for root in (workspace, folder))
    assert len(now) == 2 and list(now) == list(before)
    for name, boxes_xywh in now.items():
        np.testing.assert_allclose(boxes_xywh, before[name], atol=1e-3)
    (folder / "stack.yaml").write_text(stack)
    _toolkit(folder, "analysis --workspace . --format json --name ours FirstBox MixFormer", CURRENT)
    _check_analysis(folder, "0.9.0")


def _check_analysis(workspace, version):
    (path,) = (workspace / "analysis").rglob("ours*.json")
    analysis = json.loads(path.read_text())
    assert analysis["toolkit"] == version
    found = analysis["results"]
    expected = json.loads((workspace / "expected_analysis.json").read_text())["results"]
    for experiment, analyses in expected.items():
        for ours, theirs in zip(found[experiment]["results"], analyses["results"], strict=True):
            first_box, mixformer = ours
            assert _flat(first_box) == pytest.approx(_flat(theirs[0]), abs=1e-6)
            assert _flat(mixformer)[0] >= _flat(first_box)[0]


def _flat(value):
    if isinstance(value, list):
        return [number for item in value for number in _flat(item)]
    return [float(value)]
