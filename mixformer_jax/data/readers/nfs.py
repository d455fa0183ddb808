"""NfS, Need for Speed (Kiani Galoogahi et al. 2017, http://ci2cv.net/nfs), its version of 30 frames a second.

Two layouts are read. As published:

    airboard_1/30/airboard_1/00001.jpg ...
    airboard_1/30/airboard_1.txt    VATIC lines: id xmin ymin xmax ymax frame lost occluded generated "label",
                                    of every frame, or of every frame of the version of 240 a second

and as the evaluation code of trackers expects it:

    sequences/airboard_1/00001.jpg ...
    anno/nfs_airboard_1.txt         x, y, w, h a line, with tabs
"""

import math
from pathlib import Path

import numpy as np

from mixformer_jax.data.groundtruth import DatasetError, check_length, read_groundtruth
from mixformer_jax.data.readers.layout import check_split, numbered_frames, sub_folders
from mixformer_jax.data.records import Dataset, ImageFrames, Sequence
from mixformer_jax.images import list_images
from mixformer_jax.video import DEFAULT_FPS

# Frames of the version of 240 a second between two of 30.
RATE_RATIO = 8


def read_nfs(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 100 if all are there.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree.
    """
    check_split("nfs", split, ())
    if (root / "sequences").is_dir():
        names = sub_folders(root / "sequences")
        return Dataset("nfs", root, names, _Reader(root))
    names = [name for name in sub_folders(root) if (root / name / "30").is_dir()]
    if not names:
        raise DatasetError(f"{root}: no NfS sequences; expected NAME/30/NAME.txt, ... or sequences/NAME and anno")
    return Dataset("nfs", root, names, _VaticReader(root))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> Sequence:
        folder, groundtruth = self.root / "sequences" / name, self.root / "anno" / f"nfs_{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth)
        frames = numbered_frames(folder, "%05d.jpg", len(boxes_xywh), groundtruth)
        return Sequence(name, boxes_xywh, frames, DEFAULT_FPS, folder)


class _VaticReader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> Sequence:
        folder, groundtruth = self.root / name / "30" / name, self.root / name / "30" / f"{name}.txt"
        boxes_xywh, lost = read_vatic(groundtruth)
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; expected the frames 00001.jpg, ...")
        images = tuple(path.name for path in list_images(folder))
        if images and abs(len(boxes_xywh) / len(images) - RATE_RATIO) < 1:
            boxes_xywh, lost = boxes_xywh[::RATE_RATIO], lost[::RATE_RATIO]
        if abs(len(boxes_xywh) - len(images)) <= 1:
            # Published sequences differ by one frame at the end.
            count = min(len(boxes_xywh), len(images))
            images, boxes_xywh, lost = images[:count], boxes_xywh[:count], lost[:count]
        check_length(groundtruth, len(boxes_xywh), len(images))
        return Sequence(name, boxes_xywh, ImageFrames(folder, images), DEFAULT_FPS, folder, ~lost)


def read_vatic(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float64 [n, 4] (xywh) and whether the target is lost, bool [n], in the order of the frames.

    Raises:
        DatasetError: missing file, or a line that does not begin with id, four corners, frame and lost.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; the ground truth is missing") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append([float(word) for word in line.split()[1:7]])
            if len(rows[-1]) != 6 or not all(map(math.isfinite, rows[-1])):
                raise ValueError(line)
        except ValueError:
            raise DatasetError(
                f"{path}, line {number}: expected id xmin ymin xmax ymax frame lost, found {line!r}"
            ) from None
    if not rows:
        raise DatasetError(f"{path}: the ground truth is empty; expected one line for every frame")
    table = np.array(sorted(rows, key=lambda row: row[4]), np.float64)
    boxes_xywh = np.concatenate([table[:, :2], table[:, 2:4] - table[:, :2]], axis=1)
    return boxes_xywh, table[:, 5] != 0
