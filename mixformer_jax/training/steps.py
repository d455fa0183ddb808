"""The train step and the validation step: pure functions of explicit state."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int32

from mixformer_jax.boxes import cxcywh_to_xywh, cxcywh_to_xyxy, iou
from mixformer_jax.crops import normalise
from mixformer_jax.models.mixformer import MixFormer, Prediction
from mixformer_jax.training.experiment import TrainConfig
from mixformer_jax.training.losses import box_loss, corner_cross_entropy

Batch = Mapping[str, Array | np.ndarray]
"""templates uint8 [b, slots, T, T, 3], search uint8 [b, S, S, 3], box_cxcywh float32 [b, 4] (of the search)."""


class TrainState(NamedTuple):
    """All that a run carries from step to step.

    Attributes:
        step: steps done.
        params: trained variables.
        model_state: the model's other collections (batch statistics, constants).
        opt_state: the optimizer's.
        ema: moving average of all variables, the ones to validate and to ship; equal to them where none is kept.
    """

    step: Int32[Array, ""]
    params: dict[str, Any]
    model_state: dict[str, Any]
    opt_state: optax.OptState
    ema: dict[str, Any]


def new_train_state(variables: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    model_state = {name: value for name, value in variables.items() if name != "params"}
    # The average must own its buffers: the step donates the state.
    ema = jax.tree.map(jnp.copy, variables)
    return TrainState(
        jnp.zeros((), jnp.int32), variables["params"], model_state, optimizer.init(variables["params"]), ema
    )


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


def make_train_step(
    model: MixFormer, optimizer: optax.GradientTransformation, config: TrainConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The jitted step `state, batch -> state, metrics`. The old state's buffers are given up."""

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def loss_of(params: dict[str, Any]) -> tuple[Array, tuple[dict[str, Array], dict[str, Any]]]:
            prediction, updates = model.apply(
                {"params": params, **state.model_state},
                normalise(jnp.asarray(batch["templates"])),
                normalise(jnp.asarray(batch["search"])),
                train=True,
                mutable=["batch_stats"],
                rngs={"drop_path": key},
            )
            loss, metrics = tracking_loss(prediction, jnp.asarray(batch["box_cxcywh"]), config)
            return loss, (metrics, cast(dict[str, Any], updates))

        gradients, (metrics, updates) = jax.grad(loss_of, has_aux=True)(state.params)
        metrics = {**metrics, "gradient_norm": optax.tree.norm(gradients)}
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        model_state = {**state.model_state, **updates}
        # A short memory at first: the average forgets the random initialisation.
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        decay = jnp.where(config.ema_decay > 0, decay, 0.0)
        ema = optax.incremental_update({"params": params, **model_state}, state.ema, 1.0 - decay)
        return TrainState(state.step + 1, params, model_state, opt_state, ema), metrics

    return jax.jit(step, donate_argnums=0)


def make_validation_step(model: MixFormer) -> Callable[[dict[str, Any], Batch], Array]:
    """The jitted IoU of each pair of a batch: `variables, batch -> [b]`."""

    def overlaps(variables: dict[str, Any], batch: Batch) -> Array:
        images = normalise(jnp.asarray(batch["templates"])), normalise(jnp.asarray(batch["search"]))
        prediction = cast(Prediction, model.apply(variables, *images))
        target_xyxy = jnp.clip(cxcywh_to_xyxy(jnp.asarray(batch["box_cxcywh"])), 0.0, 1.0)
        return iou(cxcywh_to_xyxy(prediction.boxes_cxcywh), target_xyxy)

    return jax.jit(overlaps)
