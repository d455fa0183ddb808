"""What published layouts share: frames, rows without target, attributes, splits, and lists of sequences."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mixformer_jax.datasets.groundtruth import DatasetError, check_length, has_target, read_names
from mixformer_jax.datasets.known_faults import known_fault
from mixformer_jax.datasets.records import Dataset, Fault, MissingFrames, NumberedFrames
from mixformer_jax.media.images import list_images

SPLITS = Path(__file__).parent / "splits"

logger = logging.getLogger(__name__)


def row_faults(
    dataset: str,
    sequence: str,
    groundtruth: Path,
    boxes_xywh: Float[np.ndarray, "n 4"],
    visible: Bool[np.ndarray, " n"] | None = None,
    first_line: int = 1,
) -> tuple[Fault, ...]:
    """The rows of a published ground truth that have no target although they do not say so, each by its line.

    These are boxes of negative size, and those without area where the data set does not mark the target as absent.
    NaN is how a row says so.

    Args:
        dataset: the reader's name.
        sequence: the sequence's name.
        groundtruth: the file.
        boxes_xywh: its boxes, pixels, as they stand there.
        visible: False where the target is marked as absent; None where there are no such marks.
        first_line: of the file, that of the first box.
    """
    empty = ~has_target(boxes_xywh) & ~np.isnan(boxes_xywh).any(axis=1)
    if visible is not None:
        empty &= visible | (boxes_xywh[:, 2:] < 0).any(axis=1)
    faults = []
    for row in np.flatnonzero(empty):
        box = boxes_xywh[row].tolist()
        known = known_fault(dataset, sequence, "box empty", box)
        text = f"box {','.join(f'{value:g}' for value in box)} has no area, so it counts as a row without target"
        faults.append(Fault("box empty", f"{groundtruth}, line {row + first_line}", text, known))
    return tuple(faults)


def missing_frames(folder: Path, expected: str) -> MissingFrames:
    """Stands for the frames of a sequence in whose folder there are none; `expected` are some of their names."""
    found = "no images there" if folder.is_dir() else "no such folder"
    return MissingFrames(
        f"{folder}: {found}; expected the frames {expected}; annotations alone can be scored, but neither tracked nor "
        "trained on"
    )


def find_attributes(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The attribute file of each sequence, whatever its case, with `-`, `_` or `.` before the number of a target.

    A warning tells of sequences without one, unless the folder is not there at all.
    """
    found = find_by_name(folder, names)
    missing = [name for name in names if name not in found]
    if missing and folder.is_dir():
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: no attributes of %d of %d sequences: %s", folder, len(missing), len(names), listed)
    return found


def find_by_name(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The text file of each sequence that has one, as `find_attributes`; none without the folder."""
    there = {_plain_name(path.stem): path for path in sorted(folder.glob("*.txt"))}
    return {name: there[_plain_name(name)] for name in names if _plain_name(name) in there}


def _plain_name(name: str) -> str:
    return name.lower().replace("-", "_").replace(".", "_")


def numbered_frames(
    folder: Path, pattern: str, count: int, groundtruth: Path, first: int = 1, may_go_on: bool = False
) -> NumberedFrames | MissingFrames:
    """Frames `first` ... `first + count - 1`, one for each box of a ground truth; none where there are no images.

    Only the last frame and the one after it are looked for, so that opening a sequence costs the same however long it
    is; a hole in between shows when its frame is read, and in `mixformer data check`.

    Args:
        folder: holds the images.
        pattern: of their names, such as `%08d.jpg`.
        count: number of boxes.
        groundtruth: file of the boxes, for messages.
        first: number of the first frame.
        may_go_on: other sequences use later frames of the folder.

    Raises:
        DatasetError: another number of frames than of boxes.
    """
    frames = NumberedFrames(folder, pattern, count, first)
    if frames.path(count - 1).is_file() and (may_go_on or not frames.path(count).is_file()):
        return frames
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        return missing_frames(folder, f"{pattern % first}, ...")
    check_length(groundtruth, count, len(images))
    raise DatasetError(f"{folder}: frames are not numbered from {pattern % first} to {pattern % (first + count - 1)}")


def check_split(name: str, split: str | None, known: Sequence[str]) -> None:
    """Refuses a split that the data set does not have; None always is one."""
    if split is not None and split not in known:
        if not known:
            raise DatasetError(f"{name} has no splits, but split {split!r} is asked for")
        raise DatasetError(f"{name} has no split {split!r}; known are: {', '.join(known)}")


def read_numbers(path: Path) -> list[int]:
    """Whole numbers of a split file, comments left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [int(word) for line in lines if not line.startswith("#") for word in line.split()]


def choose(dataset: Dataset, list_file: Path) -> Dataset:
    """The sequences that a text file lists, in its order: names, or positions in the data set counted from 0.

    Numbers are positions, unless all of them are names.

    Raises:
        DatasetError: a name or position that the data set does not have.
    """
    lines = read_names(list_file)
    by_name = {key.rpartition("/")[2]: key for key in dataset.keys} | {key: key for key in dataset.keys}
    # Sequences may have numbers for names.
    if all(line.isdecimal() for line in lines) and not all(line in by_name for line in lines):
        positions = [int(line) for line in lines]
        if max(positions) >= len(dataset):
            raise DatasetError(
                f"{list_file}: position {max(positions)}, but {dataset.root} has {len(dataset)} sequences"
            )
        return dataset.subset([dataset.keys[position] for position in positions])
    missing = [line for line in lines if line not in by_name]
    if missing:
        raise DatasetError(
            f"{list_file}: {len(missing)} of {len(lines)} listed sequences are not in {dataset.root}, "
            f"the first is {missing[0]}"
        )
    return dataset.subset([by_name[line] for line in lines])


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
