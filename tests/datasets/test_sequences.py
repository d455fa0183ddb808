"""Annotation files, the TrackingSequence record, and frames by index."""

import copy
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.datasets.groundtruth import read_groundtruth, read_labels
from mixformer_jax.datasets.records import ImageFrames, VideoFrames
from mixformer_jax.datasets.sequences import READERS, DatasetError, TrackingSequence, open_dataset
from mixformer_jax.media.images import SourceError

SIZE = (48, 64)
GREY_STEP = 10


def write_video(path, num_frames):
    """Frame i is grey of level i * GREY_STEP, so that a decoded frame tells its number through any codec."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (SIZE[1], SIZE[0]))
    for index in range(num_frames):
        writer.write(np.full((*SIZE, 3), index * GREY_STEP, np.uint8))
    writer.release()
    return path


def frame_number(frame):
    assert frame.shape == (*SIZE, 3)
    assert frame.dtype == np.uint8
    return round(float(frame.mean()) / GREY_STEP)


@pytest.mark.parametrize("separator", [",", ", ", "\t", " ", "   "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_groundtruth_separators_nan_rows_and_blank_end(tmp_path, separator, newline):
    rows = [["1.5", "-2", "30", "4e1"], ["nan", "NaN", "NAN", "nan"], ["0", "0", "0", "0"]]
    path = tmp_path / "groundtruth.txt"
    path.write_bytes((newline.join(separator.join(row) for row in rows) + newline * 3).encode())

    boxes_xywh = read_groundtruth(path, expected_length=3)

    assert boxes_xywh.dtype == np.float64
    np.testing.assert_array_equal(boxes_xywh, [[1.5, -2, 30, 40], [np.nan] * 4, [0, 0, 0, 0]])


def test_groundtruth_byte_order_mark(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_bytes(b"\xef\xbb\xbf1,2,3,4\n")
    np.testing.assert_array_equal(read_groundtruth(path), [[1, 2, 3, 4]])


@pytest.mark.parametrize("separator", [",", ", ", "\t"])
def test_boxes_that_track_left_are_ground_truth(tmp_path, separator):
    path = tmp_path / "groundtruth.txt"
    rows = [["1", "2", "30.5", "40", "1.0000", "0"], ["2", "3", "30.5", "40", "0.1250", "1"]]
    path.write_text("".join(separator.join(row) + "\n" for row in rows))
    np.testing.assert_array_equal(read_groundtruth(path), [[1, 2, 30.5, 40], [2, 3, 30.5, 40]])
    # The number of the frame comes first: no boxes and scores.
    path.write_text(separator.join(["1", "10", "20", "30", "40", "1"]) + "\n")
    with pytest.raises(DatasetError, match="line 1: expected 4 columns x,y,w,h, found 6"):
        read_groundtruth(path)


coordinate = st.floats(-1e6, 1e6)
extent = st.floats(0, 1e6)
box = st.tuples(coordinate, coordinate, extent, extent) | st.just((float("nan"),) * 4)


@given(rows=st.lists(box, min_size=1, max_size=20), separator=st.sampled_from([",", "\t", " "]))
def test_groundtruth_round_trip(tmp_path_factory, rows, separator):
    path = tmp_path_factory.mktemp("boxes") / "groundtruth.txt"
    path.write_text("\n".join(separator.join(map(repr, row)) for row in rows))
    np.testing.assert_array_equal(read_groundtruth(path), rows)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1,2,3", "found 3"),
        ("1,2,3,4,5", "found 5"),
        ("1,2,3,4,", "found 5"),
        ("1,2,3,4,5,6,7,8", "polygons"),
        ("1,,3,4", "four numbers"),
        ("1 2,3 4,5,6", "four numbers"),
        ("1,2,three,4", "three"),
        ("1_0,2,3,4", "four numbers"),
        ("1,2,٣,4", "four numbers"),
        ("1,nan,3,4", "NaN in part"),
        ("1,2,inf,4", "infinite"),
        ("1,2,-3,4", "negative"),
        ("", "found 0"),
    ],
)
def test_bad_line_is_named(tmp_path, line, what):
    path = tmp_path / "groundtruth.txt"
    path.write_text(f"1,2,3,4\n{line}\n5,6,7,8\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=what) as error:
        read_groundtruth(path)
    assert f"{path}, line 2" in str(error.value)


def test_groundtruth_missing_empty_or_not_text(tmp_path):
    with pytest.raises(DatasetError, match="missing"):
        read_groundtruth(tmp_path / "groundtruth.txt")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DatasetError, match="empty"):
        read_groundtruth(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DatasetError, match="as text"):
        read_groundtruth(tmp_path / "binary.txt")


def test_lengths_that_differ_are_both_named(tmp_path):
    path = tmp_path / "groundtruth.txt"
    path.write_text("1,2,3,4\n" * 7)
    with pytest.raises(DatasetError, match="7 boxes for 9 frames"):
        read_groundtruth(path, expected_length=9)
    labels = tmp_path / "absence.label"
    labels.write_text("0\n1\n")
    np.testing.assert_array_equal(read_labels(labels), [0, 1])
    for line in ("0,1", "0, 1\n", "0\t1\n", "0 1"):
        (tmp_path / "line.txt").write_text(line)
        np.testing.assert_array_equal(read_labels(tmp_path / "line.txt"), [0, 1])
    with pytest.raises(DatasetError, match="2 labels for 3 frames"):
        read_labels(labels, expected_length=3)
    labels.write_text("0\nyes\n")
    with pytest.raises(DatasetError, match=r"absence.label, line 2.*'yes'"):
        read_labels(labels)


def test_unknown_dataset_and_missing_root(tmp_path):
    with pytest.raises(DatasetError, match="unknown data set 'lasott'") as error:
        open_dataset("lasott", tmp_path)
    assert all(name in str(error.value) for name in READERS)
    with pytest.raises(DatasetError, match="no such folder"):
        open_dataset("folder", tmp_path / "nowhere")


def test_video_frames_in_any_order(tmp_path):
    frames = VideoFrames(write_video(tmp_path / "video.mp4", 20))
    order = [0, 1, 2, 7, 7, 3, 19, 0, 18, 18, 5]
    assert [frame_number(frames(index)) for index in order] == order


def test_video_forward_access_decodes_once(tmp_path, monkeypatch):
    """Every frame is decoded once going forward and on a repeat; only going back starts again."""
    path = write_video(tmp_path / "video.mp4", 12)
    decoded = []

    class Counting:
        def __iter__(self):
            for index in range(12):
                decoded.append(index)
                yield np.full((*SIZE, 3), index * GREY_STEP, np.uint8)

        def close(self):
            pass

    monkeypatch.setattr("mixformer_jax.datasets.records.open_source", lambda _: Counting())
    frames = VideoFrames(path)
    for index in (0, 1, 1, 4, 4, 11):
        assert frame_number(frames(index)) == index
    assert decoded == list(range(12))
    assert frame_number(frames(2)) == 2
    assert decoded == [*range(12), 0, 1, 2]


def test_video_frame_handed_out_belongs_to_the_caller(tmp_path):
    frames = VideoFrames(write_video(tmp_path / "video.mp4", 4))
    frames(3)[:] = 255
    assert frame_number(frames(3)) == 3


def test_video_frame_out_of_range_and_recovery(tmp_path):
    frames = VideoFrames(write_video(tmp_path / "video.mp4", 5))
    with pytest.raises(IndexError, match="ends after 5 frames"):
        frames(5)
    with pytest.raises(IndexError, match="start at 0"):
        frames(-1)
    assert frame_number(frames(4)) == 4
    frames.close()
    assert frame_number(frames(1)) == 1


def test_frames_pickle_and_copy_with_a_position_of_their_own(tmp_path):
    frames = VideoFrames(write_video(tmp_path / "video.mp4", 6))
    assert frame_number(frames(4)) == 4
    for twin in (pickle.loads(pickle.dumps(frames)), copy.copy(frames)):
        assert frame_number(twin(2)) == 2
        assert frame_number(frames(5)) == 5


def test_sequence_frames_are_not_disturbed_by_random_access(tmp_path):
    video = VideoFrames(write_video(tmp_path / "video.mp4", 8))
    sequence = TrackingSequence("video", np.zeros((8, 4)), video, 25.0, tmp_path)
    seen = []
    for index, frame in enumerate(sequence.frames()):
        seen.append(frame_number(frame))
        assert frame_number(sequence.frame(7 - index)) == 7 - index
    assert seen == list(range(8))


def test_image_frames(tmp_path):
    colour = np.zeros((*SIZE, 3), np.uint8)
    colour[..., 0] = 200
    cv2.imwrite(str(tmp_path / "1.png"), colour[..., ::-1])
    (tmp_path / "2.jpg").write_bytes(b"\xff\xd8\xff\xe0broken")
    frames = ImageFrames(tmp_path, ("1.png", "2.jpg"))
    np.testing.assert_array_equal(frames(0), colour)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames))(0), colour)
    with pytest.raises(SourceError, match=r"2\.jpg"):
        frames(1)
    with pytest.raises(IndexError):
        frames(-1)
    with pytest.raises(IndexError):
        frames(2)
