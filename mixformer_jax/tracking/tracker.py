"""The tracker that users hold: weights, a device, and the host side of a step."""

import dataclasses
import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt8

from mixformer_jax import DEFAULT_MASKS
from mixformer_jax.boxes import check_box_xywh, check_boxes
from mixformer_jax.convert.convert import find_weights, read_weights
from mixformer_jax.crops import context_crop
from mixformer_jax.masks import encode_rle
from mixformer_jax.media.sources import Frame, FrameSource
from mixformer_jax.media.video import open_source
from mixformer_jax.models.config import ComputeDtype, ConfigError, MixFormerConfig, TrackerConfig, size_config
from mixformer_jax.models.mixformer import MixFormer, build_model, init_variables
from mixformer_jax.pixels import checked_frame
from mixformer_jax.tracking import targets as target_rows
from mixformer_jax.tracking.masks import Segmenter, load_segmenter
from mixformer_jax.tracking.step import (
    AnyArray,
    TrackPrediction,
    TrackState,
    Variables,
    clip_margins,
    encode_templates,
    keep_new_candidates,
    refresh_templates,
    start_from_crops,
    step_from_crops,
    update_templates,
)

logger = logging.getLogger(__name__)

RECORD_FIELDS = ("frame", "time", "target", "x", "y", "w", "h", "score", "lost")


