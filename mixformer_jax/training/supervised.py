"""The two stages of the paper's training (section 3.5) as objectives, their losses, and what they start from: boxes
first, by L1 x 5 plus CIoU x 2 (MixViT) or GIoU x 2 (MixCvT), then the score module alone, by cross entropy."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Float32, PRNGKeyArray, UInt8

from mixformer_jax.boxes import ciou, cxcywh_to_xywh, cxcywh_to_xyxy, giou, iou, xywh_to_xyxy
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.pretrained import AUTOENCODER_FORMAT, Initialisation, hand_over, init_from, load_autoencoder
from mixformer_jax.convert.torch_files import is_ours
from mixformer_jax.convert.weights import (
    FORMAT,
    Shapes,
    Weights,
    WeightsError,
    expected_shapes,
    load_weights,
    mismatches,
    refuse_weights,
    save_weights,
)
from mixformer_jax.data.pipeline import Samples
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import resize_positions
from mixformer_jax.models.mixformer import MixFormer, Prediction, build_model
from mixformer_jax.pixels import normalise
from mixformer_jax.training.experiment import Experiment, IouKind, TrainConfig
from mixformer_jax.training.objective import Batch, Group, LossAndMore, Objective, Variables
from mixformer_jax.training.samples import training_samples, validation_samples

# Settings that shapes do not tell and that change what the backbone's weights mean.
_MEANING = (
    *("backbone", "patch_embed", "patch_size", "width", "depth", "num_heads", "early_widths", "early_depths"),
    *("early_heads", "layer_scale", "positions", "projection", "projection_norm", "attention", "mixed_blocks"),
    *("cross_attention_blocks", "decoder_blocks"),
)


def tracking_objective(experiment: Experiment) -> Objective:
    """The objective of `train.stage`."""
    return ScoreStage(experiment) if experiment.train.stage == "score" else BoxStage(experiment)


@dataclasses.dataclass(frozen=True)
class _TrackingStage(Objective):
    """What both stages share: the model, the samples, the file at the end."""

    experiment: Experiment

    @functools.cached_property
    def model(self) -> MixFormer:
        train = self.experiment.train
        return build_model(self.experiment.model, train.recomputed, residual_dtype=train.residual_dtype)

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        config, slots = self.experiment.model, self.experiment.tracker.num_slots
        templates = (batch_size, slots, config.template_size, config.template_size, config.channels)
        search = (batch_size, config.search_size, config.search_size, config.channels)
        return {
            "templates": jax.ShapeDtypeStruct(templates, jnp.uint8),
            "search": jax.ShapeDtypeStruct(search, jnp.uint8),
            "box_cxcywh": jax.ShapeDtypeStruct((batch_size, 4), jnp.float32),
        }

    def samples(self) -> Samples:
        return training_samples(self.experiment)

    def validation_samples(self) -> Samples | None:
        return validation_samples(self.experiment)

    def show(self, variables: Variables, batch: Batch) -> dict[str, Array]:
        prediction = self._predict(variables, batch)
        shown = {"box_cxcywh": prediction.boxes_cxcywh}
        return shown if prediction.scores is None else {**shown, "score": prediction.scores}

    def draw(self, batch: Mapping[str, np.ndarray], shown: Mapping[str, np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
        """Up to 16 samples: the template in the corner of the search region, the true box green, the found one red.

        Of two streams RGB is shown. The batch's `label` and the found `score` stand below, where there are such.
        """
        columns = 4
        cells = []
        for index in range(min(self.MAX_SAMPLES, len(batch["search"]))):
            cell = batch["search"][index, ..., :3].copy()
            template = batch["templates"][index, 0, ..., :3]
            small = cv2.resize(template, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            cell[: small.shape[0], : small.shape[1]] = small
            _outline(cell, batch["box_cxcywh"][index], self.TRUE)
            _outline(cell, shown["box_cxcywh"][index], self.FOUND)
            words = [f"label {batch['label'][index]:.0f}"] if "label" in batch else []
            words += [f"score {shown['score'][index]:.2f}"] if "score" in shown else []
            at = (2, cell.shape[0] - 4)
            cv2.putText(cell, " ".join(words), at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0), 1, cv2.LINE_AA)
            cells.append(np.pad(cell, ((0, 2), (0, 2), (0, 0)), constant_values=64))
        cells += [np.zeros_like(cells[0])] * (-len(cells) % columns)
        return rearrange(np.stack(cells), "(rows columns) h w rgb -> (rows h) (columns w) rgb", columns=columns)

    def export(self, path: Path, variables: Variables) -> None:
        save_weights(path, variables, self.experiment.model, self.experiment.tracker)

    def _predict(self, variables: Variables, batch: Batch, score_boxes_xyxy: Array | None = None) -> Prediction:
        templates, search = normalise(jnp.asarray(batch["templates"])), normalise(jnp.asarray(batch["search"]))
        return cast(Prediction, self.model.apply(variables, templates, search, None, score_boxes_xyxy))


def _outline(image: np.ndarray, box_cxcywh: Float[np.ndarray, "4"], colour: tuple[int, int, int]) -> None:
    cx, cy, w, h = (float(value) * image.shape[0] for value in box_cxcywh)
    corners = [round(edge * 16) for edge in (cx - w / 2 - 0.5, cy - h / 2 - 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5)]
    cv2.rectangle(image, corners[:2], corners[2:], colour, 1, cv2.LINE_AA, shift=4)


class BoxStage(_TrackingStage):
    """Stage 1: backbone and box head, by the losses of section 3.5."""

    def group(self, path: tuple[str, ...]) -> Group:
        frozen_table = path[-1] == "table" and self.experiment.model.positions == "interpolated_frozen"
        if frozen_table or any(re.match(pattern, "/".join(path)) for pattern in self.experiment.train.freeze):
            return "frozen"
        return "backbone" if path[0] == "backbone" else "rest"

    def loss(self, variables: Variables, batch: Batch, key: PRNGKeyArray) -> LossAndMore:
        prediction, updates = self.model.apply(
            variables,
            normalise(jnp.asarray(batch["templates"])),
            normalise(jnp.asarray(batch["search"])),
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": key},
        )
        loss, metrics = tracking_loss(prediction, jnp.asarray(batch["box_cxcywh"]), self.experiment.train)
        return loss, (metrics, cast(dict[str, Any], updates))

    def measure(self, variables: Variables, batch: Batch) -> dict[str, Float[Array, " b"]]:
        prediction, boxes_cxcywh = self._predict(variables, batch), jnp.asarray(batch["box_cxcywh"])
        target_xyxy = jnp.clip(cxcywh_to_xyxy(boxes_cxcywh), 0.0, 1.0)
        overlaps = iou(cxcywh_to_xyxy(prediction.boxes_cxcywh), target_xyxy)

        def loss_of_one(prediction: Prediction, box_cxcywh: Array) -> Array:
            one = jax.tree.map(lambda x: x[None], prediction)
            return tracking_loss(one, box_cxcywh[None], self.experiment.train)[0]

        losses = jax.vmap(loss_of_one)(prediction, boxes_cxcywh)
        return {"iou": overlaps, "iou_above_half": (overlaps > 0.5).astype(jnp.float32), "loss": losses}

    def rank(self, measured: Mapping[str, float]) -> float:
        return measured["iou"]

    def start_from(self, source: str | Path) -> Initialisation:
        return start_from(source, self.experiment.model, may_be_fresh=("head", "context_augment"))


class ScoreStage(_TrackingStage):
    """Stage 2: the score module alone, by cross entropy on whether the search region shows the template's target.

    As in the official trainer the module judges the annotated box, of the target or of what stands in for it, and not
    the predicted one. Everything else is frozen and runs as in tracking: without stochastic depth, its norms constant.
    """

    def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {**super().batch_shapes(batch_size), "label": jax.ShapeDtypeStruct((batch_size,), jnp.float32)}

    def group(self, path: tuple[str, ...]) -> Group:
        return "rest" if path[0] == "score" else "frozen"

    def loss(self, variables: Variables, batch: Batch, key: PRNGKeyArray) -> LossAndMore:
        measured = self.measure(variables, batch)
        metrics = {name: jnp.mean(value) for name, value in measured.items()}
        return metrics["loss"], (metrics, {})

    def measure(self, variables: Variables, batch: Batch) -> dict[str, Float[Array, " b"]]:
        boxes_xyxy = cxcywh_to_xyxy(jnp.asarray(batch["box_cxcywh"]))
        logits = self._predict(variables, batch, boxes_xyxy).score_logits
        assert logits is not None  # `Experiment` has refused a model without the module
        labels = jnp.asarray(batch["label"])
        right = (logits > 0) == (labels > 0.5)
        return {"accuracy": right.astype(jnp.float32), "loss": score_losses(logits, labels)}

    def rank(self, measured: Mapping[str, float]) -> float:
        return measured["accuracy"]

    def start_from(self, source: str | Path) -> Initialisation:
        return start_from(source, self.experiment.model, may_be_fresh=("score",))


def tracking_loss(
    prediction: Prediction, boxes_cxcywh: Float[Array, "b 4"], config: TrainConfig
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The paper's box loss (section 3.5), and where asked for the corner maps' cross entropy."""
    boxes_xywh = cxcywh_to_xywh(boxes_cxcywh)
    loss, metrics = box_loss(prediction.boxes_cxcywh, boxes_xywh, config.iou_loss, config.l1_weight, config.iou_weight)
    if config.corner_weight:
        # `Experiment` has refused a head without maps.
        assert prediction.top_left_logits is not None and prediction.bottom_right_logits is not None
        corner = corner_cross_entropy(
            prediction.top_left_logits, prediction.bottom_right_logits, cxcywh_to_xyxy(boxes_cxcywh)
        )
        loss = loss + config.corner_weight * corner
        metrics = {**metrics, "loss": loss, "loss_corner": corner}
    return loss, metrics


