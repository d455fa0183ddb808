"""Samples from data sets on disk, as the official trainer draws them (MixFormer section 4.1; STARK; pytracking)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64

from mixformer_jax.data.augment import AugmentConfig, Random, draw_placement
from mixformer_jax.data.config import FrameScheme
from mixformer_jax.datasets.frame_parts import box_within, context_rectangle, cut, open_frame, shows_frame
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.pixels import take_streams
from mixformer_jax.typed_settings import Streams
from mixformer_jax.views import CENTRED, CropConfig, Placement, UnusableSampleError, check_target

# Shorter videos are not drawn from, and neither are those with hardly more visible frames than a sample needs.
MIN_FRAMES = 20
# Frames by which the interval grows, each time no frame is found within it.
INTERVAL_STEP = 5
# Where the target of a negative sample is absent, the crop is cut around a box of this share of the frame.
CENTRE_SHARE = 1 / 8
# A crop must show this many of its pixels from inside the frame, across and down: one token.
MIN_SHOWN = 16
MAX_TRIES = 100

# templates uint8 [slots, T, T, 3] (slot 0 the template), search uint8 [S, S, 3], box_cxcywh float32 [4] (of the search)
Sample = dict[str, np.ndarray]


class WeightedDataset(NamedTuple):
    """A data set to draw from."""

    name: str
    dataset: Dataset
    ratio: float
    min_side: float = 0.0


class Shot(NamedTuple):
    """One frame; with its box, or, where there is none, with the middle of the frame instead."""

    sequence: TrackingSequence
    frame: int
    has_box: bool = True


class PairFrames(NamedTuple):
    """What a sample shows. `label` is 1 where the search shows the target of the templates, and 0 where not."""

    source: str
    templates: tuple[Shot, ...]
    search: Shot
    label: float

    def __str__(self) -> str:
        of = self.templates[0].sequence
        numbers = ", ".join(str(shot.frame) for shot in self.templates)
        # Another sequence may be another data set's, and have the same name.
        elsewhere = "" if self.search.sequence is of else f" in {self.search.sequence.root}"
        search = f"{self.search.sequence.name} frame {self.search.frame}{elsewhere}"
        return f"{self.source}: templates {of.name} frames {numbers}; search {search}"


@dataclass(frozen=True)
class SequencePairs:
    """Samples by the official schemes.

    A data set is drawn by its ratio, then one of its sequences, all alike; then frames by `draw_frames`. A still gives
    template and search from the same image. Where labels are asked for, a share `positive_share` of the samples is as
    ever; the others search where the target is not: in a frame in which it is absent, around the middle of the frame,
    or, if there is none, around the target of another sequence.
    """

    sources: Sequence[WeightedDataset]
    crops: CropConfig
    augment: AugmentConfig
    scheme: FrameScheme = "causal"
    max_interval: int = 200
    positive_share: float | None = None
    has_occluders: ClassVar[bool] = False  # laid over targets by itself

    @functools.cached_property
    def _cumulative(self) -> Float64[np.ndarray, " sources"]:
        ratios = np.array([source.ratio for source in self.sources])
        return np.cumsum(ratios / ratios.sum())

    def decide(self, rng: np.random.Generator) -> Any:
        """Nothing: all is drawn again."""

    def sample(self, rng: np.random.Generator, decided: Any = None) -> tuple[str, str, Sample]:
        """The data set's name, the frames in words, and the sample; raises as `draw` and `render`."""
        frames = self.draw(rng)
        return frames.source, str(frames), self.render(rng, frames)

    def draw(self, rng: np.random.Generator) -> PairFrames:
        """Which frames make a sample; no frame is read.

        Raises:
            UnusableSampleError: the drawn sequence does not serve.
            DatasetError: its annotations cannot be read.
        """
        source, sequence = self._draw_sequence(rng)
        usable = usable_frames(sequence, source.min_side)
        count = self.crops.num_online_templates
        if sequence.is_still:
            row = pick(rng, np.flatnonzero(usable))
            templates, search = [row] * (1 + count), row
        else:
            known = usable_frames(sequence, source.min_side, hidden_too=True)
            templates, search = draw_frames(rng, self.scheme, usable, known, self.max_interval, count)
        shots = tuple(Shot(sequence, index) for index in templates)
        if self.positive_share is None or rng.random() < self.positive_share:
            return PairFrames(source.name, shots, Shot(sequence, search), 1.0)
        absent = absent_frames(sequence)
        if not sequence.is_still and len(absent):
            return PairFrames(source.name, shots, Shot(sequence, pick(rng, absent), has_box=False), 0.0)
        return PairFrames(source.name, shots, self._draw_other(rng, sequence), 0.0)

    def render(self, rng: np.random.Generator, shown: PairFrames) -> Sample:
        """The crops of a sample, before light and colour are disturbed.

        Raises:
            UnusableSampleError: a crop that shows hardly any of its frame, or too small a target.
            SourceError: a frame that cannot be read.
        """
        crops, augment = self.crops, self.augment
        opened = functools.cache(open_frame)  # one may be shown more than once

        def crop(shot: Shot, factor: float, size: int, placement: Placement = CENTRED) -> tuple[np.ndarray, np.ndarray]:
            sequence, index = shot.sequence, shot.frame
            frame = opened(sequence, index)
            box_xywh = sequence.boxes_xywh[index] if shot.has_box else centre_box(frame.size)
            aspect = augment.draw_aspect(Random(rng)) if augment.aspect > 0 else 1.0
            rectangle = context_rectangle(box_xywh, factor, placement, aspect)
            if not shows_frame(frame.size, rectangle, MIN_SHOWN / size):
                raise UnusableSampleError(f"a crop of {sequence.name}, frame {index}, lies outside the frame")
            pixels, covered = cut(frame, rectangle, size)
            return _streams(pixels, crops.streams, sequence), box_within(box_xywh, covered)

        flips = np.full(1 + crops.slots, rng.random() < augment.flip_probability)
        if augment.separate_flip_probability > 0:
            flips ^= rng.random(len(flips)) < augment.separate_flip_probability

        templates = []
        for slot, shot in enumerate(shown.templates):
            pixels, _ = crop(shot, crops.template_factor, crops.template_size)
            templates.append(cv2.flip(pixels, 1) if flips[slot] else pixels)
        placement = draw_placement(Random(rng), crops)
        search, box_cxcywh = crop(shown.search, crops.search_factor, crops.search_size, placement)
        if shown.label:
            check_target(box_cxcywh, crops)
        if flips[-1]:
            search = cv2.flip(search, 1)
            box_cxcywh[0] = 1 - box_cxcywh[0]
        sample = {"templates": np.stack(templates), "search": search, "box_cxcywh": box_cxcywh}
        if self.positive_share is not None:
            sample["label"] = np.array(shown.label, np.float32)
        return sample

    def _draw_sequence(self, rng: np.random.Generator) -> tuple[WeightedDataset, TrackingSequence]:
        """A data set by its ratio, and one of its sequences with enough visible frames."""
        source = self.sources[Random(rng).entry(self._cumulative)]
        for _ in range(MAX_TRIES):
            sequence = source.dataset[int(rng.integers(len(source.dataset)))]
            if can_be_drawn(sequence, self.crops.slots, source.min_side):
                return source, sequence
        raise UnusableSampleError(
            f"{source.name}: none of {MAX_TRIES} drawn sequences has {MIN_FRAMES} frames, and the target in more than "
            f"{2 * (1 + self.crops.slots)} of them"
        )

    def _draw_other(self, rng: np.random.Generator, sequence: TrackingSequence) -> Shot:
        """A frame of another sequence, with its box."""
        for _ in range(MAX_TRIES):
            source, other = self._draw_sequence(rng)
            # A data set may be given twice, by a link or with another share of its sequences.
            if other.name != sequence.name or other.root.resolve() != sequence.root.resolve():
                known = np.flatnonzero(usable_frames(other, source.min_side, hidden_too=True))
                return Shot(other, pick(rng, known))
        raise UnusableSampleError(f"no other sequence than {sequence.name} to draw a negative sample from")


