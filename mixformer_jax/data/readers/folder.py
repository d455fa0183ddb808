"""Sequences in plain folders: images or a `video.mp4` beside a `groundtruth.txt`."""

import os
from pathlib import Path

import numpy as np

from mixformer_jax.data.groundtruth import DatasetError, check_length, read_groundtruth
from mixformer_jax.data.readers.layout import check_split
from mixformer_jax.data.records import Dataset, ImageFrames, Sequence, VideoFrames, count_video_frames
from mixformer_jax.images import list_images
from mixformer_jax.video import DEFAULT_FPS, open_source

GROUNDTRUTH = "groundtruth.txt"
VIDEO = "video.mp4"


def read_folder(root: Path, split: str | None = None) -> Dataset:
    """Every direct sub-folder with frames and a ground truth, by name; or `root` itself, if it is one.

    All sequences are read at once: such folders are small, and a mistake in them is best met at the door.

    Raises:
        DatasetError: no sequences; frames without ground truth or ground truth without frames; or a ground
            truth that does not fit its frames.
    """
    check_split("folder", split, ())
    sequences = {sequence.name: sequence for sequence in _read_sequences(root)}
    return Dataset("folder", root, list(sequences), sequences.__getitem__, kept=0)


def _read_sequences(root: Path) -> list[Sequence]:
    if (root / GROUNDTRUTH).is_file():
        return [_read_sequence(root)]
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    sequences = [_read_sequence(folder) for folder in folders if _looks_like_sequence(folder)]
    if not sequences and _looks_like_sequence(root):
        return [_read_sequence(root)]
    if not sequences:
        raise DatasetError(f"{root}: no sequences; {_where_they_are(root)}")
    return sequences


def _looks_like_sequence(folder: Path) -> bool:
    # Frames alone count: a forgotten ground truth is an error and not a sequence less.
    return (folder / GROUNDTRUTH).is_file() or (folder / VIDEO).is_file() or bool(list_images(folder))


def _read_sequence(folder: Path) -> Sequence:
    names, video = tuple(path.name for path in list_images(folder)), folder / VIDEO
    if names and video.is_file():
        raise DatasetError(f"{folder}: both {VIDEO} and {len(names)} images; which of them are the frames?")
    if not names and not video.is_file():
        raise DatasetError(f"{folder}: no frames; expected images (00000001.jpg, ...) or {VIDEO}")
    # A link's own name: the target's may be that of another link's, too. Not `.name`: the root may be ".".
    name = Path(os.path.abspath(folder)).name  # noqa: PTH100
    if names:
        boxes_xywh = read_groundtruth(folder / GROUNDTRUTH, expected_length=len(names))
        return Sequence(name, boxes_xywh, ImageFrames(folder, names), DEFAULT_FPS, folder)
    boxes_xywh, fps = _read_video_groundtruth(folder / GROUNDTRUTH, video)
    return Sequence(name, boxes_xywh, VideoFrames(video), fps, folder)


def _read_video_groundtruth(path: Path, video: Path) -> tuple[np.ndarray, float]:
    boxes_xywh = read_groundtruth(path)
    with open_source(video) as source:
        num_frames, fps = source.num_frames, source.fps
    if num_frames != len(boxes_xywh):
        # The header may be wrong about the count, or silent; only decoding tells.
        check_length(path, len(boxes_xywh), count_video_frames(video))
    return boxes_xywh, fps


def _where_they_are(root: Path) -> str:
    deeper = sorted({path.parent.parent for path in root.glob(f"*/*/{GROUNDTRUTH}")})
    if deeper:
        return f"they are one folder deeper, so give {deeper[0]} as the root"
    return f"expected {root.name}/SEQUENCE/{GROUNDTRUTH} beside images or {VIDEO}"