class Tracked(NamedTuple):
    """The targets on one frame, on the host, in the order in which their boxes were given, and so of their numbers.

    `box_xywh`, `score` and `is_lost` are for those who follow one target; with several they raise ValueError. Scores
    and lost flags are None for models without a score prediction module.
    """

    boxes_xywh: Float[np.ndarray, "n 4"]  # pixels, clipped to the frame
    scores: Float[np.ndarray, " n"] | None = None  # confidence in [0, 1]
    lost: Bool[np.ndarray, " n"] | None = None  # whether the target counts as lost; not in the paper, changes no box
    numbers: Int64[np.ndarray, " n"] | None = None  # of targets that come and go (`Tracker.add`); None: 0, 1, ...
    frame: int | None = None  # its number in the source, counted from 1; None where there is no source
    time: float | None = None  # seconds in the source
    masks: Bool[np.ndarray, "n height width"] | None = None  # of trackers `Tracker.with_masks`

    @classmethod
    def given(cls, boxes_xywh: Float64[np.ndarray, "n 4"], has_scores: bool) -> "Tracked":
        """Targets where somebody marks them, which is certain: with `has_scores` they score 1, and are not lost."""
        n = len(boxes_xywh)
        return cls(boxes_xywh, np.ones(n), np.zeros(n, bool)) if has_scores else cls(boxes_xywh)

    @property
    def box_xywh(self) -> Float[np.ndarray, "4"]:
        return self._only("box_xywh", "boxes_xywh")

    @property
    def score(self) -> float | None:
        score = self._only("score", "scores")
        return None if score is None else float(score)

    @property
    def is_lost(self) -> bool | None:
        lost = self._only("is_lost", "lost")
        return None if lost is None else bool(lost)

    def records(self) -> list[dict[str, Any]]:
        """A record a target, of plain numbers under RECORD_FIELDS, as files of boxes have them (but not rounded).

        With masks also `mask`, run lengths (`masks.encode_rle`).
        """
        records = []
        indices = range(len(self.boxes_xywh)) if self.numbers is None else self.numbers
        for index, (number, box_xywh) in enumerate(zip(indices, self.boxes_xywh, strict=True)):
            numbers = dict(zip("xywh", map(float, box_xywh), strict=True))
            score = None if self.scores is None else float(self.scores[index])
            lost = None if self.lost is None else bool(self.lost[index])
            target = {"target": int(number) + 1, **numbers, "score": score, "lost": lost}
            mask = {} if self.masks is None else {"mask": encode_rle(self.masks[index])}
            records.append({"frame": self.frame, "time": self.time, **target, **mask})
        return records

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, as JSON takes them: `frame`, `time`, and under `targets` what is left of the records."""
        of_frame = RECORD_FIELDS[:2]
        targets = [{k: v for k, v in record.items() if k not in of_frame} for record in self.records()]
        return {"frame": self.frame, "time": self.time, "targets": targets}

    def _only(self, name: str, of_all: str) -> Any:
        if len(self.boxes_xywh) != 1:
            raise ValueError(f"{name} is for a single target and there are {len(self.boxes_xywh)}; use {of_all}")
        values = getattr(self, of_all)
        return None if values is None else values[0]


class Crops(NamedTuple):
    """Crops of targets, and their scales (crop pixels per frame pixel)."""

    pixels: UInt8[np.ndarray, "n S S c"]
    scales: Float32[np.ndarray, " n"]


class Tracker:
    """Tracks targets through a video; holds nothing that changes, so that any number of threads may share it.

        state = tracker.start(frame, box_xywh)
        state, tracked = tracker.step(state, frame)

    `add`, `remove`, `replace` and `add_template` change who is followed, between any two steps.

    `model` is the network, `settings` how it tracks, `variables` its weights, on `device`. Crops are cut on the host,
    bit for bit as the official code cuts them, so that one compiled program serves every size of frame and every
    target, but not another number of targets. `tracking.step` has the same from frame to box on the device.
    """

    def __init__(
        self,
        model: MixFormerConfig,
        settings: TrackerConfig,
        variables: Variables,
        device: jax.Device | None = None,
        segmenter: Segmenter | None = None,
    ) -> None:
        needing_scores = [name for name in ("redetect_every", "entropy_margin", "long_term") if getattr(settings, name)]
        if needing_scores and not model.score_heads:
            raise ConfigError(
                f"{', '.join(needing_scores)}: for models that give scores, those with _online; {model.name} gives none"
            )
        if settings.entropy_margin and model.head == "query":
            raise ConfigError(
                f"entropy_margin is {settings.entropy_margin:g}, and {model.name} has a query head, without corners; "
                "expected 0"
            )
        if segmenter is not None and model.streams == "second":
            raise ConfigError(
                f"masks are found in colour, and {model.name} reads the second stream alone (second_stream is "
                f"{model.second_stream!r}); leave them out"
            )
        self.settings, self.segmenter = settings, segmenter
        self.device = jax.devices()[0] if device is None else device
        self.model = build_model(model, platform=self.device.platform)
        self.variables = jax.device_put(_in_compute_type(variables, model.dtype), self.device)

    @property
    def config(self) -> MixFormerConfig:
        """The model's settings."""
        return self.model.config

    @property
    def parts(self) -> tuple[MixFormer, TrackerConfig, Variables]:
        """What the programs of `tracking.step` take first."""
        return self.model, self.settings, self.variables

    @property
    def has_scores(self) -> bool:
        """Whether predictions carry scores: models with a score prediction module."""
        return self.config.score_heads > 0

    @classmethod
    def random(
        cls, name: str, device: str | None = None, seed: int = 0, dtype: ComputeDtype | None = None
    ) -> "Tracker":
        """A tracker of a size in the table with random weights, for measuring speed. Otherwise as `load`.

        Raises ConfigError: no such size or compute type. Raises ValueError: no such device.
        """
        found, dtype = _device_and_dtype(device, dtype)
        config = dataclasses.replace(size_config(name), dtype=dtype)
        variables = init_variables(build_model(config), jax.random.key(seed))
        return cls(config, TrackerConfig(), variables, found)

    def with_settings(self, **changes: Any) -> "Tracker":
        """The same weights, tracking otherwise: `tracker.with_settings(search_factor=5.05)`.

        Raises ConfigError: unknown settings (the closest known ones are named), or values that cannot work.
        """
        settings = TrackerConfig.from_dict(self.settings.to_dict() | changes)
        return Tracker(self.config, settings, self.variables, self.device, self.segmenter)

    def with_masks(self, masks: str | Path | Segmenter = DEFAULT_MASKS) -> "Tracker":
        """The same tracker, whose answers have masks, too: by a segmenter, or by the weights that
        `masks.load_segmenter` takes; WeightsError as there."""
        segmenter = load_segmenter(masks, self.device) if isinstance(masks, (str, Path)) else masks
        return Tracker(self.config, self.settings, self.variables, self.device, segmenter)

    def start(self, frame: Any, boxes_xywh: Any) -> TrackState:
        """Begins to track the targets that boxes mark on a frame.

        Args:
            frame: RGB, uint8 [height, width, 3]: a numpy or JAX array, lists of numbers, or a PIL image. Of models with
                a second stream [height, width, 6], RGB and behind it that stream; others take RGB from such a frame.
            boxes_xywh: one box x, y, w, h in pixels, or [n, 4] of them; each must overlap the frame.

        Raises ValueError: the frame is no RGB image of bytes, or a box is unusable.
        """
        frame = checked_frame(frame, self.config.streams)
        boxes = check_boxes(boxes_xywh, frame.shape)
        _warn_of_small_targets(self.settings, boxes)
        crops = self.template_crops(dict.fromkeys(range(len(boxes)), frame), boxes)
        # On the device from the first frame on: arrays that JAX may still move would compile another program.
        arrays = jax.device_put((crops, boxes.astype(np.float32)), self.device)
        state = start_from_crops(*self.parts, *arrays)
        if self.segmenter is None:
            return state
        return state._replace(mask_targets=self.segmenter.start(frame[..., :3], boxes))

    def add(
        self, state: TrackState | None, frame: Any, boxes_xywh: Any
    ) -> tuple[TrackState, Int64[np.ndarray, " new"]]:
        """Further targets, which boxes mark on the frame of the last step; a state of None follows nobody yet.

        Rows are kept in powers of two, so one program serves 5 to 8 targets (`tracking.targets`). The new targets'
        numbers stay with them (`Tracked.numbers`) and are never given again; those of `start` are 0, 1, ...

        Raises ValueError: as `start`.
        """
        frame = checked_frame(frame, self.config.streams)
        boxes = check_boxes(boxes_xywh, frame.shape)
        return target_rows.add_targets(state, [self.start(frame, box_xywh) for box_xywh in boxes])

    def remove(self, state: TrackState, targets: Any) -> TrackState:
        """No longer follows the target of a number, or of several; ValueError for one that is not followed."""
        return target_rows.remove_targets(state, np.atleast_1d(targets).tolist())

    def replace(self, state: TrackState, target: int, frame: Any, box_xywh: Any) -> TrackState:
        """Corrects a target: it begins anew from a box on the frame of the last step, and keeps its number.

        Raises ValueError: as `start`, or the target is not followed.
        """
        target_rows.row_of(state, target)
        frame = checked_frame(frame, self.config.streams)
        return target_rows.replace_target(state, target, self.start(frame, check_box_xywh(box_xywh, frame.shape)))

    def add_template(self, state: TrackState, target: int, frame: Any, box_xywh: Any) -> TrackState:
        """A further template of a target, which a box marks on any frame: it stays, as the initial one does.

        It takes an online slot; when the user's templates fill all of them, the newest is replaced.

        Raises ValueError: as `start`, the target is not followed, or the tracker has no online slots.
        """
        settings, row = self.settings, target_rows.row_of(state, target)
        if settings.num_online_templates == 0:
            raise ValueError(
                "this tracker has no slot for another template (num_online_templates is 0); "
                "use tracker.with_settings(num_online_templates=1), or --tracker.num_online_templates=1"
            )
        frame = checked_frame(frame, self.config.streams)
        crops = self.template_crops({0: frame}, check_box_xywh(box_xywh, frame.shape)[None])
        pinned = min(int(target_rows.targets_of(state).pinned[row]) + 1, settings.num_online_templates)
        alone = target_rows.target_alone(state, target)
        templates = alone.templates.at[:, pinned].set(crops)
        filled = alone.filled.at[:, pinned].set(True)
        cache = encode_templates(*self.parts, templates, filled)
        alone = alone._replace(templates=templates, filled=filled, cache=cache)
        return target_rows.put_row(state, row, alone, pinned=pinned)

    def step(self, state: TrackState, frame: Any) -> tuple[TrackState, Tracked]:
        """Finds the targets on the next frame; ValueError as `start`."""
        frame = checked_frame(frame, self.config.streams)
        settings, targets, rows = self.settings, state.targets, target_rows.live_rows(state)
        numbers = None if targets is None else targets.numbers[rows]
        if len(rows) == 0:
            nobody = Tracked.given(np.zeros((0, 4)), self.has_scores)
            return state, nobody._replace(numbers=numbers, masks=self.segment(state, frame, nobody.boxes_xywh))
        state, prediction = self.locate(target_rows.without_free_looks(state), self.search_crops(state, frame), frame)
        found_xywh = np.asarray(prediction.boxes_xywh, np.float64)

        def cut(wanted: Bool[np.ndarray, " n"] | None) -> UInt8[np.ndarray, "n T T c"]:
            chosen = rows if wanted is None else np.flatnonzero(wanted)
            return self.template_crops(dict.fromkeys(chosen.tolist(), frame), found_xywh)

        live = np.isin(np.arange(len(found_xywh)), rows)
        is_candidate = None if prediction.is_candidate is None else np.asarray(prediction.is_candidate) & live
        if targets is None:
            state = update_templates(*self.parts, state, is_candidate, cut)
        else:  # each target counts its own frames
            state = keep_new_candidates(settings, state, is_candidate, cut)._replace(targets=targets)
            for row, alone, pinned in target_rows.due_rows(state, settings):
                # As for a single target, so that templates do not depend on the others.
                cut_alone = functools.partial(lambda row, _all: cut(None)[row : row + 1], row)
                renewed = refresh_templates(*self.parts, alone, cut_alone, pinned)
                state = target_rows.put_row(state, row, renewed, refreshes=int(renewed.num_refreshes))
        # Copies: numpy's view of a JAX array keeps all of it, and who follows a long video keeps every frame's.
        scores, lost = (None if x is None else np.asarray(x)[rows] for x in (prediction.scores, prediction.lost))
        boxes_xywh = found_xywh[rows]
        return state, Tracked(boxes_xywh, scores, lost, numbers, masks=self.segment(state, frame, boxes_xywh))

    def segment(
        self, state: TrackState, frame: Frame, boxes_xywh: Float64[np.ndarray, "n 4"]
    ) -> Bool[np.ndarray, "n height width"] | None:
        """Masks of the targets that are followed, at their boxes on a frame; None without `with_masks`."""
        if self.segmenter is None:
            return None
        colour, targets, count = frame[..., :3], state.mask_targets, len(boxes_xywh)
        if state.targets is None:
            return self.segmenter.segment(targets, colour, boxes_xywh)
        if count == 0:
            return np.zeros((0, *frame.shape[:2]), bool)
        # As many as the state has rows, for which a program is compiled: targets stand in for the free ones.
        chosen = np.resize(np.arange(count), len(state.boxes_xywh))
        rows = target_rows.live_rows(state)[chosen]
        targets = jax.tree.map(lambda many: many[rows], targets)
        return self.segmenter.segment(targets, colour, boxes_xywh[chosen])[:count]

    def track(
        self, source: str | Path | int | np.ndarray | Sequence[np.ndarray] | FrameSource, boxes_xywh: Any
    ) -> Iterator[tuple[Frame, Tracked]]:
        """Follows targets through a source: each frame and what is on it, with its number and time.

            for frame, tracked in tracker.track("walk.mp4", [120, 80, 60, 90]):
                print(tracked.to_dict())

        The first is what was given, with score 1. The source is what `media.video.open_source` takes, or one that is
        open, such as a `SelectedFrames`; it is closed at the end, or when the iteration is left.

        Raises SourceError: it cannot be opened, or breaks off. Raises ValueError: as `start`.
        """
        with source if isinstance(source, FrameSource) else open_source(source) as frames:
            state = None
            for frame in frames.timed():
                if state is None:
                    state = self.start(frame.pixels, boxes_xywh)
                    boxes = check_boxes(boxes_xywh, frame.pixels.shape)
                    tracked = Tracked.given(boxes, self.has_scores)
                    tracked = tracked._replace(masks=self.segment(state, frame.pixels, boxes))
                else:
                    state, tracked = self.step(state, frame.pixels)
                yield frame.pixels, tracked._replace(frame=frame.number, time=frame.seconds)

    def search_crops(self, state: TrackState, frame: Frame) -> Crops:
        """The first part of a step: search crops around the last boxes."""
        return self.crops_around(dict.fromkeys(range(len(state.boxes_xywh)), frame), state.boxes_xywh)

    def locate(self, state: TrackState, crops: Crops, frame: Frame) -> tuple[TrackState, TrackPrediction]:
        """The second part: from the search crops to the boxes on the frame, of which lost targets may need more crops.

        Online templates are the business of `step`: here none is refreshed.
        """
        state, prediction = step_from_crops(
            *(*self.parts, state, *crops, np.array(frame.shape[:2], np.int32)),
            look=lambda boxes_xywh: self.crops_around(dict.fromkeys(range(len(boxes_xywh)), frame), boxes_xywh),
        )
        # One wait for all that the host reads of this step; each array keeps its value for the next reader.
        jax.device_get((state.frame_index, prediction[0], *prediction[2:]))
        return state, prediction

    def crops_around(self, frames: Mapping[int, Frame], boxes_xywh: Float[AnyArray, "n 4"]) -> Crops:
        """Search crops of targets, each around its box in its frame; black, of scale 1, for targets without a frame."""
        return self._crops(frames, boxes_xywh, self.settings.search_factor, self.config.search_size)

    def template_crops(
        self, frames: Mapping[int, Frame], boxes_xywh: Float[AnyArray, "n 4"]
    ) -> UInt8[np.ndarray, "n T T c"]:
        """Template crops in the same way."""
        return self._crops(frames, boxes_xywh, self.settings.template_factor, self.config.template_size).pixels

    def _crops(self, frames: Mapping[int, Frame], boxes: Float[AnyArray, "n 4"], factor: float, size: int) -> Crops:
        boxes_xywh = np.asarray(boxes, np.float64)
        pixels = np.zeros((len(boxes_xywh), size, size, self.config.channels), np.uint8)
        scales = np.ones(len(boxes_xywh), np.float32)
        for target, frame in frames.items():
            crop = context_crop(frame, boxes_xywh[target], factor, size)
            pixels[target], scales[target] = crop.pixels, crop.scale
        return Crops(pixels, scales)


