"""Many objects: who is who, who begins and ends, and what the network is asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixformer_jax.boxes import iou_matrix
from mixformer_jax.cli import main
from mixformer_jax.datasets.detections import NOTHING, CalledDetector, Detections, ListedDetections
from mixformer_jax.datasets.mot import read_mot_rows
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.sources import ArrayFrames
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.layers import sincos_positions
from mixformer_jax.tracking import resume
from mixformer_jax.tracking.mot import (
    MotSettings,
    MotTracker,
    best_pairs,
    corrected_boxes,
    expected_boxes,
    narrowed,
    num_rows,
    sure_pairs,
)
from mixformer_jax.tracking.record import record_objects
from mixformer_jax.tracking.resume import RunState
from mixformer_jax.tracking.step import _find
from mixformer_jax.tracking.tracker import Tracker
from tests.datasets.exports import write_mot

pytestmark = pytest.mark.usefixtures("quick_compilation")

BLANK = np.zeros((100, 200, 3), np.uint8)
BY_HAND = MotSettings(searches=0)  # detections alone: no network


@pytest.fixture(scope="module")
def loop(golden_loop):
    return golden_loop("vit", "online2")


@pytest.fixture(scope="module")
def following(loop):
    """Makes a tracker of many objects, with other settings."""
    tracker = loop.tracker(update_interval=4)
    return lambda settings=BY_HAND: MotTracker(tracker, settings)


def detected(*boxes_xywh, scores=None):
    boxes = np.array(boxes_xywh, np.float64).reshape(-1, 4)
    return Detections(boxes, np.ones(len(boxes)) if scores is None else np.array(scores))


def follow(tracker, detections, frames=None):
    state, found = tracker.start(), []
    for index, each in enumerate(detections):
        state, tracked = tracker.step(state, BLANK if frames is None else frames[index], each)
        found.append(tracked)
    return found


def test_a_straight_way_is_expected_exactly():
    boxes_xywh, speeds = np.array([[10.0, 20, 30, 40]]), np.zeros((1, 2))
    for times in range(2, 6):
        truth_xywh = np.array([[10.0 + 3 * (times - 1), 20 - 2 * (times - 1), 30, 40]])
        expected_xywh = expected_boxes(boxes_xywh, speeds)
        boxes_xywh, speeds = corrected_boxes(expected_xywh, speeds, truth_xywh, np.array([times]))
        np.testing.assert_allclose(boxes_xywh, truth_xywh)
    np.testing.assert_allclose(speeds, [[3, -2]])


def test_pairs():
    overlaps = np.array([[0.9, 0.0, 0.0], [0.0, 0.6, 0.5], [0.0, 0.0, 0.2]])
    assert [pair.tolist() for pair in sure_pairs(overlaps, 0.5, 0.3)] == [[0], [0]], "the second has two to choose from"
    assert [pair.tolist() for pair in best_pairs(overlaps, np.ones((1, 3)), 0.3)] == [[0, 1], [0, 1]]
    scores = np.array([[1, 0.5, 1]])
    assert [pair.tolist() for pair in best_pairs(overlaps, scores, 0.3)] == [[0, 1], [0, 2]]
    assert [len(pair) for pair in best_pairs(np.zeros((0, 3)), scores, 0.3)] == [0, 0]


def test_numbers_stay_where_ways_cross(following):
    right, left = ([[x, 40, 20, 30] for x in range(10, 150, 7)], [[x, 44, 20, 30] for x in range(150, 10, -7)])
    found = follow(following(), [detected(*each) for each in zip(right, left, strict=True)])
    assert all(tracked.numbers.tolist() == [0, 1] for tracked in found)
    np.testing.assert_allclose(found[-1].boxes_xywh, [right[-1], left[-1]], atol=3)


def test_births_and_ends(following):
    still, other, weak = [20, 20, 30, 30], [120, 20, 30, 30], [120, 60, 30, 30]
    frames = [detected(still), detected(still, other), detected(still), detected(still, other), detected(still, other)]
    frames += [detected(still, weak, scores=[1, 0.3])] * 3 + [NOTHING] * 9 + [detected(still)] * 2
    shown = [tracked.numbers.tolist() for tracked in follow(following(MotSettings(searches=0, end_after=6)), frames)]
    assert shown[:3] == [[0], [0], [0]], "the first frame's at once, others from their second detection on"
    assert shown[3] == [0, 1], "it may be missed as often as it was seen"
    assert shown[4:9] == [[0, 1], [0, 1], [0], [0], [0]], "where it is expected, for one frame; too weak to begin"
    assert shown[9:17] == [[]] * 8 and shown[-2:] == [[], [2]], "ended after six frames, a new object later"


def test_two_boxes_of_one_object_begin_once(following):
    found = follow(following(), [detected([20, 20, 30, 30], [21, 21, 30, 30], scores=[0.6, 0.9])])
    assert found[0].numbers.tolist() == [0] and found[0].boxes_xywh[0, 0] == 21, "the surer one"


def test_who_leaves_the_frame_ends(following):
    frames = [detected([x, 20, 20, 20]) for x in range(140, 190, 8)] + [NOTHING] * 6
    found = follow(following(), frames)
    assert found[6].numbers.tolist() == [0] and all(len(each.numbers) == 0 for each in found[8:])


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_detected(following, seed):
    """No number twice on a frame, and none that was gone for longer than an object may be."""
    rng, last, frames = np.random.default_rng(seed), {}, []
    for _ in range(40):
        count = int(rng.integers(0, 7))
        boxes = rng.uniform([-20, -20, 1, 1], [200, 100, 80, 80], (count, 4))
        frames.append(Detections(boxes, rng.uniform(-1, 2, count)))
    for index, tracked in enumerate(follow(following(MotSettings(searches=0, end_after=3)), frames)):
        numbers = tracked.numbers.tolist()
        assert len(set(numbers)) == len(numbers) and np.isfinite(tracked.boxes_xywh).all()
        assert (tracked.boxes_xywh[:, 2:] > 0).all()
        assert all(index - last.get(number, index) <= 4 for number in numbers)
        last |= dict.fromkeys(numbers, index)
    assert last


def test_the_network_goes_on_where_nothing_is_detected(loop, following):
    """Around where the object is expected, with boxes that are those of the tracker of one object."""
    settings = MotSettings(keep_above=0.0, found_near=0.0, end_after=10, search_share=1.0)
    box_xywh = np.asarray(loop.box_xywh, np.float64)
    frames = [loop.frames[0]] * 6
    detections = [detected(box_xywh)] * 3 + [NOTHING] * 3
    found = follow(following(settings), detections, frames)
    assert [each.numbers.tolist() for each in found] == [[0]] * 6
    assert [each.lost.tolist() for each in found] == [[False]] * 3 + [[True]] * 3
    single = loop.tracker(num_online_templates=1, update_interval=99)
    _, alone = single.step(single.start(frames[0], box_xywh), frames[3])
    assert found[3].scores[0] == pytest.approx(alone.score, abs=1e-3)
    expected_xywh, _ = corrected_boxes(box_xywh[None], np.zeros((1, 2)), alone.boxes_xywh, np.array([4]))
    np.testing.assert_allclose(found[3].boxes_xywh, expected_xywh, atol=1e-2)
    hidden = follow(following(MotSettings(keep_above=1.0, search_share=1.0)), detections, frames)
    assert [each.numbers.tolist() for each in hidden] == [[0]] * 3 + [[]] * 3, "looked for, and not found"


def test_as_many_as_there_are_in_few_programs(loop, following):
    """Whoever is looked for beside an object, its box is the same; objects that come and go compile nothing anew."""
    tracker, rng = following(MotSettings(search_all=True, confirm_after=1)), np.random.default_rng(0)
    before, found = _find.jitted._cache_size(), {}
    boxes = rng.uniform([0, 0, 20, 20], [60, 40, 30, 30], (6, 4))
    for count in (2, 5, 3, 6, 4):
        state, _ = tracker.step(tracker.start(), loop.frames[0], detected(*boxes[:count]))
        _, boxes_xywh, _ = tracker._search(state, loop.frames[1], state.objects.boxes_xywh, np.arange(count))
        found[count] = dict(zip(range(count), boxes_xywh, strict=True))
    assert _find.jitted._cache_size() - before <= 3, "2, 4 and 6 rows"
    for count, boxes_xywh in found.items():
        np.testing.assert_allclose(
            [boxes_xywh[row] for row in range(count)], [found[6][r] for r in range(count)], atol=1e-2
        )
    assert [num_rows(count) for count in (1, 2, 3, 5, 9, 32)] == [1, 2, 4, 6, 12, 32]


@pytest.mark.parametrize("family", ["vit", "cvt"])
def test_a_narrowed_tracker_looks_at_the_middle(golden_loop, family):
    """The same pixels, and tokens with the positions that they had."""
    wide = golden_loop(family, "plain").tracker()
    narrow, grid = narrowed(wide, 0.5), wide.config.search_grid
    cut = (grid - narrow.config.search_grid) // 2
    side = (1 - 1e-4) * wide.config.search_size / wide.settings.search_factor  # so that a pixel is a pixel
    frame = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    box_xywh = np.array([150 - side / 2, 150 - side / 2, side, side])
    state = wide.start(frame, box_xywh)
    crops = [each.search_crops(state, frame) for each in (wide, narrow)]
    pixels = cut * wide.config.patch_size
    assert pixels > 0 and crops[0].scales == crops[1].scales == 1
    np.testing.assert_array_equal(crops[1].pixels[0], crops[0].pixels[0, pixels:-pixels, pixels:-pixels])
    if family == "vit":
        table = sincos_positions(grid, wide.config.width).reshape(grid, grid, -1)[cut:-cut, cut:-cut]
        kept = narrow.variables["params"]["backbone"]["search_positions"]["table"]
        np.testing.assert_allclose(kept, table.reshape(kept.shape), atol=1e-6)
        assert narrow.step(narrow.start(frame, box_xywh), frame)[1].boxes_xywh.shape == (1, 4)
    assert narrowed(wide, 1.0) is wide


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="searches is -1"):
        MotSettings(searches=-1)


def test_settings_of_one_target_have_no_say(loop):
    """Nothing looks elsewhere, or lowers the scores of what no detection supports."""
    settings = [MotTracker(loop.tracker(**each)).tracker.settings for each in ({"long_term": True}, {})]
    assert settings[0] == settings[1] and settings[0].look_every == 0
    with pytest.raises(ConfigError, match=r"tracker.search_factor is 1, .* expected at least 3"):
        MotTracker(loop.tracker(search_factor=1.0))
    tracker = loop.tracker()
    both = Tracker(replace(tracker.config, second_stream="added"), tracker.settings, tracker.variables)
    with pytest.raises(ConfigError, match="reads two streams, and many objects are followed in one"):
        MotTracker(both)


def wandering(loop):
    """Detections of one or two objects on the loop's frames; on every third frame none."""
    boxes = [np.asarray(loop.box_xywh, np.float64) + np.array([shift, 0, 0, 0]) for shift in (0, 40)]
    frames = {number: detected(*boxes[: 1 + number % 2]) for number in range(1, 13) if number % 3}
    return ListedDetections(frames)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("video", [None, "out.avi"])
