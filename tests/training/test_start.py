"""How runs start: official backbones, other runs, stage 2 from stage 1; and what stage 2 trains."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.names import variables_to_official
from mixformer_jax.convert.torch_files import write_official_safetensors
from mixformer_jax.convert.weights import WeightsError, load_weights
from mixformer_jax.models.config import ConfigError, size_config
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.loop import train
from mixformer_jax.training.program import train_program
from mixformer_jax.training.sharding import make_mesh
from mixformer_jax.training.supervised import start_from, tracking_objective
from tests.compilation import QUICK

MODEL = {
    "name": "small",
    "search_size": 64,
    "template_size": 32,
    "width": 48,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "head": "corner",
    "head_width": 16,
}
SCORE = {"score_heads": 2, "head_norm": "frozen"}


def quick(function):
    """Jitted, compiled in haste."""
    return jax.jit(function, compiler_options=QUICK)


def config(root="nowhere", model=(), data=(), **train):
    return {
        "model": {**MODEL, **dict(model)},
        "tracker": {"search_factor": 4.0, "num_online_templates": 1},
        "data": {
            "datasets": {"folder": {"root": str(root)}},
            "crops": {"centre_jitter": 2.0},
            "augment": {"occluder_probability": 0.0},
            **dict(data),
        },
        "train": {"steps": 2, "batch_size": 4, "workers": 0, "mesh": (1, 1, 1), "validation_pairs": 4, **train},
    }


def score_config(root="nowhere", init="somewhere", **train):
    return config(root, SCORE, {"positive_share": 0.5}, stage="score", init=str(init), **train)


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    """Weights as stage 1 leaves them, batch statistics that are not the initial ones included."""
    objective = tracking_objective(Experiment.from_mapping(config()))
    variables = jax.device_get(quick(objective.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape), variables["batch_stats"])
    path = tmp_path_factory.mktemp("stage_one") / "model.safetensors"
    objective.export(path, variables)
    return path


def batch_of(objective):
    rng = np.random.default_rng(1)
    shapes = objective.batch_shapes(4)
    batch = {name: rng.integers(0, 255, x.shape).astype(x.dtype) for name, x in shapes.items()}
    batch["box_cxcywh"] = rng.uniform(0.3, 0.6, (4, 4)).astype(np.float32)
    return batch


def test_stage_two_has_the_boxes_of_stage_one(stage_one):
    one, two = (tracking_objective(Experiment.from_mapping(each)) for each in (config(), score_config()))
    # A run's folder serves as its weights file does.
    start = two.start_from(stage_one.parent)
    assert {name.split("/")[1] for name in start.taken} == {"backbone", "head"}
    assert start.fresh and all(name.startswith("params/score/") for name in start.fresh)
    variables = jax.device_get(quick(two.init)(jax.random.key(1)))
    flat = flatten_dict(variables) | flatten_dict(start.variables)
    batch = batch_of(one)
    shown = [quick(one.show)(load_weights(stage_one).variables, batch)]

    shown.append(quick(two.show)(unflatten_dict(flat), batch))
    np.testing.assert_allclose(shown[1]["box_cxcywh"], shown[0]["box_cxcywh"], rtol=1e-4, atol=1e-5)
    # And back: a finished tracker's constant norms become ones that learn.
    two_file = stage_one.parent / "two.safetensors"
    two.export(two_file, unflatten_dict(flat))
    again = one.start_from(two_file)
    assert not again.fresh and all("score" in name for name in again.ignored)
    for name, value in flatten_dict(load_weights(stage_one).variables).items():
        np.testing.assert_array_equal(flatten_dict(again.variables)[name], value)


@pytest.mark.parametrize("pool", [False, True])
def test_stage_two_trains_the_score_module_alone(root, tmp_path, stage_one, pool):
    settings = score_config(root / "videos", stage_one, learning_rate=1e-2)
    if pool:
        mix = {"video": 1.0, "still": 0.0, "pasted": 0.0, "region": 0.0}
        settings["data"] |= {"datasets": {}, "root": str(root), "exclude": ("held_out",), "mix": mix}
    settings["data"]["validation"] = {"folder": {"root": str(root / "videos")}}
    weights = train(settings, tmp_path / "run")
    trained = flatten_dict(load_weights(weights).variables)
    start = flatten_dict(start_from(stage_one, Experiment.from_mapping(settings).model, ("score",)).variables)
    for path, value in start.items():
        np.testing.assert_array_equal(trained[path], value, err_msg="/".join(path))
    program = train_program(
        tracking_objective(Experiment.from_mapping(settings)),
        Experiment.from_mapping(settings).train,
        make_mesh((1, 1, 1)),
    )
    moments = [path for path, _ in jax.tree_util.tree_leaves_with_path(program.state.opt_state)]
    assert moments and not any("backbone" in str(path[4:]) or "head" in str(path[4:]) for path in moments)
    assert (tmp_path / "run" / "pictures" / "step_2.png").is_file()


def test_an_official_backbone_starts_a_tracker(tmp_path):
    experiment = Experiment.from_mapping(config())
    objective = tracking_objective(experiment)
    variables = jax.device_get(quick(objective.init)(jax.random.key(2)))
    official = variables_to_official(variables, experiment.model, {})
    state = {name.removeprefix("backbone."): value for name, value in official.items() if name.startswith("backbone.")}
    state = {name: value for name, value in state.items() if not name.startswith("pos_embed_")}
    write_official_safetensors(tmp_path / "mae.safetensors", state)
    start = objective.start_from(tmp_path / "mae.safetensors")
    assert {name.split("/")[1] for name in start.taken} == {"backbone"}
    assert {name.split("/")[1] for name in start.fresh} == {"head"}
    for path, value in flatten_dict(start.variables).items():
        np.testing.assert_array_equal(flatten_dict(variables)[path], value)
    two = tracking_objective(Experiment.from_mapping(score_config()))
    with pytest.raises(WeightsError, match="a backbone alone, without head"):
        two.start_from(tmp_path / "mae.safetensors")


def test_what_does_not_fit_is_named(stage_one, tmp_path):
    def objective(**model):
        return tracking_objective(Experiment.from_mapping(config(model=model)))

    with pytest.raises(WeightsError, match="num_heads: 2 there, 4 here"):
        objective(num_heads=4).start_from(stage_one)
    # Another head starts fresh.
    start = objective(head="query").start_from(stage_one)
    assert all("/head/" in name or name.endswith("/regression_token") for name in start.fresh)
    assert {name.split("/")[1] for name in start.taken} == {"backbone"}
    with pytest.raises(WeightsError, match=r"a folder without model\.safetensors"):
        objective().start_from(tmp_path)
    with pytest.raises(
        WeightsError, match="no such file, folder or embedded weights; embedded: mixvit_nano, mixvit_tiny, "
    ):
        objective().start_from(tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match="the name of the weights is empty"):
        find_weights("")


def test_embedded_weights_are_taken_by_their_name():
    start = start_from("mixvit_tiny", size_config("mixvit_tiny"), may_be_fresh=())
    assert not start.fresh and {name.split("/")[1] for name in start.ignored} == {"score"}
    assert find_weights("mixvit_tiny") == find_weights(None)


def test_position_tables_are_resized_to_other_crops():
    small, large = (size_config(name) for name in ("mixvit_tiny", "mixvit_nano"))
    found = load_weights(find_weights("mixvit_tiny"))
    start = flatten_dict(start_from("mixvit_tiny", large, may_be_fresh=()).variables, sep="/")
    for stream, grid in (("search", large.search_grid), ("template", large.template_grid)):
        name = f"params/backbone/{stream}_positions/table"
        table = flatten_dict(found.variables, sep="/")[name]
        assert start[name].shape == (grid**2, small.width) and len(table) > grid**2
        np.testing.assert_allclose(start[name].mean(0), table.mean(0), atol=0.15)
        corner = abs(table[0] - start[name][0]).mean()
        assert corner < 0.6 * abs(table[len(table) // 2] - start[name][0]).mean(), "a corner stays that corner"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": {"positive_share": None}}, "the score stage needs labelled samples"),
        ({"model": {"score_heads": 0}}, "the model has no score module"),
        ({"model": {"head_norm": "batch"}}, "set model.head_norm to 'frozen'"),
        ({"train": {"init": None}}, "train.init must name stage 1's run"),
        ({"train": {"resume": "runs/other"}}, "exclude each other"),
        ({"train": {"stage": "box"}}, "box stage has no use for labels|leave the score module"),
    ],
)
def test_stage_two_settings_that_cannot_work(changes, complaint):
    settings = score_config()
    for section, values in changes.items():
        settings[section] |= values
    with pytest.raises(ConfigError, match=complaint):
        Experiment.from_mapping(settings)
