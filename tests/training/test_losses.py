import inspect
import json
import math
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from mixformer_jax.boxes import cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh
from mixformer_jax.training.supervised import box_loss, corner_cross_entropy, iou_loss, score_losses

LOSSES = {f"{kind}_loss": partial(iou_loss, kind) for kind in ("ciou", "giou")}


@partial(jax.jit, static_argnums=0)
def value_iou_gradient(loss, pred, target):
    (value, overlaps), gradient = jax.value_and_grad(loss, has_aux=True)(pred, target)
    return value, overlaps, gradient


@pytest.mark.parametrize("name", LOSSES)
def test_iou_losses_and_gradients_equal_the_official_ones(golden, name):
    arrays = golden("losses.npz")
    pred, target = jnp.asarray(arrays["pred_xyxy"]), jnp.asarray(arrays["gt_xyxy"])
    value, overlaps, gradient = value_iou_gradient(LOSSES[name], pred, target)
    np.testing.assert_allclose(value, arrays[f"{name}/mean"], atol=1e-6)
    np.testing.assert_allclose(overlaps, arrays[f"{name}/iou"], atol=1e-6)
    np.testing.assert_allclose(gradient, arrays[f"{name}/grad_mean"], atol=1e-5)
    each, _, gradients = jax.vmap(lambda p, t: value_iou_gradient(LOSSES[name], p[None], t[None]))(pred, target)
    np.testing.assert_allclose(each, arrays[f"{name}/each"], atol=1e-5)
    np.testing.assert_allclose(gradients[:, 0], arrays[f"{name}/grad_each"], rtol=1e-5, atol=1e-5)