def _warn_of_small_targets(settings: TrackerConfig, boxes_xywh: Float64[np.ndarray, "n 4"]) -> None:
    """Says which targets are smaller than any box that the tracker can give, and the setting that helps."""
    for number, (box_xywh, margin) in enumerate(zip(boxes_xywh, clip_margins(settings, boxes_xywh), strict=True), 1):
        width, height = box_xywh[2:]
        if margin > max(1, min(width, height)):
            enough = max(1, math.floor(min(width, height) / 2))
            logger.warning(
                "%s is %g x %g pixels, and no box of this tracker is smaller than %g x %g (clip_margin); boxes can be "
                "as small as the target with --tracker.clip_margin=%d, or tracker.with_settings(clip_margin=%d)",
                f"target {number}" if len(boxes_xywh) > 1 else "the target",
                *(width, height, margin, margin, enough, enough),
            )


def load(weights: str | Path | None = None, device: str | None = None, dtype: ComputeDtype | None = None) -> Tracker:
    """A tracker with trained weights.

    Args:
        weights: None for the embedded default; the name of an embedded file; a `.safetensors` file of this project; the
            folder of a training run; or an official checkpoint (`.pth`, `.pth.tar`, or `.safetensors` with official
            names), which is converted in memory.
        device: to run on, see `find_device`; None for JAX's default.
        dtype: compute type; None for float32 on a CPU and bfloat16 elsewhere.

    Raises:
        WeightsError: no such weights, an unreadable file, weights of another model, or PyTorch is missing for its file.
        ConfigError: a compute type in which this project does not compute.
        ValueError: no such device.
    """
    found, dtype = _device_and_dtype(device, dtype)  # before seconds of reading
    file = read_weights(find_weights(weights))
    return Tracker(dataclasses.replace(file.model, dtype=dtype), file.tracker, file.variables, found)