def _streams(pixels: np.ndarray, streams: Streams, sequence: TrackingSequence) -> np.ndarray:
    """The wanted channels of a crop; where there is colour alone, nothing was measured in the second stream.
    Raises DatasetError: the second stream is asked for by itself, and there is none."""
    if pixels.shape[2] == 3 and streams == "both":
        pixels = np.concatenate([pixels, np.zeros_like(pixels)], axis=2)
    if pixels.shape[2] == 3 and streams == "second":
        raise DatasetError(f"{sequence.root}: {sequence.name} has no second stream, which the model reads alone")
    return np.ascontiguousarray(take_streams(pixels, streams))


def can_be_drawn(sequence: TrackingSequence, slots: int, min_side: float = 0.0) -> bool:
    """Whether samples with so many template slots are drawn from a sequence."""
    num_usable = int(usable_frames(sequence, min_side).sum())
    if sequence.is_still:
        return num_usable > 0
    return len(sequence) >= MIN_FRAMES and num_usable > 2 * (1 + slots)


def usable_frames(
    sequence: TrackingSequence, min_side: float = 0.0, hidden_too: bool = False
) -> Bool[np.ndarray, " n"]:
    """Which frames have a box with both sides above `min_side`, and the target in view (unless `hidden_too`)."""
    usable = sequence.has_target & (sequence.boxes_xywh[:, 2:] > min_side).all(axis=1)
    return usable if hidden_too or sequence.visible is None else usable & sequence.visible


