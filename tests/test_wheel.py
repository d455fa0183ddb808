"""The package as pip installs it, in a folder without the checkout: every command finds what it needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.media.video import VideoWriter
from tests.stand_ins import HEIGHT, WIDTH, square_boxes, square_clip
from tests.training.test_survival import config_file

REPOSITORY = Path(__file__).resolve().parents[1]


# Runs the commands that come as lines; imports once. The demo clip is short: all of it is tracked in test_tracker.py.
PROGRAM = """
import contextlib, io, json, sys
from mixformer_jax.cli import demo, main
demo.NUM_FRAMES = 60
for line in sys.stdin:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main(json.loads(line))
    print(json.dumps([status, out.getvalue(), errors.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a command of the wheel in an empty folder; gives what it printed."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    (folder / "empty").mkdir()
    # Before the checkout, which the test environment has on its path.
    environment = os.environ | {"PYTHONPATH": str(folder / "site")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=folder / "empty", env=environment, **pipes) as process:

        def run(*arguments):
            process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
            process.stdin.flush()
            status, out, errors = json.loads(process.stdout.readline())
            assert status == 0, errors
            assert str(REPOSITORY) not in out + errors
            return out

        yield run


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A data set `folder` of one clip."""
    sequence = tmp_path_factory.mktemp("videos") / "square"
    sequence.mkdir()
    with VideoWriter(sequence / "video.mp4", 30.0, (HEIGHT, WIDTH)) as writer:
        for frame in square_clip(24):
            writer.write(frame)
    np.savetxt(sequence / "groundtruth.txt", square_boxes(24), delimiter=",")
    return sequence.parent


def test_configs_have_names(installed, tmp_path):
    listed = installed("configs")
    assert "mixvit_b " in listed and "trackmae_tiny " in listed and "paper " not in listed
    shown = installed("configs", "show", "mixvit_b")
    assert "def get_config()" in shown
    # It imports what it shares with the others, wherever it lies.
    (tmp_path / "mine.py").write_text(shown)
    for config in (tmp_path / "mine.py", "mixvit_b"):
        asked = (
            "--config",
            config,
            "--topology",
            "h100:8",
            "--global-batch",
            256,
            "--config.model.depth=1",
            "--config.model.head=query",
        )
        assert "8 chips" in installed("plan", *asked)


def test_from_a_clip_to_a_report(installed, videos, tmp_path):
    data = ("--dataset", "folder", "--root", videos)
    assert "1 sequences tracked" in installed("evaluate", *data, "--out", tmp_path / "results")
    assert "AUC" in installed("report", *data, "--results", tmp_path / "results", "--out", tmp_path / "report")
    assert (tmp_path / "report" / "index.html").is_file()
    assert "mean IoU" in installed("demo", "--out", tmp_path / "demo")


def test_from_a_training_to_a_conversion(installed, videos, tmp_path):
    config = config_file(tmp_path, videos.parent, steps=2, workers=0, checkpoint_every=2, validate_every=2)
    # A head that the official code has, too.
    text = config.read_text().replace(str(videos.parent / "videos"), str(videos)).replace("'query'", "'corner'")
    config.write_text(text)
    assert "weights" in installed("train", "--config", config, "--out", tmp_path / "run")
    assert "copy.pth" in installed("convert", tmp_path / "run", tmp_path / "copy.pth")
