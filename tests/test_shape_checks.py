"""Wrong shapes and dtypes are found wherever a test calls the package."""

import jax.numpy as jnp
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from flax import linen as nn
from flax.errors import ScopeParamShapeError

from mixformer_jax.boxes import iou
from mixformer_jax.data.single_images import _resized
from mixformer_jax.models.heads import precise_roi_pool


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: iou(np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32)),
        lambda: iou(np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32)),
        lambda: iou(np.zeros((2, 4), np.int32), np.zeros((2, 4), np.int32)),
        lambda: precise_roi_pool(jnp.zeros((2, 4, 4, 3)), jnp.zeros((3, 4)), (2, 2)),
        lambda: _resized(np.zeros((4, 4), np.uint8), 8),
    ],
    ids=["not four numbers", "two lengths", "integers", "two lengths of the device's", "no channels"],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(BeartypeCallHintViolation):
        wrong()


def test_a_side_may_be_an_argument(monkeypatch):
    assert _resized(np.zeros((4, 6, 3), np.uint8), 8).shape == (8, 8, 3)
    monkeypatch.setattr("cv2.resize", lambda image, size, **_: image)
    with pytest.raises(BeartypeCallHintViolation):
        _resized(np.zeros((4, 6, 3), np.uint8), 8)


def test_parameters_of_another_shape_are_refused():
    """Whatever shapes Flax has compared before (`check_parameters_once`)."""
    rows = np.zeros((1, 2), np.float32)
    right = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}
    wrong = right | {"kernel": np.zeros((2, 4), np.float32)}
    for _ in range(2):
        assert nn.Dense(3).apply({"params": right}, rows).shape == (1, 3)
        with pytest.raises(ScopeParamShapeError):
            nn.Dense(3).apply({"params": wrong}, rows)
