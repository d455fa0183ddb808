"""Decoded material held in memory: video frames shrunk and cut to what crops can show, photographs, cut-outs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from jaxtyping import Float64, UInt8
from tqdm import tqdm

from mixformer_jax.datasets.sequences import TrackingSequence, open_dataset
from mixformer_jax.media.images import read_image
from mixformer_jax.views import pyramid

MIN_SIDE = 20  # of a cut-out's box, in pixels

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Clip:
    """The usable frames of one sequence, each with its box in its own pixels."""

    name: str
    frames: tuple[np.ndarray, ...]  # uint8 RGB, sizes differ
    boxes_xywh: np.ndarray  # float64 [n, 4]
    times: np.ndarray  # int64 [n], ascending frame numbers in the source

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class VideoPool:
    """Annotated sequences in memory."""

    clips: tuple[Clip, ...]

    @classmethod
    def load(
        cls,
        root: str | Path,
        include: Collection[str] | None = None,
        exclude: Collection[str] = (),
        max_target_side: float = 64.0,
        min_target_side: float = 8.0,
        context: float = 16.0,
        num_threads: int = 2,
    ) -> VideoPool:
        """Decodes the sequences under ROOT/videos (folder layout), chosen by name.

        Frames are shrunk until sqrt(w * h) of the target is at most `max_target_side` pixels, and cut to a window of
        `context` times that size around it. Frames without a box, or with sqrt(w * h) below `min_target_side`, are left
        out, and so are sequences with fewer than two frames left.
        """
        place = Path(root) / "videos"
        sequences = open_dataset("folder", place)
        chosen = chosen_names(place, list(sequences.keys), include, exclude)

        def decode(sequence: TrackingSequence) -> Clip:
            return _pool_clip(sequence, max_target_side, min_target_side, context)

        return cls.of_usable(in_threads(decode, list(sequences.subset(chosen)), num_threads, "videos"), place)

    @classmethod
    def of_usable(cls, clips: Iterable[Clip], place: Path) -> VideoPool:
        """The clips of at least two frames; `place` is for the message of the ValueError where there is none."""
        found = tuple(clips)
        usable = tuple(clip for clip in found if len(clip) >= 2)
        if not usable:
            raise ValueError(f"no usable sequence under {place} (of {len(found)} chosen)")
        return cls(usable)


def chosen_names(place: Path, names: list[str], include: Collection[str] | None, exclude: Collection[str]) -> list[str]:
    """The sequences to take out of those that are there; ValueError for a name that does not exist."""
    unknown = sorted((set(include or ()) | set(exclude)) - set(names))
    if unknown:
        raise ValueError(f"{place} has no sequence named {unknown}; it has {sorted(names)}")
    return [name for name in names if (include is None or name in include) and name not in exclude]


def _pool_clip(sequence: TrackingSequence, max_side: float, min_side: float, context: float) -> Clip:
    frames, boxes, times = [], [], []
    for time in range(len(sequence)):
        box = np.asarray(sequence.boxes_xywh[time], np.float64)
        hidden = sequence.visible is not None and not sequence.visible[time]
        if hidden or not is_large_enough(box, min_side):
            continue
        frame, box = fit_frame(sequence.frame(time), box, max_side, context)
        frames.append(frame)
        boxes.append(box)
        times.append(time)
    return Clip(sequence.name, tuple(frames), np.array(boxes, np.float64).reshape(-1, 4), np.array(times, np.int64))


def is_large_enough(box_xywh: Float64[np.ndarray, "4"], min_side: float) -> bool:
    """Whether a frame with this box is of use; NaN is not."""
    _x, _y, w, h = (float(v) for v in box_xywh)
    return bool(np.isfinite(box_xywh).all()) and min(w, h) > 1 and math.sqrt(w * h) >= min_side


def fit_frame(
    frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float64[np.ndarray, "4"], max_side: float, context: float
) -> tuple[np.ndarray, np.ndarray]:
    """The target's `surroundings`, shrunk until sqrt(w * h) of it is at most `max_side`, and the box within them."""
    frame, box_xywh = surroundings(frame, box_xywh, context)
    scale = max_side / math.sqrt(box_xywh[2] * box_xywh[3])
    if scale >= 1:
        return frame, box_xywh
    height, width = frame.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    box_xywh = box_xywh * np.tile([size[0] / width, size[1] / height], 2)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA), box_xywh


