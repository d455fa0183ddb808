"""Training on samples that the devices render: the same run on one device and on two, resumed or not."""

import numpy as np
import pytest

from mixformer_jax.data.pipeline import batches
from mixformer_jax.data.pool.device import DeviceSamples
from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.folder import TrainingError, claim_folder
from mixformer_jax.training.loop import train
from mixformer_jax.training.pretraining import MaskedPretraining, PretrainExperiment
from mixformer_jax.training.progress import LINES_NAME, read_lines
from mixformer_jax.training.samples import training_samples
from mixformer_jax.training.sharding import make_mesh, to_devices


@pytest.fixture
def config(config):
    blurs = {"blur_probability": 0.0, "coarse_probability": 0.0, "motion_blur_probability": 0.0}
    # The head that compiles quickly.
    model = {name: value for name, value in config["model"].items() if not name.startswith("head_")}
    config["model"] = model | {"head": "query", "mimetic_init": False}
    config["tracker"]["num_online_templates"] = 0
    config["data"] |= {"exclude": (), "augment": blurs, "render": "device"}
    config["train"] |= {"steps": 2, "corner_weight": 0.0, "log_every": 1, "validate_every": 2, "checkpoint_every": 1}
    return config


@pytest.fixture
def unchecked(monkeypatch):
    """Without the look at what the pool can serve, which `test_two_devices_train_as_one_does` takes."""
    monkeypatch.setattr(DeviceSamples, "check", lambda self, resident: None)


def losses(folder):
    return [line["loss"] for line in read_lines(folder / LINES_NAME) if line["kind"] == "train"]


def test_two_devices_train_as_one_does(config, tmp_path):
    train(config, tmp_path / "one")
    config["train"]["mesh"] = (2, 1, 1)
    train(config, tmp_path / "two")
    assert len(losses(tmp_path / "one")) == 2
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_batches_are_the_same_wherever_a_run_goes_on(config, unchecked):
    experiment = Experiment.from_mapping(config)
    samples = training_samples(experiment)
    assert isinstance(samples, DeviceSamples)
    mesh = make_mesh((2, 1, 1))
    render = to_devices(samples, mesh, 4)
    stream = batches(samples, 4, workers=0)
    next(stream)
    state = stream.get_state()
    second = render(next(stream))
    assert second["search"].sharding.shard_shape(second["search"].shape)[0] == 2
    resumed = batches(samples, 4, workers=0)
    resumed.set_state(state)
    numbers = next(resumed)
    again = to_devices(training_samples(experiment), mesh, 4)(numbers)
    alone = to_devices(training_samples(experiment), make_mesh((1, 1, 1)), 4)(numbers)
    for name, value in second.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
        # Another mesh is another program, which may round otherwise.
        np.testing.assert_allclose(np.asarray(value, float), np.asarray(alone[name], float), atol=1.01, err_msg=name)
    np.testing.assert_allclose(second["box_cxcywh"], alone["box_cxcywh"], atol=1e-5)
    assert (np.asarray(second["search"]) == alone["search"]).mean() > 0.99


def test_evidence_of_a_bad_step_is_the_rendered_batch(config, unchecked, tmp_path):
    config["train"] |= {"learning_rate": 1e30, "steps": 6, "checkpoint_every": 6, "validate_every": 6}
    with pytest.raises(TrainingError, match="loss of step"):
        train(config, tmp_path)
    evidence = np.load(next(tmp_path.glob("not_finite_step_*.npz")))
    assert evidence["search"].shape == (4, 64, 64, 3) and evidence["search"].any()
    assert evidence["box_cxcywh"].shape == (4, 4)


def test_pretraining_renders_what_the_autoencoder_reads(config, unchecked):
    run = {key: value for key, value in config["train"].items() if key != "corner_weight"}
    experiment = PretrainExperiment.from_mapping(
        {
            "autoencoder": {
                "model": {key: value for key, value in config["model"].items() if not key.startswith("head_")},
                "num_templates": 1,
                "decoder_width": 24,
                "decoder_depth": 1,
                "decoder_heads": 2,
            },
            "data": config["data"],
            "train": run,
        }
    )
    samples = MaskedPretraining(experiment).samples()
    batch = to_devices(samples, make_mesh((1, 1, 1)), 2)({"index": np.arange(2, dtype=np.uint32)})
    assert set(batch) == {"search", "templates"}


def test_a_run_may_move_to_where_samples_are_rendered(config, tmp_path):
    there = {"data": {key: value for key, value in config["data"].items() if key != "render"}}
    claim_folder(tmp_path, there)
    claim_folder(tmp_path, {"data": config["data"]})


def test_data_sets_on_disk_are_refused(config):
    config["data"]["datasets"] = {"coco": {"root": "x"}}
    with pytest.raises(ConfigError, match=r"data\.render is 'device'"):
        Experiment.from_mapping(config)
