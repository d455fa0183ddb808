"""The two stages of the paper's training (section 3.5) as objectives: boxes first, then the score module alone."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from mixformer_jax.boxes import cxcywh_to_xywh, cxcywh_to_xyxy, iou
from mixformer_jax.convert.pretrained import Initialisation
from mixformer_jax.convert.weights import save_weights
from mixformer_jax.data.pipeline import Samples
from mixformer_jax.models.mixformer import MixFormer, Prediction, build_model
from mixformer_jax.pixels import normalise
from mixformer_jax.training.experiment import Experiment, TrainConfig
from mixformer_jax.training.losses import box_loss, corner_cross_entropy, score_losses
from mixformer_jax.training.objective import Batch, Group, Objective, Variables
from mixformer_jax.training.samples import training_samples, validation_samples
from mixformer_jax.training.sheets import prediction_sheet
from mixformer_jax.training.start import start_from


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

    @functools.cached_property
    def _frozen(self) -> re.Pattern[str] | None:
        frozen = self.experiment.train.freeze
        return re.compile("|".join(frozen)) if frozen else None

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
        return prediction_sheet(batch, shown)

    def export(self, path: Path, variables: Variables) -> None:
        save_weights(path, variables, self.experiment.model, self.experiment.tracker)

    def _predict(self, variables: Variables, batch: Batch, score_boxes_xyxy: Array | None = None) -> Prediction:
        templates, search = normalise(jnp.asarray(batch["templates"])), normalise(jnp.asarray(batch["search"]))
        return cast(Prediction, self.model.apply(variables, templates, search, None, score_boxes_xyxy))


class BoxStage(_TrackingStage):
    """Stage 1: backbone and box head, by the losses of section 3.5."""

    def group(self, path: tuple[str, ...]) -> Group:
        frozen_table = path[-1] == "table" and self.experiment.model.positions == "interpolated_frozen"
        if frozen_table or (self._frozen is not None and self._frozen.match("/".join(path))):
            return "frozen"
        return "backbone" if path[0] == "backbone" else "rest"

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], Variables]]:
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

    def loss(
        self, variables: Variables, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], Variables]]:
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
