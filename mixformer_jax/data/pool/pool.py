"""Decoded material held in memory: video frames shrunk and cut to what crops can show, photographs, cut-outs.
`HostPool` has all of it with its numbers (`Tables`), from which scenes are drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from jaxtyping import Array, Float, Float64, Int32, UInt8
from tqdm import tqdm

from mixformer_jax.data.config import DataConfig
from mixformer_jax.datasets.sequences import TrackingSequence, open_dataset
from mixformer_jax.media.images import read_image
from mixformer_jax.views import pyramid, shrunk

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
            times = np.arange(len(sequence)) if sequence.visible is None else np.flatnonzero(sequence.visible)
            boxes_xywh, limits = sequence.boxes_xywh[times].astype(np.float64), (max_target_side, min_target_side)
            return fitted_clip(
                sequence.name, times, boxes_xywh, lambda row: sequence.frame(int(times[row])), *limits, context
            )

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


def fitted_clip(
    name: str,
    times: np.ndarray,
    boxes_xywh: Float64[np.ndarray, "n 4"],
    frame: Callable[[int], UInt8[np.ndarray, "h w 3"]],
    max_side: float,
    min_side: float,
    context: float,
) -> Clip:
    """The frames that have a box with sqrt(w * h) of `min_side` or more, each as `fit_frame` makes it. `frame(i)`
    belongs to `times[i]` and `boxes_xywh[i]`."""
    w, h = boxes_xywh[:, 2], boxes_xywh[:, 3]
    is_large = (np.minimum(w, h) > 1) & (np.sqrt(np.maximum(w * h, 0)) >= min_side)
    kept = np.flatnonzero(np.isfinite(boxes_xywh).all(axis=1) & is_large)
    fitted = [fit_frame(frame(row), boxes_xywh[row], max_side, context) for row in kept.tolist()]
    boxes = np.array([box for _, box in fitted], np.float64).reshape(-1, 4)
    return Clip(name, tuple(pixels for pixels, _ in fitted), boxes, times[kept])


def fit_frame(
    frame: UInt8[np.ndarray, "h w 3"], box_xywh: Float64[np.ndarray, "4"], max_side: float, context: float
) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the window of `context` * sqrt(w * h) around the target, shrunk until its sqrt(w * h) is at most
    `max_side`; and the box within it."""
    x, y, w, h = box_xywh.tolist()
    side = math.sqrt(w * h)
    reach = context * side / 2
    left, top = max(0, math.floor(x + w / 2 - reach)), max(0, math.floor(y + h / 2 - reach))
    right, bottom = math.ceil(x + w / 2 + reach), math.ceil(y + h / 2 + reach)
    window = frame[top:bottom, left:right].copy()
    small = shrunk(window, max_side / side)
    ratios = np.array(small.shape[1::-1]) / window.shape[1::-1]
    return small, (box_xywh - [left, top, 0, 0]) * np.tile(ratios, 2)


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


Numbers = Array | np.ndarray


class Folders(NamedTuple):
    """Cut-outs by folder."""

    members: Int32[Numbers, " members"]  # numbers of cut-outs, folder after folder
    first: Int32[Numbers, " folders"]  # of every folder, among `members`
    size: Int32[Numbers, " folders"]  # likewise
    # Weight of the folders up to and with this one, the square root of their sizes, so that no folder crowds out the
    # others.
    cumulative: Float[Numbers, " folders"]


class Tables(NamedTuple):
    """Numbers of the material. Kinds of material that the mix leaves out have length 0."""

    box_xywh: Float[Numbers, "frames 4"]  # of the target on every video frame; the frames are the first pictures
    # Of every video frame, the first frame and the one after the last that may be its partner.
    window: Int32[Numbers, "frames 2"]
    clip_first: Int32[Numbers, " clips"]  # of its frames
    clip_length: Int32[Numbers, " clips"]  # frames
    clip_cumulative: Float[Numbers, " clips"]  # probability of the clips up to and with this one
    clip_origin: Int32[Numbers, " clips"]  # equal for clips of one group
    photos: Int32[Numbers, " photos"]  # pictures that are photographs
    backgrounds: Int32[Numbers, " backgrounds"]  # pictures that stand behind pasted objects
    cutout_image: Int32[Numbers, " cutouts"]  # its picture
    cutout_photo: Int32[Numbers, " cutouts"]  # the photograph that it was cut from
    cutout_folder: Int32[Numbers, " cutouts"]  # its folder, a number of `pasted`
    pasted: Folders  # all cut-outs
    stills: Folders  # those that may be targets in their photograph