def surroundings(
    frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float64[np.ndarray, "4"], context: float
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the window of `context` * sqrt(w * h) around the box, and the box within it."""
    x, y, w, h = box_xywh
    reach = context * math.sqrt(w * h) / 2
    left, top = max(0, math.floor(x + w / 2 - reach)), max(0, math.floor(y + h / 2 - reach))
    right, bottom = math.ceil(x + w / 2 + reach), math.ceil(y + h / 2 + reach)
    return frame[top:bottom, left:right].copy(), box_xywh - [left, top, 0, 0]


@dataclass(frozen=True)
class CutOut:
    """One annotated object: its pixels with feathered alpha, and its outline."""

    photo: int  # index of its photograph in the pool
    source: str  # folder of the photograph
    levels: tuple[np.ndarray, ...]  # pyramid of uint8 RGBA
    origin_xy: np.ndarray  # float64 [2], the cut-out's top-left in the photograph
    outline_xy: np.ndarray  # float64 [n, 2], convex hull of the annotated mask, in the photograph
    # Float64 [m, 2], convex hull of what `levels` shows (alpha >= 1/2), in the cut-out
    pasted_outline_xy: np.ndarray

    @property
    def width_height(self) -> Float64[np.ndarray, "2"]:
        """Extent of the outline in pixels."""
        return np.ptp(self.outline_xy, axis=0)


@dataclass(frozen=True)
class ImagePool:
    """Photographs in memory, and the cut-outs of those that have instance masks."""

    photos: tuple[tuple[np.ndarray, ...], ...]  # a pyramid of uint8 RGB each
    cutouts: tuple[CutOut, ...]
    backgrounds: tuple[int, ...]  # photographs without masks, or all if every one has a mask

    @classmethod
    def load(cls, root: str | Path, num_threads: int = 2) -> ImagePool:
        """Read every ROOT/images/**/NAME.jpg and the instance mask NAME.png beside it (0 background, then
        instance ids)."""
        # Through links, as every reader goes; rglob would pass over folders that are links.
        walk = os.walk(Path(root) / "images", followlinks=True)
        paths = sorted(Path(folder, name) for folder, _, names in walk for name in names if name.endswith(".jpg"))
        if not paths:
            raise ValueError(
                f"no NAME.jpg under {Path(root) / 'images'}; expected photographs, with masks NAME.png beside"
            )
        loaded = list(in_threads(_pool_photo, list(enumerate(paths)), num_threads, "photographs"))
        photos = tuple(levels for levels, _ in loaded)
        unmasked = tuple(i for i, (_, cutouts) in enumerate(loaded) if cutouts is None)
        cutouts = tuple(cutout for _, found in loaded for cutout in found or ())
        return cls(photos, cutouts, unmasked or tuple(range(len(photos))))


def _pool_photo(item: tuple[int, Path]) -> tuple[tuple[np.ndarray, ...], list[CutOut] | None]:
    index, path = item
    image = read_image(path)
    mask_path = path.with_suffix(".png")
    if not mask_path.exists():
        return pyramid(image), None
    mask = cv2.imread(str(mask_path), cv2.IMREAD_UNCHANGED)
    if mask is None or mask.ndim != 2 or mask.shape != image.shape[:2]:
        found = "unreadable" if mask is None else f"shape {mask.shape}"
        raise ValueError(
            f"{mask_path}: {found}; expected one channel of instance ids, {image.shape[:2]} as {path.name}"
        )
    masks = ((mask == instance).astype(np.uint8) for instance in np.unique(mask[mask > 0]))
    cutouts = (cut_out(image, each, index, path.parent.name) for each in masks)
    return pyramid(image), [cutout for cutout in cutouts if cutout is not None]


def cut_out(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], photo: int, source: str
) -> CutOut | None:
    """The largest connected part of a 0/1 mask as a cut-out, or None where it makes a poor target: too small or large,
    thin, in several parts, or cut by the image's border."""
    x, y, w, h = cv2.boundingRect(mask)
    if min(w, h) < MIN_SIDE or w * h > 0.8 * mask.size:
        return None
    inside = mask[y : y + h, x : x + w]
    total = int(inside.sum())
    _, labels, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    px, py, pw, ph, area = (int(v) for v in stats[largest])
    if area < 0.9 * total or area < 0.2 * pw * ph or min(pw, ph) < MIN_SIDE:
        return None
    part = np.zeros_like(mask)
    part[y : y + h, x : x + w] = labels == largest
    at_border = int(part[0].sum() + part[-1].sum() + part[:, 0].sum() + part[:, -1].sum())
    if at_border > 0.1 * 2 * (pw + ph):  # a tenth of the box's perimeter
        return None

    left, top = max(0, x + px - 2), max(0, y + py - 2)
    window = np.s_[top : y + py + ph + 2, left : x + px + pw + 2]
    # One pixel in from the annotated edge, then feathered: neither a halo of the old background nor a hard
    # edge may give the target away.
    core = cv2.erode(part, np.ones((3, 3), np.uint8))[window]
    if not core.any():
        return None
    alpha = cv2.GaussianBlur(core * 255, (3, 3), 0)
    levels = pyramid(np.dstack([image[window], alpha]))
    return CutOut(photo, source, levels, np.array([left, top], np.float64), _hull(part), _hull(core))


def _hull(mask: UInt8[np.ndarray, "h w"]) -> Float64[np.ndarray, "n 2"]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    centres = np.concatenate(contours).reshape(-1, 2)
    corners = centres[:, None] + np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    corners = corners.reshape(-1, 1, 2).astype(np.int32)
    return cv2.convexHull(corners).reshape(-1, 2).astype(np.float64)


def in_threads(
    function: Callable[[Item], Result], items: list[Item], num_threads: int, unit: str, what: str = "loading"
) -> Iterable[Result]:
    """Results of a slow function in the order of the items, with a bar on the terminal."""
    with ThreadPoolExecutor(num_threads) as threads:
        yield from tqdm(
            threads.map(function, items), total=len(items), unit=f" {unit}", desc=what, mininterval=1, disable=None
        )
