"""TNL2K (Wang et al. 2021, https://github.com/wangxiao5791509/TNL2K_evaluation_toolkit): 1,300 sequences and 700.

The layout, as published; the subset for training may be in parts:

    TNL2K_test_subset/Bird_28-Done/
        imgs/00001.png ...          frames, .png or .jpg, named and numbered differently in each sequence
        groundtruth.txt             x,y,w,h a line; 0,0,0,0 where the target is absent
        language.txt                what the target is; not read
    TNL2K_train_subset/TNL2k_train_subset_p1/Arrow_Video_ZZ04_done/...

The evaluation toolkit's annotations are copied beside the sequences where wanted, and are enough for scoring:

    annos/gt_rect/Bird_28-Done.txt              as groundtruth.txt, read where the sequence has no folder
    annos/absent/Bird_28-Done.txt               1 where the target is absent, a line a frame
    annos/att/Bird_28-Done_attribute.txt        17 flags
    sequence_evaluation_config/TNL2K_testing_set.txt    names of the toolkit's 700, a line each
"""

import logging
import re
from pathlib import Path

from mixformer_jax.datasets.groundtruth import (
    DatasetError,
    check_length,
    has_target,
    read_groundtruth,
    read_labels,
    read_names,
)
from mixformer_jax.datasets.layout import check_split, missing_frames, row_faults, sub_folders
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.media.images import list_images
from mixformer_jax.media.video import DEFAULT_FPS

logger = logging.getLogger(__name__)

# In the order of the toolkit's files.
ATTRIBUTES = (
    *("CM", "ROT", "DEF", "FOC", "IV", "OV", "POC", "VC", "SV"),
    *("BC", "MB", "ARC", "LR", "FM", "AS", "TC", "MS"),
)
SIZES = {"train": 1300, "test": 700}
ANNOS = "annos"  # of the evaluation toolkit
# Folders that hold no sequences: the toolkit's, and its corrections of twelve ground truths.
NO_SEQUENCES = (ANNOS, "revised_annotations", "sequence_evaluation_config")
# Subset, part, sequence.
MAX_DEPTH = 3


