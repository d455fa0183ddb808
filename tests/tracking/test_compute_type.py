"""Weights lie on the device in the type in which the model computes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models.config import TrackerConfig, size_config
from mixformer_jax.models.mixformer import build_model, init_variables, variable_shapes
from mixformer_jax.tracking.lanes import Lanes
from mixformer_jax.tracking.step import _find, _locate, start_from_crops
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
    # The head of the others is that of the first; this one compiles quickly.
    "convmae": ("mixvit_b_convmae_online", SMALL | EARLY | {"head": "query"}),
    "cvt": ("mixcvt_online", SMALL | EARLY | {"early_heads": (1, 1), "head": "query"}),
}


def config_of(family):
    name, changes = FAMILIES[family]
    return dataclasses.replace(size_config(name), dtype="bfloat16", **changes)


def without_weights(config):
    """A tracker whose programs are looked at."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(build_model(config)))
    return Tracker(config, TrackerConfig(), zeros)


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_are_those_of_float32_weights(family, quick_compilation):
    config = config_of(family)
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


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_converts_no_matrix_and_gives_back_nothing_that_it_leaves_alone(family):
    tracker = without_weights(config_of(family))
    config, fixed = tracker.config, (tracker.model, tracker.settings)
    sides, n = (config.template_size, config.search_size), 2
    templates, search = (jax.ShapeDtypeStruct((n, side, side, 3), jnp.uint8) for side in sides)
    boxes = jax.ShapeDtypeStruct((n, 4), jnp.float32)
    state = jax.eval_shape(lambda *given: start_from_crops(*fixed, *given), tracker.variables, templates, boxes)
    given = (search, jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32))

    def total_bytes(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    results = _find.trace(*fixed, tracker.variables, state, *given).out_info
    # Boxes, scores and counters: neither the cache nor any crop.
    assert total_bytes(results) < 100 * n < total_bytes(state.templates) and 100 * n < total_bytes(state.cache)

    program = _locate.trace(*fixed, tracker.variables, state, boxes, *given).jaxpr.jaxpr
    weights = {id(variable) for variable in program.invars[: len(jax.tree.leaves(tracker.variables))]}
    converted = [
        equation.invars[0].aval
        for equation in program.eqns
        if equation.primitive.name == "convert_element_type" and id(equation.invars[0]) in weights
    ]
    assert all(leaf.ndim == 1 for leaf in converted), "biases and norms alone are converted"


def test_a_new_video_is_put_into_the_arrays_of_the_lanes(quick_compilation):
    lanes, frame = Lanes(without_weights(config_of("vit")), 2), np.zeros((90, 120, 3), np.uint8)
    before = lanes.start(None, 0, frame, (30, 20, 24, 24))
    lanes.start(before, 1, frame, (30, 20, 24, 24))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.cache, before.templates)))
