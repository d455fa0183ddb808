"""What a tracker finds in annotated sequences, right and wrong, as samples for its score module. Not in the paper,
whose negatives (section 3.5) show another target. A tracker that is lost sees something else: backgrounds that it
drifted to, distractors beside the target, the place where the target was. So it runs over each sequence under six
conditions at once, and its own boxes are the samples. Pairs of photographs add targets of other kinds."""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import Bool, Float, Float16, Int64, UInt8
from tqdm import tqdm

from mixformer_jax.boxes import clip_box_xywh, cxcywh_to_xyxy, iou, xywh_to_cxcywh, xywh_to_xyxy
from mixformer_jax.convert.weights import Weights
from mixformer_jax.crops import context_crop, crop_box_to_frame, frame_box_to_crop
from mixformer_jax.data.samples import TrackingSamples
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.models.mixformer import build_model
from mixformer_jax.pixels import normalise

CONDITIONS = ("natural", "moved", "drifted", "foreign", "erased", "covered")
"""What is done to the tracker: nothing; its box is moved off the target now and then, and found crops are wider; the
same, and online templates are taken wherever the box is; the templates show another target; the target is painted over
for some frames; a picture of another target is pasted over it or beside it."""

NATURAL, MOVED, DRIFTED, FOREIGN, ERASED, COVERED = range(len(CONDITIONS))
AS_IN_USE = (NATURAL, MOVED, DRIFTED)  # the target is the templates', and nothing is painted
WIDE_FACTORS = (3.5, 7.0)  # search factors of moved boxes, half of the time: what redetection looks at
MIN_SIDE = 4.0  # pixels; targets of which less is within the frame count as absent
LOST = 0.1  # IoU
PATCHES = 8  # pictures of each sequence for other sequences
PAIR = len(CONDITIONS)  # stands for the condition of pairs
PAIRS_AT_ONCE = 16

Frame = UInt8[np.ndarray, "h w 3"]
Box = Float[np.ndarray, "4"]


class Mined(NamedTuple):
    """Samples for a score module: what it sees, and how right the found box was."""

    features: Float16[np.ndarray, "n h w c"]  # of the search crops
    templates: Float16[np.ndarray, "m th tw c"]  # features of initial templates
    template: Int64[np.ndarray, " n"]  # which of them
    boxes_cxcywh: Float[np.ndarray, "n 4"]  # found, normalised to the search crops
    truth_cxcywh: Float[np.ndarray, "n 4"]  # NaN where the target is absent
    overlaps: Float[np.ndarray, " n"]  # IoU of both; 0 where the target is absent
    condition: Int64[np.ndarray, " n"]

    @property
    def is_absent(self) -> Bool[np.ndarray, " n"]:
        return np.isnan(self.truth_cxcywh).any(axis=1)


def join(parts: Sequence[Mined]) -> Mined:
    """All samples of several."""
    offsets = np.cumsum([0, *(len(part.templates) for part in parts)])
    shifted = [part._replace(template=part.template + offset) for part, offset in zip(parts, offsets, strict=False)]
    return Mined(*(np.concatenate(values) for values in zip(*shifted, strict=True)))


class Patches(NamedTuple):
    """Pictures of targets: template crops, and the boxes' content alone."""

    templates: UInt8[np.ndarray, "k s s 3"]
    targets: UInt8[np.ndarray, "k s s 3"]


def cut_patches(sequence: TrackingSequence, template_factor: float, size: int) -> Patches:
    """Pictures of the target from all over a sequence; raises DatasetError where no box can be used."""
    boxes_xywh = _known(sequence.boxes_xywh, sequence.frame(0).shape)
    seen = np.flatnonzero(np.isfinite(boxes_xywh).all(axis=1))
    if not len(seen):
        raise DatasetError(
            f"{sequence.root}: no box has sides of {MIN_SIDE:g} pixels or more within its frame; leave the sequence out"
        )
    chosen = set(seen[np.linspace(0, len(seen) - 1, PATCHES).astype(int)])
    templates, targets = [], []
    for index, frame in enumerate(sequence.frames()):
        if index in chosen:
            x, y, w, h = np.rint(boxes_xywh[index]).astype(int)
            target = frame[max(y, 0) : y + h, max(x, 0) : x + w]
            templates.append(context_crop(frame, boxes_xywh[index], template_factor, size).pixels)
            targets.append(cv2.resize(target, (size, size), interpolation=cv2.INTER_AREA))
    return Patches(np.stack(templates), np.stack(targets))


