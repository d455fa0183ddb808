"""Whole runs on a data set of a few small frames: learning, resuming, and failing loudly."""

import json
import signal

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mixformer_jax.models.config import ConfigError
from mixformer_jax.signals import Stopped, StopSignals
from mixformer_jax.training.checkpoints import Checkpoints
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.folder import TrainingError
from mixformer_jax.training.loop import train
from mixformer_jax.training.program import learning_rate_schedule, make_optimizer, split_params, train_program
from mixformer_jax.training.sharding import make_mesh
from mixformer_jax.training.supervised import BoxStage, tracking_objective


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
    config["train"]["learning_rate"] = 1e30
    with pytest.raises(TrainingError, match="loss of step") as caught:
        train(config, tmp_path)
    evidence = next(tmp_path.glob("not_finite_step_*.npz"))
    assert evidence.name in str(caught.value)
    assert np.load(evidence)["search"].shape == (4, 64, 64, 3)
    about = json.loads(evidence.with_suffix(".json").read_text())
    assert f"step_{about['step']}.npz" in evidence.name
    assert "backbone/blocks_0/mlp/fc1/kernel" in about["gradients_not_finite"]
    # Nothing of it was saved.
    assert all(int(path.name) <= about["step"] for path in (tmp_path / "checkpoints").glob("*"))


def test_a_signal_while_it_saves_needs_no_second_checkpoint(config, tmp_path, monkeypatch):
    save = Checkpoints.save

    def save_and_be_told(self, state, *others):
        save(self, state, *others)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", save_and_be_told)
    with StopSignals("mixformer") as signals, pytest.raises(Stopped):
        train(config, tmp_path)
    assert signals.asked() == signal.SIGTERM
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_unknown_keys_are_errors(config):
    config["train"]["learning_rat"] = 1
    with pytest.raises(ConfigError, match="did you mean 'learning_rate'"):
        Experiment.from_mapping(config)
    del config["train"]["learning_rat"]
    config["data"]["crops"]["search_size"] = 128
    with pytest.raises(ConfigError, match="search_size"):
        Experiment.from_mapping(config)
    del config["data"]
    with pytest.raises(ConfigError, match="sections"):
        Experiment.from_mapping(config)


def test_a_small_model_learns_eight_samples_by_heart(config):
    config["model"] |= {"width": 48, "mlp_ratio": 4, "head": "corner_pyramid", "head_width": 16}
    config["tracker"]["num_online_templates"] = 0
    config["train"] |= {"batch_size": 8, "steps": 150, "learning_rate": 4e-3, "warmup_steps": 20, "schedule": "cosine"}
    experiment = Experiment.from_mapping(config)
    rng = np.random.default_rng(0)
    centres, sides = rng.uniform(0.3, 0.6, (8, 2)), rng.uniform(0.2, 0.4, (8, 2))
    search = rng.integers(0, 80, (8, 64, 64, 3), dtype=np.uint8)
    for image, centre, side in zip(search, centres, sides, strict=True):
        (left, top), (right, bottom) = (
            np.round((centre - side / 2) * 64).astype(int),
            np.round((centre + side / 2) * 64).astype(int),
        )
        image[top:bottom, left:right] += 150
    batch = {
        "templates": search[:, None, 16:48, 16:48],
        "search": search,
        "box_cxcywh": np.concatenate([centres, sides], axis=1).astype(np.float32),
    }
    program = train_program(tracking_objective(experiment), experiment.train, make_mesh((1, 1, 1)))
    state = program.init(jax.random.key(0))
    step = program.step.lower(program.state, program.batch).compile()
    for _ in range(150):
        state, _report = step(state, batch)
    sums = program.evaluate(state.shipped, batch, np.ones(8, np.float32))
    assert sums["iou"] / 8 > 0.9


def test_rates_of_backbone_and_head(config):
    config["train"] |= {"backbone_rate": 0.1, "weight_decay": 0.0, "steps": 100, "decay_at": 0.8}
    config["model"] |= {"positions": "interpolated_frozen"}
    experiment = Experiment.from_mapping(config)
    schedule = learning_rate_schedule(experiment.train)
    np.testing.assert_allclose([schedule(0), schedule(79), schedule(80)], [1e-3, 1e-3, 1e-4], rtol=1e-5)
    params = {"backbone": {"kernel": np.ones(3, np.float32)}, "head": {"kernel": np.ones(3, np.float32)}}
    params["backbone"]["search_positions"] = {"table": np.ones(3, np.float32)}
    objective = tracking_objective(experiment)
    trained, frozen = split_params(objective, params)
    assert list(flatten_dict(frozen)) == [("backbone", "search_positions", "table")]
    optimizer = make_optimizer(experiment.train, objective)
    gradients = jax.tree.map(lambda x: 0.01 * np.ones_like(x), trained)
    changes, _ = optimizer.update(gradients, optimizer.init(trained), trained)
    np.testing.assert_allclose(changes["head"]["kernel"], -1e-3, rtol=1e-4)
    np.testing.assert_allclose(changes["backbone"]["kernel"], -1e-4, rtol=1e-4)


def test_the_best_weights_are_exported_where_asked_for(config, tmp_path, monkeypatch):
    config["train"] |= {"export": "best", "keep_every": 3}
    ranks = iter([0.7, 0.6])
    monkeypatch.setattr(BoxStage, "rank", lambda self, measured: next(ranks))
    for _ in range(2):  # the second time, all is trained
        exported = train(config, tmp_path).read_bytes()
        assert exported == (tmp_path / "model_3.safetensors").read_bytes()
        assert exported != (tmp_path / "model_6.safetensors").read_bytes()