def test_goes_on_to_the_same_rows(loop, following, tmp_path, monkeypatch, video):
    monkeypatch.setattr(resume, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(resume, "_LEAST_SHARE", 0)
    tracker, detections = following(MotSettings(keep_above=0.0, found_near=0.0, end_after=4)), wandering(loop)

    def run(folder, frames, **options):
        state, drawn = RunState(folder / "out.txt.resume"), None if video is None else folder / video
        source = ArrayFrames(frames)
        return record_objects(
            tracker, source, detections, folder / "out.txt", drawn, origin=1.0, run_state=state, **options
        )

    class Breaking(list):
        def __getitem__(self, index):
            if index == 7:
                raise SourceError("frame 8 is missing")
            return super().__getitem__(index)

    frames = list(loop.frames[:12])
    whole = run(tmp_path / "whole", frames)
    cut = run(tmp_path / "cut", Breaking(frames))
    assert cut.num_frames == 7 and isinstance(cut.stopped_by, SourceError)
    resumed = run(tmp_path / "cut", frames, resume=True)
    assert (resumed.resumed, resumed.num_frames, whole.stopped_by) == (7, 12, None)
    for name in filter(None, ("out.txt", video)):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in (tmp_path / "cut").iterdir()} == set(filter(None, ("out.txt", video)))
    rows = read_mot_rows(tmp_path / "whole" / "out.txt", "results")
    for ours, read in zip(whole.rows[1:5], rows[1:5], strict=True):
        np.testing.assert_array_equal(ours, read)
    assert len(np.unique(rows.frames)) == 12, "the network saw the object where the detector did not"


