"""OTB-2015, also called OTB100 (Wu et al. 2015, http://cvlab.hanyang.ac.kr/tracker_benchmark).

The layout, as published:

    Basketball/
        img/0001.jpg ...            frames; some folders hold more than the benchmark uses
        groundtruth_rect.txt        x,y,w,h a line; Jogging, Skating2 and Human4 have one file a target
    anno/att/Basketball.txt         11 flags with commas, copied from the MATLAB toolkit where wanted
"""

import re
from pathlib import Path

from mixformer_jax.data.groundtruth import DatasetError, check_length, read_attributes, read_groundtruth
from mixformer_jax.data.readers.layout import check_split, sub_folders
from mixformer_jax.data.records import Dataset, ImageFrames, Sequence
from mixformer_jax.images import list_images
from mixformer_jax.video import DEFAULT_FPS

# In the order of the toolkit's files.
ATTRIBUTES = ("IV", "OPR", "SV", "OCC", "DEF", "MB", "FM", "IPR", "OV", "BC", "LR")
# Frames that the benchmark uses, where a folder holds more (the toolkit's list of sequences).
USED_FRAMES = {
    "BlurCar1": (247, 988),
    "BlurCar3": (3, 359),
    "BlurCar4": (18, 397),
    "David": (300, 770),
    "Diving": (1, 215),
    "Football1": (1, 74),
    "Freeman3": (1, 460),
    "Freeman4": (1, 283),
}
# Boxes and frames left out at the beginning, as in the evaluation code of the paper.
LEFT_OUT = {"Tiger1": 5}


def read_otb100(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 100 if all are there. Targets of one folder are named as Jogging_1, Jogging_2.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree.
    """
    check_split("otb100", split, ())
    keys = [key for folder in sub_folders(root) for key in _targets(root / folder)]
    if not keys:
        raise DatasetError(f"{root}: no OTB sequences; expected Basketball/groundtruth_rect.txt, ...")
    return Dataset("otb100", root, keys, _Reader(root))


def _targets(folder: Path) -> list[str]:
    keys = []
    for path in sorted(folder.glob("groundtruth_rect*.txt")):
        number = re.fullmatch(r"groundtruth_rect(?:\.(\d+))?\.txt", path.name)
        # Human4 has an empty file for a target that was never annotated.
        if number is not None and path.stat().st_size > 0:
            keys.append(f"{folder.name}_{number[1]}" if number[1] else folder.name)
    return keys


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, key: str) -> Sequence:
        name, _, target = key.partition("_")
        folder = self.root / name
        groundtruth = folder / (f"groundtruth_rect.{target}.txt" if target else "groundtruth_rect.txt")
        boxes_xywh = read_groundtruth(groundtruth)
        if not (folder / "img").is_dir():
            raise DatasetError(f"{folder / 'img'}: no such folder; expected the frames 0001.jpg, ...")
        names = [path.name for path in list_images(folder / "img")]
        if name in USED_FRAMES:
            first, last = USED_FRAMES[name]
            names = [image for image in names if first <= _number(folder / "img" / image) <= last]
        check_length(groundtruth, len(boxes_xywh), len(names))
        start = LEFT_OUT.get(name, 0)
        frames = ImageFrames(folder / "img", tuple(names[start:]))
        attributes = read_attributes(self.root / "anno" / "att" / f"{key}.txt", ATTRIBUTES)
        return Sequence(key, boxes_xywh[start:], frames, DEFAULT_FPS, folder, attributes=attributes)


def _number(path: Path) -> int:
    if not path.stem.isdecimal():
        raise DatasetError(f"{path}: not a frame; expected a number as name, such as 0001.jpg")
    return int(path.stem)
