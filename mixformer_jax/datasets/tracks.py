"""Targets of annotation exports, each a sequence from the first frame that shows it to the last one.

Those of one video share its frames, and `TrackingSequence.video`.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from mixformer_jax.datasets.groundtruth import DatasetError, has_target
from mixformer_jax.datasets.layout import VIDEO, image_names
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence, VideoFrames
from mixformer_jax.media.sources import DEFAULT_FPS
from mixformer_jax.media.video import open_source

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


@dataclass(frozen=True, eq=False)
class Track:
    """One target in key frames; between two of them its box moves linearly."""

    keys: Float64[np.ndarray, " k"]  # numbers of the key frames, ascending, counted from 0
    boxes_xywh: Float64[np.ndarray, "k 4"]  # pixels
    is_seen: Bool[np.ndarray, " k"]  # whether the target is in view in the key frame itself
    # Whether it is in view from there to the next one; after the last one, to the end of the video.
    goes_on: Bool[np.ndarray, " k"]

    @classmethod
    def of_frames(cls, frames: Int64[np.ndarray, " k"], boxes_xywh: Float64[np.ndarray, "k 4"]) -> "Track":
        """The track of boxes on frames of any order; on all other frames the target is absent."""
        order = np.argsort(frames)
        is_key = np.ones(len(order), bool)
        return cls(frames[order].astype(np.float64), boxes_xywh[order], is_key, ~is_key)

    def at(self, frames: Float[np.ndarray, " n"] | Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 4"]:
        """Boxes on these frames, which may lie between two; NaN where the target is absent."""
        left = np.searchsorted(self.keys, frames, side="right") - 1
        begun = left >= 0
        left = np.maximum(left, 0)
        right = np.minimum(left + 1, len(self.keys) - 1)
        gap = np.maximum(self.keys[right] - self.keys[left], 1e-9)
        share = np.clip((frames - self.keys[left]) / gap, 0, 1)[:, None]
        boxes = (1 - share) * self.boxes_xywh[left] + share * self.boxes_xywh[right]
        seen = begun & np.where(frames == self.keys[left], self.is_seen[left], self.goes_on[left])
        return np.where(seen[:, None], boxes, np.nan)


class Footage(NamedTuple):
    """The frames of an annotated video."""

    place: Path  # the video file, or the folder of its frames
    frame: ImageFrames | VideoFrames | MissingFrames  # as in `TrackingSequence`, by position in `numbers`
    numbers: Int64[np.ndarray, " n"]  # of the frames in the export, ascending
    fps: float = DEFAULT_FPS  # of the video
    size: tuple[int, int] | None = None  # height and width; None of images, which are read when they are needed

    def part(self, first: int, end: int) -> ImageFrames | VideoFrames | MissingFrames:
        """The frames at positions `first` to `end - 1`."""
        if isinstance(self.frame, ImageFrames):
            return ImageFrames(self.frame.folder, self.frame.names[first:end])
        # A decoder of its own: two targets' frames are not read in one order.
        return VideoFrames(self.frame.path, first) if isinstance(self.frame, VideoFrames) else self.frame

    def require_size(self, size: tuple[int, int] | None, where: str) -> None:
        """Raises DatasetError unless frames have the height and width that `where` in an export says (None: none)."""
        if size is None or isinstance(self.frame, MissingFrames):
            return
        height, width = self.size or self.frame(0).shape[:2]
        if (height, width) != size:
            raise DatasetError(
                f"{where}: the annotated frames have {size[1]}x{size[0]} pixels, but those of {self.place} have "
                f"{width}x{height}; put the video there that was annotated"
            )


def footage_of(place: Path) -> Footage:
    """A video file, or the images of a folder, numbered from 0; SourceError where they cannot be read."""
    if place.is_dir():
        names = image_names(place)
        return Footage(place, ImageFrames(place, names), np.arange(len(names)))
    with open_source(place) as source:
        count = source.num_frames if source.num_frames is not None else sum(1 for _ in source)
        return Footage(place, VideoFrames(place), np.arange(count), source.fps, source.size)


def find_video(folder: Path, name: str, is_only: bool) -> Path | None:
    """The video file called `name` in a folder, its `videos`, or the folder above.

    Where the folder's annotations are of one video (`is_only`), also its `video.mp4` or only video, whatever its name.
    """
    for place in (folder, folder / "videos", folder.parent):
        if name and (place / name).is_file():
            return place / name
    if not is_only:
        return None
    if (folder / VIDEO).is_file():
        return folder / VIDEO
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    return videos[0] if len(videos) == 1 else None


def sequence_of(name: str, video: str, footage: Footage, track: Track, where: str) -> TrackingSequence:
    """A target from its first frame in view to its last one; `where` is the track's place in its file, for messages.

    Raises DatasetError: boxes on frames that the video does not have, or none on those that it has.
    """
    last = int(track.keys[track.is_seen].max()) if track.is_seen.any() else -1
    if len(footage.numbers) and last > footage.numbers[-1]:
        raise DatasetError(
            f"{where}: has a box on frame {last} (counted from 0), but {footage.place} ends with frame "
            f"{footage.numbers[-1]}; is it the video that was annotated, whole and with its own frame rate?"
        )
    boxes_xywh = track.at(footage.numbers)
    seen = np.flatnonzero(np.isfinite(boxes_xywh).all(axis=1))
    if not has_target(boxes_xywh).any():
        raise DatasetError(
            f"{where}: no box with an area on any frame of {footage.place}; leave the target out of the export"
        )
    first, end = int(seen[0]), int(seen[-1]) + 1
    return TrackingSequence(
        name, boxes_xywh[first:end], footage.part(first, end), footage.fps, footage.place, video=video
    )


class Target(NamedTuple):
    """A target of an export that is yet to be read."""

    video: str
    name: str  # in its video
    read: Callable[[str, str], TrackingSequence]  # of the sequence's name and the video's


def dataset_of(kind: str, root: Path, targets: Sequence[Target]) -> Dataset:
    """The data set of targets: a sequence is called as its video where that shows one target, else VIDEO-TARGET."""
    counts = Counter(target.video for target in targets)
    by_key: dict[str, Target] = {}
    for target in targets:
        key = target.video if counts[target.video] == 1 else f"{target.video}-{target.name}"
        if key in by_key:
            raise DatasetError(f"{root}: two targets would be called {key}; give their videos names of their own")
        by_key[key] = target
    return Dataset(kind, root, list(by_key), functools.partial(_read_target, by_key))


def _read_target(targets: Mapping[str, Target], key: str) -> TrackingSequence:
    return targets[key].read(key, targets[key].video)


def plain_name(text: str) -> str:
    """A name that can be a file's: no slashes or blanks, no suffix of videos, no dots around it (`..` is a folder)."""
    stem = Path(text).stem if Path(text).suffix.lower() in VIDEO_SUFFIXES else text
    return re.sub(r"[\s/\\\x00-\x1f]", "_", stem.strip().strip(".")) or "video"


def turned_bounds(
    box_xywh: Float64[np.ndarray, "4"], degrees: float, pivot_xy: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "4"]:
    """The upright box around one that is turned clockwise about a point, all in pixels."""
    x, y, w, h = box_xywh
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    corners = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]) - pivot_xy
    turned = corners @ np.array([[cosine, sine], [-sine, cosine]]) + pivot_xy
    low, high = turned.min(axis=0), turned.max(axis=0)
    return np.concatenate([low, high - low])