def _known(boxes_xywh: Float[np.ndarray, "n 4"], shape: Sequence[int]) -> Float[np.ndarray, "n 4"]:
    """The boxes, NaN where too little of them is within a frame of this shape."""
    first, last = boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]
    in_frame = np.minimum(last, (shape[1], shape[0])) - np.maximum(first, 0)
    return np.where((np.nan_to_num(in_frame) >= MIN_SIDE).all(axis=1, keepdims=True), boxes_xywh, np.nan)


class Network:
    """The backbone and box head of a tracker, on a batch with a row for each condition."""

    def __init__(self, weights: Weights) -> None:
        model, self._variables = build_model(weights.model), jax.device_put(weights.variables)
        self.model, self.tracker = weights.model, weights.tracker
        self._locate = jax.jit(lambda v, cache, crops: model.apply(v, cache, normalise(crops), method="locate"))
        self._encode = jax.jit(lambda v, crops: model.apply(v, normalise(crops), None, method="encode_templates"))

    def encode(self, templates: UInt8[np.ndarray, "n slots s s 3"]) -> Any:
        """The templates' cache."""
        return self._encode(self._variables, templates)

    def locate(
        self, cache: Any, crops: UInt8[np.ndarray, "n s s 3"]
    ) -> tuple[Float[np.ndarray, "n 4"], Float16[np.ndarray, "n h w c"]]:
        """Boxes (`cxcywh`, normalised to the crops) and features."""
        found = self._locate(self._variables, cache, crops)
        boxes_cxcywh, features = jax.device_get((found.boxes_cxcywh, found.features))
        return boxes_cxcywh.astype(np.float64), features.astype(np.float16)


def mine(rng: np.random.Generator, network: Network, sequence: TrackingSequence, steps: int, others: Patches) -> Mined:
    """Follows the target of a sequence under all conditions, `steps` frames spread over it, among pictures of targets
    of other scenes. The sequence is read into memory whole."""
    return _Mining(rng, network, sequence, steps, others).run(steps)


def mine_pairs(network: Network, samples: TrackingSamples, count: int) -> Mined:
    """What the tracker finds in the first `count` of some labelled samples (`DataConfig.positive_share`)."""
    parts = []
    for begin in tqdm(range(0, count, PAIRS_AT_ONCE), "pairs", file=sys.stderr):
        # One shape: the last batch is filled up, and cut in the end.
        drawn = [samples.sample(min(index, count - 1)) for index in range(begin, begin + PAIRS_AT_ONCE)]
        cache = network.encode(np.stack([sample["templates"] for sample in drawn]))
        found_cxcywh, features = network.locate(cache, np.stack([sample["search"] for sample in drawn]))
        truth_cxcywh = np.stack([sample["box_cxcywh"] for sample in drawn]).astype(np.float64)
        truth_cxcywh[[sample["label"] == 0 for sample in drawn]] = np.nan
        overlaps = np.nan_to_num(iou(cxcywh_to_xyxy(found_cxcywh), cxcywh_to_xyxy(truth_cxcywh).clip(0, 1)))
        templates, rows = np.asarray(cache.features[:, 0], np.float16), np.arange(len(drawn))
        parts.append(Mined(features, templates, rows, found_cxcywh, truth_cxcywh, overlaps, np.full(len(drawn), PAIR)))
    return Mined(*(column[:count] for column in join(parts)))


@dataclasses.dataclass
class _Run:
    """Where the run of one condition is."""

    frame: int
    direction: int
    box_xywh: Box
    margin: float
    templates: UInt8[np.ndarray, "slots s s 3"]
    factor: float
    since: int = 0
    lost: int = 0
    is_hidden: bool = False
    cover: tuple[int, np.ndarray, np.ndarray] | None = None  # how, three numbers, the picture
    template: int = -1  # number of its features; -1: to be encoded


