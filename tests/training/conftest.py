"""Small data sets on disk, and processes that start at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from mixformer_jax.training import progress
from tests.compilation import QUICK

REPOSITORY = Path(__file__).resolve().parents[2]
# Imports once; every run is a fork of it, before JAX looks for devices. As in the tests' own process, tracing does not
# look through what has been imported for cycles, nor at the shapes of parameters again and again.
PARENT = """
import gc, json, os, signal, sys
import jax
import mixformer_jax.cli, mixformer_jax.training.loop
from tests.shape_checks import check_parameters_once
check_parameters_once()
mixformer_jax.training.progress.draw_curves = lambda lines: b""
gc.set_threshold(100_000, 20, 100)
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.update(order["environment"])
    for name, value in order["jax"].items():
        jax.config.update(name, value)
    try:
        code = mixformer_jax.cli.main(order["arguments"])
    except Exception:
        import traceback
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
"""


def write_sequence(folder, seed, frames=24):
    """A bright textured square that wanders over a dark noisy background."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    background = rng.integers(0, 90, (96, 128, 3), dtype=np.uint8)
    target = rng.integers(150, 255, (20, 24, 3), dtype=np.uint8)
    lines = []
    for index in range(frames):
        x, y = 20 + 2 * index, 30 + index
        frame = background.copy()
        frame[y : y + 20, x : x + 24] = target
        cv2.imwrite(str(folder / f"{index + 1:08d}.jpg"), frame)
        lines.append(f"{x},{y},24,20")
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """`videos/` with the sequences a, b and held_out."""
    root = tmp_path_factory.mktemp("training_data")
    for seed, name in enumerate(("a", "b", "held_out")):
        write_sequence(root / "videos" / name, seed)
    return root


@pytest.fixture
def config(root):
    """A box training of six steps on `root`, as `train` takes it."""
    return {
        "model": {
            "name": "small",
            "search_size": 64,
            "template_size": 32,
            "width": 24,
            "depth": 1,
            "num_heads": 2,
            "mlp_ratio": 2,
            "head": "corner",
            "head_width": 8,
            "head_norm": "batch",
            "mimetic_init": True,
        },
        "tracker": {"search_factor": 4.0, "num_online_templates": 1},
        "data": {
            "root": str(root),
            "exclude": ("held_out",),
            "mix": {"video": 1.0, "still": 0.0, "pasted": 0.0, "region": 0.0},
            "crops": {"centre_jitter": 2.0},
        },
        "train": {
            "steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "backbone_rate": 1.0,
            "clip_norm": 1.0,
            "ema_decay": 0.9,
            "corner_weight": 0.2,
            "log_every": 2,
            "validate_every": 3,
            "checkpoint_every": 3,
            "validation_pairs": 4,
            "workers": 0,
            "mesh": (1, 1, 1),
        },
    }


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    """Programs that run a few steps are compiled in haste; rounding is no worse."""
    compile_well = jax.stages.Lowered.compile
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: compile_well(self, QUICK))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """At every checkpoint they would take longer than the steps; tests of the log draw them, and one pretraining."""
    monkeypatch.setattr(progress, "draw_curves", lambda lines: b"")


class Commands:
    """Runs of the `mixformer` command in processes of their own."""

    def __init__(self, environment: dict[str, str]) -> None:
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
        self._parent = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, **options)

    def start(self, arguments: list[str], log: Path, jax=(), **environment: str) -> int:
        """The process number of a run; settings of JAX by name."""
        order = {"arguments": arguments, "log": str(log), "environment": environment, "jax": dict(jax)}
        return int(self._ask(order))

    def wait(self, process: int) -> int:
        """Exit code of a run once it has ended; -9 if it was killed."""
        return int(self._ask({"wait": process}))

    def close(self) -> None:
        self._parent.stdin.close()
        self._parent.wait()

    def _ask(self, order: dict) -> str:
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return self._parent.stdout.readline()


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    environment = dict(os.environ)
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled_by_commands")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    commands = Commands(environment)
    yield commands
    commands.close()
