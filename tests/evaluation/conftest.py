"""What the evaluation's tests share: toolkit goldens, and a tiny data set on disk."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixformer_jax.datasets.sequences import TrackingSequence

_GOLDEN = Path(__file__).resolve().parents[1] / "data" / "evalgold" / "ope"


class OpeGolden:
    """The synthetic benchmarks of tests/data/evalgold, unpacked, and the toolkits' numbers for them."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.summary = json.loads((_GOLDEN / "golden" / "summary.json").read_text())
        self.edge_cases = json.loads((_GOLDEN / "golden" / "edge_cases.json").read_text())
        self.curves = np.load(_GOLDEN / "golden" / "curves.npz")
        self.frames = np.load(_GOLDEN / "golden" / "frames.npz")

    def boxes(self, tracker: str, sequence: str) -> np.ndarray:
        return _numbers(self.files / "results" / tracker / f"{sequence}.txt")

    def sequence(self, benchmark: str, name: str) -> TrackingSequence:
        visible = None
        if benchmark == "lasot":
            folder = self.files / "lasot" / name.split("-")[0] / name
            boxes_xywh = _numbers(folder / "groundtruth.txt")
            flags = [_numbers(folder / file)[0] for file in ("full_occlusion.txt", "out_of_view.txt")]
            visible = (flags[0] == 0) & (flags[1] == 0)
        elif benchmark == "otb":
            boxes_xywh = _numbers(self.files / "otb" / name / "groundtruth_rect.txt")
        else:
            boxes_xywh = _numbers(self.files / benchmark / "anno" / f"{name}.txt")
        return TrackingSequence(name, boxes_xywh, _no_frame, 30.0, self.files, visible)


@pytest.fixture(scope="session")
def ope_golden(tmp_path_factory: pytest.TempPathFactory) -> OpeGolden:
    files = tmp_path_factory.mktemp("ope")
    with zipfile.ZipFile(_GOLDEN / "benchmarks.zip") as archive:
        archive.extractall(files)
    return OpeGolden(files)


@pytest.fixture
def folder_dataset(tmp_path: Path) -> Path:
    """Three sequences of a bright square on black, 4 to 6 frames; in `hide` the target is away in frame 2."""
    root = tmp_path / "dataset"
    for name, length in (("drift", 5), ("hide", 6), ("still", 4)):
        folder = root / name
        folder.mkdir(parents=True)
        rows = []
        for index in range(length):
            x = 10 + (0 if name == "still" else 3 * index)
            image = np.zeros((48, 64, 3), np.uint8)
            absent = name == "hide" and index == 2
            if not absent:
                image[12:22, x : x + 10] = 255
            cv2.imwrite(str(folder / f"{index + 1:08d}.jpg"), image)
            rows.append("nan,nan,nan,nan" if absent else f"{x},12,10,10")
        (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    return root


def _numbers(path: Path) -> np.ndarray:
    lines = path.read_text().replace(",", " ").splitlines()
    return np.array([[float(value) for value in line.split()] for line in lines])


def _no_frame(index: int) -> np.ndarray:
    raise AssertionError("scoring reads no frames")
