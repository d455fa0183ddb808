import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from mixformer_jax import boxes

coordinates = st.floats(-200, 1000, allow_nan=False, width=32)
extents = st.floats(0.125, 500, allow_nan=False, width=32)
boxes_xywh = st.tuples(coordinates, coordinates, extents, extents).map(np.array)


@pytest.mark.parametrize("name", ["cxcywh_to_xyxy", "xywh_to_xyxy", "xyxy_to_xywh", "xyxy_to_cxcywh"])
def test_conversions_equal_the_official_ones(golden, name):
    crops = golden("crops.npz")
    for array in (crops["conv/in"], jnp.asarray(crops["conv/in"])):
        converted = getattr(boxes, name)(array)
        assert isinstance(converted, type(array))
        np.testing.assert_allclose(converted, crops[f"conv/box_{name}"], rtol=1e-6)


@pytest.mark.parametrize("first, second", list(itertools.permutations(["xywh", "xyxy", "cxcywh"], 2)))
@given(box=boxes_xywh)
def test_conversions_round_trip(first, second, box):
    there = getattr(boxes, f"{first}_to_{second}")
    back = getattr(boxes, f"{second}_to_{first}")
    np.testing.assert_allclose(back(there(box)), box, atol=1e-9)
    batch = np.broadcast_to(box, (2, 3, 4))
    np.testing.assert_array_equal(there(batch), np.broadcast_to(there(box), (2, 3, 4)))


@given(box=boxes_xywh)
def test_conversions_agree_with_each_other(box):
    through_centre = boxes.cxcywh_to_xyxy(boxes.xywh_to_cxcywh(box))
    np.testing.assert_allclose(through_centre, boxes.xywh_to_xyxy(box), atol=1e-9)


@given(
    a=st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(0, 8)] * 2),
    b=st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(0, 8)] * 2),
)
def test_iou_counts_pixels(a, b):
    def mask(box):
        x, y, w, h = box
        grid = np.zeros((16, 16), bool)
        grid[y : y + h, x : x + w] = True
        return grid

    union = (mask(a) | mask(b)).sum()
    expected = (mask(a) & mask(b)).sum() / union if union else 0.0
    measured = boxes.iou(*(boxes.xywh_to_xyxy(np.array(box, np.float64)) for box in (a, b)))
    np.testing.assert_allclose(measured, expected, rtol=1e-12)


@pytest.mark.parametrize("overlap", [boxes.iou, boxes.giou, boxes.ciou])
@given(a=boxes_xywh, b=boxes_xywh)
def test_overlaps_are_bounded_symmetric_and_ordered(overlap, a, b):
    a, b = boxes.xywh_to_xyxy(a), boxes.xywh_to_xyxy(b)
    value = overlap(a, b)
    assert isinstance(value, np.ndarray) and value.shape == ()
    assert (0 if overlap is boxes.iou else -1) - 1e-12 <= value <= boxes.iou(a, b) + 1e-12
    np.testing.assert_allclose(overlap(b, a), value, atol=1e-12)
    np.testing.assert_allclose(overlap(a, a), 1, atol=1e-12)
    shift = np.array([16.0, -8.0, 16.0, -8.0])
    np.testing.assert_allclose(overlap(4 * a + shift, 4 * b + shift), value, atol=1e-9)


@pytest.mark.parametrize("overlap", [boxes.iou, boxes.giou, boxes.ciou])
def test_overlaps_of_jax_arrays_equal_numpy_and_trace(overlap, golden):
    losses = golden("losses.npz")
    a, b = losses["pred_xyxy"], losses["gt_xyxy"]
    traced = jax.jit(overlap)(a, b)
    assert isinstance(traced, jax.Array)
    np.testing.assert_allclose(traced, overlap(a, b), atol=1e-6)


def test_giou_equals_the_official_one(golden):
    losses = golden("losses.npz")
    np.testing.assert_allclose(boxes.giou(losses["pred_xyxy"], losses["gt_xyxy"]), losses["giou_value"], atol=1e-6)


def test_disjoint_boxes_get_worse_with_distance():
    box, near, far = (np.array([x, 0.0, x + 10.0, 10.0]) for x in (0.0, 20.0, 200.0))
    assert boxes.iou(box, near) == boxes.iou(box, far) == 0
    assert boxes.giou(box, far) < boxes.giou(box, near) < 0
    assert boxes.ciou(box, far) < boxes.ciou(box, near) < 0


