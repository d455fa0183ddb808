"""The decoded material by numbers, from which scenes are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int32

from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.pool import Clip, CutOut, ImagePool, VideoPool

Numbers = Array | np.ndarray


class Folders(NamedTuple):
    """Cut-outs by folder.

    Attributes:
        members: numbers of cut-outs, folder after folder.
        first, size: of every folder, among `members`.
        cumulative: weight of the folders up to and with this one, the square root of their sizes, so that no folder
            crowds out the others.
    """

    members: Int32[Numbers, " members"]
    first: Int32[Numbers, " folders"]
    size: Int32[Numbers, " folders"]
    cumulative: Float[Numbers, " folders"]


class Tables(NamedTuple):
    """Numbers of the material. Kinds of material that the mix leaves out have length 0.

    Attributes:
        box_xywh: of the target on every video frame; the frames are the first pictures.
        window: of every video frame, the first frame and the one after the last that may be its partner.
        clip_first, clip_length: frames of every clip.
        clip_cumulative: probability of the clips up to and with this one.
        clip_origin: equal for clips of one group.
        photos, backgrounds: pictures that are photographs, and those that stand behind pasted objects.
        cutout_image, cutout_photo: a cut-out's picture, and the photograph that it was cut from.
        cutout_folder: its folder, a number of `pasted`.
        pasted: all cut-outs.
        stills: those that may be targets in their photograph.
    """

    box_xywh: Float[Numbers, "frames 4"]
    window: Int32[Numbers, "frames 2"]
    clip_first: Int32[Numbers, " clips"]
    clip_length: Int32[Numbers, " clips"]
    clip_cumulative: Float[Numbers, " clips"]
    clip_origin: Int32[Numbers, " clips"]
    photos: Int32[Numbers, " photos"]
    backgrounds: Int32[Numbers, " backgrounds"]
    cutout_image: Int32[Numbers, " cutouts"]
    cutout_photo: Int32[Numbers, " cutouts"]
    cutout_folder: Int32[Numbers, " cutouts"]
    pasted: Folders
    stills: Folders


class HostPool:
    """The material that a config draws from, as it was decoded.

    Attributes:
        tables: its numbers.
        pictures: a pyramid of each: video frames, photographs, cut-outs.
        cutouts: those that the mix needs.
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
        still = [
            number
            for number, cutout in enumerate(self.cutouts)
            if _still_share(cutout, photos[cutout.photo][0]) <= synthetic.max_still_side
        ]
        if mix.still > 0 and not still:
            raise ValueError(
                f"still pairs need annotated objects of at most {synthetic.max_still_side} of their photograph's "
                f"side; none among {len(self.cutouts)}"
            )
        frames = [(frame,) for clip in clips for frame in clip.frames]
        self.pictures: list[Sequence[np.ndarray]] = [*frames, *photos, *(cutout.levels for cutout in self.cutouts)]
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

    def outline(self, cutout: Any) -> np.ndarray:
        """Hull of a cut-out on its photograph, [n, 2]."""
        return self.cutouts[cutout].outline_xy

    def pasted_outline(self, cutout: Any) -> np.ndarray:
        """Hull of a cut-out on its own picture, [n, 2]."""
        return self.cutouts[cutout].pasted_outline_xy

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


def _still_share(cutout: CutOut, photo: np.ndarray) -> float:
    """sqrt(area of the object's box / area of its photograph)."""
    width, height = cutout.width_height
    return math.sqrt(width * height / (photo.shape[0] * photo.shape[1]))


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
