"""The demo clip keeps its promises (exact boxes, in view, covered once); the demo leaves its files."""

import importlib.util

import numpy as np
import pytest

from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.cli import demo
from mixformer_jax.cli.demo import (
    FPS,
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    DemoClip,
    LongClip,
    Placed,
    render_demo_clip,
    track_demo,
)
from mixformer_jax.media.images import read_image
from mixformer_jax.media.video import OutputError, open_source
from mixformer_jax.tracking.tracker import Tracked


@pytest.fixture(scope="module")
def clip():
    return render_demo_clip()


def shadow(placed: Placed) -> np.ndarray:
    """Opacity of a cutout on the frame, 0 to 1."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    white = placed.cutout._replace(pixels=np.ones_like(placed.cutout.pixels))
    demo.paste(picture, placed._replace(cutout=white))
    return picture[..., 0]


def covered_share(frames: DemoClip, index: int) -> float:
    _, target, saucer = (shadow(placed) for placed in frames.layers(index / FPS))
    return float((target * saucer).sum() / target.sum())


def test_size_and_length(clip):
    assert (len(clip), clip.fps, clip.boxes_xywh.shape) == (300, 30.0, (300, 4))
    assert clip[0].shape == (360, 640, 3)
    np.testing.assert_array_equal(clip[-1], clip[299])
    with pytest.raises(IndexError):
        clip[300]


def test_same_seed_same_clip(clip):
    again, other = render_demo_clip(0), render_demo_clip(1)
    np.testing.assert_array_equal(again[123], clip[123])
    np.testing.assert_array_equal(again.boxes_xywh, clip.boxes_xywh)
    assert np.abs(other.boxes_xywh - clip.boxes_xywh).max() > 5
    assert (other[123] != clip[123]).any()
    assert (clip[0] != clip[1]).any()


@pytest.mark.parametrize("index", [0, 77, 150, 299])
def test_ground_truth_is_the_box_of_the_drawn_target(clip, index):
    inside = shadow(clip.layers(index / FPS)[1]) > 0.5
    rows, columns = np.nonzero(inside)
    drawn = np.array([columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)])
    np.testing.assert_allclose(drawn, clip.boxes_xywh[index], atol=1.6)


def test_target_looks_alike_where_the_boxes_say(clip):
    def look(index: int) -> np.ndarray:
        x, y, w, h = np.rint(clip.boxes_xywh[index]).astype(int)
        patch = clip[index][y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4]
        return patch.mean(axis=(0, 1)) / patch.mean()

    for index in (60, 120, 250, 299):
        np.testing.assert_allclose(look(index), look(0), atol=0.06)


@pytest.mark.parametrize("seed", range(4))
def test_difficulty_is_bounded(seed):
    frames = DemoClip(seed)
    boxes = frames.boxes_xywh
    corners = xywh_to_xyxy(boxes)
    assert corners[:, :2].min() > 5 and (corners[:, 2:] < (WIDTH - 5, HEIGHT - 5)).all(), "always in view"
    areas = boxes[:, 2] * boxes[:, 3]
    assert 4 < areas.max() / areas.min() < 12, "its scale changes"
    overlap = iou(corners[1:], corners[:-1])
    assert overlap.min() > 0.7 and overlap.mean() < 0.95, "it moves, and smoothly"
    covered = np.array([covered_share(frames, index) for index in range(0, NUM_FRAMES, 3)])
    assert 0.45 < covered.max() < 0.62
    assert 2 <= (covered > 0.25).sum() <= 7, "for about half a second"
    assert covered[-20:].max() == 0, "and it recovers"


def test_distractor_comes_close(clip):
    gaps = []
    for index in range(0, NUM_FRAMES, 5):
        astronaut, target, _ = clip.layers(index / FPS)
        distance = np.linalg.norm(astronaut.matrix[:, 2] - target.matrix[:, 2])
        gaps.append(distance / target.box_xywh()[2:].mean())
    assert 0.6 < min(gaps) < 1.5 and max(gaps) > 4


class Following:
    """Knows the truth and lags by a frame."""

    has_scores = False

    def __init__(self, boxes_xywh: np.ndarray, interrupt_at: int | None = None) -> None:
        self.boxes_xywh, self.interrupt_at = boxes_xywh, interrupt_at

    def start(self, frame: np.ndarray, boxes_xywh: np.ndarray) -> int:
        return 0

    def step(self, state: int, frame: np.ndarray) -> tuple[int, Tracked]:
        if state + 1 == self.interrupt_at:
            raise KeyboardInterrupt
        return state + 1, Tracked(self.boxes_xywh[state, None], None, None)


def test_long_clips_lose_their_target_again_and_again():
    sizes = []
    for seed in range(3):
        frames = LongClip(seed, 900)
        boxes_xywh = frames.boxes_xywh
        hidden = np.isnan(boxes_xywh[:, 0])
        lengths = np.diff(np.flatnonzero(np.diff(hidden, prepend=False)))
        aways, stays = lengths[::2], lengths[1::2]
        assert len(frames) == 900 and not hidden[:75].any() and len(lengths) > 3
        assert aways.min() > 28 and aways.max() < 152 and stays.min() > 73 and stays.max() < 242
        index = 300 + int(np.argmin(hidden[300:]))
        rows, columns = np.nonzero(shadow(frames.layers(index / FPS)[1]) > 0.5)
        x, y, w, h = boxes_xywh[index]
        assert rows.min() >= y - 2 and rows.max() <= y + h + 2 and columns.min() >= x - 2 and columns.max() <= x + w + 2
        assert frames[index].shape == (360, 640, 3)
        sizes.append(boxes_xywh[0, 2] / boxes_xywh[0, 3])
    assert len({round(size, 1) for size in sizes}) > 1, "seeds have other targets"


def test_demo_leaves_its_files(clip, tmp_path):
    report = track_demo(Following(clip.boxes_xywh), tmp_path / "new")
    names = {"demo.mp4", "boxes.txt", "groundtruth.txt", "demo.png"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == names
    assert open_source(report.recording.video).num_frames == 300
    truth = np.loadtxt(report.groundtruth, delimiter=",")
    np.testing.assert_allclose(truth, clip.boxes_xywh, atol=5.1e-4)
    boxes = np.loadtxt(report.recording.boxes[0], delimiter=",")
    np.testing.assert_allclose(boxes, truth[[0, *range(299)]], atol=1e-9)
    corners = xywh_to_xyxy(clip.boxes_xywh)
    assert report.mean_iou == pytest.approx(iou(corners[1:], corners[:-1]).mean(), abs=1e-6)
    picture = read_image(report.picture)
    assert picture.shape[0] == 360 and picture.shape[1] > 3 * 640


def test_interrupted_demo_reports_what_it_has(clip, tmp_path):
    report = track_demo(Following(clip.boxes_xywh, interrupt_at=4), tmp_path)
    assert isinstance(report.recording.stopped_by, KeyboardInterrupt)
    assert len(report.recording.boxes_xywh) == 4 and 0.5 < report.mean_iou < 1
    assert report.picture.exists()


def test_folder_that_cannot_be_written(clip, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        track_demo(Following(clip.boxes_xywh), tmp_path / "file")


def test_missing_photographs_name_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*\[demo\]"):
        render_demo_clip()


@pytest.mark.parametrize("seed", range(4))
def test_absences_hide_the_target_and_it_comes_back_elsewhere(seed):
    frames = render_demo_clip(seed, absences=True)
    hidden = np.isnan(frames.boxes_xywh).any(axis=1)
    edges = np.flatnonzero(np.diff(hidden))
    assert len(edges) == 4 and not hidden[0], "twice, and back at the end"
    assert (np.diff(edges)[[0, 2]] > 20).all() and (np.diff(edges)[[0, 2]] < 80).all()
    before, after = frames.boxes_xywh[edges[[0, 2]]], frames.boxes_xywh[edges[[1, 3]] + 1]
    assert np.linalg.norm(before[:, :2] - after[:, :2], axis=1).min() > 30
    corners = xywh_to_xyxy(frames.boxes_xywh[~hidden])
    assert (corners[:, 2:] - 20 > 0).all() and (corners[:, :2] < (WIDTH - 20, HEIGHT - 20)).all(), "in sight"
    index = int(edges[0]) + 5
    assert len(frames.layers(index / FPS)) == 2, "only what passes by is drawn"
