"""Fine-tuning: a trained tracker on one's own annotated videos. The steps are those of `loop.py`; here is what stands
around them: the split by videos, the recipe, the score module, and the tracker before and after. Not in the paper.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mixformer_jax.convert.convert import RUN_WEIGHTS, find_weights, read_weights
from mixformer_jax.convert.weights import Weights, load_weights, save_weights
from mixformer_jax.data.packing import PackConfig, pack
from mixformer_jax.data.pairs import MIN_FRAMES, can_be_drawn, usable_frames
from mixformer_jax.data.pool.folder import clip_names
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.evaluation.metrics import benchmark_rules
from mixformer_jax.evaluation.runner import run_dataset
from mixformer_jax.evaluation.scoring import TrackerScores, find_results, score_results
from mixformer_jax.evaluation.trackers import TrackerChoice, weights_digest
from mixformer_jax.evaluation.workers import Alone
from mixformer_jax.files import write_atomically
from mixformer_jax.models.config import ComputeDtype
from mixformer_jax.training.experiment import TrainConfig
from mixformer_jax.training.folder import claim_folder, locked
from mixformer_jax.training.loop import train
from mixformer_jax.training.progress import LINES_NAME, read_lines

START_WEIGHTS = "start.safetensors"  # what is fine-tuned, in the run's folder
HELD_OUT_SHARE = 0.2  # of the videos
RATE = 0.1  # of the recipe's
OWN_SHARE = 0.5  # of the samples, where a pool is in the mix
BATCH = 32
STEPS_BY_FRAMES = 12.0  # times the square root of the frames to train on
LEAST_STEPS, MOST_STEPS = 200, 3000
AVERAGED_SHARE, MOST_AVERAGED = 0.1, 100  # steps of the moving average: a share of all, at most so many
VALIDATIONS = 6
WORSE = 0.005  # held-out IoU by which the last step may be below the best one

# What of a recipe holds for fine-tuning as well.
_KEPT = ("iou_loss", "iou_weight", "l1_weight", "corner_weight", "backbone_rate", "weight_decay", "beta2", "clip_norm")


logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """Sequences to train on and those held out; all of a video are on one side."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


class Scores(NamedTuple):
    """The tracker before and after, on the held-out sequences; of a single video, on those trained on."""

    sequences: tuple[str, ...]
    before: TrackerScores
    after: TrackerScores


def begun(dataset: Dataset) -> Dataset:
    """The sequences from the first frame that shows their target, from which alone they can be tracked."""
    return Dataset(dataset.name, dataset.root, dataset.keys, functools.partial(_read_begun, dataset))


def _read_begun(dataset: Dataset, key: str) -> TrackingSequence:
    sequence = dataset.read(key)
    seen = np.flatnonzero(usable_frames(sequence))
    if not len(seen):
        raise DatasetError(f"{sequence.root}, {key}: no frame shows the target; leave the sequence out")
    first = int(seen[0])
    height, width = copy.copy(sequence.frame)(first).shape[:2]
    x, y, w, h = sequence.boxes_xywh[first]
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise DatasetError(
            f"{sequence.root}, {key}: its first box, {x:g},{y:g},{w:g},{h:g} on frame {first}, lies outside the "
            f"picture of {width}x{height}; mend it, or put the video there that was annotated"
        )
    if not first:
        return sequence
    visible = None if sequence.visible is None else sequence.visible[first:]
    frame = _FramesFrom(sequence.frame, first)
    return dataclasses.replace(sequence, boxes_xywh=sequence.boxes_xywh[first:], frame=frame, visible=visible)


@dataclasses.dataclass(frozen=True)
class _FramesFrom:
    frame: Any
    first: int

    def __call__(self, index: int) -> np.ndarray:
        return self.frame(self.first + index)

    def __copy__(self) -> "_FramesFrom":
        return _FramesFrom(copy.copy(self.frame), self.first)  # a video's copy has a decoder of its own


