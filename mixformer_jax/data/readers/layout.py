"""What published layouts share: numbered frames, splits, and lists of sequences."""

import os
from collections.abc import Sequence
from pathlib import Path

from mixformer_jax.data.groundtruth import DatasetError, check_length, read_names
from mixformer_jax.data.records import Dataset, NumberedFrames
from mixformer_jax.images import list_images

SPLITS = Path(__file__).parent / "splits"


def numbered_frames(
    folder: Path, pattern: str, count: int, groundtruth: Path, first: int = 1, may_go_on: bool = False
) -> NumberedFrames:
    """Frames `first` ... `first + count - 1`, one for each box of a ground truth.

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
        DatasetError: no such folder, or another number of frames than of boxes.
    """
    frames = NumberedFrames(folder, pattern, count, first)
    if frames.path(count - 1).is_file() and (may_go_on or not frames.path(count).is_file()):
        return frames
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected the frames {pattern % first}, ...")
    check_length(groundtruth, count, len(list_images(folder)))
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
