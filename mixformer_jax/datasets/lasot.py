"""LaSOT (Fan et al. 2019) and its extension LaSOT-ext (Fan et al. 2021), http://vision.cs.stonybrook.edu/~lasot.

The layout, as published; the folders of the classes may be missing:

    airplane/airplane-1/
        img/00000001.jpg ...        frames
        groundtruth.txt             x,y,w,h a line
        full_occlusion.txt          0 or 1 for each frame, in one line with commas
        out_of_view.txt             likewise
    training_set.txt, testing_set.txt   names, one a line; without them the published lists are used
    att/airplane-1.txt              14 flags with commas, copied from the evaluation toolkit where wanted

The evaluation toolkit's annotations, which are enough for scoring, are read, too:

    annos/airplane-1.txt            x,y,w,h a line
    annos/absent/airplane-1.txt     0 or 1 a line
    annos/att/airplane-1.txt        as above
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from mixformer_jax.datasets.groundtruth import DatasetError, read_attributes, read_groundtruth, read_labels, read_names
from mixformer_jax.datasets.layout import (
    SPLITS,
    check_split,
    find_attributes,
    missing_frames,
    numbered_frames,
    row_faults,
    sub_folders,
)
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.video import DEFAULT_FPS

# In the order of the toolkit's files.
ATTRIBUTES = ("IV", "POC", "DEF", "MB", "CM", "ROT", "BC", "VC", "SV", "FOC", "FM", "OV", "LR", "ARC")
ANNOS = "annos"  # of the evaluation toolkit
PER_CLASS = 20
EXTENSION_PER_CLASS = 10
EXTENSION_CLASSES = (
    *("atv", "badminton", "cosplay", "dancingshoe", "footbag", "frisbee", "jianzi", "lantern"),
    *("misc", "opossum", "paddle", "raccoon", "rhino", "skatingshoe", "wingsuit"),
)


def read_lasot(root: Path, split: str | None = None) -> Dataset:
    """Sequences by class and number: `train` (1,120), `test` (280), or all that are there.

    `visible` is full_occlusion == 0 and out_of_view == 0; None where these files are missing.

    Raises:
        DatasetError: no sequences, or one of the split that is not there. When a sequence is read: files that are
            missing or whose lengths disagree.
    """
    check_split("lasot", split, ("train", "test"))
    if split is None:
        names = _present(root)
    else:
        listing = root / ("training_set.txt" if split == "train" else "testing_set.txt")
        names = read_names(listing) if listing.is_file() else _published(split)
    return _dataset("lasot", root, names)


def read_lasot_ext(root: Path, split: str | None = None) -> Dataset:
    """The 150 sequences of LaSOT-ext, as `read_lasot`."""
    check_split("lasot_ext", split, ())
    names = [f"{kind}-{number}" for kind in EXTENSION_CLASSES for number in range(1, EXTENSION_PER_CLASS + 1)]
    return _dataset("lasot_ext", root, names)


def _dataset(dataset: str, root: Path, names: list[str]) -> Dataset:
    there = set(_present(root))
    is_toolkit = not _in_folders(root) and (root / ANNOS).is_dir()
    missing = [name for name in names if name not in there]
    if missing:
        # LaSOT-ext has no split to leave out.
        part = (
            "no split, with a list of names if need be,"
            if dataset == "lasot"
            else "the reader lasot, which takes what is there,"
        )
        raise DatasetError(
            f"{root}: {len(missing)} of {len(names)} sequences have no {'file' if is_toolkit else 'folder'}, "
            f"the first is {missing[0]}; use {part} for a part of the data set"
        )
    if not names:
        raise DatasetError(f"{root}: no LaSOT sequences; expected airplane/airplane-1/groundtruth.txt, ...")
    attributes = find_attributes(root / (f"{ANNOS}/att" if is_toolkit else "att"), names)
    reader = _ToolkitReader if is_toolkit else _Reader
    return Dataset(dataset, root, names, reader(dataset, root, attributes))


def _present(root: Path) -> list[str]:
    """Names of the sequences, classes alphabetically, numbers ascending; nothing inside is looked at."""
    names = _in_folders(root) or [path.stem for path in (root / ANNOS).glob("*.txt") if _is_name(path.stem)]
    return sorted(names, key=lambda name: (name.rpartition("-")[0], int(name.rpartition("-")[2])))


def _in_folders(root: Path) -> list[str]:
    folders = sub_folders(root)
    in_classes = [name for kind in folders if not _is_name(kind) for name in sub_folders(root / kind)]
    return [name for name in (*folders, *in_classes) if _is_name(name)]


def _is_name(folder: str) -> bool:
    kind, dash, number = folder.rpartition("-")
    return bool(kind and dash) and number.isdecimal()


def _published(split: str) -> list[str]:
    test = {
        kind: {int(number) for number in numbers}
        for kind, *numbers in (line.split() for line in (SPLITS / "lasot_test.txt").read_text().splitlines())
    }
    return [
        f"{kind}-{number}"
        for kind, of_test in test.items()
        for number in range(1, PER_CLASS + 1)
        if (number in of_test) == (split == "test")
    ]


class _Reader:
    def __init__(self, dataset: str, root: Path, attributes: dict[str, Path]) -> None:
        self.dataset, self.root, self.attributes = dataset, root, attributes

    def __call__(self, name: str) -> TrackingSequence:
        in_class = self.root / name.rpartition("-")[0] / name
        folder = in_class if in_class.is_dir() else self.root / name
        groundtruth = folder / "groundtruth.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        frames = numbered_frames(folder / "img", "%08d.jpg", len(boxes_xywh), groundtruth)
        hidden = [folder / "full_occlusion.txt", folder / "out_of_view.txt"]
        return self._sequence(name, groundtruth, boxes_xywh, frames, hidden, folder)

    def _sequence(
        self,
        name: str,
        groundtruth: Path,
        boxes_xywh: Float64[np.ndarray, "n 4"],
        frames: Callable[[int], np.ndarray],
        hidden: list[Path],
        folder: Path,
    ) -> TrackingSequence:
        visible = None
        if any(path.is_file() for path in hidden):
            visible = ~np.any([read_labels(path, expected_length=len(boxes_xywh)) != 0 for path in hidden], axis=0)
        attributes = read_attributes(self.attributes.get(name), ATTRIBUTES)
        faults = row_faults(self.dataset, name, groundtruth, boxes_xywh, visible)
        return TrackingSequence(name, boxes_xywh, frames, DEFAULT_FPS, folder, visible, attributes, faults=faults)


class _ToolkitReader(_Reader):
    def __call__(self, name: str) -> TrackingSequence:
        folder = self.root / ANNOS
        groundtruth = folder / f"{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        frames = missing_frames(self.root / name, "img/00000001.jpg, ...")
        return self._sequence(name, groundtruth, boxes_xywh, frames, [folder / "absent" / f"{name}.txt"], folder)