class HostPool:
    """The material that a config draws from, as it was decoded.

    Attributes:
        tables: its numbers.
        pictures: a pyramid of each: video frames, photographs, cut-outs.
        cutouts: those that the mix needs.
        outline_xy, pasted_outline_xy: their hulls.
    """

    def __init__(self, videos: VideoPool | None, images: ImagePool | None, config: DataConfig) -> None:
        """Builds the tables; ValueError where a source of the mix has no material."""
        mix, synthetic = config.mix, config.synthetic
        if mix.video > 0 and videos is None:
            raise ValueError("the mix asks for video pairs, but no videos are loaded")
        for name in ("still", "pasted", "region"):
            if getattr(mix, name) > 0 and images is None:
                raise ValueError(f"the mix asks for {name} pairs, but no photographs are loaded")
        clips, images = (videos.clips if videos else ()), images or ImagePool((), (), ())
        photos, self.cutouts = images.photos, images.cutouts if mix.still + mix.pasted > 0 else ()
        if mix.pasted > 0 and not self.cutouts:
            raise ValueError(
                "pasted pairs need photographs with instance masks (NAME.png beside NAME.jpg); none usable"
            )
        areas = [math.prod(photos[cutout.photo][0].shape[:2]) for cutout in self.cutouts]
        shares = [
            np.ptp(cutout.outline_xy, axis=0).prod() / area for cutout, area in zip(self.cutouts, areas, strict=True)
        ]
        still = np.flatnonzero(np.sqrt(shares) <= synthetic.max_still_side).tolist()
        if mix.still > 0 and not still:
            raise ValueError(
                f"still pairs need annotated objects of at most {synthetic.max_still_side} of their photograph's "
                f"side; none among {len(self.cutouts)}"
            )
        frames = [(frame,) for clip in clips for frame in clip.frames]
        self.pictures: list[Sequence[np.ndarray]] = [*frames, *photos, *(cutout.levels for cutout in self.cutouts)]
        self.outline_xy = [cutout.outline_xy for cutout in self.cutouts]
        self.pasted_outline_xy = [cutout.pasted_outline_xy for cutout in self.cutouts]
        lengths = np.array([len(clip) for clip in clips], np.int32)
        first_photo, first_cutout = len(frames), len(frames) + len(photos)
        folders = [cutout.source for cutout in self.cutouts]
        names = list(dict.fromkeys(folders))
        self.tables = Tables(
            box_xywh=np.concatenate([np.zeros((0, 4)), *(clip.boxes_xywh for clip in clips)]),
            window=_windows(clips, config.max_interval),
            clip_first=(np.cumsum(lengths) - lengths).astype(np.int32),
            clip_length=lengths,
            clip_cumulative=np.cumsum(clip_weights(clips, config.groups)),
            clip_origin=np.array(_clip_origins(clips, config.groups), np.int32),
            photos=np.arange(first_photo, first_cutout, dtype=np.int32),
            backgrounds=np.array(images.backgrounds, np.int32) + np.int32(first_photo),
            cutout_image=np.arange(first_cutout, first_cutout + len(folders), dtype=np.int32),
            cutout_photo=np.array([cutout.photo for cutout in self.cutouts], np.int32) + np.int32(first_photo),
            cutout_folder=np.array([names.index(folder) for folder in folders], np.int32),
            pasted=_by_folder(folders, range(len(folders))),
            stills=_by_folder(folders, still),
        )

    def extent(self, picture: Any) -> np.ndarray:
        """Width and height, float64 [2]."""
        height, width = self.pictures[picture][0].shape[:2]
        return np.array([width, height], np.float64)

    def texture(self, picture: Any, box_xywh: np.ndarray) -> float:
        """Deviation of the green channel in a box, on the coarsest level."""
        levels = self.pictures[picture]
        x, y, w, h = (box_xywh * (levels[-1].shape[0] / levels[0].shape[0])).astype(int)
        return float(levels[-1][y : y + h + 1, x : x + w + 1, 1].std())


def clip_weights(clips: Sequence[Clip], groups: Sequence[Sequence[str]]) -> np.ndarray:
    """Probability of each clip: a group weighs sqrt(its frames), shared among its members by their frames.

    A clip named in no group is a group of its own. The square root keeps long sequences from crowding out short ones;
    groups do the same for several sequences of one scene.
    """
    origins = _clip_origins(clips, groups)
    frames = np.bincount(origins, [len(clip) for clip in clips]) if clips else np.zeros(0)
    weights = np.array([len(clip) / math.sqrt(frames[origin]) for clip, origin in zip(clips, origins, strict=True)])
    return weights / weights.sum()


def _clip_origins(clips: Sequence[Clip], groups: Sequence[Sequence[str]]) -> list[int]:
    """A number for each clip, the same for clips of one group and for no others."""
    group_of = {name: number for number, names in enumerate(groups) for name in names}
    return [group_of.get(clip.name, len(groups) + number) for number, clip in enumerate(clips)]


def _windows(clips: Sequence[Clip], max_interval: int) -> np.ndarray:
    rows: list[np.ndarray] = [np.zeros((0, 2), np.int32)]
    before = 0
    for clip in clips:
        first = np.searchsorted(clip.times, clip.times - max_interval)
        last = np.searchsorted(clip.times, clip.times + max_interval, side="right")
        rows.append(np.stack([first, last], axis=1) + before)
        before += len(clip)
    return np.concatenate(rows).astype(np.int32)


def _by_folder(folders: Sequence[str], numbers: Iterable[int]) -> Folders:
    """`folders` has the folder of every cut-out."""
    members: dict[str, list[int]] = {}
    for number in numbers:
        members.setdefault(folders[number], []).append(number)
    size = np.array([len(each) for each in members.values()], np.int32)
    flat = np.array([number for each in members.values() for number in each], np.int32)
    cumulative = np.cumsum([math.sqrt(each) for each in size])
    return Folders(flat, (np.cumsum(size) - size).astype(np.int32), size, cumulative.astype(float))
