"""A recording leaves video and boxes, whatever ends it."""

import itertools
import math

import numpy as np
import pytest

from mixformer_jax.media.images import GROUND_TRUTH, TARGET, SourceError, target_colour, write_image
from mixformer_jax.media.video import OutputError, SelectedFrames, open_source
from mixformer_jax.tracking.record import annotate, record
from mixformer_jax.tracking.result_files import format_box, write_boxes
from mixformer_jax.tracking.resume import RunState, resume_path
from mixformer_jax.tracking.tracker import Tracked
from tests.stand_ins import HEIGHT, SIDE, WIDTH, PairTracker, RedTracker, square_boxes, square_clip


def run(folder, tracker=None, frames=None, stride=1, **options):
    frames = square_clip(20) if frames is None else frames
    source = SelectedFrames(open_source(frames), stride=stride)
    boxes = square_boxes(1)
    return record(tracker or RedTracker(), source, boxes, folder / "out.mp4", folder / "out.txt", **options)


def read_boxes(recording) -> np.ndarray:
    (path,) = recording.boxes
    return np.loadtxt(path, delimiter=",", ndmin=2)


def test_one_line_and_one_picture_a_frame(tmp_path):
    recording = run(tmp_path)
    np.testing.assert_array_equal(recording.boxes_xywh[:, 0], square_boxes(20))
    np.testing.assert_array_equal(read_boxes(recording), square_boxes(20))
    assert recording.lost is None
    assert recording.boxes[0].read_text().startswith("35,42,12,12\n")
    video = open_source(recording.video)
    assert (video.num_frames, video.fps, video.size) == (20, 30.0, (HEIGHT, WIDTH))
    x, y, w, _ = square_boxes(20)[7].astype(int)
    edge = list(itertools.islice(video, 8))[7][y, x : x + w].mean(axis=0)
    assert edge[1] > edge[0] and edge[1] > edge[2], "the box is green, on a red square"
    assert recording.stopped_by is None
    assert recording.warm_up_s > 0 and recording.tracking_fps > recording.overall_fps > 0


def test_several_targets_with_scores(tmp_path):
    given = np.concatenate([square_boxes(1), square_boxes(1) + np.array([SIDE, 0, 0, 0])])
    source = open_source(square_clip(5))
    recording = record(PairTracker(), source, given, tmp_path / "out.mp4", tmp_path / "out.txt")
    assert recording.boxes == (tmp_path / "out_1.txt", tmp_path / "out_2.txt")
    assert recording.boxes[0].read_text().startswith("35,42,12,12,1.0000,0\n")
    first, second = (np.loadtxt(path, delimiter=",") for path in recording.boxes)
    np.testing.assert_array_equal(first[:, :4], square_boxes(5))
    np.testing.assert_array_equal(second[:, :4], square_boxes(5) + np.array([SIDE, 0, 0, 0]))
    np.testing.assert_array_equal(second[:, 4:], [[1, 0], [0.125, 1], [0.125, 0], [0.125, 1], [0.125, 0]])
    np.testing.assert_array_equal(recording.lost[:, 1], [False, True, False, True, False])
    assert not recording.lost[:, 0].any() and recording.boxes_xywh.shape == (5, 2, 4)


def test_rows_are_kept_and_not_views_of_them(tmp_path):
    class Reuses(PairTracker):
        """Gives its arrays away, and writes the next frame's numbers into them."""

        kept = None

        def step(self, state, frame):
            state, found = super().step(state, frame)
            if self.kept is None:
                self.kept = found
            for mine, new in zip((self.kept.boxes_xywh, self.kept.lost), (found.boxes_xywh, found.lost), strict=True):
                mine[...] = new
            return state, self.kept

    given = np.concatenate([square_boxes(1), square_boxes(1) + np.array([SIDE, 0, 0, 0])])
    recording = record(Reuses(), open_source(square_clip(5)), given, tmp_path / "out.mp4", tmp_path / "out.txt")
    np.testing.assert_array_equal(recording.boxes_xywh[:, 0], square_boxes(5))
    np.testing.assert_array_equal(recording.lost[:, 1], [False, True, False, True, False])


def test_every_third_frame(tmp_path):
    recording = run(tmp_path, stride=3)
    np.testing.assert_array_equal(read_boxes(recording), square_boxes(20)[::3])
    video = open_source(recording.video)
    assert (video.num_frames, video.fps) == (7, 10.0)


@pytest.mark.parametrize("num_frames", [1, 2])
def test_too_few_frames_for_a_rate(tmp_path, num_frames):
    recording = run(tmp_path, frames=square_clip(num_frames))
    assert len(read_boxes(recording)) == num_frames
    assert math.isnan(recording.tracking_fps) and math.isnan(recording.overall_fps)
    assert math.isnan(recording.warm_up_s) == (num_frames == 1)


def test_interrupt_keeps_what_was_computed(tmp_path):
    recording = run(tmp_path, RedTracker(interrupt_at=9))
    assert isinstance(recording.stopped_by, KeyboardInterrupt)
    np.testing.assert_array_equal(read_boxes(recording), square_boxes(9))
    assert open_source(recording.video).num_frames == 9


def test_source_that_breaks_off_keeps_what_was_computed(tmp_path):
    frames = [*square_clip(6), np.zeros((4, 4, 3), np.uint8)]
    recording = run(tmp_path, frames=frames)
    assert "frame 7 has 4x4" in str(recording.stopped_by)
    assert len(read_boxes(recording)) == open_source(recording.video).num_frames == 6


