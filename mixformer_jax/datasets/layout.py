"""The layout of sequences on disk: what published data sets share, and plain folders of the user's own."""

import functools
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mixformer_jax.datasets.groundtruth import (
    DatasetError,
    check_length,
    has_target,
    read_attributes,
    read_groundtruth,
    read_labels,
)
from mixformer_jax.datasets.records import (
    Dataset,
    Fault,
    ImageFrames,
    MissingFrames,
    NumberedNames,
    TrackingSequence,
    VideoFrames,
    known_fault,
)
from mixformer_jax.media.images import has_images, list_images
from mixformer_jax.media.sources import DEFAULT_FPS
from mixformer_jax.media.video import open_source

PUBLISHED = Path(__file__).parent / "published"
SCORED_ALONE = "annotations alone can be scored, but neither tracked nor trained on"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceFiles:
    """The files of a published sequence, and how they are read."""

    root: Path  # folder of the sequence
    groundtruth: Path  # x,y,w,h a line
    frames: Path  # folder of the images
    pattern: str  # of their names, such as %08d.jpg
    first: int = 1  # number of the first frame
    is_listed: bool = False  # all images of the folder are frames, in natural order; `pattern` is for messages
    shares_folder: bool = False  # later images in the folder belong to other sequences
    fps: float = DEFAULT_FPS
    is_hidden: bool = False  # of a test set: a ground truth of one line, the other boxes are not published
    empty_is_absent: bool = False  # boxes without area mark the target as absent
    absent: Sequence[Path] = ()  # labels, in all files or none: not 0 where the target is absent
    cover: Path | None = None  # labels beside those: 0 where nothing of the target is in view
    attributes: Path | None = None  # the challenges, if the file is there
    challenges: Sequence[str] = ()  # its columns
    attribute_prefix: Sequence[str] = ()  # columns before them in some copies


def published_dataset(
    dataset: str, root: Path, keys: Sequence[str], files_of: Callable[[str], SequenceFiles]
) -> Dataset:
    """The data set whose sequences, each a key, have these files."""
    return Dataset(dataset, root, keys, functools.partial(_read_sequence, dataset, files_of))


def _read_sequence(dataset: str, files_of: Callable[[str], SequenceFiles], key: str) -> TrackingSequence:
    return read_files(dataset, key.rpartition("/")[2], files_of(key))


def read_files(dataset: str, name: str, files: SequenceFiles) -> TrackingSequence:
    """A sequence of a published data set, with faults of its rows.

    Raises DatasetError for files that are missing, not as expected, or of different lengths.
    """
    boxes_xywh = read_groundtruth(files.groundtruth, published=True)
    if files.is_hidden and len(boxes_xywh) == 1 and files.frames.is_dir():
        hidden = max(len(list_images(files.frames)), 1) - 1
        boxes_xywh = np.concatenate([boxes_xywh, np.full((hidden, 4), np.nan)])
    count = len(boxes_xywh)
    frames = find_frames(files, count)
    visible = has_target(boxes_xywh) if files.empty_is_absent else None
    if any(path.is_file() for path in files.absent):
        visible = np.ones(count, bool) if visible is None else visible
        for path in files.absent:
            visible &= read_labels(path, count) == 0
        if files.cover is not None and files.cover.is_file():
            visible &= read_labels(files.cover, count) > 0
    attributes = read_attributes(files.attributes, files.challenges, files.attribute_prefix)
    faults = row_faults(dataset, name, files.groundtruth, boxes_xywh, visible)
    return TrackingSequence(name, boxes_xywh, frames, files.fps, files.root, visible, attributes, faults=faults)


def find_frames(files: SequenceFiles, count: int) -> ImageFrames | MissingFrames:
    """The frames of `count` boxes; MissingFrames where there are no images.

    Of numbered frames, only the last and the one after it are looked for, so that opening a long sequence is fast; a
    gap shows when its frame is read, and in `mixformer data check`. Raises DatasetError for another number of frames.
    """
    folder, first_name = files.frames, files.pattern % files.first
    if not files.is_listed:
        numbered = NumberedNames(files.pattern, count, files.first)
        goes_on = not files.shares_folder and (folder / numbered[count]).is_file()
        if (folder / numbered[count - 1]).is_file() and not goes_on:
            return ImageFrames(folder, numbered)
    names = image_names(folder)
    if not names:
        return missing_frames(folder, f"{first_name}, ...")
    check_length(files.groundtruth, count, len(names))
    if not files.is_listed:
        raise DatasetError(f"{folder}: frames are not numbered from {first_name} to {numbered[count - 1]}")
    return ImageFrames(folder, names)


def image_names(folder: Path) -> tuple[str, ...]:
    """Names of the images in a folder, in natural order; none without the folder."""
    return tuple(path.name for path in list_images(folder)) if folder.is_dir() else ()


def missing_frames(folder: Path, expected: str) -> MissingFrames:
    """The frames of a folder that has none; `expected` is for the message."""
    found = "no images there" if folder.is_dir() else "no such folder"
    return MissingFrames(f"{folder}: {found}; expected the frames {expected}; {SCORED_ALONE}")


