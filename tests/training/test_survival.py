"""Runs that are killed, stopped, damaged and moved: what is left, and what they make of it."""

import json
import os
import random
import signal
import socket
import time

import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.weights import load_weights

MODEL = {
    "name": "small",
    "search_size": 64,
    "template_size": 32,
    "width": 24,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "head": "query",
    "drop_path": 0.2,
}


def config_file(folder, root, **train):
    """A config whose samples come from worker processes, for they are read from disk."""
    config = {
        "model": MODEL,
        "tracker": {"search_factor": 4.0, "num_online_templates": 1},
        "data": {
            "datasets": {"folder": {"root": str(root / "videos")}},
            "validation": {"folder": {"root": str(root / "videos")}},
            "crops": {"centre_jitter": 2.0},
            "augment": {"occluder_probability": 0.0},
        },
        "train": {
            "steps": 24,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "ema_decay": 0.9,
            "log_every": 2,
            "checkpoint_every": 3,
            "validate_every": 8,
            "validation_pairs": 6,
            "workers": 1,
            **train,
        },
    }
    path = folder / "config.py"
    path.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({config!r})\n")
    return path


def tensors(path):
    return {"/".join(name): value for name, value in flatten_dict(load_weights(path).variables).items()}


def steps_logged(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_killed_or_stopped_at_any_moment_a_run_ends_with_the_same_bits(root, tmp_path, commands):
    config = config_file(tmp_path, root, steps=32, checkpoint_every=5)
    log = tmp_path / "log.txt"

    def start(name, *others):
        return commands.start(["train", "--config", str(config), "--out", str(tmp_path / name), *others], log)

    # Whoever makes the samples, they are the same.
    assert commands.wait(start("whole", "--config.train.workers=0")) == 0, log.read_text()
    rng = random.Random(5)
    numbers = (signal.SIGTERM, signal.SIGKILL)
    for number, lines in zip(numbers, sorted(rng.sample(range(11), 2)), strict=True):
        loops = log.read_text().count("compiled in")
        process = start("killed")
        while log.read_text().count("compiled in") == loops or steps_logged(tmp_path / "killed") <= lines:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process, number)
        assert commands.wait(process) == (-number if number == signal.SIGKILL else 128 + number), log.read_text()
    assert "the same command goes on from there" in log.read_text()
    assert commands.wait(start("killed")) == 0, log.read_text()
    assert "leaked" not in log.read_text(), "nobody need hear of shared memory that is cleared"

    expected, found = (tensors(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    events = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    # What was written after the last checkpoint of a killed part is there once.
    assert [event["step"] for event in events if event["kind"] == "train"] == list(range(2, 33, 2))
    kept = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    ours, theirs = ([event for event in each if event["kind"] == "validation"] for each in (events, kept))
    assert [event["step"] for event in ours] == [8, 16, 24, 32] and ours == theirs


def together(commands, config, out, logs, *others, **overrides):
    """Processes with two devices each that train one run; `others` are arguments of the last one alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = ["train", "--config", str(config), "--out", str(out), "--config.train.distributed=true"]
    arguments += [f"--config.train.{name}={value}" for name, value in overrides.items()]
    return [
        commands.start(
            [*arguments, *(others if index == len(logs) - 1 else ())],
            logs[index],
            {"jax_num_cpu_devices": 2},
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES=str(len(logs)),
            JAX_PROCESS_ID=str(index),
        )
        for index in range(len(logs))
    ]


def test_two_processes_agree_with_one(root, tmp_path, commands):
    config = config_file(tmp_path, root, steps=4, workers=0)
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    alone = commands.start(["train", "--config", str(config), "--out", str(tmp_path / "one")], tmp_path / "one.txt")
    pair = together(commands, config, tmp_path / "two", logs, mesh="(2,2,1)")
    assert commands.wait(alone) == 0, (tmp_path / "one.txt").read_text()
    assert [commands.wait(process) for process in pair] == [0, 0], logs[0].read_text() + logs[1].read_text()
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for ours, theirs in zip(two, one, strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-4)
        other = "gradient_norm" if theirs["kind"] == "train" else "iou"
        np.testing.assert_allclose(ours[other], theirs[other], rtol=1e-3, atol=1e-5)


def test_two_processes_stop_together_go_on_and_end_together(root, tmp_path, commands):
    config = config_file(tmp_path, root, steps=100_000, workers=0, checkpoint_every=100_000)
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    pair = together(commands, config, tmp_path / "run", logs, mesh="(4,1,1)", peer_timeout_s=8)
    while not steps_logged(tmp_path / "run"):
        time.sleep(0.05)
    assert "process 1 on " in logs[0].read_text() and ": 2 x cpu" in logs[0].read_text()
    os.kill(pair[1], signal.SIGINT)
    assert [commands.wait(process) for process in pair] == [128 + signal.SIGINT] * 2, logs[1].read_text()
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()

    first, second = together(commands, config, tmp_path / "run", logs, mesh="(4,1,1)", peer_timeout_s=8)
    lines = steps_logged(tmp_path / "run")
    while steps_logged(tmp_path / "run") <= lines:
        time.sleep(0.05)
    assert f"goes on after step {saved.name}" in logs[0].read_text()
    os.kill(second, signal.SIGKILL)
    assert commands.wait(second) == -signal.SIGKILL
    assert commands.wait(first) == 2, logs[0].read_text()
    assert "one of them is gone. Start all of them again" in logs[0].read_text()


def test_what_one_process_meets_ends_both(root, tmp_path, commands):
    config = config_file(tmp_path, root, workers=0)
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    nowhere = f"--config.data.datasets.folder.root={tmp_path / 'nowhere'}"
    pair = together(commands, config, tmp_path / "run", logs, nowhere, mesh="(4,1,1)")
    assert [commands.wait(process) for process in pair] == [2, 2], logs[1].read_text()
    for log in logs:
        assert log.read_text().count("mixformer: error: ") == 1 and "nowhere" in log.read_text()
        assert "Traceback" not in log.read_text()
    assert "process 0 of 2 ends, for process 1 has failed: " in logs[0].read_text()


def test_a_step_that_is_not_finite_ends_both_with_their_evidence(root, tmp_path, commands):
    config = config_file(tmp_path, root, workers=0)
    logs = [tmp_path / "0.txt", tmp_path / "1.txt"]
    pair = together(commands, config, tmp_path / "run", logs, mesh="(4,1,1)", learning_rate=1e30)
    assert [commands.wait(process) for process in pair] == [2, 2], logs[1].read_text()
    evidence = sorted((tmp_path / "run").glob("not_finite_step_*_process_[01].npz"))
    steps = {path.name.split("_")[3] for path in evidence}
    assert len(evidence) == 2 and len(steps) == 1
    for log, path in zip(logs, evidence, strict=True):
        assert log.read_text().count("mixformer: error: ") == 1 and path.name in log.read_text()
        assert len(np.load(path)["search"]) == 2


def test_a_distributed_run_of_one_process_saves(root, tmp_path, commands):
    config = config_file(tmp_path, root, steps=100_000, workers=0, checkpoint_every=100_000)
    logs = [tmp_path / "0.txt"]
    (process,) = together(commands, config, tmp_path / "run", logs, mesh="(2,1,1)")
    while not steps_logged(tmp_path / "run"):
        time.sleep(0.05)
    os.kill(process, signal.SIGTERM)
    assert commands.wait(process) == 128 + signal.SIGTERM, logs[0].read_text()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
