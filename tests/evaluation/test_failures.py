"""The sheet of a tracker's failures on rendered clips."""

import cv2
import numpy as np
import pytest

import mixformer_jax
from mixformer_jax import cli
from mixformer_jax.cli.demo import HEIGHT, NUM_FRAMES, WIDTH, Failure, find_failures, render_demo_clip
from mixformer_jax.models.config import size_config
from mixformer_jax.tracking.tracker import Tracked, Tracker


def main(arguments):
    return cli.main(["failures", *arguments])


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        ([1.0, 0.9, 0.5], []),
        ([1.0, 0.9, 0.4, 0.2, 0.3, 0.6, 0.9], [Failure(0.2, 1, 3, 5)]),
        ([1.0, 0.4, 0.7, 0.3, 0.1], [Failure(0.1, 2, 4, 4), Failure(0.4, 0, 1, 2)]),  # the last is not boxed again
        ([0.0, 0.1, 0.8], [Failure(0.1, 0, 1, 2)]),  # the first box is given
        ([1.0, np.nan, np.nan, 0.4, 0.9], [Failure(0.4, 2, 3, 4)]),  # out of sight is no failure
    ],
)
def test_failures_are_the_stretches_that_are_not_boxed(overlaps, expected):
    assert find_failures(np.array(overlaps)) == expected


class Lagging(Tracker):
    """Stays where the target was first, and finds it again on the clip's last frame."""

    config = size_config("mixvit_nano")

    def __init__(self, weights, device=None, dtype=None):
        self.boxes_xywh = render_demo_clip(0).boxes_xywh

    def start(self, frame, box_xywh):
        return 0

    def step(self, state, frame):
        state += 1
        return state, Tracked(self.boxes_xywh[-1 if state == NUM_FRAMES - 1 else 0][None])


def test_a_sheet_has_a_row_for_each_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mixformer_jax, "load", Lagging)
    sheet = tmp_path / "sheet.png"
    assert main(["--seeds", "1", "--rows", "1", "--out", str(sheet)]) == 0
    assert cv2.imread(str(sheet)).shape == (HEIGHT, 3 * WIDTH + 2 * 6, 3)
    assert f"to {NUM_FRAMES}: IoU 0.000" in capsys.readouterr().out


def test_weights_that_are_not_there_are_an_error(tmp_path, capsys):
    assert main(["--weights", "nowhere.safetensors", "--out", str(tmp_path / "sheet.png")]) == 2
    assert "nowhere" in capsys.readouterr().err
