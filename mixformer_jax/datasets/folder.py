"""Sequences in plain folders: images or a `video.mp4` beside a `groundtruth.txt`."""

import logging
import os
from pathlib import Path

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, check_length, read_groundtruth
from mixformer_jax.datasets.layout import check_split, sub_folders
from mixformer_jax.datasets.records import (
    Dataset,
    ImageFrames,
    MissingFrames,
    TrackingSequence,
    VideoFrames,
    count_video_frames,
)
from mixformer_jax.media.images import has_images, list_images
from mixformer_jax.media.video import DEFAULT_FPS, open_source

logger = logging.getLogger(__name__)

GROUNDTRUTH = "groundtruth.txt"
VIDEO = "video.mp4"


def read_folder(root: Path, split: str | None = None) -> Dataset:
    """Every direct sub-folder with frames or a ground truth, by its name; or `root` itself, if it is one.

    A ground truth without frames can be scored.

    Raises:
        DatasetError: no sequences. When a sequence is read: frames without ground truth, images beside a video, or a
            ground truth that does not fit its frames; a mistake in one sequence leaves the others alone.
    """
    check_split("folder", split, ())
    names = [] if (root / GROUNDTRUTH).is_file() else [n for n in sub_folders(root) if _looks_like_sequence(root / n)]
    dead = sorted(path.name for path in root.iterdir() if path.is_symlink() and not path.exists())
    if dead:
        logger.warning("%s: links to what is not there, left out: %s", root, ", ".join(dead))
    if names:
        return Dataset("folder", root, names, _Reader(root))
    if not _looks_like_sequence(root):
        raise DatasetError(f"{root}: no sequences; {_where_they_are(root)}")
    # A link's own name, as above. Not `root.name`: the root may be ".".
    place = Path(os.path.abspath(root))  # noqa: PTH100
    return Dataset("folder", root, [place.name], _Reader(place.parent))


def _looks_like_sequence(folder: Path) -> bool:
    # Frames alone count: a forgotten ground truth is an error and not a sequence less.
    return (folder / GROUNDTRUTH).is_file() or (folder / VIDEO).is_file() or has_images(folder)


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> TrackingSequence:
        folder = self.root / name
        names, video = tuple(path.name for path in list_images(folder)), folder / VIDEO
        if names and video.is_file():
            raise DatasetError(f"{folder}: both {VIDEO} and {len(names)} images; which of them are the frames?")
        if names:
            boxes_xywh = read_groundtruth(folder / GROUNDTRUTH, expected_length=len(names))
            return TrackingSequence(name, boxes_xywh, ImageFrames(folder, names), DEFAULT_FPS, folder)
        if video.is_file():
            boxes_xywh, fps = _read_video_groundtruth(folder / GROUNDTRUTH, video)
            return TrackingSequence(name, boxes_xywh, VideoFrames(video), fps, folder)
        missing = MissingFrames(
            f"{folder}: no frames; expected images (00000001.jpg, ...) or {VIDEO}. A ground truth alone can be scored, "
            "but neither tracked nor trained on"
        )
        return TrackingSequence(name, read_groundtruth(folder / GROUNDTRUTH), missing, DEFAULT_FPS, folder)


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
