"""Losses of the paper's section 3.5: L1 x 5 plus CIoU x 2 (MixViT) or GIoU x 2 (MixCvT), cross entropy for scores."""

from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Float32, Shaped

from mixformer_jax.boxes import ciou, cxcywh_to_xyxy, giou, iou, xywh_to_xyxy

IouKind = Literal["ciou", "giou"]


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
    """The loss of section 3.5, `l1_weight` * L1 + `iou_weight` * IoU loss, and its parts for the log.

    Boxes are normalised to the search crop. Predicted ones are used as they are; of the ground truth, what sticks out
    of the crop is cut off: corners are clamped to [0, 1]. `iou_kind` is "ciou" (MixViT) or "giou" (MixCvT).

    Returns:
      The loss, and its metrics: "loss", "loss_iou" and "loss_l1" (both before weighting), "iou" (mean).
      L1 is the mean over batch and corners (xyxy).

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


def mask_losses(logits: Float[Array, "b h w"], masks: Shaped[Array, "b h w"]) -> Float32[Array, " b"]:
    """Binary cross entropy of a mask's logits, the mean over each sample's pixels; 1: the pixel is the target's."""
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), masks.astype(jnp.float32))
    return jnp.mean(losses, axis=(1, 2))


def dice_losses(logits: Float[Array, "b h w"], masks: Shaped[Array, "b h w"]) -> Float32[Array, " b"]:
    """1 - Dice coefficient of the probabilities and each mask (Milletari et al. 2016), one pixel added to both sums.

    Small targets count as much as large ones, which in the cross entropy of all pixels they do not.
    """
    found, masks = jax.nn.sigmoid(logits.astype(jnp.float32)), masks.astype(jnp.float32)
    common, both = (jnp.sum(each, axis=(1, 2)) for each in (found * masks, found + masks))
    return 1 - (2 * common + 1) / (both + 1)


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
