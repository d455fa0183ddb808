"""Benchmarks of about 100 short sequences, for tests only: OTB, NfS, UAV123, DTB70."""

import functools
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from mixformer_jax.datasets import layout
from mixformer_jax.datasets.groundtruth import (
    DatasetError,
    check_length,
    parse_numbers,
    read_attributes,
    read_groundtruth,
    read_lines,
)
from mixformer_jax.datasets.layout import SequenceFiles, published_dataset, read_table
from mixformer_jax.datasets.records import Dataset, Fault, ImageFrames, MissingFrames, TrackingSequence, known_fault
from mixformer_jax.media.sources import DEFAULT_FPS

logger = logging.getLogger(__name__)

# In the order of the toolkits' columns.
OTB_ATTRIBUTES = ("IV", "OPR", "SV", "OCC", "DEF", "MB", "FM", "IPR", "OV", "BC", "LR")
# Folders of boxes and frames, and the step between frames in those of UAV123.
UAV_FOLDERS = {
    "uav123": ("UAV123", "UAV123", 1),
    "uav20l": ("UAV20L", "UAV123", 1),
    "uav123_10fps": ("UAV123_10fps", "UAV123_10fps", 3),
}
UAV_ATTRIBUTES = ("SV", "ARC", "LR", "FM", "FOC", "POC", "OV", "BC", "IV", "VC", "CM", "SOB")

# The benchmark's frames, where a folder of OTB holds more (the toolkit's list of sequences).
OTB_USED_FRAMES = {"BlurCar1": (247, 988), "BlurCar3": (3, 359), "BlurCar4": (18, 397), "David": (300, 770)}
OTB_USED_FRAMES |= {"Diving": (1, 215), "Football1": (1, 74), "Freeman3": (1, 460), "Freeman4": (1, 283)}
# First frames and boxes that are skipped, as in the paper's evaluation code.
OTB_LEFT_OUT = {"Tiger1": 5}
# Frames of NfS at 240 a second between two at 30.
NFS_RATE_RATIO = 8


def read_otb100(root: Path, split: str | None = None) -> Dataset:
    """OTB-2015, also called OTB100 (Wu et al. 2015, http://cvlab.hanyang.ac.kr/tracker_benchmark): 100 sequences.

        Basketball/img/0001.jpg ...             frames; some folders hold more than the benchmark uses
        Basketball/groundtruth_rect.txt         x,y,w,h a line; Jogging, Skating2 and Human4 have one file a target
        anno/att/Basketball.txt                 11 flags with commas, if copied from the MATLAB toolkit, under its
                                                names: kiteSurf.txt, jogging-1.txt, ...
        anno/basketball.txt                     the MATLAB toolkit's boxes, which can be scored alone

    Targets of one folder are named Jogging_1, Jogging_2. Copies that some toolkits want, such as Jogging-1 and
    Jogging-2, are used where the published folder is not there. Other folders with boxes are skipped with a warning.
    """
    published = {name.lower(): name for name in read_table("otb100.txt")}
    found: dict[str, Path] = {}
    extra: list[str] = []
    # Copies come last.
    for folder in sorted(layout.sub_folders(root), key=lambda name: (re.search(r"-\d+$", name) is not None, name)):
        targets = _otb_targets(root / folder)
        keys = {key: published.get(key.lower()) for key in targets}
        news = {key: targets[name] for name, key in keys.items() if key is not None and key not in found}
        if targets and not news:
            extra.append(folder)
        found |= news
    found = found or layout.find_by_name(root / "anno", sorted(published.values()))
    if extra:
        logger.warning("%s: not among OTB's 100 sequences, and left out: %s", root, ", ".join(extra))
    names = sorted(found)
    attributes = layout.find_attributes(root / "anno" / "att", names)
    return Dataset("otb100", root, names, functools.partial(_read_otb_sequence, root, found, attributes))


def _otb_targets(folder: Path) -> dict[str, Path]:
    """The ground truth of each target of a folder, by the name of its sequence."""
    copy = re.fullmatch(r"(.+)-(\d+)", folder.name)
    name, only = copy.groups() if copy else (folder.name, None)
    found = {}
    for path in sorted(folder.glob("groundtruth_rect*.txt")):
        match = re.fullmatch(r"groundtruth_rect(?:\.(\d+))?\.txt", path.name)
        # Human4 has an empty file for a second target.
        if match is None or path.stat().st_size == 0 or (only and match[1] not in (None, only)):
            continue
        number = only or match[1]
        found[f"{name}_{number}" if number else name] = path
    return found