def split_by_video(dataset: Dataset, held_out: Sequence[str] | None = None) -> Split:
    """Holds out a fifth of the videos, at least one, spread over their order; none where there is a single one.

    `held_out` names sequences or videos to hold out instead.

    Raises DatasetError: sequences that cannot be read, no frames, names that are not there, nothing left to train on.
    """
    sequences, unreadable = dataset.read_all()
    if unreadable:
        first = next(iter(unreadable.values()))
        raise DatasetError(f"{len(unreadable)} of {len(dataset)} sequences cannot be read; the first: {first}")
    for sequence in sequences:
        sequence.require_frames()
        if sequence.is_still:
            raise DatasetError(f"{dataset.root}: {sequence.name} is a photograph; expected videos")
    by_video: dict[str, list[str]] = {}
    for key, sequence in zip(dataset.keys, sequences, strict=True):
        by_video.setdefault(sequence.video or sequence.name, []).append(key)
    videos = list(by_video)
    if held_out is None:
        count = max(1, round(HELD_OUT_SHARE * len(videos))) if len(videos) > 1 else 0
        chosen = {videos[int(place)] for place in np.linspace(0, len(videos) - 1, count + 2)[1:-1]} if count else set()
    else:
        chosen = {video for video, keys in by_video.items() if {video, *keys} & set(held_out)}
        known = {*by_video, *dataset.keys}
        if unknown := sorted(set(held_out) - known):
            raise DatasetError(
                f"{dataset.root} has no sequence {', '.join(unknown)} to hold out; it has {sorted(known)}"
            )
    parts = [tuple(key for video in videos if (video in chosen) == held for key in by_video[video]) for held in (0, 1)]
    if not parts[0]:
        raise DatasetError(f"{dataset.root}: all {len(videos)} videos are held out; leave one to train on")
    return Split(*parts)


def count_frames(dataset: Dataset, slots: int) -> int:
    """Frames that samples with so many template slots are drawn from; DatasetError where no sequence is long enough."""
    counts = {
        key: int(usable_frames(sequence).sum()) if can_be_drawn(sequence, slots) else 0
        for key, sequence in zip(dataset.keys, dataset, strict=True)
    }
    if not any(counts.values()):
        raise DatasetError(
            f"{dataset.root}: none of {', '.join(dataset.keys)} has {MIN_FRAMES} frames and the target in more than "
            f"{2 * (1 + slots)} of them; annotate longer stretches, or hold out others"
        )
    if short := [key for key, count in counts.items() if not count]:
        logger.warning(
            "%s: no samples are drawn from %s: they need %d frames, and the target in more than %d of them",
            *(dataset.root, ", ".join(short), MIN_FRAMES, 2 * (1 + slots)),
        )
    return sum(counts.values())


def default_steps(frames: int) -> int:
    """Steps of BATCH samples for so many frames to train on: more frames, more steps, and more looks at each of few."""
    return int(np.clip(round(STEPS_BY_FRAMES * math.sqrt(frames), -1), LEAST_STEPS, MOST_STEPS))