def read_tnl2k(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name, wherever they lie below `root`: a subset, both, or the evaluation toolkit's annotations.

    Args:
        root: holds TNL2K_train_subset or TNL2K_test_subset (`train`, `test` and parts of them do as well), or is one.
        split: `train` (1,300) or `test` (700); another number is warned about. None: all that are there.

    Raises:
        DatasetError: no sequences, two of one name, or another subset than the split. When a sequence is read: files
            that are missing or whose lengths disagree.
    """
    check_split("tnl2k", split, tuple(SIZES))
    folders = {path.name: path for path in _sequence_folders(root, split)}
    if folders:
        names = sorted(folders)
    else:
        names = _annotated(root, split)
        if not names:
            raise DatasetError(
                f"{root}: no TNL2K sequences{f' of split {split}' if split else ''}; "
                "expected TNL2K_test_subset/NAME/groundtruth.txt, ..."
            )
    if split is not None and len(names) != SIZES[split]:
        logger.warning("%s: %d sequences; TNL2K's %s subset has %d", root, len(names), split, SIZES[split])
    attributes = root / ANNOS / "att"
    without = [name for name in names if not _attribute_file(root, name).is_file()] if attributes.is_dir() else []
    if without:
        logger.warning(
            "%s: no attributes of %d of %d sequences, the first is %s", attributes, len(without), len(names), without[0]
        )
    return Dataset("tnl2k", root, names, _Reader(root, folders))


def _sequence_folders(root: Path, split: str | None) -> list[Path]:
    """The folders of all sequences.

    Raises:
        DatasetError: the subset is not there, but the other one; or two sequences of one name.
    """
    tops = [root]
    if split is not None:
        (other,) = SIZES.keys() - {split}
        subsets = {each: [name for name in sub_folders(root) if _is_subset(name, each)] for each in SIZES}
        if not subsets[split] and (subsets[other] or _is_subset(root.resolve().name, other)):
            raise DatasetError(f"{root}: holds TNL2K's {other} subset, and the {split} subset is asked for")
        tops = [root / name for name in subsets[split]] or tops
    found: dict[str, Path] = {}
    for folder in (each for top in tops for each in _walk(top, MAX_DEPTH)):
        if folder.name in found:
            raise DatasetError(f"{found[folder.name]} and {folder}: two sequences of one name; move one of them away")
        found[folder.name] = folder
    return list(found.values())


def _is_subset(folder: str, split: str) -> bool:
    return re.fullmatch(rf"(tnl2k_)?{split}(_subset)?(_p\d+)?", folder, re.IGNORECASE) is not None


def _walk(folder: Path, depth: int) -> list[Path]:
    below = [folder / name for name in sub_folders(folder) if name not in NO_SEQUENCES]
    found = []
    for each in below:
        # Frames alone count: a forgotten ground truth is an error and not a sequence less.
        if (each / "groundtruth.txt").is_file() or (each / "imgs").is_dir():
            found.append(each)
        elif depth > 1:
            found += _walk(each, depth - 1)
    return found


def _annotated(root: Path, split: str | None) -> list[str]:
    """Names of the sequences in the toolkit's annotations, those of a split by the toolkit's lists."""
    names = sorted(path.stem for path in (root / ANNOS / "gt_rect").glob("*.txt"))
    if split is None or not names:
        return names
    listing = root / "sequence_evaluation_config" / f"TNL2K_{'testing' if split == 'test' else 'train'}_set.txt"
    listed = read_names(listing)
    missing = [name for name in listed if name not in set(names)]
    if missing:
        raise DatasetError(
            f"{root / ANNOS / 'gt_rect'}: {len(missing)} of {len(listed)} sequences of {listing.name} have no file, "
            f"the first is {missing[0]}"
        )
    return listed


class _Reader:
    def __init__(self, root: Path, folders: dict[str, Path]) -> None:
        self.root, self.folders = root, folders

    def __call__(self, name: str) -> TrackingSequence:
        folder = self.folders.get(name)
        groundtruth = folder / "groundtruth.txt" if folder else self.root / ANNOS / "gt_rect" / f"{name}.txt"
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        visible = has_target(boxes_xywh)
        absent = self.root / ANNOS / "absent" / f"{name}.txt"
        if absent.is_file():
            visible &= read_labels(absent, expected_length=len(boxes_xywh)) == 0
        return TrackingSequence(
            name,
            boxes_xywh,
            _frames((folder or self.root / name) / "imgs", len(boxes_xywh), groundtruth),
            DEFAULT_FPS,
            folder or self.root,
            visible,
            _read_attributes(_attribute_file(self.root, name)),
            faults=row_faults("tnl2k", name, groundtruth, boxes_xywh, visible),
        )


def _frames(folder: Path, count: int, groundtruth: Path) -> ImageFrames | MissingFrames:
    names = tuple(path.name for path in list_images(folder)) if folder.is_dir() else ()
    if not names:
        return missing_frames(folder, "00001.png or .jpg, ...")
    check_length(groundtruth, count, len(names))
    return ImageFrames(folder, names)


def _attribute_file(root: Path, name: str) -> Path:
    return root / ANNOS / "att" / f"{name}_attribute.txt"


def _read_attributes(path: Path) -> tuple[str, ...] | None:
    """Flags with commas or blanks between them; the toolkit's Python version has one more before them, for all."""
    if not path.is_file():
        return None
    words = path.read_text(encoding="utf-8-sig").replace(",", " ").split()
    flags = words[1:] if len(words) == len(ATTRIBUTES) + 1 and words[0] == "1" else words
    if len(flags) != len(ATTRIBUTES) or not set(flags) <= {"0", "1"}:
        raise DatasetError(
            f"{path}: expected {len(ATTRIBUTES)} times 0 or 1 ({', '.join(ATTRIBUTES)}), found {' '.join(words)!r}"
        )
    return tuple(name for name, flag in zip(ATTRIBUTES, flags, strict=True) if flag == "1")
