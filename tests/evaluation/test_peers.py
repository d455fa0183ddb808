"""OpenCV's trackers behind our interface."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mixformer_jax.evaluation.trackers import PEERS, OpenCVTracker, PeerState, TrackerChoice, open_peer

REPOSITORY = Path(__file__).resolve().parents[2]
# Where `make test` lays OpenCV's build with all trackers, beside the one that the project uses.
CONTRIB = Path(sys.prefix) / "contrib"


def moving_square(num_frames):
    """A textured square of 20 pixels that moves by (2, 1) pixels a frame over noise, and its boxes."""
    rng = np.random.default_rng(3)
    ground = cv2.GaussianBlur(rng.integers(0, 120, (120, 160, 3), dtype=np.uint8), (7, 7), 0)
    square = cv2.GaussianBlur(rng.integers(60, 255, (20, 20, 3), dtype=np.uint8), (3, 3), 0)
    frames, boxes_xywh = [], []
    for index in range(num_frames):
        x, y = 40 + 2 * index, 30 + index
        frame = ground.copy()
        frame[y : y + 20, x : x + 20] = square
        frames.append(frame)
        boxes_xywh.append([x, y, 20, 20])
    return frames, np.array(boxes_xywh, np.float64)


def test_mil_stays_near_a_square_and_does_so_again():
    opened = TrackerChoice("opencv:MIL").open()
    assert opened.name == "opencv-MIL" and opened.settings == {"tracker": "opencv:MIL", "opencv": cv2.__version__}
    frames, boxes_xywh = moving_square(12)
    runs = []
    for _ in range(2):
        state = opened.lanes.start(None, 0, frames[0], boxes_xywh[0])
        run = []
        for frame in frames[1:]:
            state, found = opened.lanes.step(state, {0: frame})
            run.append(found[0].box_xywh)
            assert found[0].score is None
        runs.append(np.array(run))
    assert np.abs(runs[0] - boxes_xywh[1:]).max() < 30
    np.testing.assert_array_equal(*runs)


def test_what_is_lost_stays_where_it_was():
    class Loses:
        def update(self, frame):
            return False, (0, 0, 0, 0)

    state = PeerState(Loses(), np.array([1.0, 2, 3, 4]))
    state, found = OpenCVTracker("TrackerMIL").step(state, np.zeros((8, 8, 3), np.uint8))
    np.testing.assert_array_equal(found.box_xywh, [1, 2, 3, 4])


def test_a_build_without_a_tracker_says_where_it_is(monkeypatch):
    monkeypatch.delattr(cv2, "TrackerMIL")
    with pytest.raises(ValueError, match="has no TrackerMIL: it is in opencv-contrib-python-headless"):
        open_peer("opencv:MIL")


_FOLLOW = """
import sys
import numpy as np
from mixformer_jax.evaluation.trackers import TrackerChoice

frames = np.load(sys.argv[1])
for kind in sys.argv[2:]:
    lanes = TrackerChoice(kind).open().lanes
    state = lanes.start(None, 0, frames[0], np.array([40.0, 30, 20, 20]))
    for frame in frames[1:]:
        state, found = lanes.step(state, {0: frame})
    print(kind, *found[0].box_xywh.tolist())
"""


def test_the_build_that_has_all_peers_follows_a_square(tmp_path):
    if not (CONTRIB / "cv2").is_dir():
        message = f"no {CONTRIB}: make test lays opencv-contrib-python-headless there"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    frames, boxes_xywh = moving_square(12)
    np.save(tmp_path / "frames.npy", np.stack(frames))
    run = subprocess.run(
        [sys.executable, "-c", _FOLLOW, str(tmp_path / "frames.npy"), *PEERS],
        env={**os.environ, "PYTHONPATH": f"{CONTRIB}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {line.split()[0]: np.array(line.split()[1:], float) for line in run.stdout.splitlines()}
    assert set(found) == set(PEERS)
    for kind in ("opencv:CSRT", "opencv:KCF"):
        np.testing.assert_allclose(found[kind], boxes_xywh[-1], atol=4)