def iou_loss(
    kind: IouKind, pred_xyxy: Float[Array, "b 4"], target_xyxy: Float[Array, "b 4"]
) -> tuple[Float32[Array, ""], Float32[Array, " b"]]:
    """Mean of 1 - CIoU or 1 - GIoU, and the IoU of each pair.

    For equal boxes the official code's CIoU divides 0 by 0 and gives NaN, in the loss and in its gradient; here the
    loss is 0 and the gradient finite. Its GIoU refuses predictions whose corners are in the wrong order; here they
    count as empty boxes. Everything else is equal to it.
    """
    pred_xyxy, target_xyxy = pred_xyxy.astype(jnp.float32), target_xyxy.astype(jnp.float32)
    overlaps = (ciou if kind == "ciou" else giou)(pred_xyxy, target_xyxy)
    return jnp.mean(1 - overlaps), iou(pred_xyxy, target_xyxy)


def box_loss(
    pred_cxcywh: Float[Array, "b 4"],
    target_xywh: Float[Array, "b 4"],
    iou_kind: IouKind,
    l1_weight: float = 5.0,
    iou_weight: float = 2.0,
) -> tuple[Float32[Array, ""], dict[str, Float32[Array, ""]]]:
    """The loss of section 3.5, `l1_weight` * L1 + `iou_weight` * IoU loss, and its parts for the log: "loss",
    "loss_iou" and "loss_l1" (both before weighting; L1 is the mean over batch and corners, xyxy), "iou" (mean).

    Boxes are normalised to the search crop. Predicted ones are used as they are; of the ground truth, what sticks out
    of the crop is cut off: corners are clamped to [0, 1]. `iou_kind` is "ciou" (MixViT) or "giou" (MixCvT).

    Raises ValueError: another `iou_kind`.
    """
    pred_xyxy = cxcywh_to_xyxy(pred_cxcywh.astype(jnp.float32))
    target_xyxy = jnp.clip(xywh_to_xyxy(target_xywh.astype(jnp.float32)), 0, 1)
    if iou_kind not in ("ciou", "giou"):
        raise ValueError(f'iou_kind is {iou_kind!r}; expected "ciou" or "giou"')
    iou_term, overlaps = iou_loss(iou_kind, pred_xyxy, target_xyxy)
    l1 = jnp.mean(jnp.abs(pred_xyxy - target_xyxy))
    loss = l1_weight * l1 + iou_weight * iou_term
    return loss, {"loss": loss, "loss_iou": iou_term, "loss_l1": l1, "iou": jnp.mean(overlaps)}