def finetune_config(
    recipe: Mapping[str, Any],
    weights: Weights,
    out: Path,
    split: Split,
    steps: int,
    pool: Path | None,
    dtype: ComputeDtype = "float32",
) -> dict[str, Any]:
    """The config of the box stage (`Experiment`): model and tracker are the weights', the rest a gentler recipe.

    The `recipe` is a config by which a model of the kind was trained. Photographs and videos of the `pool`, None being
    none, stay in the mix, but for those held out, here (by name) or by the recipe.
    """
    model, tracker = dataclasses.replace(weights.model, score_heads=0, dtype=dtype), weights.tracker
    data, theirs = dict(recipe["data"]), recipe["train"]
    crops, augment = dict(data.get("crops", {})), dict(data.get("augment", {}))
    crops["centre_jitter"] = min(crops.get("centre_jitter", tracker.search_factor), tracker.search_factor)
    own = {"root": str(out / "videos" / "train"), "reader": "packed", "ratio": 1.0}
    if pool is None:
        augment["occluder_probability"] = 0.0  # they are cut out of photographs
        data |= {"exclude": (), "groups": ()}
    else:
        own["ratio"] = sum(data.get("mix", {"all": 1.0}).values()) * OWN_SHARE / (1 - OWN_SHARE)
        left_out = {*data.get("exclude", ()), *split.held_out}
        data["exclude"] = tuple(name for name in clip_names(pool) if name in left_out)
    held = {"held_out": {"root": str(out / "videos" / "held_out"), "reader": "packed"}} if split.held_out else {}
    data |= {"root": None if pool is None else str(pool), "crops": crops, "augment": augment}
    data |= {"datasets": {"own": own}, "validation": held, "frames": "causal", "positive_share": None, "render": "host"}
    every = max(1, math.ceil(steps / VALIDATIONS))
    settings = {
        **{name: theirs[name] for name in _KEPT if name in theirs},
        "steps": steps,
        "batch_size": BATCH,
        "learning_rate": RATE * theirs.get("learning_rate", TrainConfig.learning_rate),
        "schedule": "cosine",
        "warmup_steps": steps // 20,
        "ema_decay": min(1 - 1 / MOST_AVERAGED, max(0.0, 1 - 1 / (AVERAGED_SHARE * steps))),
        "log_every": max(1, every // 5),
        "validate_every": every,
        "checkpoint_every": every,
        "export": "best" if held else "last",
        "init": str(out / START_WEIGHTS),
    }
    if model.head == "query":
        settings["corner_weight"] = 0.0
    return {"model": model.to_dict(), "tracker": tracker.to_dict(), "data": data, "train": settings}


class FineTuning:
    """One fine-tuning in its folder; made again on the same folder, it goes on.

    The folder holds `start.safetensors` (the weights as they were), `videos/` (the surroundings of all targets,
    packed), `boxes/` (the training's run), `results/before` and `results/after`, and, at the end, `model.safetensors`.
    """

    def __init__(
        self,
        dataset: Dataset,
        weights: str | None,
        out: Path,
        held_out: Sequence[str] | None = None,
        device: jax.Device | None = None,
        dtype: ComputeDtype | None = None,
    ) -> None:
        """Splits the videos and claims the folder. No device: JAX's choice, and all of its kind for the steps. No
        compute type: float32 on a CPU, bfloat16 elsewhere.

        Raises DatasetError: see `split_by_video` and `count_frames`; TrainingError: the folder belongs to another
        fine-tuning; WeightsError: weights that cannot be read.
        """
        self.dataset, self.out, self.device = begun(dataset), out, device
        platform = (device or jax.devices()[0]).platform
        self.dtype: ComputeDtype = dtype or ("float32" if platform == "cpu" else "bfloat16")
        self.split = split_by_video(self.dataset, held_out)
        # What is tracked before and after.
        self.shown = self.dataset.subset(self.split.held_out or self.split.train)
        self.start = read_weights(find_weights(weights))
        self.frames = count_frames(self.dataset.subset(self.split.train), self.start.tracker.num_slots)
        if self.split.held_out:
            count_frames(self.shown, self.start.tracker.num_slots)
        self.minutes = defaultdict[str, float](float)
        boxes = hashlib.sha256()
        for sequence in self.dataset:
            boxes.update(sequence.boxes_xywh.tobytes())
        inputs = {"weights": weights_digest(weights), "videos": str(dataset.root.resolve()), "boxes": boxes.hexdigest()}
        claim_folder(out, {**inputs, "held_out": list(self.split.held_out)})
        if not (out / START_WEIGHTS).exists():
            save_weights(out / START_WEIGHTS, *self.start[:3])

    def run(self, config: Mapping[str, Any]) -> Scores:
        """Packs, tracks, trains by a config of `finetune_config`, and tracks again. At a signal, Stopped; what is done
        is kept."""
        with locked(self.out), jax.default_device(self.device):
            with self._timed("packing"):
                self._pack()
            with self._timed("tracking"):
                before = self._track("before", self.out / START_WEIGHTS)
            with self._timed("training"):
                trained = train(config, self.out / "boxes", None if self.device is None else [self.device])
            self._export(load_weights(trained))
            with self._timed("tracking"):
                after = self._track("after", self.out / RUN_WEIGHTS)
        return Scores(tuple(self.shown.keys), before, after)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.minutes[what] += (time.perf_counter() - began) / 60

    def _pack(self) -> None:
        model, tracker = self.start.model, self.start.tracker
        config = PackConfig(
            target_side=max(PackConfig.target_side, model.search_size / tracker.search_factor),
            template_factor=max(PackConfig.template_factor, tracker.template_factor),
            search_factor=max(PackConfig.search_factor, tracker.search_factor),
        )
        for name, keys in self.split._asdict().items():
            if keys:
                folder = self.out / "videos" / name
                report = pack(self.dataset.subset(keys), folder, config, os.cpu_count() or 1, progress=True)
                if report.faults:
                    raise DatasetError(f"{len(report.faults)} frames cannot be read; the first: {report.faults[0]}")

    def _track(self, name: str, weights: Path) -> TrackerScores:
        device = None if self.device is None else f"{self.device.platform}:{self.device.id}"
        opened = TrackerChoice("mixformer", str(weights), device, dtype=self.dtype).open()
        results, sequences, kind = self.out / "results", self.shown, self.dataset.name
        summary = run_dataset(Alone(opened), sequences, results, name, opened.settings, kind, about=opened.about)
        if summary.failures:
            failure = summary.failures[0]
            raise DatasetError(f"{failure.sequence} cannot be tracked: {failure.reason}")
        files = find_results(results, sequences.keys, [name])
        return score_results(files, kind, sequences, benchmark_rules(kind)).trackers[0]

    def _export(self, trained: Weights) -> None:
        """Writes the run's weights: trained boxes under the score module as it was."""
        variables = trained.variables
        for collection, parts in self.start.variables.items():
            if "score" in parts:
                variables = {**variables, collection: {**variables.get(collection, {}), "score": parts["score"]}}
        save_weights(self.out / RUN_WEIGHTS, variables, self.start.model, self.start.tracker)


def noticed(out: Path, is_held_out: bool) -> str:
    """What the course of a training says about its length, in a sentence."""
    lines = read_lines(out / "boxes" / LINES_NAME)
    if not is_held_out:
        return "one video: nothing is held out, so that nothing tells when the tracker has learned it by heart"
    validations = {line["step"]: line["iou"] for line in lines if line["kind"] == "validation"}
    best = max(validations, key=lambda step: validations[step])
    last = max(validations)
    shown = f"held-out IoU {validations[best]:.3f} after step {best}"
    losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    at_best = np.mean([loss for step, loss in losses.items() if abs(step - best) <= last / VALIDATIONS])
    at_last = np.mean([loss for step, loss in losses.items() if step > last - last / VALIDATIONS])
    if validations[last] < validations[best] - WORSE and at_last < at_best:
        return (
            f"overfitting: {shown}, {validations[last]:.3f} after step {last}, while the training loss fell from "
            f"{at_best:.3f} to {at_last:.3f}; the weights of step {best} are kept. More videos, or fewer steps"
        )
    return f"{shown}, whose weights are kept" + ("" if best == last else f" ({validations[last]:.3f} after the last)")


def record_scores(path: Path, scores: Scores, minutes: Mapping[str, float]) -> dict[str, Any]:
    """What was measured, as JSON has it."""
    record: dict[str, Any] = {}
    for name, each in (("before", scores.before), ("after", scores.after)):
        by_sequence = {
            metric: dict(zip(scores.sequences, np.round(values, 2).tolist(), strict=True))
            for metric, values in each.by_sequence.items()
        }
        mean = {metric: round(value, 2) for metric, value in each.headline.items()}
        record[name] = {"mean": mean, "by_sequence": by_sequence}
    record["minutes"] = {name: round(value, 2) for name, value in minutes.items()}
    write_atomically(path, json.dumps(record, indent=1))
    return record