def test_ciou_loss_of_inverted_boxes_equals_the_official_one(golden):
    arrays = golden("losses.npz")
    pred, target = (jnp.asarray(arrays[f"ciou_inverted/{name}"]) for name in ("pred_xyxy", "gt_xyxy"))
    value, overlaps, gradient = value_iou_gradient(LOSSES["ciou_loss"], pred, target)
    np.testing.assert_allclose(value, arrays["ciou_inverted/mean"], atol=1e-6)
    np.testing.assert_allclose(overlaps, arrays["ciou_inverted/iou"], atol=1e-6)
    np.testing.assert_allclose(gradient, arrays["ciou_inverted/grad_mean"], atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_boxes_cost_nothing_and_have_finite_gradients(golden, name):
    arrays = golden("losses.npz")
    same = jnp.asarray(arrays["identical/boxes_xyxy"])
    assert np.isnan(arrays["identical/ciou_loss"]).sum() == 2  # what the official code says
    for box in same:
        value, overlaps, gradient = value_iou_gradient(LOSSES[name], box[None], box[None])
        np.testing.assert_allclose(value, 0, atol=1e-6)
        np.testing.assert_allclose(overlaps, 1, atol=1e-6)
        assert np.isfinite(gradient).all()


unit = st.one_of(st.floats(-0.5, 1.5, width=32), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
any_boxes = st.lists(st.tuples(unit, unit, unit, unit), min_size=3, max_size=3).map(
    lambda rows: np.array(rows, np.float32)
)


@pytest.mark.parametrize("name", LOSSES)
@given(pred=any_boxes, target=any_boxes)
def test_losses_and_gradients_are_finite_whatever_the_corners(name, pred, target):
    """Points, lines, corners in the wrong order: an untrained head predicts all of these."""
    value, overlaps, gradient = value_iou_gradient(LOSSES[name], jnp.asarray(pred), jnp.asarray(target))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert -1e-6 <= value <= 2 + 1e-6
    assert (overlaps >= 0).all() and (overlaps <= 1 + 1e-6).all()


def test_box_loss_equals_the_official_actor(golden):
    arrays = golden("losses.npz")
    pred = jnp.asarray(arrays["actor/pred_boxes_cxcywh"])[:, 0]
    target = jnp.asarray(arrays["actor/gt_xywh"])
    (value, metrics), gradient = jax.jit(jax.value_and_grad(lambda p: box_loss(p, target, "ciou"), has_aux=True))(pred)
    np.testing.assert_allclose(value, arrays["actor/loss"], atol=1e-6)
    np.testing.assert_allclose(gradient, arrays["actor/grad"][:, 0], atol=1e-5)
    status = json.loads(str(arrays["actor/status"]))
    official = {"loss": "Loss/total", "loss_iou": "Loss/ciou", "loss_l1": "Loss/l1", "iou": "IoU"}
    assert metrics.keys() == official.keys()
    for ours, theirs in official.items():
        np.testing.assert_allclose(metrics[ours], status[theirs], atol=1e-6, err_msg=ours)


def test_box_loss_weighs_its_terms():
    pred = jnp.array([[0.4, 0.5, 0.2, 0.4]])
    target = jnp.array([[0.35, 0.3, 0.3, 0.4]])
    for kind in ("ciou", "giou"):
        term, _ = iou_loss(kind, cxcywh_to_xyxy(pred), xywh_to_xyxy(target))
        l1 = (0.05 + 0.0 + 0.15 + 0.0) / 4
        value, metrics = box_loss(pred, target, kind, l1_weight=3.0, iou_weight=0.5)
        np.testing.assert_allclose(value, 3 * l1 + 0.5 * term, atol=1e-6)
        np.testing.assert_allclose(metrics["loss_l1"], l1, atol=1e-6)


def test_box_loss_cuts_the_ground_truth_but_not_the_prediction():
    sticking_out = np.array([[-0.25, 0.25, 0.5, 0.5]], np.float32)
    inside = jnp.array([[0.0, 0.25, 0.25, 0.5]])
    pred = xyxy_to_cxcywh(xywh_to_xyxy(inside))
    np.testing.assert_allclose(box_loss(pred, jnp.asarray(sticking_out), "giou")[0], 0, atol=1e-6)
    pred_out = xyxy_to_cxcywh(jnp.asarray(xywh_to_xyxy(sticking_out)))
    assert box_loss(pred_out, inside, "giou")[0] > 0.1


def test_box_loss_is_float32_for_bfloat16_predictions():
    value, metrics = box_loss(jnp.full((2, 4), 0.5, jnp.bfloat16), jnp.full((2, 4), 0.3), "ciou")
    assert {v.dtype for v in (value, *metrics.values())} == {jnp.dtype("float32")}


def bilinear_target(corner, height, width):
    """The distribution on two by two cells, written out cell by cell."""
    x = min(max(corner[0] * width, 0), width - 1)
    y = min(max(corner[1] * height, 0), height - 1)
    target = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            if abs(j - x) < 1 and abs(i - y) < 1:
                target[i, j] = (1 - abs(j - x)) * (1 - abs(i - y))
    return target


corner_gradients = jax.jit(jax.grad(corner_cross_entropy, argnums=(0, 1)))

corners = st.tuples(*[st.floats(-0.25, 1.25, width=32)] * 4)


@given(box=corners, seed=st.integers(0, 2**16))
def test_corner_cross_entropy_has_the_target_as_its_minimum(box, seed):
    """Gradient = softmax - target, and the target's mean is the corner clamped to the outermost cells."""
    height, width = 5, 7
    logits = np.random.default_rng(seed).normal(size=(2, 1, height, width)).astype(np.float32)
    target = jnp.array([box], jnp.float32)
    gradients = corner_gradients(*jnp.asarray(logits), target)
    for gradient, logit, corner in zip(gradients, logits, (box[:2], box[2:]), strict=True):
        expected = bilinear_target(corner, height, width)
        np.testing.assert_allclose(expected.sum(), 1, atol=1e-6)
        softmax = np.asarray(jax.nn.softmax(logit[0].ravel())).reshape(height, width)
        np.testing.assert_allclose(softmax - 2 * gradient[0], expected, atol=1e-5)
        recovered = softmax - 2 * np.asarray(gradient[0])
        mean_x = (recovered.sum(0) * np.arange(width)).sum() / width
        mean_y = (recovered.sum(1) * np.arange(height)).sum() / height
        np.testing.assert_allclose(mean_x, np.clip(corner[0], 0, (width - 1) / width), atol=1e-4)
        np.testing.assert_allclose(mean_y, np.clip(corner[1], 0, (height - 1) / height), atol=1e-4)


def test_corner_cross_entropy_by_hand():
    flat = jnp.zeros((2, 4, 4))
    target = jnp.array([[0.25, 0.5, 0.75, 0.75], [0.1, 0.2, 0.6, 0.9]])
    np.testing.assert_allclose(corner_cross_entropy(flat, flat, target), math.log(16), rtol=1e-6)
    on_the_cell = jnp.array([[0.25, 0.5, 0.75, 0.75]])
    sharp_tl, sharp_br = (jnp.full((1, 4, 4), -100.0).at[0, i, j].set(100.0) for i, j in ((2, 1), (3, 3)))
    np.testing.assert_allclose(corner_cross_entropy(sharp_tl, sharp_br, on_the_cell), 0, atol=1e-6)
    np.testing.assert_allclose(corner_cross_entropy(sharp_br, sharp_br, on_the_cell), 100, rtol=1e-6)


def test_unknown_iou_kind_is_refused():
    # Without the type checks of the test session, which would refuse the word first.
    with pytest.raises(ValueError, match="iou_kind is 'diou'"):
        inspect.unwrap(box_loss)(jnp.ones((1, 4)), jnp.ones((1, 4)), "diou")


def test_xyxy_helpers_are_the_inverse_of_what_box_loss_does():
    box = jnp.array([[0.1, 0.2, 0.5, 0.9]])
    value, _ = box_loss(xyxy_to_cxcywh(box), xyxy_to_xywh(box), "ciou")
    np.testing.assert_allclose(value, 0, atol=1e-5)


def test_score_loss_equals_the_official_actor(golden):
    arrays = golden("losses.npz")
    logits, labels = jnp.asarray(arrays["actor_score/logits"]), jnp.asarray(arrays["actor_score/labels"], jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: jnp.mean(score_losses(x, labels)))(logits)
    np.testing.assert_allclose(value, arrays["actor_score/loss"], atol=1e-6)
    np.testing.assert_allclose(gradient, arrays["actor_score/grad"], atol=1e-6)