class _Mining:
    def __init__(
        self, rng: np.random.Generator, network: Network, sequence: TrackingSequence, steps: int, others: Patches
    ) -> None:
        self.rng, self.network, self.others = rng, network, others
        self.frames = list(sequence.frames())
        self.boxes_xywh = _known(sequence.boxes_xywh, self.frames[0].shape)
        self.seen = np.flatnonzero(np.isfinite(self.boxes_xywh).all(axis=1))
        self.stride = max(1, round(len(self.frames) / steps))
        self.runs = [self._begin(condition) for condition in range(len(CONDITIONS))]
        self.features: list[np.ndarray] = []
        self.cache: Any = None

    def run(self, steps: int) -> Mined:
        rows, size = [], self.network.model.search_size
        for _ in range(steps):
            shown = [self._show(condition) for condition in range(len(CONDITIONS))]
            self._encode()
            crops = [
                context_crop(frame, run.box_xywh, run.factor, size)
                for (frame, _), run in zip(shown, self.runs, strict=True)
            ]
            found_cxcywh, features = self.network.locate(self.cache, np.stack([crop.pixels for crop in crops]))
            for condition, (run, (frame, truth)) in enumerate(zip(self.runs, shown, strict=True)):
                scale = crops[condition].scale
                in_crop = xywh_to_cxcywh(frame_box_to_crop(truth, run.box_xywh, scale, size))
                box = crop_box_to_frame(found_cxcywh[condition], run.box_xywh, scale, size)
                run.box_xywh = clip_box_xywh(box, frame.shape[0], frame.shape[1], np.array(run.margin))
                overlap = float(np.nan_to_num(iou(xywh_to_xyxy(run.box_xywh), xywh_to_xyxy(truth))))
                rows.append((features[condition], run.template, found_cxcywh[condition], in_crop, overlap, condition))
                run.lost = run.lost + 1 if overlap < LOST else 0
                self._disturb(condition, frame, overlap)
        columns = [np.array(column) for column in zip(*rows, strict=True)]
        return Mined(columns[0], np.array(self.features), *columns[1:])

    def _encode(self) -> None:
        """The caches of all conditions, where a template has changed."""
        if all(run.template >= 0 for run in self.runs):
            return
        self.cache = self.network.encode(np.stack([run.templates for run in self.runs]))
        initial = np.asarray(self.cache.features[:, 0], np.float16)
        for run, features in zip(self.runs, initial, strict=True):
            if run.template < 0:
                run.template = len(self.features)
                self.features.append(features)

    def _template_crop(self, frame: Frame, box_xywh: Box) -> np.ndarray:
        factor, size = self.network.tracker.template_factor, self.network.model.template_size
        return context_crop(frame, np.asarray(box_xywh, np.float64), factor, size).pixels

    def _begin(self, condition: int) -> _Run:
        rng, shape = self.rng, self.frames[0].shape
        index = int(self.seen[0] if condition == NATURAL else rng.choice(self.seen))
        truth = self.boxes_xywh[index]
        box = truth.copy()
        if condition == FOREIGN:
            chance = rng.random()
            box = box if chance < 0.25 else moved(rng, box, shape, 0.2) if chance < 0.6 else anywhere(rng, box, shape)
            template = self.others.templates[rng.integers(len(self.others.templates))]
        else:
            if condition != NATURAL:
                box[:2] += rng.normal(0, 0.03, 2) * truth[2:]
                box[2:] *= np.exp(rng.normal(0, 0.05, 2))
            template = self._template_crop(self.frames[index], box)
        slots = np.stack([template] * (1 + self.network.tracker.num_online_templates))
        direction = 1 if condition == NATURAL else int(rng.choice([-1, 1]))
        margin = float(np.clip(0.5 * min(box[2:]), 1, 10))
        return _Run(index, direction, box, margin, slots, self.network.tracker.search_factor)

    def _show(self, condition: int) -> tuple[Frame, Box]:
        """The next frame, as the tracker sees it, and the true box; NaN where the target is absent."""
        rng, last = self.rng, len(self.frames) - 1
        run = self.runs[condition]
        if not 0 <= run.frame + run.direction * self.stride <= last:
            run = self.runs[condition] = self._begin(condition)
            if not 0 <= run.frame + run.direction * self.stride <= last:
                run.direction *= -1
        run.frame = int(np.clip(run.frame + run.direction * self.stride, 0, last))
        run.since += 1
        frame, truth = self.frames[run.frame], self.boxes_xywh[run.frame].copy()
        if np.isnan(truth).any():
            return frame, truth
        if condition == FOREIGN:
            truth[:] = np.nan
        elif condition == ERASED:
            if run.since % 6 == 0:
                run.is_hidden = rng.random() < 2 / 3
            if run.is_hidden:
                frame, truth = erased(rng, frame, truth), np.full(4, np.nan)
        elif condition == COVERED:
            if run.since % 4 == 0:
                picture = self.others.targets[rng.integers(len(self.others.targets))]
                run.cover = (int(rng.integers(4)), rng.uniform(-1, 1, 3), picture)
            if run.cover is not None:
                frame = covered(frame, truth, *run.cover)
                if run.cover[0] == 0:
                    truth = np.full(4, np.nan)
        return frame, truth

    def _disturb(self, condition: int, frame: Frame, overlap: float) -> None:
        """What happens after a step."""
        rng, run, shape = self.rng, self.runs[condition], frame.shape
        truth = self.boxes_xywh[run.frame]
        is_seen, interval = bool(np.isfinite(truth).all()), self.network.tracker.update_interval
        begin_again, renew = False, False
        if condition == NATURAL:
            renew = run.since % max(1, interval // self.stride) == 0
            begin_again = run.lost > 10
        elif condition in (MOVED, DRIFTED):
            run.factor = self.network.tracker.search_factor if rng.random() < 0.5 else rng.uniform(*WIDE_FACTORS)
            if run.lost > 2 and is_seen:
                begin_again = rng.random() < 0.35
                run.box_xywh, run.lost = moved(rng, truth, shape, 0.0, 0.3), 0
            elif run.lost == 0 and run.since % 2 == 0 and is_seen and rng.random() < 0.7:
                run.box_xywh = (moved if rng.random() < 0.5 else anywhere)(rng, truth, shape)
            renew = run.since % 7 == 0 and (condition == DRIFTED or overlap > 0.5) and rng.random() < 0.7
        elif condition == FOREIGN:
            begin_again = run.since % 5 == 0
        else:
            begin_again = run.since % 24 == 0
            renew = run.since % 9 == 0 and overlap > 0.6
            if run.lost > 8 and is_seen:
                run.box_xywh, run.lost = moved(rng, truth, shape, 0.0, 0.5), 0
        if begin_again:
            self.runs[condition] = self._begin(condition)
        elif renew and len(run.templates) > 1:
            run.templates[1:], run.template = self._template_crop(frame, run.box_xywh), -1


def moved(rng: np.random.Generator, box_xywh: Box, shape: Sequence[int], least: float = 0.6, most: float = 3.0) -> Box:
    """The box, moved by `least` to `most` times its size, and a bit larger or smaller."""
    distance, angle = rng.uniform(least, most) * math.sqrt(box_xywh[2] * box_xywh[3]), rng.uniform(0, 2 * math.pi)
    sides = box_xywh[2:] * math.exp(rng.normal(0, 0.35)) * np.exp(rng.normal(0, 0.15, 2))
    centre = box_xywh[:2] + box_xywh[2:] / 2 + distance * np.array([math.cos(angle), math.sin(angle)])
    return _within(np.concatenate([centre - sides / 2, sides]), shape)


def anywhere(rng: np.random.Generator, box_xywh: Box, shape: Sequence[int]) -> Box:
    """A box of about the same size somewhere in the frame."""
    sides = box_xywh[2:] * np.exp(rng.normal(0, 0.4, 2))
    return _within(np.concatenate([rng.uniform([0, 0], [shape[1], shape[0]]) - sides / 2, sides]), shape)


def _within(box_xywh: Box, shape: Sequence[int]) -> Box:
    """A box that overlaps the frame, with sides that can be cropped."""
    limits = np.array([shape[1], shape[0]], np.float64)
    sides = np.clip(box_xywh[2:], MIN_SIDE, 2 * limits)
    return np.concatenate([np.clip(box_xywh[:2], -0.4 * sides, limits - 0.6 * sides), sides])


def erased(rng: np.random.Generator, frame: Frame, box_xywh: Box) -> Frame:
    """The frame without the target: what is beside it is drawn over it, or, where there is no room, its surroundings
    are continued inwards."""
    cover_xywh = _scaled(box_xywh, 1.45)
    for _ in range(6):
        move = rng.uniform([-3.0, -1.5], [3.0, 1.5])
        x, y, w, h = np.rint(np.concatenate([cover_xywh[:2] + move * box_xywh[2:], cover_xywh[2:]])).astype(int)
        is_beside = abs(move).max() > 1.3 and min(x, y) >= 0 and x + w <= frame.shape[1] and y + h <= frame.shape[0]
        if is_beside and min(w, h) >= MIN_SIDE:
            return _pasted(frame, frame[y : y + h, x : x + w], cover_xywh, is_ellipse=False)
    around_xywh = _scaled(cover_xywh, 1.6)
    side = 64  # painted small: it only has to hide the target
    small = context_crop(frame, np.array([*around_xywh[:2], *[math.sqrt(np.prod(around_xywh[2:]))] * 2]), 1.0, side)
    mask = np.zeros((side, side), np.uint8)
    mask[side // 5 : -side // 5, side // 5 : -side // 5] = 255
    painted = cv2.inpaint(small.pixels, mask, 3, cv2.INPAINT_TELEA)
    return _pasted(frame, painted[side // 6 : -side // 6, side // 6 : -side // 6], cover_xywh, is_ellipse=False)


def covered(frame: Frame, box_xywh: Box, how: int, numbers: Float[np.ndarray, "3"], picture: np.ndarray) -> Frame:
    """The frame with a picture over all of the target (`how` 0), over a part of it (1), or beside it (2, 3).

    `numbers`, between -1 and 1, are size, direction and distance.
    """
    size, turn, distance = numbers
    if how == 0:
        return _pasted(frame, picture, _scaled(box_xywh, 1.5 + 0.4 * size), is_ellipse=False)
    times, reach = (0.75 + 0.2 * size, 0.6) if how == 1 else (math.exp(0.4 * size), 1.2 + 0.6 * distance)
    move = reach * np.array([math.cos(math.pi * turn), math.sin(math.pi * turn)])
    return _pasted(frame, picture, _scaled(box_xywh, times, move), is_ellipse=True)


def _scaled(box_xywh: Box, times: float, move: np.ndarray | float = 0.0) -> Box:
    """The box `times` as large, moved by shares of its sides."""
    centre, sides = box_xywh[:2] + box_xywh[2:] / 2 + move * box_xywh[2:], times * box_xywh[2:]
    return np.concatenate([centre - sides / 2, sides])


def _pasted(frame: Frame, picture: np.ndarray, box_xywh: Box, is_ellipse: bool) -> Frame:
    """A copy of the frame with a picture in a box, its edge soft."""
    frame = frame.copy()
    x, y = np.rint(box_xywh[:2]).astype(int)
    w, h = np.maximum(np.rint(box_xywh[2:]), 3).astype(int)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, frame.shape[1]), min(y + h, frame.shape[0])
    if left >= right or top >= bottom:
        return frame
    interpolation = cv2.INTER_AREA if w < picture.shape[1] else cv2.INTER_LINEAR
    pixels = cv2.resize(picture, (int(w), int(h)), interpolation=interpolation)
    rows, columns = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    distance = np.hypot(rows, columns) if is_ellipse else np.maximum(abs(rows), abs(columns))
    inside = np.s_[top - y : bottom - y, left - x : right - x]
    mask, pixels = np.clip((1 - distance) / 0.2, 0, 1)[inside][..., None], pixels[inside]
    region = frame[top:bottom, left:right]
    region[:] = np.rint(region + mask * (pixels.astype(np.float64) - region))
    return frame


def scenes_of(names: Iterable[str], groups: Sequence[Sequence[str]]) -> Mapping[str, str]:
    """The scene of each sequence: the first name of its group, or its own."""
    first = {name: group[0] for group in groups for name in group}
    return {name: first.get(name, name) for name in names}