def _in_compute_type(variables: Variables, dtype: ComputeDtype) -> Variables:
    """Matrices as the model computes with them, rather than converted on every frame.

    Depth-wise kernels, of three axes, are multiplied in float32, and so are those that end in one channel of a map.
    """

    def cast(path: tuple[Any, ...], value: Any) -> Any:
        name, in_float32 = path[-1].key, value.ndim == 3 or (value.ndim == 4 and value.shape[-1] == 1)
        return value.astype(dtype) if name in ("kernel", "table") and not in_float32 else value

    return jax.tree_util.tree_map_with_path(cast, variables)


def check_dtype(dtype: object) -> None:
    """Raises ConfigError for types whose numbers were not held to the official ones, such as float16."""
    if dtype not in get_args(ComputeDtype):
        raise ConfigError(f"dtype is {dtype!r}; expected {' or '.join(get_args(ComputeDtype))}")


def find_device(name: str | None) -> jax.Device:
    """A device by kind (`cpu`, `gpu`, `cuda`, `rocm`, `tpu`), the first or `cuda:1`; None: JAX's default.

    Raises ValueError: there is none.
    """
    if name is None:
        return jax.devices()[0]
    kind, _, number = name.partition(":")
    if not kind or (number and not number.isdecimal()) or name.endswith(":"):
        raise ValueError(f"device {name!r}; expected a kind and perhaps a number, such as cpu, gpu or cuda:1")
    try:
        devices = jax.devices(kind)
    except RuntimeError as error:
        have = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(f"no device of kind {kind!r} here; JAX sees: {have}") from error
    if int(number or 0) >= len(devices):
        raise ValueError(f"no device {name!r} here; JAX sees {len(devices)} of kind {kind!r}, counted from 0")
    return devices[int(number or 0)]


def _device_and_dtype(kind: str | None, dtype: ComputeDtype | None) -> tuple[jax.Device, ComputeDtype]:
    device = find_device(kind)
    if dtype is None:
        dtype = "float32" if device.platform == "cpu" else "bfloat16"
    check_dtype(dtype)
    return device, dtype
