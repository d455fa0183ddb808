"""Runs that are killed, stopped, damaged and moved: what is left, and what they make of it."""

import json
import os
import random
import signal
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


def test_kill_at_any_moment_changes_no_bit(root, tmp_path, commands):
    config = config_file(tmp_path, root)
    log = tmp_path / "log.txt"

    def start(name):
        return commands.start(["train", "--config", str(config), "--out", str(tmp_path / name)], log)

    assert commands.wait(start("whole")) == 0, log.read_text()
    rng = random.Random(5)
    for lines in sorted(rng.sample(range(11), 4)):
        process = start("killed")
        while steps_logged(tmp_path / "killed") <= lines:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        assert commands.wait(process) == -signal.SIGKILL, log.read_text()
    assert commands.wait(start("killed")) == 0, log.read_text()

    expected, found = (tensors(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    events = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events] == list(range(2, 25, 2))