def test_bug_in_a_tracker_is_raised_and_keeps_what_was_computed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, RedTracker(interrupt_at=4, error=ZeroDivisionError))
    assert len((tmp_path / "out.txt").read_text().splitlines()) == 4
    assert open_source(tmp_path / "out.mp4").num_frames == 4


def test_boxes_are_on_disk_while_it_runs(tmp_path):
    class Watching(RedTracker):
        def step(self, state, frame):
            assert len((tmp_path / "out.txt.part").read_text().splitlines()) == state
            return super().step(state, frame)

    assert len(run(tmp_path, Watching()).boxes_xywh) == 20


def test_refused_box_leaves_nothing_behind(tmp_path):
    class Refusing(RedTracker):
        def start(self, frame, box_xywh):
            raise ValueError("no such box")

    with pytest.raises(ValueError, match="no such box"):
        run(tmp_path, Refusing())
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write into this folder"):
        run(tmp_path / "file")
    with pytest.raises(SourceError, match="no frames"):
        run(tmp_path, frames=[])


def test_ground_truth_is_drawn_beside_the_box():
    frame = square_clip(1)[0]
    truth = np.array([[5.0, 40.0, 20.0, 15.0]])
    boxes_xywh = np.array([[50.0, 30.0, 20.0, 15.0]])
    picture = annotate(frame, 0, Tracked(boxes_xywh), truth)
    assert tuple(picture[40, 15]) == GROUND_TRUTH and tuple(picture[45, 60]) == TARGET
    without = annotate(frame, 1, Tracked(boxes_xywh), truth)
    np.testing.assert_array_equal(without[40, 15], frame[40, 15])


def test_lost_targets_are_dashed_and_every_target_has_its_colour():
    frame = np.zeros((200, 300, 3), np.uint8)
    boxes_xywh = np.array([[20.0, 60.0, 90.0, 90.0], [160.0, 60.0, 90.0, 90.0]])
    picture = annotate(frame, 0, Tracked(boxes_xywh, np.array([0.9, 0.1]), np.array([False, True])))
    bottoms = [picture[150, left : left + 90] for left in (20, 160)]
    share = [(row == target_colour(target)).all(axis=1).mean() for target, row in enumerate(bottoms)]
    assert share[0] > 0.95 and 0.5 < share[1] < 0.8
    assert target_colour(0) != target_colour(1)


def test_box_lines(tmp_path):
    assert format_box(np.array([1.0, 20.5, 0.12345, 1000.0])) == "1,20.5,0.123,1000"
    assert format_box(np.full(4, np.nan)) == "nan,nan,nan,nan"
    boxes = np.random.default_rng(0).uniform(-50, 900, (30, 4))
    write_boxes(tmp_path / "new" / "boxes.txt", boxes)
    np.testing.assert_allclose(np.loadtxt(tmp_path / "new" / "boxes.txt", delimiter=","), boxes, atol=5.1e-4)


def test_nothing_is_replaced_unasked(tmp_path):
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"out.mp4", "out.txt"}
    with pytest.raises(FileExistsError, match=r"out\.mp4: is there already"):
        run(tmp_path, frames=square_clip(5))
    (tmp_path / "out.mp4").rename(tmp_path / "other.mp4")
    with pytest.raises(FileExistsError, match=r"out\.txt: is there already"):
        run(tmp_path, frames=square_clip(5))
    (tmp_path / "other.mp4").rename(tmp_path / "out.mp4")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(read_boxes(run(tmp_path, frames=square_clip(5), overwrite=True))) == 5


def test_two_at_once_never_write_one_file(tmp_path):
    class Second(RedTracker):
        def step(self, state, frame):
            if state == 3:
                with pytest.raises(FileExistsError, match="another run is writing"):
                    run(tmp_path)
            return super().step(state, frame)

    np.testing.assert_array_equal(read_boxes(run(tmp_path, Second())), square_boxes(20))
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.txt"}


def test_one_taken_name_of_several(tmp_path):
    (tmp_path / "out_2.txt").write_text("older")
    given = np.concatenate([square_boxes(1), square_boxes(1) + np.array([SIDE, 0, 0, 0])])
    with pytest.raises(FileExistsError, match=r"out_2\.txt"):
        record(PairTracker(), open_source(square_clip(5)), given, tmp_path / "out.mp4", tmp_path / "out.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["out_2.txt"]


def test_another_runs_state_stays_where_its_boxes_are_still_written(tmp_path):
    others, state = tmp_path / "out.txt.part", resume_path(tmp_path / "out.txt")
    others.write_text("35,42,12,12\n")
    state.write_bytes(b"of the other run")
    with pytest.raises(FileExistsError, match="another run is writing"):
        run(tmp_path, run_state=RunState(state))
    assert state.read_bytes() == b"of the other run"
    assert {path.name for path in tmp_path.iterdir()} == {others.name, state.name}, "no video was begun"


def test_a_refused_folder_of_masks_leaves_nothing_behind(tmp_path):
    picture = tmp_path / "masks" / "00000001.png"
    picture.parent.mkdir()
    write_image(picture, square_clip(1)[0])
    with pytest.raises(OutputError, match="no mask of an earlier run"):
        run(tmp_path, mask_images=picture.parent, overwrite=True)
    assert list(tmp_path.iterdir()) == [picture.parent] and picture.exists()


def test_a_tracker_that_raises_leaves_what_to_go_on_with(tmp_path):
    state = resume_path(tmp_path / "out.txt")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, RedTracker(interrupt_at=6, error=ZeroDivisionError), run_state=RunState(state))
    recording = run(tmp_path, run_state=RunState(state), resume=True)
    assert recording.resumed == 6 and not state.exists()
    np.testing.assert_array_equal(read_boxes(recording), square_boxes(20))