def _read_otb_sequence(
    root: Path, groundtruths: Mapping[str, Path], attributes: Mapping[str, Path], key: str
) -> TrackingSequence:
    groundtruth, name = groundtruths[key], key.partition("_")[0]
    folder = root / name if groundtruth.parent == root / "anno" else groundtruth.parent
    images = folder / "img"
    boxes_xywh = read_groundtruth(groundtruth, published=True)
    faults = layout.row_faults("otb100", key, groundtruth, boxes_xywh)
    frames: ImageFrames | MissingFrames = layout.missing_frames(images, "0001.jpg, ...")
    names, start = layout.image_names(images), OTB_LEFT_OUT.get(name, 0)
    if names:
        if name in OTB_USED_FRAMES:
            first, last = OTB_USED_FRAMES[name]
            names = tuple(image for image in names if first <= _frame_number(images / image) <= last)
        check_length(groundtruth, len(boxes_xywh), len(names))
        frames = ImageFrames(images, names[start:])
    challenges = read_attributes(attributes.get(key), OTB_ATTRIBUTES)
    return TrackingSequence(key, boxes_xywh[start:], frames, DEFAULT_FPS, folder, attributes=challenges, faults=faults)


def _frame_number(path: Path) -> int:
    if not path.stem.isdecimal():
        raise DatasetError(f"{path}: not a frame; expected a number as name, such as 0001.jpg")
    return int(path.stem)


def read_dtb70(root: Path, split: str | None = None) -> Dataset:
    """DTB70, Drone Tracking Benchmark (Li and Yeung 2017, https://github.com/flyers/drone-tracking): 70 sequences.

    Animal1/img/00001.jpg ...               frames
    Animal1/groundtruth_rect.txt            x,y,w,h a line
    """
    names = layout.sub_folders_with(root, "groundtruth_rect.txt", "img")
    return published_dataset("dtb70", root, names, functools.partial(_dtb70_files, root))


def _dtb70_files(root: Path, name: str) -> SequenceFiles:
    folder = root / name
    return SequenceFiles(folder, folder / "groundtruth_rect.txt", folder / "img", "%05d.jpg")


def read_uav(dataset: str, root: Path, split: str | None = None) -> Dataset:
    """UAV123 (Mueller et al. 2016, https://cemse.kaust.edu.sa/ivul/uav123), from low-flying drones: 123 sequences.

        data_seq/UAV123/bike1/000001.jpg ...    frames; the sequences car1_1, car1_2 are parts of the folder car1
        anno/UAV123/bike1.txt                   x,y,w,h a line; NaN,NaN,NaN,NaN where the target is absent
        anno/UAV123/att/bike1.txt               12 flags with commas

    UAV20L has 20 long sequences over the same frames, in anno/UAV20L; UAV123@10fps every third frame, numbered anew, in
    data_seq/UAV123_10fps and anno/UAV123_10fps.
    """
    boxes, frames, step = UAV_FOLDERS[dataset]
    folder = root / "anno" / boxes
    names = sorted(path.stem for path in folder.glob("*.txt"))
    attributes = layout.find_attributes(folder / "att", names)
    has_parts = dataset != "uav20l"
    files_of = functools.partial(_uav_files, folder, root / "data_seq" / frames, step, has_parts, attributes)
    return published_dataset(dataset, root, names, files_of)


def _uav_files(
    boxes: Path, frames: Path, step: int, has_parts: bool, attributes: Mapping[str, Path], name: str
) -> SequenceFiles:
    part = re.fullmatch(r"(.+)_(\d+)", name) if has_parts else None  # parts end where their boxes end
    folder, first = frames / name, 1
    if part:
        folder, starts = frames / part[1], read_table("uav123_parts.txt").get(part[1], [])
        first = dict(enumerate(map(int, starts), start=2)).get(int(part[2]), 1)
    return SequenceFiles(
        *(folder, boxes / f"{name}.txt", folder, "%06d.jpg"),
        # UAV123@10fps numbers every third frame anew.
        first=(first - 1) // step + 1,
        shares_folder=part is not None,
        fps=DEFAULT_FPS / step,
        attributes=attributes.get(name),
        challenges=UAV_ATTRIBUTES,
    )