def score_losses(logits: Float[Array, " b"], labels: Float[Array, " b"]) -> Float32[Array, " b"]:
    """Binary cross entropy of the score module's logits (eq. 4) for each sample; label 1: the target is there."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32))


def corner_cross_entropy(
    logits_tl: Float[Array, "b h w"], logits_br: Float[Array, "b h w"], target_xyxy: Float[Array, "b 4"]
) -> Float32[Array, ""]:
    """Cross entropy of the two corner score maps, before the softmax, with the ground truth's corners, normalised to
    the search crop; mean over maps and batch.

    Not in the paper: a denser signal than the expected corner alone, for training from scratch. The target
    distribution lies on the two by two cells around the corner, with bilinear weights, so that its
    expectation is the corner itself and a perfect map also gives a perfect box. Cell (row i, column j) stands
    for the point (j / w, i / h) of the crop, as in the corner head; a corner outside is clamped to the
    outermost cells. The smallest possible value is the entropy of the target, between 0 and log 4.
    """
    _, height, width = logits_tl.shape
    logits = jnp.stack([logits_tl, logits_br], axis=1).astype(jnp.float32)  # [b, corner, h, w]
    corners = target_xyxy.astype(jnp.float32).reshape(-1, 2, 2)  # [b, corner, (x, y)]
    columns = _bilinear_weights(corners[..., 0], width)
    rows = _bilinear_weights(corners[..., 1], height)
    log_probabilities = jax.nn.log_softmax(logits, axis=(-2, -1))
    # Elementwise, not an einsum: an accelerator would round a matrix product's inputs to fewer bits.
    target = rows[..., :, None] * columns[..., None, :]
    return -jnp.mean(jnp.sum(target * log_probabilities, axis=(-2, -1)))


def _bilinear_weights(position: Float32[Array, "b corner"], num_cells: int) -> Float32[Array, "b corner {num_cells}"]:
    """Weights over the cells of one axis whose mean cell is `position` * num_cells, clamped to the cells."""
    cell = jnp.clip(position * num_cells, 0, num_cells - 1)
    return jnp.maximum(1 - jnp.abs(cell[..., None] - jnp.arange(num_cells, dtype=jnp.float32)), 0)


def start_from(source: str | Path, config: MixFormerConfig, may_be_fresh: tuple[str, ...]) -> Initialisation:
    """What a pre-trained model gives a tracker: an official backbone (`.pth`, `.safetensors`), a weights file of ours,
    or the folder of a run; of a pre-training too.

    A part of the model (`backbone`, `head`, `score`) comes whole or not at all; the backbone always. Batch norms are
    taken as the model wants them: constant ones from trained ones (stage 2 from stage 1), and the other way. Position
    tables are resized where the crops have another size. From a model of RGB alone, the embedding of a second stream
    starts as RGB's own, and its factors at zero.

    Raises WeightsError: a source that cannot be read, another backbone, or one that lacks a part other than those of
    `may_be_fresh`: all names that are missing or misshapen in one error.
    """
    path = find_weights(source)
    if is_ours(FORMAT, path):
        return _from_weights(path, load_weights(path), config, may_be_fresh)
    if is_ours(AUTOENCODER_FORMAT, path):
        found = load_autoencoder(path)
        start = hand_over(found.variables, found.config, config)
    else:
        start = init_from(path, config)
    values, expected = flatten_dict(start.variables, sep="/"), expected_shapes(config)
    start = Initialisation.of(_with_second_stream(values, expected), expected, start.ignored)
    missing = sorted({part_of(name) for name in start.fresh if part_of(name) != "backbone"} - set(may_be_fresh))
    if missing:
        raise WeightsError(f"{path}: a backbone alone, without {', '.join(missing)}; expected a trained tracker")
    return start


def _from_weights(
    path: Path, weights: Weights, config: MixFormerConfig, may_be_fresh: tuple[str, ...]
) -> Initialisation:
    theirs = weights.model
    differences = [
        f"{key}: {getattr(theirs, key)!r} there, {getattr(config, key)!r} here"
        for key in _MEANING
        if getattr(theirs, key) != getattr(config, key)
    ]
    if theirs.second_stream not in ("none", config.second_stream):
        differences.append(f"second_stream: {theirs.second_stream!r} there, {config.second_stream!r} here")
    if differences:
        raise WeightsError(f"{path}: the backbone of another model: {'; '.join(differences)}")
    expected = expected_shapes(config)
    found = _with_second_stream(_as_wanted(flatten_dict(weights.variables, sep="/"), expected), expected)
    complaints: dict[str, list[str]] = {}
    for part in dict.fromkeys(map(part_of, expected)):
        shapes = {name: shape for name, shape in expected.items() if part_of(name) == part}
        complaints[part] = mismatches({name: found[name] for name in shapes if name in found}, shapes)
    if config.head != theirs.head:
        complaints["head"].append(f"head: {theirs.head!r} there, {config.head!r} here")
    fatal = [line for part, lines in complaints.items() if part not in may_be_fresh for line in lines]
    refuse_weights(f"{path}: does not fit {config.name!r}", fatal)
    taken = {name: found[name] for name in expected if not complaints[part_of(name)]}
    return Initialisation.of(taken, expected, (name for name in found if name not in taken))


def _with_second_stream(found: Mapping[str, np.ndarray], expected: Shapes) -> dict[str, np.ndarray]:
    """What was found, and what a model with a second stream needs beside that: RGB's embedding again, zero factors."""
    filled = dict(found)
    for name in (name for name in expected if name not in found):
        names = (name.replace("/second_embed/", f"/{embed}/") for embed in ("patch_embed", "embed_0"))
        given = next((found[other] for other in names if other != name and other in found), None)
        if name.endswith("/second_scale"):
            given = np.zeros(expected[name], np.float32)
        if given is not None:
            filled[name] = given
    return filled


def part_of(name: str) -> str:
    """`head` of `batch_stats/head/top_left/...`; the query head's token is the head's, wherever it lives."""
    return "head" if name.endswith("/regression_token") else name.split("/")[1]


def _as_wanted(found: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Batch norms in the collections where the model has them: learned and tracked, or constant; position tables of
    crops of another size resized."""
    moved = {}
    for name, value in found.items():
        collection, _, rest = name.partition("/")
        learned = "batch_stats" if rest.endswith(("/mean", "/var")) else "params"
        other = "constants" if collection in ("params", "batch_stats") else learned
        target = f"{other}/{rest}" if name not in expected and f"{other}/{rest}" in expected else name
        if target.endswith("_positions/table") and target in expected and len(value) != expected[target][0]:
            value = np.asarray(jax.device_get(resize_positions(value, math.isqrt(expected[target][0]))))
        moved[target] = value
    return moved
