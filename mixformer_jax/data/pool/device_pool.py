"""The decoded material as arrays of numbers alone, so that a device holds it and draws from it by itself.

Pictures of any size stand one after the other in one row of pixels, so nothing is padded, and the same look-up serves
video frames, photographs and cut-outs. Everything else are small tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float32, Int32, UInt32

from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.pool import Clip, CutOut, ImagePool, VideoPool
from mixformer_jax.data.pool.synthetic import ByFolder, still_share
from mixformer_jax.data.sampling import clip_origins, clip_weights

# Positions in the row of pixels are 32-bit integers.
MAX_PIXELS = 2**31 - 1

Numbers = Array | np.ndarray


class Images(NamedTuple):
    """Pyramids of pictures.

    Attributes:
        pixels: R + 256 G + 256^2 B + 256^3 alpha; alpha is 255 where a picture has none.
        offset: where a level begins. A picture with fewer levels repeats its last one.
        width_height: of every level.
    """

    pixels: UInt32[Numbers, " pixels"]
    offset: Int32[Numbers, "images levels"]
    width_height: Int32[Numbers, "images levels 2"]


class Folders(NamedTuple):
    """Cut-outs by folder, see `synthetic.ByFolder`.

    Attributes:
        members: numbers of cut-outs, folder after folder.
        first, size: of every folder, among `members`.
        cumulative: weight of the folders up to and with this one.
    """

    members: Int32[Numbers, " members"]
    first: Int32[Numbers, " folders"]
    size: Int32[Numbers, " folders"]
    cumulative: Float32[Numbers, " folders"]


class DevicePool(NamedTuple):
    """All that `rendering` draws from. Kinds of material that the mix leaves out have length 0.

    Attributes:
        images: pictures; the first ones are the video frames, by their numbers.
        box_xywh: of the target on every video frame.
        window: of every video frame, the first frame and the one after the last that may be its partner.
        clip_first, clip_length: frames of every clip.
        clip_cumulative: probability of the clips up to and with this one.
        clip_origin: equal for clips of one group.
        photos, backgrounds: pictures that are photographs, and those that stand behind pasted objects.
        cutout_image, cutout_photo: a cut-out's picture, and the photograph that it was cut from.
        cutout_folder: its folder, a number of `pasted`.
        cutout_outline_xy: hull on the photograph; short ones repeat their last point.
        cutout_pasted_outline_xy: hull on the cut-out's own picture.
        pasted: all cut-outs.
        stills: those that may be targets in their photograph.
    """

    images: Images
    box_xywh: Float32[Numbers, "frames 4"]
    window: Int32[Numbers, "frames 2"]
    clip_first: Int32[Numbers, " clips"]
    clip_length: Int32[Numbers, " clips"]
    clip_cumulative: Float32[Numbers, " clips"]
    clip_origin: Int32[Numbers, " clips"]
    photos: Int32[Numbers, " photos"]
    backgrounds: Int32[Numbers, " backgrounds"]
    cutout_image: Int32[Numbers, " cutouts"]
    cutout_photo: Int32[Numbers, " cutouts"]
    cutout_folder: Int32[Numbers, " cutouts"]
    cutout_outline_xy: Float32[Numbers, "cutouts points 2"]
    cutout_pasted_outline_xy: Float32[Numbers, "cutouts points 2"]
    pasted: Folders
    stills: Folders

    @classmethod
    def build(cls, videos: VideoPool | None, images: ImagePool | None, config: DataConfig) -> DevicePool:
        """Tables and pixels of the material that `config` draws from, as numpy arrays.

        Raises:
            ValueError: more pixels than positions.
        """
        mix = config.mix
        clips = videos.clips if videos is not None else ()
        photos = images.photos if images is not None else ()
        cutouts = images.cutouts if images is not None and mix.still + mix.pasted > 0 else ()
        stills = [c for c in cutouts if still_share(c, photos[c.photo][0]) <= config.synthetic.max_still_side]
        frames = [(frame,) for clip in clips for frame in clip.frames]
        lengths = np.array([len(clip) for clip in clips], np.int32)
        first_photo, first_cutout = len(frames), len(frames) + len(photos)
        number_of = {id(cutout): number for number, cutout in enumerate(cutouts)}
        folder_names = list(dict.fromkeys(cutout.source for cutout in cutouts))
        return cls(
            images=_pictures([*frames, *photos, *(cutout.levels for cutout in cutouts)]),
            box_xywh=_rows([clip.boxes_xywh for clip in clips], (0, 4)).astype(np.float32),
            window=_windows(clips, config.max_interval),
            clip_first=(np.cumsum(lengths) - lengths).astype(np.int32),
            clip_length=lengths,
            clip_cumulative=np.cumsum(clip_weights(clips, config.groups)).astype(np.float32),
            clip_origin=np.array(clip_origins(clips, config.groups), np.int32),
            photos=np.arange(first_photo, first_cutout, dtype=np.int32),
            backgrounds=np.array(images.backgrounds if images is not None else (), np.int32) + np.int32(first_photo),
            cutout_image=np.arange(first_cutout, first_cutout + len(cutouts), dtype=np.int32),
            cutout_photo=np.array([cutout.photo for cutout in cutouts], np.int32) + np.int32(first_photo),
            cutout_folder=np.array([folder_names.index(cutout.source) for cutout in cutouts], np.int32),
            cutout_outline_xy=_outlines([cutout.outline_xy for cutout in cutouts]),
            cutout_pasted_outline_xy=_outlines([cutout.pasted_outline_xy for cutout in cutouts]),
            pasted=_folders(cutouts, number_of),
            stills=_folders(stills, number_of),
        )

    @property
    def nbytes(self) -> int:
        """Bytes that a device must have for it."""
        return sum(value.nbytes for table in self for value in (table if isinstance(table, tuple) else (table,)))


def _pictures(pyramids: Sequence[Sequence[np.ndarray]]) -> Images:
    depth = max((len(levels) for levels in pyramids), default=1)
    total = sum(level.shape[0] * level.shape[1] for levels in pyramids for level in levels)
    if total > MAX_PIXELS:
        raise ValueError(
            f"the pool has {total / 1e9:.1f} thousand million pixels, and a device can number {MAX_PIXELS / 1e9:.1f}; "
            "pack a smaller one (mixformer data pool), or lower data.max_target_side"
        )
    rgba = np.full((total, 4), 255, np.uint8)
    offsets, sizes = np.zeros((len(pyramids), depth), np.int32), np.zeros((len(pyramids), depth, 2), np.int32)
    at = 0
    for number, levels in enumerate(pyramids):
        for level, picture in enumerate(levels):
            height, width, channels = picture.shape
            rgba[at : at + height * width, :channels] = picture.reshape(-1, channels)
            offsets[number, level:], sizes[number, level:] = at, (width, height)
            at += height * width
    return Images(rgba.view("<u4").astype(np.uint32, copy=False).reshape(-1), offsets, sizes)


def _windows(clips: Sequence[Clip], max_interval: int) -> np.ndarray:
    rows, before = [], 0
    for clip in clips:
        first = np.searchsorted(clip.times, clip.times - max_interval)
        last = np.searchsorted(clip.times, clip.times + max_interval, side="right")
        rows.append(np.stack([first, last], axis=1) + before)
        before += len(clip)
    return _rows(rows, (0, 2)).astype(np.int32)


def _rows(parts: Sequence[np.ndarray], empty: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(empty)


def _outlines(hulls: Sequence[np.ndarray]) -> np.ndarray:
    most = max((len(hull) for hull in hulls), default=1)
    padded = [np.concatenate([hull, np.repeat(hull[-1:], most - len(hull), axis=0)]) for hull in hulls]
    return np.array(padded, np.float32).reshape(-1, most, 2)


def _folders(cutouts: Sequence[CutOut], number_of: Mapping[int, int]) -> Folders:
    """`number_of` has the numbers of cut-outs by identity."""
    grouped = ByFolder(cutouts)
    counts = np.array([len(members) for members in grouped.folders.values()], np.int32)
    return Folders(
        members=np.array([number_of[id(c)] for members in grouped.folders.values() for c in members], np.int32),
        first=(np.cumsum(counts) - counts).astype(np.int32),
        size=counts,
        cumulative=grouped.cumulative.astype(np.float32),
    )