def read_nfs(root: Path, split: str | None = None) -> Dataset:
    """NfS, Need for Speed (Kiani Galoogahi et al. 2017, http://ci2cv.net/nfs), at 30 frames a second: 100 sequences.

        airboard_1/30/airboard_1/00001.jpg ...  as published
        airboard_1/30/airboard_1.txt            VATIC lines: id xmin ymin xmax ymax frame lost occluded generated
                                                "label", of every frame, or of every frame at 240 a second
        sequences/airboard_1/00001.jpg ...      as the evaluation code of trackers expects it
        anno/nfs_airboard_1.txt                 x, y, w, h a line, with tabs

    Some sequences have one frame more than boxes, and dog_2 another video: see `known_faults.tsv`.
    """
    names = layout.sub_folders(root / "sequences") if (root / "sequences").is_dir() else []
    # Without frames, the annotations tell which sequences there are.
    names = names or sorted(path.stem.removeprefix("nfs_") for path in (root / "anno").glob("nfs_*.txt"))
    is_vatic = not names
    if is_vatic:
        names = [name for name in layout.sub_folders(root) if (root / name / "30").is_dir()]
    return Dataset("nfs", root, names, functools.partial(_read_nfs_sequence, root, is_vatic))


def _read_nfs_sequence(root: Path, is_vatic: bool, name: str) -> TrackingSequence:
    """The sequence as far as there are both frames and boxes."""
    visible = None
    if is_vatic:
        folder, groundtruth = root / name / "30" / name, root / name / "30" / f"{name}.txt"
        boxes_xywh, visible = _read_vatic(groundtruth, folder)
    else:
        folder, groundtruth = root / "sequences" / name, root / "anno" / f"nfs_{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
    images, num_boxes = layout.image_names(folder), len(boxes_xywh)
    faults: list[Fault] = []
    frames: ImageFrames | MissingFrames
    wrong_video = known_fault("nfs", name, "wrong video")
    if not images:
        frames = layout.missing_frames(folder, "00001.jpg, ...")
    elif wrong_video and abs(len(images) - num_boxes) > 1:
        # The boxes are right: results from elsewhere can be scored.
        faults.append(Fault("wrong video", str(folder), f"{len(images)} frames, {num_boxes} boxes", wrong_video))
        frames = MissingFrames(f"{folder}: {wrong_video}; its frames are not used")
    else:
        if abs(num_boxes - len(images)) > 1:
            check_length(groundtruth, num_boxes, len(images))
        if num_boxes != len(images):
            text = f"{num_boxes} boxes for {len(images)} frames; the last one is left out"
            faults.append(Fault("length", str(groundtruth), text, known_fault("nfs", name, "length")))
        frames, boxes_xywh = ImageFrames(folder, images[:num_boxes]), boxes_xywh[: len(images)]
        visible = None if visible is None else visible[: len(images)]
    faults += layout.row_faults("nfs", name, groundtruth, boxes_xywh, visible)
    return TrackingSequence(name, boxes_xywh, frames, DEFAULT_FPS, folder, visible, faults=tuple(faults))


def _read_vatic(path: Path, folder: Path) -> tuple[Float64[np.ndarray, "n 4"], Bool[np.ndarray, " n"]]:
    """Boxes, and whether the target is in view, of the frames in a folder."""
    rows = []
    for number, line in enumerate(read_lines(path, "ground truth"), start=1):
        try:
            row = parse_numbers(" ".join(line.split()[1:7]))
        except ValueError:
            row = []
        if len(row) != 6 or not all(map(math.isfinite, row)):
            raise DatasetError(f"{path}, line {number}: expected id xmin ymin xmax ymax frame lost, found {line!r}")
        rows.append(row)
    table = np.array(sorted(rows, key=lambda row: row[4]), np.float64)
    published = int(read_table("nfs_30.txt").get(folder.name, ["0"])[0])
    counts = [count for count in (len(layout.image_names(folder)), published) if count]
    if not counts:
        doubt = f"so {path} may have the boxes of 30 or of 240 frames a second"
        raise DatasetError(f"{folder}: no frames, and {folder.name} is no sequence of NfS, {doubt}")
    # Some versions of 240 frames a second are a few frames longer or shorter.
    steps = {step: min(abs(len(table[::step]) - count) for count in counts) for step in (1, NFS_RATE_RATIO)}
    table = table[:: min(steps, key=steps.__getitem__)]
    return np.concatenate([table[:, :2], table[:, 2:4] - table[:, :2]], axis=1), table[:, 5] == 0