def absent_frames(sequence: TrackingSequence) -> Int64[np.ndarray, " m"]:
    """Numbers of the frames without target: those marked so, or, where the data set has no marks, those of NaN.
    A small target is not absent, and a row without area that nothing marks may have the target in view."""
    is_absent = np.isnan(sequence.boxes_xywh).any(axis=1) if sequence.visible is None else ~sequence.visible
    return np.flatnonzero(is_absent)


def draw_frames(
    rng: np.random.Generator,
    scheme: FrameScheme,
    usable: Bool[np.ndarray, " n"],
    known: Bool[np.ndarray, " n"],
    max_interval: int,
    num_online: int,
) -> tuple[list[int], int]:
    """Frame numbers of template and online templates (in this order), and of the search.

    causal: the template anywhere; online templates at most `max_interval` frames before it, the search at most as many
        after it. Where there is no frame, the interval grows by 5 and the draw is repeated.
    trident: template and search anywhere; the online templates at most `max_interval` frames from the search, on the
        template's side.
    trident_pro: likewise, and online templates need not have the target in view (`usable`), but a box (`known`).

    Raises UnusableSampleError: no such frames.
    """
    visible = np.flatnonzero(usable)
    if scheme == "causal":
        bases = _between(visible, num_online, len(usable) - 1)
        for interval in range(max_interval, max_interval + len(usable) + INTERVAL_STEP, INTERVAL_STEP):
            if not len(bases):
                break
            base = pick(rng, bases)
            before = _between(visible, base - interval, base)
            after = _between(visible, base + 1, base + interval)
            if len(after) and (len(before) or not num_online):
                return [base, *(pick(rng, before) for _ in range(num_online))], pick(rng, after)
        raise UnusableSampleError("no frames before and after a template")
    for _ in range(MAX_TRIES):
        template, search = pick(rng, visible), pick(rng, visible)
        low, high = (search, search + max_interval) if template >= search else (search - max_interval, search)
        near = _between(np.flatnonzero(known) if scheme == "trident_pro" else visible, low, high)
        if len(near) or not num_online:
            return [template, *(pick(rng, near) for _ in range(num_online))], search
    raise UnusableSampleError("no online template near a search frame")


def pick(rng: np.random.Generator, numbers: Int64[np.ndarray, " n"]) -> int:
    """One of some numbers, all alike; `rng.choice` takes five times as long."""
    return int(numbers[int(rng.integers(len(numbers)))])


def _between(frames: Int64[np.ndarray, " n"], low: int, high: int) -> Int64[np.ndarray, " m"]:
    """Those of ascending frame numbers that are in [low, high)."""
    return frames[np.searchsorted(frames, low) : np.searchsorted(frames, high)]


def centre_box(frame_size: tuple[int, int]) -> Float64[np.ndarray, "4"]:
    """A box in the middle of a frame, an eighth of it wide and high, xywh."""
    height, width = frame_size
    w, h = width * CENTRE_SHARE, height * CENTRE_SHARE
    return np.array([int(width / 2 - w / 2), int(height / 2 - h / 2), int(w), int(h)], np.float64)
