"""UAV123, UAV20L, UAV123@10fps (Mueller et al. 2016, https://cemse.kaust.edu.sa/ivul/uav123), from low-flying drones.

The layout of UAV123 (123 sequences) and UAV20L (20 long ones over the same frames), as published:

    data_seq/UAV123/bike1/000001.jpg ...    frames; UAV123's sequences as car1_1, car1_2 are parts of the folder car1
    anno/UAV123/bike1.txt                   x,y,w,h a line; NaN,NaN,NaN,NaN where the target is absent
    anno/UAV123/att/bike1.txt               12 flags with commas
    anno/UAV20L/...                         likewise

and of UAV123@10fps, every third frame of UAV123, numbered anew:

    data_seq/UAV123_10fps/..., anno/UAV123_10fps/...
"""

import re
from pathlib import Path
from typing import NamedTuple

from mixformer_jax.datasets.groundtruth import DatasetError, read_attributes, read_groundtruth
from mixformer_jax.datasets.layout import check_split, find_attributes, numbered_frames, row_faults
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.video import DEFAULT_FPS

# In the order of the published files.
ATTRIBUTES = ("SV", "ARC", "LR", "FM", "FOC", "POC", "OV", "BC", "IV", "VC", "CM", "SOB")
# First frames of the parts of a folder after the first part (the toolkit's list of sequences); the others begin at 1.
# A part ends where its boxes end. Of the version of 10 frames a second, the toolkit's numbers are those of every third.
FIRST_FRAMES = {
    "bird1": {2: 775, 3: 1573},
    "car1": {2: 751, 3: 1627},
    "car16": {2: 415},
    "car6": {2: 487, 3: 1807, 4: 2953, 5: 3925},
    "car8": {2: 1357},
    "group1": {2: 1333, 3: 2515, 4: 3925},
    "group2": {2: 907, 3: 1771},
    "group3": {2: 1567, 3: 2827, 4: 4369},
    "person12": {2: 601},
    "person14": {2: 847, 3: 1813},
    "person17": {2: 1501},
    "person19": {2: 1243, 3: 2791},
    "person2": {2: 1189},
    "person4": {2: 1501},
    "person5": {2: 877},
    "person7": {2: 1249},
    "person8": {2: 1075},
    "truck4": {2: 577},
    "uav1": {2: 1555, 3: 2473},
}


class _Version(NamedTuple):
    """One of the three data sets.

    Attributes:
        reader: its name.
        title: for messages.
        boxes: the folder in anno.
        frames: the folder in data_seq.
        step: of its frames, in those of UAV123.
        has_parts: whether car1_2 is a part of the folder car1.
    """

    reader: str
    title: str
    boxes: str
    frames: str
    step: int = 1
    has_parts: bool = True


_UAV123 = _Version("uav123", "UAV123", "UAV123", "UAV123")
_UAV20L = _Version("uav20l", "UAV20L", "UAV20L", "UAV123", has_parts=False)
_UAV123_10FPS = _Version("uav123_10fps", "UAV123@10fps", "UAV123_10fps", "UAV123_10fps", step=3)


def read_uav123(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 123 if all are there.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree.
    """
    return _read(_UAV123, root, split)


def read_uav20l(root: Path, split: str | None = None) -> Dataset:
    """Likewise the 20 sequences of UAV20L, whose frames are UAV123's."""
    return _read(_UAV20L, root, split)


def read_uav123_10fps(root: Path, split: str | None = None) -> Dataset:
    """Likewise the 123 sequences of UAV123@10fps."""
    return _read(_UAV123_10FPS, root, split)


def _read(version: _Version, root: Path, split: str | None) -> Dataset:
    check_split(version.reader, split, ())
    folder = root / "anno" / version.boxes
    names = sorted(path.stem for path in folder.glob("*.txt"))
    if not names:
        raise DatasetError(f"{root}: no {version.title} sequences; expected anno/{version.boxes}/bike1.txt, ...")
    return Dataset(version.reader, root, names, _Reader(version, root, find_attributes(folder / "att", names)))


class _Reader:
    def __init__(self, version: _Version, root: Path, attributes: dict[str, Path]) -> None:
        self.version, self.root, self.attributes = version, root, attributes

    def __call__(self, name: str) -> TrackingSequence:
        version = self.version
        groundtruth = self.root / "anno" / version.boxes / f"{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        part = re.fullmatch(r"(.+)_(\d+)", name) if version.has_parts else None
        folder = self.root / "data_seq" / version.frames / (part[1] if part else name)
        first = FIRST_FRAMES.get(part[1], {}).get(int(part[2]), 1) if part else 1
        frames = numbered_frames(
            folder,
            "%06d.jpg",
            len(boxes_xywh),
            groundtruth,
            first=(first - 1) // version.step + 1,
            may_go_on=part is not None,
        )
        attributes = read_attributes(self.attributes.get(name), ATTRIBUTES)
        faults = row_faults(version.reader, name, groundtruth, boxes_xywh)
        fps = DEFAULT_FPS / version.step
        return TrackingSequence(name, boxes_xywh, frames, fps, folder, attributes=attributes, faults=faults)
