"""Our entry point run by the real VOT toolkit, 0.7.4 and 0.9.0, which live in an environment of their own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.convert.alpha_refine import from_official, save_alpha_refine
from mixformer_jax.convert.torch_files import OfficialState
from mixformer_jax.datasets.vot import Mask, Special, mask_text
from mixformer_jax.evaluation.vot import accuracy_robustness, eao, eao_curve, read_sequences, score_runs
from mixformer_jax.evaluation.vot_regions import read_regions, region_overlaps

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
    # What a user of another environment changes: the interpreter. The toolkit sets PYTHONPATH to `paths`.
    registry = template.replace("python = python", f"python = {sys.executable}\npaths = {REPOSITORY}")
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
    # As users have it: without the programs that other tests kept whole, which would not come to the workspace's cache.
    environment.pop("MIXFORMER_PROGRAMS", None)
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


# Frames, and anchors: of the sequence whose truth is masks one in either direction; of the one with boxes the first.
MASK_RUNS = {"ball": (16, {0: 1, 11: -1}), "box": (12, {0: 1})}
EAO_INTERVAL = 3, 14


@pytest.fixture(scope="module")
def mask_workspace(workspace, golden, tmp_path_factory):
    """The same frames, in `ball` with masks as truth; the toolkit and `mixformer evaluate` track them with masks."""
    folder = tmp_path_factory.mktemp("masks")
    for name in ("sequences", "compiled"):
        shutil.copytree(workspace / name, folder / name)
    for name, (length, anchors) in MASK_RUNS.items():
        sequence = folder / "sequences" / name
        (sequence / "anchor.value").write_text("".join(f"{anchors.get(i, 0)}\n" for i in range(length)))
        for path in sorted((sequence / "color").iterdir())[length:]:
            path.unlink()
        for path in (sequence / "groundtruth.txt", *sequence.glob("*.tag")):
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:length]))
        about = (sequence / "sequence").read_text()
        (sequence / "sequence").write_text(re.sub(r"length=\d+", f"length={length}", about))
    truth = folder / "sequences" / "ball" / "groundtruth.txt"
    boxes_xywh = np.loadtxt(truth, delimiter=",")
    truth.write_text("".join(f"{mask_text(_ellipse(box_xywh))}\n" for box_xywh in boxes_xywh))
    stack = (workspace / "stack.yaml").read_text()
    stack = stack[: stack.index("  unsupervised:")]
    for before, now in (("low: 10", f"low: {EAO_INTERVAL[0]}"), ("high: 30", f"high: {EAO_INTERVAL[1]}")):
        assert before in stack
        stack = stack.replace(before, now)
    (folder / "stack.yaml").write_text(stack)
    (folder / "config.yaml").write_text("stack: ./stack.yaml\nregistry:\n- ./trackers.ini\n")

    arrays, weights = golden("alpha_refine/tiny_model.npz"), folder / "masks.safetensors"
    state = {name[6:]: arrays[name] for name in arrays.files if name.startswith("state/")}
    save_alpha_refine(weights, *from_official("golden", OfficialState(state, ())))
    registry = (workspace / "trackers.ini").read_text()
    entry = registry[registry.index("[MixFormer]") : registry.index("[FirstBox]")]
    masks = entry.replace("'mixvit_tiny'", f"'mixvit_tiny', '--masks', '{weights}'")
    assert masks != entry
    (folder / "trackers.ini").write_text(
        "".join(masks.replace("MixFormer]", f"{name}]") for name in ("Masks", "Evaluated"))
    )
    _toolkit(folder, "evaluate --workspace . Masks")
    arguments = ["--dataset", "vot", "--root", str(folder), "--out", str(folder / "results"), "--masks", str(weights)]
    assert cli.main(["evaluate", *arguments, "--weights", "mixvit_tiny", "--tracker-name", "Evaluated"]) == 0
    return folder


def _ellipse(box_xywh):
    x, y, w, h = box_xywh
    rows, columns = np.mgrid[:120, :160]
    return ((columns - x - w / 2) / (w / 2)) ** 2 + ((rows - y - h / 2) / (h / 2)) ** 2 < 1


def test_masks_go_to_the_toolkit_and_to_our_own_files_alike(mask_workspace):
    ours = mask_workspace / "results" / "Evaluated" / "baseline"
    paths = sorted(ours.rglob("*.txt"))
    assert [path.name for path in paths] == ["ball_00000000.txt", "ball_00000011.txt", "box_00000000.txt"]
    for path in paths:
        theirs = mask_workspace / "results" / "Masks" / "baseline" / path.relative_to(ours)
        (first, *found), (also_first, *expected) = read_regions(path), read_regions(theirs)
        assert first == also_first == Special(1) and all(isinstance(region, Mask) for region in expected)
        assert np.mean(region_overlaps(found, expected, (160, 120))) > 0.99
        assert path.read_text().count("m") == len(found) and len({len(line) for line in path.read_text().split()}) > 5


@pytest.mark.parametrize("version", [None, CURRENT])
def test_the_toolkit_scores_masks_as_we_do(mask_workspace, tmp_path, version):
    if version is not None:
        _need(version)
    folder = tmp_path / "workspace"
    shutil.copytree(mask_workspace, folder, ignore=shutil.ignore_patterns("cache", "analysis", "logs", "compiled"))
    _toolkit(folder, "analysis --workspace . --format json --name ours Masks Evaluated", version)
    (path,) = (folder / "analysis").rglob("ours*.json")
    scores, curves, accuracies = json.loads(path.read_text())["results"]["baseline"]["results"]
    for index, name in enumerate(("Masks", "Evaluated")):
        runs = [score_runs(folder / "results" / name / "baseline", sequence) for sequence in read_sequences(folder)]
        curve = eao_curve(runs, EAO_INTERVAL[1])
        assert _flat(scores[index]) == pytest.approx([eao(curve, *EAO_INTERVAL)], abs=1e-9)
        assert _flat(curves[index]) == pytest.approx(curve.tolist(), abs=1e-9)
        assert _flat(accuracies[index])[:2] == pytest.approx(accuracy_robustness(runs), abs=1e-9)


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
