"""What training switches on: stochastic depth, batch statistics, learnable positions, bfloat16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import DropPath
from mixformer_jax.models.mixformer import build_model, init_variables

SMALL = MixFormerConfig(
    name="small",
    search_size=64,
    template_size=32,
    width=48,
    depth=2,
    num_heads=3,
    drop_path=0.0,
    head="corner",
    head_width=16,
    head_norm="batch",
)


def applied(model, variables, *args, rngs=None, **settings):
    """`model.apply` as one program: operation by operation it would be hundreds."""
    return jax.jit(functools.partial(model.apply, **settings))(variables, *args, rngs=rngs)


@functools.cache
def fresh(config=SMALL):
    """Variables of a config; those of SMALL fit all that have no other positions."""
    return init_variables(build_model(config), jax.random.key(0))


@pytest.fixture(scope="module")
def images():
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.random.normal(keys[0], (4, 2, 32, 32, 3)), jax.random.normal(keys[1], (4, 64, 64, 3))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    branch = jnp.ones((4000, 2, 3))
    dropped = DropPath(0.25).apply({}, branch, train=True, rngs={"drop_path": jax.random.key(0)})
    per_sample = np.asarray(dropped).reshape(4000, -1)
    assert set(np.unique(per_sample)) == {0.0, np.float32(1 / 0.75)}
    assert (per_sample == per_sample[:, :1]).all()
    assert abs(per_sample.mean() - 1) < 0.05
    np.testing.assert_array_equal(DropPath(0.25).apply({}, branch, train=False), branch)


def test_drop_path_grows_with_depth(images):
    templates, search = images
    model = build_model(dataclasses.replace(SMALL, drop_path=0.9))
    variables = fresh()
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats", "intermediates"]))

    def features(seed):
        return train(variables, templates, search, rngs={"drop_path": jax.random.key(seed)})[0].features

    assert np.abs(features(0) - features(1)).max() > 1e-3
    np.testing.assert_array_equal(features(0), features(0))
    assert [block.drop_path for block in model.bind(variables).backbone.blocks] == [0.0, 0.9]


@pytest.mark.parametrize("remat", [None, "nothing_saveable"])
@pytest.mark.parametrize("attention", ["asymmetric", "symmetric"])
def test_drop_path_draws_once_for_both_streams_of_a_sample(images, attention, remat):
    templates, search = (jnp.tile(each, (8, *[1] * (each.ndim - 1))) for each in images)
    model = build_model(dataclasses.replace(SMALL, drop_path=0.5, attention=attention), remat)
    _, captured = applied(
        model,
        fresh(),
        templates,
        search,
        train=True,
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=lambda module, _method: isinstance(module, DropPath),
        rngs={"drop_path": jax.random.key(0)},
    )
    last = captured["intermediates"]["backbone"]["blocks_1"]
    kept = {}
    for branch in ("drop1", "drop2"):
        (both,) = last[branch]["__call__"]
        streams = np.split(np.asarray(both), [templates.shape[1] * SMALL.template_grid**2], axis=1)
        kept[branch], of_search = (stream.any(axis=(1, 2)) for stream in streams)
        np.testing.assert_array_equal(kept[branch], of_search)
        assert 0 < kept[branch].sum() < len(search)
    assert (kept["drop1"] != kept["drop2"]).any()


def test_batch_statistics_move_in_training_alone(images):
    templates, search = images
    model = build_model(SMALL)
    variables = fresh()
    _, updates = applied(model, variables, templates, search, train=True, mutable=["batch_stats"])
    before = variables["batch_stats"]["head"]["top_left"]["conv1"]["norm"]["mean"]
    after = updates["batch_stats"]["head"]["top_left"]["conv1"]["norm"]["mean"]
    assert np.abs(before - after).max() > 0
    _, kept = applied(model, variables, templates, search, train=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(kept["batch_stats"]["head"]["top_left"]["conv1"]["norm"]["mean"], before)


@pytest.mark.parametrize(
    ("kind", "learns"), [("interpolated_frozen", False), ("interpolated_learnable", True), ("learnable", True)]
)
def test_position_tables(images, kind, learns):
    templates, search = images
    model = build_model(dataclasses.replace(SMALL, positions=kind, depth=1, head="query"))
    variables = fresh(model.config)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def loss(params):
        return model.apply({"params": params, **rest}, templates, search).features.sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])["backbone"]["search_positions"]["table"]
    assert gradient.shape == (16, 48)
    assert bool(np.abs(gradient).max() > 0) == learns


def test_bfloat16_stays_near_float32(images):
    templates, search = images
    variables, model = fresh(), build_model(dataclasses.replace(SMALL, dtype="bfloat16"))
    exact = applied(build_model(SMALL), variables, templates, search)
    rough = applied(model, variables, templates, search)
    assert jax.tree.leaves(variables)[0].dtype == jnp.float32
    cache = applied(model, variables, templates, method="encode_templates")
    assert cache.blocks[0].keys.dtype == jnp.bfloat16
    assert rough.features.dtype == rough.boxes_cxcywh.dtype == jnp.float32, "the residual stream is not rounded"
    assert 0 < np.abs(rough.boxes_cxcywh - exact.boxes_cxcywh).max() < 0.005


def test_the_stream_in_bfloat16_is_for_training_alone(images):
    variables, rough = fresh(SMALL), dataclasses.replace(SMALL, dtype="bfloat16")
    rest = {"batch_stats": variables["batch_stats"]}

    def gradient(model):
        def loss(params):
            found, _ = model.apply({"params": params, **rest}, *images, train=True, mutable=["batch_stats"])
            return jnp.abs(found.boxes_cxcywh - 0.4).sum(), found.features

        gradients, features = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients["backbone"])]), features

    narrow = build_model(rough, residual_dtype="bfloat16")
    (exact, wide), (rounded, stream) = gradient(build_model(SMALL)), gradient(narrow)
    assert wide.dtype == jnp.float32 and stream.dtype == jnp.bfloat16
    assert 0 < np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)
    tracked = jax.eval_shape(lambda *given: narrow.apply(variables, *given), *images)
    assert tracked.features.dtype == jnp.float32


def test_the_cache_is_the_templates_alone(images):
    """Asymmetric attention (eq. 2): the search region leaves no trace in the template stream."""
    templates, search = images
    model = build_model(SMALL)
    variables = fresh()
    cache = applied(model, variables, templates, method="encode_templates")
    joint = applied(model, variables, templates, search)
    cached = applied(model, variables, cache, search, method="locate")
    np.testing.assert_allclose(cached.boxes_cxcywh, joint.boxes_cxcywh, atol=1e-6)
    tokens = templates.shape[1] * SMALL.template_grid**2
    assert all(block.keys.shape == (4, 3, tokens, 16) for block in cache.blocks)
