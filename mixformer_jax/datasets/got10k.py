"""GOT-10k (Huang et al. 2019, http://got-10k.aitestunion.com), one subset a root: GOT-10k/train, val or test.

The layout, as published:

    list.txt                        names of the sequences in order; without it: every folder with boxes
    GOT-10k_Val_000001/
        00000001.jpg ...            frames
        groundtruth.txt             x,y,w,h a line; in the test subset the first frame only
        absence.label               1 where the target is absent
        cover.label                 0..8, eighths of the target in view
        meta_info.ini               anno_fps, resolution, object_class, ...
"""

import re
from pathlib import Path

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, read_groundtruth, read_labels
from mixformer_jax.datasets.layout import (
    SPLITS,
    check_split,
    numbered_frames,
    read_numbers,
    row_faults,
    sub_folders,
)
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.images import list_images

# Annotations, and so the published frames, are at 10 Hz throughout the data set.
DEFAULT_FPS = 10.0
TRAIN_LENGTH = 9335
ABSENCE, COVER = "absence.label", "cover.label"


def read_got10k(root: Path, split: str | None = None) -> Dataset:
    """Sequences of one subset, in the order of list.txt.

    `visible` is absence.label == 0 and cover.label > 0, as the official trainer has it; None without these files. The
    boxes that the test subset keeps hidden are rows of NaN.

    Args:
        root: the folder of a subset.
        split: None for all (`train_full` of the official trainer, and the protocol that trains on GOT-10k alone).
            `vottrain` (7,086) or `votval` (1,249): the parts of the train subset by which the official trainer trains
            and validates; both leave out 1,000 sequences on account of the VOT challenge. Their published lists count
            the lines of list.txt from 0, the list of the challenge names sequences, counted from 1; the numbers of the
            one were used in the other, and so is done here, to train on the same sequences.

    Raises:
        DatasetError: no sequences, a listed sequence that is not there, or a split of something else than the whole
            train subset. When a sequence is read: files whose lengths disagree.
    """
    check_split("got10k", split, ("vottrain", "votval"))
    names = _list_sequences(root)
    if split is not None:
        names = [names[position] for position in _positions(split, len(names), root)]
    return Dataset("got10k", root, names, _Reader(root))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> TrackingSequence:
        folder = self.root / name
        groundtruth = folder / "groundtruth.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        if len(boxes_xywh) == 1 and not (folder / ABSENCE).is_file():
            # The test subset: everything after the first box is kept by the evaluation server.
            count = len(list_images(folder))
            boxes_xywh = np.concatenate([boxes_xywh, np.full((max(count, 1) - 1, 4), np.nan)])
        frames = numbered_frames(folder, "%08d.jpg", len(boxes_xywh), groundtruth)
        visible = _read_visible(folder, len(boxes_xywh))
        faults = row_faults("got10k", name, groundtruth, boxes_xywh, visible)
        fps = _read_fps(folder / "meta_info.ini")
        return TrackingSequence(name, boxes_xywh, frames, fps, folder, visible, faults=faults)


def _positions(split: str, count: int, root: Path) -> list[int]:
    if count != TRAIN_LENGTH:
        raise DatasetError(
            f"{root}: split {split} is a part of the train subset with its {TRAIN_LENGTH} sequences; here are {count}"
        )
    validation = read_numbers(SPLITS / "got10k_votval.txt")
    if split == "votval":
        return validation
    left_out = {*validation, *read_numbers(SPLITS / "got10k_vot_exclude.txt")}
    return [position for position in range(count) if position not in left_out]


def _list_sequences(root: Path) -> list[str]:
    listing = root / "list.txt"
    if listing.is_file():
        names = listing.read_text(encoding="utf-8").split()
        there = set(sub_folders(root))
        missing = [name for name in names if name not in there]
        if missing:
            raise DatasetError(
                f"{listing}: {len(missing)} of {len(names)} listed sequences have no folder, the first is {missing[0]}"
            )
    else:
        names = sorted(path.parent.name for path in root.glob("*/groundtruth.txt"))
    if not names:
        subsets = [str(root / subset) for subset in ("train", "val", "test") if (root / subset).is_dir()]
        mend = f"give one subset as the root: {' or '.join(subsets)}" if subsets else "expected list.txt"
        raise DatasetError(f"{root}: no GOT-10k sequences; {mend}")
    return names


def _read_visible(folder: Path, count: int) -> np.ndarray | None:
    absence, cover = folder / ABSENCE, folder / COVER
    if not absence.is_file():
        return None
    visible = read_labels(absence, expected_length=count) == 0
    return visible & (read_labels(cover, expected_length=count) > 0) if cover.is_file() else visible


def _read_fps(path: Path) -> float:
    if not path.is_file():
        return DEFAULT_FPS
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not a meta_info.ini: {error}") from error
    rate = re.search(r"^anno_fps\s*[:=]\s*(.*?)\s*$", text, re.MULTILINE)
    if rate is None:
        return DEFAULT_FPS
    match = re.fullmatch(r"([0-9.]+)\s*Hz", rate[1], re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise DatasetError(f"{path}: anno_fps is {rate[1]!r}; expected a rate as 10Hz")
    return float(match[1])
