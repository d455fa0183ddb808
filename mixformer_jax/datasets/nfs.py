"""NfS, Need for Speed (Kiani Galoogahi et al. 2017, http://ci2cv.net/nfs), its version of 30 frames a second.

Two layouts are read. As published:

    airboard_1/30/airboard_1/00001.jpg ...
    airboard_1/30/airboard_1.txt    VATIC lines: id xmin ymin xmax ymax frame lost occluded generated "label",
                                    of every frame, or of every frame of the version of 240 a second

and as the evaluation code of trackers expects it:

    sequences/airboard_1/00001.jpg ...
    anno/nfs_airboard_1.txt         x, y, w, h a line, with tabs

Some sequences are published with one frame more than boxes, and dog_2 with another video: see `data.known_faults`.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from mixformer_jax.datasets.groundtruth import DatasetError, check_length, read_groundtruth, read_text
from mixformer_jax.datasets.known_faults import known_fault
from mixformer_jax.datasets.layout import SPLITS, check_split, missing_frames, row_faults, sub_folders
from mixformer_jax.datasets.records import Dataset, Fault, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.media.images import list_images
from mixformer_jax.media.video import DEFAULT_FPS

# Frames of the version of 240 a second between two of 30.
RATE_RATIO = 8


def read_nfs(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 100 if all are there.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree by more
            than the one frame at the end by which published ones do.
    """
    check_split("nfs", split, ())
    names = sub_folders(root / "sequences") if (root / "sequences").is_dir() else []
    # Without the frames, the annotations say which sequences there are.
    names = names or sorted(path.stem.removeprefix("nfs_") for path in (root / "anno").glob("nfs_*.txt"))
    if names:
        return Dataset("nfs", root, names, _Reader(root))
    names = [name for name in sub_folders(root) if (root / name / "30").is_dir()]
    if not names:
        raise DatasetError(f"{root}: no NfS sequences; expected NAME/30/NAME.txt, ... or sequences/NAME and anno")
    return Dataset("nfs", root, names, _VaticReader(root))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> TrackingSequence:
        folder, groundtruth = self.root / "sequences" / name, self.root / "anno" / f"nfs_{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        return _sequence(name, groundtruth, boxes_xywh, None, folder, _list_images(folder))


class _VaticReader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> TrackingSequence:
        folder, groundtruth = self.root / name / "30" / name, self.root / name / "30" / f"{name}.txt"
        boxes_xywh, lost = read_vatic(groundtruth)
        images = _list_images(folder)
        counts = [count for count in (len(images), _published_length(name)) if count]
        if not counts:
            raise DatasetError(
                f"{folder}: no frames, and {name} is no sequence of NfS, so nothing says whether {groundtruth} has the "
                "boxes of 30 or of 240 frames a second"
            )
        # Some of their versions of 240 frames a second are a few frames longer or shorter.
        steps = {step: min(abs(len(boxes_xywh[::step]) - count) for count in counts) for step in (1, RATE_RATIO)}
        step = min(steps, key=steps.__getitem__)
        boxes_xywh, lost = boxes_xywh[::step], lost[::step]
        return _sequence(name, groundtruth, boxes_xywh, lost, folder, images)


def _published_length(name: str) -> int | None:
    lines = (SPLITS / "nfs_30.txt").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)


def _list_images(folder: Path) -> tuple[str, ...]:
    return tuple(path.name for path in list_images(folder)) if folder.is_dir() else ()


def _sequence(
    name: str,
    groundtruth: Path,
    boxes_xywh: Float64[np.ndarray, "n 4"],
    lost: Bool[np.ndarray, " n"] | None,
    folder: Path,
    images: tuple[str, ...],
) -> TrackingSequence:
    """The sequence, cut at the end to where there are both frames and boxes."""
    faults: list[Fault] = []
    frames: ImageFrames | MissingFrames
    if not images:
        frames = missing_frames(folder, "00001.jpg, ...")
    elif (wrong := known_fault("nfs", name, "wrong video")) and abs(len(images) - len(boxes_xywh)) > 1:
        # The boxes are its own: results from elsewhere can be scored.
        faults.append(Fault("wrong video", str(folder), f"{len(images)} frames, {len(boxes_xywh)} boxes", wrong))
        frames = MissingFrames(f"{folder}: {wrong}; its frames are not used")
    else:
        count = min(len(boxes_xywh), len(images))
        if abs(len(boxes_xywh) - len(images)) > 1:
            check_length(groundtruth, len(boxes_xywh), len(images))
        elif len(boxes_xywh) != len(images):
            text = f"{len(boxes_xywh)} boxes for {len(images)} frames; the last one is left out"
            faults.append(Fault("length", str(groundtruth), text, known_fault("nfs", name, "length")))
        frames, boxes_xywh = ImageFrames(folder, images[:count]), boxes_xywh[:count]
        lost = None if lost is None else lost[:count]
    visible = None if lost is None else ~lost
    faults += row_faults("nfs", name, groundtruth, boxes_xywh, visible)
    return TrackingSequence(name, boxes_xywh, frames, DEFAULT_FPS, folder, visible, faults=tuple(faults))


def read_vatic(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float64 [n, 4] (xywh) and whether the target is lost, bool [n], in the order of the frames.

    Raises:
        DatasetError: missing file, or a line that does not begin with id, four corners, frame and lost.
    """
    rows = []
    for number, line in enumerate(read_text(path, "ground truth").splitlines(), start=1):
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
