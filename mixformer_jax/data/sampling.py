"""Which frames of which sequence make a training sample, and the crops around their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.pool.pool import Clip, VideoPool
from mixformer_jax.views import (
    CropConfig,
    Placement,
    UnusableSampleError,
    box_outline,
    check_target,
    draw_placement,
    linear_map,
    target_view,
    warp,
)

Sample = dict[str, np.ndarray]
"""templates uint8 [slots, T, T, 3] (slot 0 the template), search uint8 [S, S, 3], box_cxcywh float32 [4] (of
the search)."""


class Drawn(NamedTuple):
    """A sample of the pool, and what negative samples need to know of it.

    Attributes:
        sample: templates, search and box.
        origin: what it shows, as a number: of the sequence or its group, or of the photograph.
        matrix: float64 [2, 3], from the source image to the search crop.
        width_height: of the source image in pixels; None where all of the crop shows something.
        distractors_cxcywh: boxes of other objects that were put in the search crop, normalised to it.
    """

    sample: Sample
    origin: int
    matrix: np.ndarray
    width_height: tuple[int, int] | None
    distractors_cxcywh: tuple[np.ndarray, ...] = ()


def clip_weights(clips: Sequence[Clip], groups: Sequence[Sequence[str]]) -> np.ndarray:
    """Probability of each clip: a group weighs sqrt(its frames), shared among its members by their frames.

    A clip named in no group is a group of its own. The square root keeps long sequences from crowding out
    short ones; groups do the same for several sequences of one scene.
    """
    group_of = {name: number for number, names in enumerate(groups) for name in names}
    keys = [group_of.get(clip.name, clip.name) for clip in clips]
    frames = {key: sum(len(c) for c, k in zip(clips, keys, strict=True) if k == key) for key in keys}
    weights = np.array([len(clip) / math.sqrt(frames[key]) for clip, key in zip(clips, keys, strict=True)])
    return weights / weights.sum()


def clip_origins(clips: Sequence[Clip], groups: Sequence[Sequence[str]]) -> list[int]:
    """A number for each clip, the same for clips of one group and for no others."""
    group_of = {name: number for number, names in enumerate(groups) for name in names}
    return [group_of.get(clip.name, len(groups) + number) for number, clip in enumerate(clips)]


def draw_times(
    rng: np.random.Generator, times: np.ndarray, max_interval: int, num_between: int
) -> tuple[int, int, list[int]]:
    """Positions (template, search, online templates) in an ascending list of frame numbers.

    The official three-frame scheme: template and search are at most `max_interval` frames apart, the online
    templates lie between them in time order. Time runs backwards half of the time.
    """
    template = int(rng.integers(len(times)))
    first = int(np.searchsorted(times, times[template] - max_interval))
    last = int(np.searchsorted(times, times[template] + max_interval, side="right"))
    if last - first < 2:
        raise UnusableSampleError(f"no second frame within {max_interval} frames of frame {times[template]}")
    search = int(rng.integers(first, last - 1))
    search += search >= template  # any frame but the template's own
    low, high = min(template, search), max(template, search)
    between = sorted(int(i) for i in rng.integers(low, high + 1, size=num_between))
    return template, search, between if template < search else between[::-1]


def draw_beside(rng: np.random.Generator, placement: Placement, factor: float) -> Placement:
    """A crop as large as `placement`'s, its centre half a side to a whole side from the target's along one axis, and
    at most as far along the other: the target is at most partly in view."""
    distance = rng.uniform(1.0, 2.0) * factor / 2
    along = distance if rng.random() < 0.5 else -distance
    across = rng.uniform(-1.0, 1.0) * distance
    return placement._replace(offset_xy=(along, across) if rng.random() < 0.5 else (across, along))


class VideoPairs:
    """Samples from annotated sequences: template, online templates and search from different frames of one
    clip."""

    def __init__(
        self,
        pool: VideoPool,
        crops: CropConfig,
        augment: AugmentConfig,
        max_interval: int = 100,
        groups: Sequence[Sequence[str]] = (),
    ) -> None:
        self.pool, self.crops, self.augment, self.max_interval = pool, crops, augment, max_interval
        self._cumulative = np.cumsum(clip_weights(pool.clips, groups))
        self._origins = clip_origins(pool.clips, groups)

    @property
    def origins(self) -> set[int]:
        """Groups, and sequences of no group, see `clip_origins`."""
        return set(self._origins)

    def __call__(self, rng: np.random.Generator) -> Sample:
        return self.draw(rng).sample

    def draw(self, rng: np.random.Generator, beside: bool = False) -> Drawn:
        """One sample; with `beside` the target's centre is outside the search crop, by up to half of its side."""
        crops = self.crops
        chosen = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        chosen = min(chosen, len(self.pool.clips) - 1)
        clip = self.pool.clips[chosen]
        template, search, between = draw_times(rng, clip.times, self.max_interval, crops.num_online_templates)
        flip = bool(rng.random() < self.augment.flip_probability)

        templates = np.empty((crops.slots, crops.template_size, crops.template_size, 3), np.uint8)
        for slot, time in enumerate([template, *between]):
            linear = linear_map(flip=flip, aspect=self.augment.draw_aspect(rng))
            outline = box_outline(clip.boxes_xywh[time])
            view = target_view(outline, linear, crops.template_factor, crops.template_size)
            templates[slot] = self._crop(clip.frames[time], view.matrix, crops.template_size)
        linear = linear_map(flip=flip, aspect=self.augment.draw_aspect(rng))
        outline = box_outline(clip.boxes_xywh[search])
        placement = draw_placement(rng, crops)
        if beside:
            placement = draw_beside(rng, placement, crops.search_factor)
        view = target_view(outline, linear, crops.search_factor, crops.search_size, placement)
        if not beside:
            check_target(view.box_cxcywh, crops)
        pixels = self._crop(clip.frames[search], view.matrix, crops.search_size)
        sample = {"templates": templates, "search": pixels, "box_cxcywh": view.box_cxcywh}
        height, width = clip.frames[search].shape[:2]
        return Drawn(sample, self._origins[chosen], view.matrix, (width, height))

    def _crop(self, frame: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
        return warp((frame,), matrix, (size, size), border=cv2.BORDER_CONSTANT)