@pytest.mark.parametrize("margin", [0, 2, 10])
def test_clip_equals_the_official_one(golden, margin):
    crops = golden("crops.npz")
    height, width = (int(n) for n in crops["clip/HW"])
    expected = crops[f"clip/out_margin{margin}"]
    np.testing.assert_array_equal(boxes.clip_box_xywh(crops["clip/in"], height, width, margin), expected)
    on_device = jax.jit(lambda box: boxes.clip_box_xywh(box, height, width, margin))(crops["clip/in"])
    np.testing.assert_allclose(on_device, expected, rtol=1e-6)


@given(box=boxes_xywh, margin=st.integers(0, 20))
def test_clip_keeps_boxes_in_the_frame(box, margin):
    height, width = 120, 160
    clipped = boxes.clip_box_xywh(box, height, width, margin)
    left, top, right, bottom = boxes.xywh_to_xyxy(clipped)
    assert 0 <= left <= width - margin and 0 <= top <= height - margin
    assert margin <= right <= width + 1e-9 and margin <= bottom <= height + 1e-9
    assert (clipped[2:] >= margin).all()
    np.testing.assert_allclose(boxes.clip_box_xywh(clipped, height, width, margin), clipped, atol=1e-9)


@given(box=boxes_xywh)
def test_clip_without_margin_is_the_intersection(box):
    height, width = 120, 160
    frame_xyxy = np.array([0.0, 0.0, width, height])
    x1, y1, x2, y2 = boxes.xywh_to_xyxy(box)
    overlaps = min(x2, width) > max(x1, 0) and min(y2, height) > max(y1, 0)
    clipped = boxes.clip_box_xywh(box, height, width)
    intersection, _ = np.maximum(clipped[2:], 0).prod(), None
    if not overlaps:
        assert intersection == 0
        return
    xyxy = boxes.xywh_to_xyxy(clipped)
    np.testing.assert_allclose(xyxy[:2], np.maximum([x1, y1], frame_xyxy[:2]), atol=1e-9)
    np.testing.assert_allclose(xyxy[2:], np.minimum([x2, y2], frame_xyxy[2:]), atol=1e-9)


@pytest.mark.parametrize("box", [(3, 4, 5, 6), [3.0, 4, 5, 6], np.array([3, 4, 5, 6], np.float32)])
def test_a_usable_box_is_returned_as_float64(box):
    checked = boxes.check_box_xywh(box, (120, 160, 3))
    assert checked.dtype == np.float64
    np.testing.assert_array_equal(checked, [3, 4, 5, 6])


@pytest.mark.parametrize(
    "box", [(-5, -5, 6, 6), (159.5, 119.5, 40, 40), (-100, -100, 1000, 1000), (10.25, 10.75, 0.5, 0.5)]
)
def test_a_box_partly_inside_is_usable(box):
    np.testing.assert_array_equal(boxes.check_box_xywh(box, (120, 160)), box)


@pytest.mark.parametrize(
    "box, complaint",
    [
        ((1, 2, 3), r"not four numbers.*shape \(3,\)"),
        ([[1, 2, 3, 4]], "not four numbers"),
        ("1,2,3,4", "not four numbers"),
        (None, "not four numbers"),
        ((1, 2, [3], 4), "not four numbers"),
        ((1, float("nan"), 3, 4), "NaN or infinite"),
        ((1, 2, float("inf"), 4), "NaN or infinite"),
        ((1, 2, 0, 4), "no area"),
        ((1, 2, 3, -4), "no area"),
        ((1, 2, 1e-200, 1e-200), "no area"),
        ((-1e200, 2, 2e200, 4), "number above"),
        ((160, 2, 3, 4), "outside"),
        ((1, 120, 3, 4), "outside"),
        ((-3, 2, 3, 4), "outside"),
        ((1, -4, 3, 4), "outside"),
    ],
)
def test_an_unusable_box_is_refused(box, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        boxes.check_box_xywh(box, (120, 160, 3))
    assert "give x,y,w,h in pixels" in str(error.value)


def test_a_refusal_names_the_box_and_the_frame():
    with pytest.raises(ValueError, match=r"\(700, 50, 20, 20\).*640x360"):
        boxes.check_box_xywh((700, 50, 20, 20), (360, 640, 3))
