"""A run's folder: one run at a time, one experiment, and nothing claimed by a command with a mistake."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.checkpoints import CheckpointError
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.folder import TrainingError, check_folder, claim_folder, locked
from mixformer_jax.training.loop import train

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot be written to .*Nothing that was there before is lost"):
        claim_folder(tmp_path / "file" / "run", {"train": {}})
    with pytest.raises(TrainingError, match="cannot be written to"), locked(tmp_path.__class__("/proc/run")):
        pass


def test_a_folder_keeps_its_experiment(tmp_path):
    record = {"data": {"root": "here", "datasets": {"a": {"root": "here"}}}, "train": {"steps": 3, "mesh": (1, 1, 1)}}
    claim_folder(tmp_path, record)
    moved = {"data": {"root": "there", "datasets": {"a": {"root": "there"}}}, "train": {"steps": 3, "mesh": (8, 1, 1)}}
    assert json.loads((tmp_path / "config.json").read_text()) != claim_folder(tmp_path, moved)
    with pytest.raises(TrainingError, match=r"train\.steps: 3 there, 4 now"):
        claim_folder(tmp_path, {**record, "train": {"steps": 4}})


def test_a_second_run_is_kept_out(tmp_path):
    folder = tmp_path / "run"
    with locked(folder):
        with (
            pytest.raises(TrainingError, match=f"in use: process {os.getpid()} on {socket.gethostname()} trains there"),
            locked(folder),
        ):
            pass
        with locked(tmp_path / "another"):
            pass
    with locked(folder):  # an end frees it
        pass


def test_a_killed_run_leaves_its_folder_free(tmp_path):
    with locked(tmp_path):
        pass
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match="in use"), locked(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"has no locks \(No locks available\)"), locked(tmp_path):
        pass


def test_settings_of_one_version_alone_make_no_other_experiment(config, tmp_path):
    experiment = Experiment.from_mapping(config)
    claim_folder(tmp_path, experiment)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    # An older version had neither of these, and had one that is gone.
    del record["train"]["beta2"], record["data"]["synthetic"], record["tracker"]["lost_after"]
    record["train"]["gone"] = record["model"]["gone"] = 5
    path.write_text(json.dumps(record))
    before = path.read_bytes()
    claim_folder(tmp_path, experiment)
    assert path.read_bytes() == before
    for changes, complaint in (
        ({"beta2": 0.95}, r"train\.beta2: 0\.999 there, 0\.95 now"),
        ({"steps": 7}, r"train\.steps: 6 there, 7 now"),
    ):
        changed = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, **changes))
        with pytest.raises(TrainingError, match=complaint):
            check_folder(tmp_path, changed)
    # A data set that is gone is a difference.
    record["data"]["datasets"] = {"lasot": {"root": "x", "ratio": 1.0}}
    path.write_text(json.dumps(record))
    with pytest.raises(TrainingError, match=r"data\.datasets\.lasot: \{.*\} there, None now"):
        check_folder(tmp_path, experiment)


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ({"init": "missing.safetensors"}, WeightsError),
        ({"resume": "missing"}, CheckpointError),
        ({"batch_size": 5, "accumulate": 2}, ConfigError),
        ({"mesh": (3, 3, 3)}, ConfigError),
    ],
)
def test_a_mistake_claims_no_folder(config, tmp_path, mistake, error):
    config["train"] |= mistake
    with pytest.raises(error):
        train(config, tmp_path / "run")
    check_folder(tmp_path / "run", {"train": {"steps": 3}})
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / "metrics.jsonl").exists()