def row_faults(
    dataset: str,
    sequence: str,
    groundtruth: Path,
    boxes_xywh: Float[np.ndarray, "n 4"],
    visible: Bool[np.ndarray, " n"] | None = None,
) -> tuple[Fault, ...]:
    """Rows of a published ground truth without a target that do not say so by NaN, each with its line.

    These are boxes of negative size, and those without area where the target is not marked as absent.
    """
    empty = ~has_target(boxes_xywh) & ~np.isnan(boxes_xywh).any(axis=1)
    if visible is not None:
        empty &= visible | (boxes_xywh[:, 2:] < 0).any(axis=1)
    faults = []
    for row in np.flatnonzero(empty):
        box = boxes_xywh[row].tolist()
        text = f"box {','.join(f'{value:g}' for value in box)} has no area, so it counts as a row without target"
        known = known_fault(dataset, sequence, "box empty", box)
        faults.append(Fault("box empty", f"{groundtruth}, line {row + 1}", text, known))
    return tuple(faults)


def find_attributes(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The attribute file of each sequence, as `find_by_name`; warns of sequences without one if the folder is there."""
    found = find_by_name(folder, names)
    missing = [name for name in names if name not in found]
    if missing and folder.is_dir():
        listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: no attributes of %d of %d sequences: %s", folder, len(missing), len(names), listed)
    return found


def find_by_name(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """The text file of each sequence that has one; none without the folder.

    Case is ignored, a target's number may follow `-`, `_` or `.`, and `_attribute` the name.
    """
    alike = str.maketrans("-.", "__")
    there = {
        path.stem.removesuffix("_attribute").lower().translate(alike): path for path in sorted(folder.glob("*.txt"))
    }
    return {name: there[key] for name in names if (key := name.lower().translate(alike)) in there}


def read_table(file: str) -> dict[str, list[str]]:
    """A table in `published/`: the other words of each line by its first; comments are skipped."""
    lines = (PUBLISHED / file).read_text(encoding="utf-8").splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if line and not line.startswith("#")}


def check_listed(names: Sequence[str], there: Collection[str] | Mapping, message: str, mend: str = "") -> None:
    """Raises DatasetError where names are not there; `{}` in `message` becomes how many."""
    missing = [name for name in names if name not in there]
    if missing:
        count = f"{len(missing)} of {len(names)}"
        raise DatasetError(f"{message.replace('{}', count)}, the first is {missing[0]}{mend}")


def sub_folders(folder: Path) -> list[str]:
    """Names of the sub-folders, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def sub_folders_with(folder: Path, *parts: str) -> list[str]:
    """Those with any of these files or folders: frames alone count, as a forgotten ground truth shall be an error."""
    return [name for name in sub_folders(folder) if any((folder / name / part).exists() for part in parts)]


GROUNDTRUTH, VIDEO = "groundtruth.txt", "video.mp4"  # in plain folders


def read_folder(root: Path, split: str | None = None) -> Dataset:
    """Plain folders: every direct sub-folder with frames or a ground truth, or `root` itself, if it is one.

    Frames are images, or a `video.mp4`, beside `groundtruth.txt`, which can be scored alone. An error in one sequence
    does not affect the others.
    """
    names = [] if (root / GROUNDTRUTH).is_file() else [n for n in sub_folders(root) if _looks_like_sequence(root / n)]
    if dead := sorted(path.name for path in root.iterdir() if path.is_symlink() and not path.exists()):
        logger.warning("%s: links to what is not there, left out: %s", root, ", ".join(dead))
    if not names and not _looks_like_sequence(root):
        deeper = sorted({path.parent.parent for path in root.glob(f"*/*/{GROUNDTRUTH}")})
        mend = f"expected {root.name}/SEQUENCE/{GROUNDTRUTH} beside images or {VIDEO}"
        if deeper:
            mend = f"they are one folder deeper, so give {deeper[0]} as the root"
        raise DatasetError(f"{root}: no sequences; {mend}")
    if not names:
        # Of a link its own name, as above. Not `root.name`: the root may be ".".
        place = Path(os.path.abspath(root))  # noqa: PTH100
        root, names = place.parent, [place.name]
    return Dataset("folder", root, names, functools.partial(_read_folder_sequence, root))


def _looks_like_sequence(folder: Path) -> bool:
    # Frames alone count: a forgotten ground truth shall be an error.
    return (folder / GROUNDTRUTH).is_file() or (folder / VIDEO).is_file() or has_images(folder)


def _read_folder_sequence(root: Path, name: str) -> TrackingSequence:
    folder, groundtruth, video = root / name, root / name / GROUNDTRUTH, root / name / VIDEO
    names = image_names(folder)
    if names and video.is_file():
        raise DatasetError(f"{folder}: both {VIDEO} and {len(names)} images; which of them are the frames?")
    boxes_xywh = read_groundtruth(groundtruth, expected_length=len(names) or None)
    if names:
        return TrackingSequence(name, boxes_xywh, ImageFrames(folder, names), DEFAULT_FPS, folder)
    if not video.is_file():
        lack = f"{folder}: no frames; expected images (00000001.jpg, ...) or {VIDEO}; {SCORED_ALONE}"
        return TrackingSequence(name, boxes_xywh, MissingFrames(lack), DEFAULT_FPS, folder)
    with open_source(video) as source:
        if source.num_frames != len(boxes_xywh):
            # The header may be wrong or silent about the count.
            check_length(groundtruth, len(boxes_xywh), sum(1 for _ in source))
        return TrackingSequence(name, boxes_xywh, VideoFrames(video), source.fps, folder)
