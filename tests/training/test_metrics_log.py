"""What a run writes down: lines, TensorBoard, Weights & Biases, curves; how it follows the device; its evidence."""

import contextlib
import json
import sys
import threading
import types

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.loop import train
from mixformer_jax.training.program import StepReport
from mixformer_jax.training.progress import MetricsLog, Progress, StepWatch, draw_curves, read_lines


def test_a_log_takes_back_what_a_lost_part_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr("mixformer_jax.training.progress.draw_curves", draw_curves)
    with MetricsLog(tmp_path, 0, {}, None) as log:
        for step in (10, 20, 30):
            log.write("train", step, {"loss": 3.0 - step / 20, "iou": step / 40})
        log.write("validation", 30, {"iou": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    with MetricsLog(tmp_path, 20, {}, None) as log:
        log.write("train", 30, {"loss": 1.0, "iou": 0.7})
        log.picture(30, np.zeros((8, 8, 3), np.uint8))
        log.draw()
    assert [(line["step"], line["iou"]) for line in read_lines(tmp_path / "metrics.jsonl")] == [
        (10, 0.25),
        (20, 0.5),
        (30, 0.7),
    ]
    curves = cv2.imread(str(tmp_path / "curves.png"))
    assert curves.shape[0] > 200 and curves.std() > 5
    assert cv2.imread(str(tmp_path / "pictures" / "step_30.png")).shape == (8, 8, 3)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_weights_and_biases_get_the_metrics_too(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        MetricsLog(tmp_path, 0, {}, "project")
    logged, finished = [], []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda exit_code: finished.append(exit_code)
    )
    started = []

    def init(**settings):
        started.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with MetricsLog(tmp_path, 0, {"train": {"steps": 3}}, "project") as log:
        log.write("train", 2, {"loss": 1.0})
    assert started[0]["project"] == "project" and started[0]["resume"] == "allow"
    assert logged == [(2, {"train/loss": 1.0})] and finished == [0]
    # Two runs whose folders have one name are two; one that goes on is the same, in whatever folder.
    moved = tmp_path / "moved" / tmp_path.name
    moved.mkdir(parents=True)
    with MetricsLog(moved, 0, {}, "project"):
        pass
    with MetricsLog(moved.rename(tmp_path / "away"), 0, {}, "project"):
        pass
    assert started[0]["name"] == started[1]["name"]
    assert started[0]["id"] != started[1]["id"] == started[2]["id"]


def test_a_refusal_of_weights_and_biases_is_one_sentence(tmp_path, monkeypatch):
    class Error(Exception):
        pass

    def init(**settings):
        raise Error("api_key not configured (no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Error))
    with pytest.raises(ConfigError, match=r"does not take the run: api_key not configured.*WANDB_MODE=offline"):
        MetricsLog(tmp_path, 0, {}, "project")


def test_a_run_without_its_package_begins_nothing(tmp_path, monkeypatch, config):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config["train"]["wandb_project"] = "project"
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def report(loss, squares=(1.0, 2.0)):
    return StepReport({"loss": jnp.asarray(loss)}, jnp.asarray(squares))


def test_the_watch_follows_without_holding_up():
    settings = RunConfig(steps=6, batch_size=4, log_every=3)
    progress = Progress(settings, lambda step: 0.1 * step, 0, shown=False)
    with contextlib.closing(StepWatch()) as watch, contextlib.closing(progress):
        for step in range(6):
            with watch.loading():
                pass
            watch.before_step()
            watch.after_step(step, {}, report(float(step)), asked=15 if step == 2 else 0)
            # Never more than the last step is left unread, and it is left.
            assert (watch.asked == 15) == (step > 3)
        watch.read()
        with watch.paused():
            pass
        lines = list(progress.lines(watch))
    assert [(done, line["loss"]) for done, line in lines] == [(3, 1.0), (6, 4.0)]
    assert lines[1][1]["learning_rate"] == pytest.approx(0.5)
    assert all(0 <= line["outside_step"] <= 1 and line["samples_per_s"] > 0 for _, line in lines)
    assert 0 < lines[0][1]["loader_wait"] <= 1
    assert watch.not_finite is None


def test_a_run_says_once_which_part_waits():
    progress = Progress(RunConfig(steps=6, batch_size=4, workers=3), lambda step: 0.1, 0, shown=False)
    told = [
        progress.waits({"outside_step": idle, "loader_wait": loading, "samples_per_s": 410.4})
        for idle, loading in ((0.85, 0.8), (0.7, 0.9), (0.01, 0.3), (0.3, 0.0), (0.0, 0.0))
    ]
    assert told == [
        "the device waits for the loader: device idle 85% of the time, 410 samples/s; train.workers is 3",
        None,
        "the loader waits for the device: device idle 1% of the time, 410 samples/s",
        "the device waits for the host, and not for samples: device idle 30% of the time, 410 samples/s",
        None,
    ]


class Coming:
    """A value that the device has once it is told."""

    def __init__(self):
        self.told = threading.Event()

    def __array__(self, dtype=None, copy=None):
        self.told.wait()
        return np.asarray(1.0, np.float32)


def test_idle_time_is_what_passes_between_steps():
    first, second = Coming(), Coming()
    with contextlib.closing(StepWatch()) as watch:
        watch.before_step()
        assert watch.idle_s > 0
        watch.idle_s = 0.0
        watch.after_step(0, {}, StepReport({"loss": first}, np.ones(1)))
        watch.before_step()  # while the first one runs
        watch.after_step(1, {}, StepReport({"loss": second}, np.ones(1)))
        first.told.set()
        watch.before_step()  # while the second one runs
        assert watch.idle_s == 0.0
        watch.after_step(2, {}, report(1.0))
        second.told.set()
        watch.read()
        with watch.paused():
            pass
        watch.idle_s = 0.0
        watch.before_step()
        assert watch.idle_s > 0


def test_what_goes_wrong_with_a_step_reaches_the_loop():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise ZeroDivisionError("in the other thread")

    with contextlib.closing(StepWatch()) as watch:
        watch.after_step(0, {}, StepReport({"loss": Broken()}, np.ones(1)))
        with pytest.raises(ZeroDivisionError, match="in the other thread"):
            watch.read()


@pytest.mark.parametrize(
    ("loss", "squares"), [(np.nan, (1.0, 2.0)), (np.inf, (1.0, 2.0)), (1.0, (1.0, np.inf)), (1.0, (np.nan, 1.0))]
)
def test_the_watch_keeps_the_batch_of_the_first_bad_step(loss, squares):
    with contextlib.closing(StepWatch()) as watch:
        for step in range(4):
            watch.before_step()
            bad = step >= 1
            watch.after_step(step, {"number": np.asarray(step)}, report(loss, squares) if bad else report(1.0))
        watch.read()
    assert watch.not_finite.step == 1 and watch.not_finite.batch["number"] == 1
    np.testing.assert_array_equal(watch.not_finite.gradient_squares, np.float32(squares))


def test_lines_are_json_with_plain_numbers(tmp_path):
    with MetricsLog(tmp_path, 0, {}, None) as log:
        log.write("train", 1, {"loss": 0.1 + 0.2})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"kind": "train", "step": 1, "loss": 0.1 + 0.2}
