"""UAV123 (Mueller et al. 2016, https://cemse.kaust.edu.sa/ivul/uav123): 123 sequences from low-flying drones.

The layout, as published:

    data_seq/UAV123/bike1/000001.jpg ...    frames; sequences as car1_1, car1_2 are parts of the folder car1
    anno/UAV123/bike1.txt                   x,y,w,h a line; NaN,NaN,NaN,NaN where the target is absent
    anno/UAV123/att/bike1.txt               12 flags with commas
"""

import re
from pathlib import Path

from mixformer_jax.data.groundtruth import DatasetError, read_attributes, read_groundtruth
from mixformer_jax.data.readers.layout import check_split, find_attributes, numbered_frames, row_faults
from mixformer_jax.data.records import Dataset, Sequence
from mixformer_jax.video import DEFAULT_FPS

# In the order of the published files.
ATTRIBUTES = ("SV", "ARC", "LR", "FM", "FOC", "POC", "OV", "BC", "IV", "VC", "CM", "SOB")
# First frames of the parts of a folder after the first part (the toolkit's list of sequences); the others begin at 1.
# A part ends where its boxes end.
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


def read_uav123(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 123 if all are there.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree.
    """
    check_split("uav123", split, ())
    names = sorted(path.stem for path in (root / "anno" / "UAV123").glob("*.txt"))
    if not names:
        raise DatasetError(f"{root}: no UAV123 sequences; expected anno/UAV123/bike1.txt, ...")
    attributes = find_attributes(root / "anno" / "UAV123" / "att", names)
    return Dataset("uav123", root, names, _Reader(root, attributes))


class _Reader:
    def __init__(self, root: Path, attributes: dict[str, Path]) -> None:
        self.root, self.attributes = root, attributes

    def __call__(self, name: str) -> Sequence:
        groundtruth = self.root / "anno" / "UAV123" / f"{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        part = re.fullmatch(r"(.+)_(\d+)", name)
        folder = self.root / "data_seq" / "UAV123" / (part[1] if part else name)
        first = FIRST_FRAMES.get(part[1], {}).get(int(part[2]), 1) if part else 1
        is_part = part is not None
        frames = numbered_frames(folder, "%06d.jpg", len(boxes_xywh), groundtruth, first=first, may_go_on=is_part)
        attributes = read_attributes(self.attributes.get(name), ATTRIBUTES)
        faults = row_faults("uav123", name, groundtruth, boxes_xywh)
        return Sequence(name, boxes_xywh, frames, DEFAULT_FPS, folder, attributes=attributes, faults=faults)
