"""OTB-2015, also called OTB100 (Wu et al. 2015, http://cvlab.hanyang.ac.kr/tracker_benchmark).

The layout, as published:

    Basketball/
        img/0001.jpg ...            frames; some folders hold more than the benchmark uses
        groundtruth_rect.txt        x,y,w,h a line; Jogging, Skating2 and Human4 have one file a target
    anno/att/Basketball.txt         11 flags with commas, copied from the MATLAB toolkit where wanted, under its names:
                                    kiteSurf.txt, jogging-1.txt, ...

The MATLAB toolkit's annotations, which are enough for scoring, are read, too:

    anno/basketball.txt             x,y,w,h a line, under its names
    anno/att/basketball.txt         as above
"""

import logging
import re
from pathlib import Path

from mixformer_jax.datasets.groundtruth import DatasetError, check_length, read_attributes, read_groundtruth
from mixformer_jax.datasets.layout import (
    SPLITS,
    check_split,
    find_attributes,
    find_by_name,
    missing_frames,
    row_faults,
    sub_folders,
)
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.media.images import list_images
from mixformer_jax.media.video import DEFAULT_FPS

logger = logging.getLogger(__name__)

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
ANNO = "anno"  # of the MATLAB toolkit


def read_otb100(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 100 if all are there. Targets of one folder are named as Jogging_1, Jogging_2.

    Copies that some toolkits want, such as Jogging-1 and Jogging-2, serve where the published folder is not there;
    else they are left out, as is every other folder with boxes, and a warning names them.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree.
    """
    check_split("otb100", split, ())
    published = {name.lower(): name for name in (SPLITS / "otb100.txt").read_text(encoding="utf-8").split()}
    found: dict[str, Path] = {}
    extra: list[str] = []
    # Copies last.
    for folder in sorted(sub_folders(root), key=lambda name: (re.search(r"-\d+$", name) is not None, name)):
        targets = _targets(root / folder)
        news = {published[key.lower()]: path for key, path in targets.items() if key.lower() in published}
        news = {key: path for key, path in news.items() if key not in found}
        if targets and not news:
            extra.append(folder)
        found |= news
    found = found or find_by_name(root / ANNO, sorted(published.values()))
    if not found:
        raise DatasetError(f"{root}: no OTB sequences; expected Basketball/groundtruth_rect.txt, ...")
    if extra:
        logger.warning("%s: not among OTB's 100 sequences, and left out: %s", root, ", ".join(extra))
    keys = sorted(found)
    return Dataset("otb100", root, keys, _Reader(root, found, find_attributes(root / ANNO / "att", keys)))


def _targets(folder: Path) -> dict[str, Path]:
    """The ground truth of each target of a folder, by the name of its sequence."""
    copy = re.fullmatch(r"(.+)-(\d+)", folder.name)
    name, only = copy.groups() if copy else (folder.name, None)
    found = {}
    for path in sorted(folder.glob("groundtruth_rect*.txt")):
        match = re.fullmatch(r"groundtruth_rect(?:\.(\d+))?\.txt", path.name)
        # Human4 has an empty file for a target that was never annotated.
        if match is None or path.stat().st_size == 0 or (only and match[1] not in (None, only)):
            continue
        number = only or match[1]
        found[f"{name}_{number}" if number else name] = path
    return found


class _Reader:
    def __init__(self, root: Path, groundtruths: dict[str, Path], attributes: dict[str, Path]) -> None:
        self.root, self.groundtruths, self.attributes = root, groundtruths, attributes

    def __call__(self, key: str) -> TrackingSequence:
        groundtruth = self.groundtruths[key]
        name = key.partition("_")[0]
        folder = self.root / name if groundtruth.parent.name == ANNO else groundtruth.parent
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        faults = row_faults("otb100", key, groundtruth, boxes_xywh)
        images = folder / "img"
        names = [path.name for path in list_images(images)] if images.is_dir() else []
        start = LEFT_OUT.get(name, 0)
        frames: ImageFrames | MissingFrames
        if names:
            if name in USED_FRAMES:
                first, last = USED_FRAMES[name]
                names = [image for image in names if first <= _number(images / image) <= last]
            check_length(groundtruth, len(boxes_xywh), len(names))
            frames = ImageFrames(images, tuple(names[start:]))
        else:
            frames = missing_frames(images, "0001.jpg, ...")
        attributes = read_attributes(self.attributes.get(key), ATTRIBUTES)
        return TrackingSequence(
            key, boxes_xywh[start:], frames, DEFAULT_FPS, folder, attributes=attributes, faults=faults
        )


def _number(path: Path) -> int:
    if not path.stem.isdecimal():
        raise DatasetError(f"{path}: not a frame; expected a number as name, such as 0001.jpg")
    return int(path.stem)