DET = [f"{frame},-1,{5 + frame},5,10,8,0.9" for frame in range(1, 7)]


@pytest.fixture
def sequences(tmp_path, loop, monkeypatch):
    """Two sequences in MOTChallenge's layout, the second without a ground truth; and the command's tracker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mixformer_jax.load", lambda *_args, **_options: loop.tracker(), raising=False)
    for name in ("a", "b"):
        folder = write_mot(
            tmp_path / "MOT" / "train" / name, [f"{frame},1,{5 + frame},5,10,8,1,1,1" for frame in range(1, 7)]
        )
        (folder / "det").mkdir()
        (folder / "det" / "det.txt").write_text("\n".join(DET) + "\n")
    (folder / "gt" / "gt.txt").unlink()
    return tmp_path / "MOT"


def test_the_command_tracks_and_scores_a_folder(sequences, capsys):
    command = ["mot", "MOT", "--searches", "0"]
    assert main([*command, "--video", "--out", "tracks"]) == 0
    told = capsys.readouterr().out
    assert "a: 6 frames, 1 objects" in told and "sequence" in told and " all " not in told
    rows = read_mot_rows(sequences.parent / "tracks" / "a.txt", "results")
    np.testing.assert_allclose(rows.boxes_xywh[:, 0], np.arange(6, 12), atol=0.6)
    assert rows.ids.tolist() == [1] * 6 and (sequences.parent / "tracks" / "b.mp4").exists()
    assert main(["mot", "MOT", "--score", "tracks"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] in told
    assert main([*command, "--out", "tracks"]) == 2
    assert "a.txt: there already" in capsys.readouterr().err
    assert main([*command, "--out", "tracks", "--resume", "--quiet"]) == 0, "both are done"
    assert capsys.readouterr().out.splitlines()[-1] in told
    score = float(told.splitlines()[-1].split()[1])
    iou = iou_matrix(np.array([[0, 0, 10, 8.0]]), np.array([[0.3, 0, 10, 8.0]]))[0, 0]
    assert 100 * iou - 20 < score <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MOT/train/a/img1"], "--detections D is needed: img1 has no det/det.txt"),
        (["MOT", "--groundtruth", "gt.txt"], "MOT has 2 sequences"),
        (["MOT", "--score", "tracks", "--video"], "--score scores results that are there"),
        (["MOT/train/b", "--score", "tracks"], "there is no ground truth"),
        (["MOT", "--score", "tracks"], "tracks/a.txt: no such file; expected the results"),
        (["MOT/train/a/img1", "--detections", "nobody.here:detect"], "No module named 'nobody'"),
        (["MOT/train/a/img1", "--detections", "det.txt"], "det.txt: no such file"),
        (["MOT", "--detections", "a.txt"], "--detections a.txt: not in MOT/train/b, and one file cannot be of 2"),
        (["MOT", "--searches", "-1"], "expected a whole number from 0 on, or all, got '-1'"),
        (["MOT/train/b", "--groundtruth", "late.txt"], "late.txt, line 1: a box on frame 9, but b has 6 frames"),
        (["MOT", "--birth-score", "much"], "expected a number, got 'much'"),
        (["MOT/train/a", "--detections", "det/det.txt", "--categories", "1"], "categories are those of COCO's"),
    ],
)
def test_what_the_command_cannot_do_is_told(sequences, capsys, arguments, message):
    (sequences / "train" / "a" / "a.txt").write_text("1,-1,5,5,10,8\n")
    Path("late.txt").write_text("9,1,5,5,10,8,1,1,1\n")
    assert main(["mot", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_where_nothing_is_followed_earlier_tracks_do_not_stay(sequences, capsys):
    """A file without rows takes their place, by which the scores that follow are the run's own."""
    command = ["mot", "MOT/train/a", "--searches", "0", "--out", "tracks"]
    assert main(command) == 0
    assert main([*command, "--overwrite", "--min-score", "2"]) == 0
    assert "without rows" in (told := capsys.readouterr().out)
    assert Path("tracks/a.txt").read_text() == ""
    assert main(["mot", "MOT/train/a", "--score", "tracks"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == told.splitlines()[-1]


def test_what_is_done_has_no_video(sequences, capsys):
    command = ["mot", "MOT/train/a", "--searches", "0", "--out", "tracks"]
    assert main(command) == 0
    assert main([*command, "--resume", "--video"]) == 2
    assert "a.txt is done, without --video" in capsys.readouterr().err


def test_a_detector_that_raises_loses_no_frame(following, tmp_path):
    """And one that draws into its frame draws into a copy."""
    frames, path = np.full((5, 100, 200, 3), 9, np.uint8), tmp_path / "tracks.txt"
    breaks_at = [4]

    def detect(frame):
        assert frame.min() == 9
        frame[:] = 0
        breaks_at[0] -= 1
        if breaks_at[0] == 0:
            raise RuntimeError("out of memory")
        return [[5, 5, 20, 20]], [0.9]

    def run():
        about = RunState(resume.resume_path(path))
        return record_objects(
            following(), ArrayFrames(frames), CalledDetector("a:b", detect), path, run_state=about, resume=True
        )

    with pytest.raises(RuntimeError):
        run()
    recording = run()
    assert (recording.resumed, recording.num_frames, recording.num_objects) == (3, 5, 1)
    assert frames.min() == 9


def test_ctrl_c_before_the_first_frame_is_known_leaves_nothing(following, tmp_path):
    def interrupted(_frame):
        raise KeyboardInterrupt

    frames, path = np.full((5, 100, 200, 3), 9, np.uint8), tmp_path / "tracks.txt"
    state = RunState(resume.resume_path(path))
    with pytest.raises(KeyboardInterrupt):
        record_objects(following(), ArrayFrames(frames), CalledDetector("a:b", interrupted), path, run_state=state)
    assert list(tmp_path.iterdir()) == []
