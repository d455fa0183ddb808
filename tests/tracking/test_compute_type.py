"""Weights lie on the device in the type in which the model computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.models.sizes import size_config
from mixformer_jax.tracking.tracker import Tracker

SMALL = {
    "search_size": 64,
    "template_size": 32,
    "width": 32,
    "depth": 1,
    "num_heads": 2,
    "head_width": 32,
    "score_heads": 2,
}
EARLY = {"early_widths": (8, 16), "early_depths": (1, 1)}
FAMILIES = {
    "vit": ("mixvit_tiny_online", SMALL),
    "convmae": ("mixvit_b_convmae_online", SMALL | EARLY),
    "cvt": ("mixcvt_online", SMALL | EARLY | {"early_heads": (1, 1)}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_are_those_of_float32_weights(family, quick_compilation):
    name, changes = FAMILIES[family]
    config = dataclasses.replace(size_config(name), dtype="bfloat16", **changes)
    variables = init_variables(build_model(config), jax.random.key(0))
    tracker = Tracker(config, TrackerConfig(), variables)
    kernels = [leaf for leaf in jax.tree.leaves(tracker.variables) if leaf.dtype == jnp.bfloat16]
    assert sum(leaf.size for leaf in kernels) > 0.8 * sum(leaf.size for leaf in jax.tree.leaves(tracker.variables))
    frames = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), np.uint8)

    def track():
        state, found = tracker.start(frames[0], (30, 20, 24, 24)), []
        for frame in frames[1:]:
            state, tracked = tracker.step(state, frame)
            found.append((tracked.boxes_xywh, tracked.scores))
        return found

    converted = track()
    tracker.variables = jax.device_put(variables, tracker.device)
    for mine, theirs in zip(converted, track(), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=0.05)  # XLA may leave out the rounding of weights that it converts
