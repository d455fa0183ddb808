"""Which frames of which sequence make a training sample, and the crops around their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.pool import Clip, VideoPool
from mixformer_jax.data.views import (
    CropConfig,
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

    def __call__(self, rng: np.random.Generator) -> Sample:
        crops = self.crops
        chosen = int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
        clip = self.pool.clips[min(chosen, len(self.pool.clips) - 1)]
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
        view = target_view(outline, linear, crops.search_factor, crops.search_size, placement)
        check_target(view.box_cxcywh, crops)
        pixels = self._crop(clip.frames[search], view.matrix, crops.search_size)
        return {"templates": templates, "search": pixels, "box_cxcywh": view.box_cxcywh}

    def _crop(self, frame: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
        return warp((frame,), matrix, (size, size), border=cv2.BORDER_CONSTANT)
