"""One step on many devices: the same result on every mesh, batch norms over all samples, memory split among devices."""

import jax
import numpy as np
import pytest

from mixformer_jax.models.config import ConfigError, size_config
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.program import train_program
from mixformer_jax.training.sharding import make_mesh, partition_spec, process_rows
from mixformer_jax.training.supervised import tracking_objective

SMALL = {
    "name": "small",
    "search_size": 64,
    "template_size": 32,
    "width": 48,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "head": "corner",
    "head_width": 16,
    "drop_path": 0.3,
}
FAMILIES = {
    "vit": {"positions": "learnable"},
    "convmae": {"patch_embed": "convmae", "early_widths": (16, 32), "early_depths": (1, 1), "head": "query"},
    # Its batch norms train; one stage alone, since they take long to compile.
    "cvt": {
        "backbone": "cvt",
        "patch_size": 4,
        "search_size": 32,
        "template_size": 16,
        "projection": "depthwise",
        "projection_norm": "batch",
        "head": "query",
    },
}
# The last splits along every axis; each family is compiled for it, and one for the other. On the first axis alone:
# `test_accumulated_parts_make_the_step_of_the_whole_batch`.
MESHES = ((2, 4, 1), (2, 2, 2))


def experiment(model=(), train=()):
    return Experiment.from_mapping(
        {
            "model": {**SMALL, **dict(model)},
            "tracker": {"search_factor": 4.0, "num_online_templates": 1},
            "data": {"root": "nowhere"},
            "train": {"batch_size": 8, **dict(train)},
        }
    )


def batch_of(objective, size=8, seed=0):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0.4, 0.6, (size, 2)), rng.uniform(0.2, 0.4, (size, 2))], axis=1)
    made = {"box_cxcywh": boxes.astype(np.float32)}
    for name, shape in objective.batch_shapes(size).items():
        if name not in made:
            made[name] = rng.integers(0, 255, shape.shape).astype(shape.dtype)
    return made


def compiled(program):
    return program.step.lower(program.state, program.batch).compile()


def placed(tree, like):
    return jax.tree.map(lambda x, abstract: jax.device_put(x, abstract.sharding), tree, like)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_the_same_on_every_mesh(family):
    config = experiment(FAMILIES[family])
    objective = tracking_objective(config)
    batch = batch_of(objective)
    start = whole = None
    for mesh in ((1, 1, 1), *(MESHES if family == "vit" else MESHES[-1:])):
        program = train_program(objective, config.train, make_mesh(mesh))
        start = start or jax.device_get(program.init(jax.random.key(1)))
        state, report = compiled(program)(placed(start, program.state), placed(batch, program.batch))
        assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, program.state)
        if whole is None:
            whole, expected = jax.device_get((state, report))
            continue
        for name, value in expected.metrics.items():
            np.testing.assert_allclose(report.metrics[name], value, rtol=1e-4, err_msg=f"{mesh} {name}")
        np.testing.assert_allclose(report.gradient_squares, expected.gradient_squares, rtol=2e-3, atol=1e-10)
        # Statistics of batch norms are those of all eight samples, though a device sees only some.
        for ours, theirs in zip(jax.tree.leaves(state.model_state), jax.tree.leaves(whole.model_state), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=f"{mesh}")
        # AdamW's first moment is the clipped gradient; its step would blow up the rounding of one that is nearly 0.
        for ours, theirs in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(whole.opt_state), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3 * np.abs(theirs).max() + 1e-9)


def test_fresh_weights_are_the_same_on_every_mesh():
    config = experiment()
    objective = tracking_objective(config)
    one, many = (train_program(objective, config.train, make_mesh(mesh)) for mesh in ((1, 1, 1), (2, 2, 2)))
    expected, found = (program.init(jax.random.key(3)) for program in (one, many))
    kernel = found.params["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (24, 48)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_accumulated_parts_make_the_step_of_the_whole_batch():
    # Without stochastic depth and batch norm, which see a part at a time.
    model = {"drop_path": 0.0, "head": "query"}
    reports = []
    for train in ({}, {"accumulate": 2}, {"accumulate": 2, "remat": True, "mesh": (4, 1, 1)}):
        config = experiment(model, train)
        objective = tracking_objective(config)
        program = train_program(objective, config.train, make_mesh(config.train.mesh if "mesh" in train else (1, 1, 1)))
        state = placed(jax.device_get(program.init(jax.random.key(1))), program.state)
        reports.append(compiled(program)(state, placed(batch_of(objective), program.batch))[1])
    for other in reports[1:]:
        np.testing.assert_allclose(other.gradient_squares, reports[0].gradient_squares, rtol=1e-3, atol=1e-10)
        np.testing.assert_allclose(other.metrics["loss"], reports[0].metrics["loss"], rtol=1e-5)


def test_fsdp_splits_the_memory_of_the_large_model():
    config = Experiment.from_mapping(
        {
            "model": size_config("mixvit_l").to_dict(),
            "tracker": {},
            "data": {"root": "nowhere"},
            "train": {"ema_decay": 0.999},
        }
    )
    program = train_program(tracking_objective(config), config.train, make_mesh((1, 8, 1)))

    def bytes_of(shape):
        return int(np.prod(shape)) * 4

    leaves = jax.tree.leaves(program.state)
    whole = sum(bytes_of(leaf.shape) for leaf in leaves)
    share = sum(bytes_of(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    assert whole > 4.5e9  # four copies of 0.3 billion numbers: parameters, their average, AdamW's moments
    assert whole / share > 7


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("/params/backbone/blocks_0/attention/qkv/kernel", (48, 144), (None, "fsdp")),
        ("/params/backbone/blocks_0/attention/q/kernel", (48, 48), ("fsdp", "tensor")),
        ("/opt_state/1/inner_states/backbone/mu/backbone/blocks_0/mlp/fc2/kernel", (96, 48), ("tensor", "fsdp")),
        ("/params/head/top_left/conv1/conv/kernel", (3, 3, 48, 16), (None, None, None, "fsdp")),
        ("/params/head/top_left/conv5/kernel", (1, 1, 2, 1), (None, None, None, None)),  # 1 does not divide by 2
        ("/params/backbone/blocks_0/norm1/scale", (48,), (None,)),
        ("/step", (), ()),
    ],
)
def test_rules(path, shape, spec):
    found = partition_spec(path, shape, make_mesh((2, 2, 2)))
    assert tuple(found) == spec


def test_meshes_and_batches_that_do_not_fit():
    assert make_mesh((-1, 4, 1)).shape == {"data": 2, "fsdp": 4, "tensor": 1}
    assert process_rows(16, make_mesh((2, 2, 2))) == (0, 1)
    for shape in ((3, 4, 1), (-1, -1, 1), (8, 1), (0, 1, 1)):
        with pytest.raises(ConfigError, match=r"train\.mesh"):
            make_mesh(shape)
    with pytest.raises(ConfigError, match="batch_size 12 does not divide among 8 devices"):
        process_rows(12, make_mesh((8, 1, 1)))
    config = experiment(train={"accumulate": 2})
    with pytest.raises(ConfigError, match="8 does not divide into 16 parts"):
        train_program(tracking_objective(config), config.train, make_mesh((8, 1, 1)))
