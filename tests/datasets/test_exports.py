"""What is read of exports of annotation tools."""

import itertools
import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.cli import main
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.datasets.tracks import Track, turned_bounds
from tests.datasets.exports import (
    FRAMES,
    MOT,
    NAN,
    coco,
    cvat_box,
    cvat_xml,
    level,
    read,
    studio,
    write_coco,
    write_cvat,
    write_images,
    write_mot,
    write_studio,
    write_video,
)


def test_cvat_interpolates_between_key_frames_and_outside_is_absent(tmp_path):
    found = read(write_cvat(tmp_path), "cvat")
    assert list(found) == ["walk-car_0", "walk-person_1"], "the polygon's track is left out"
    car = found["walk-car_0"]
    widths = [10, 11, 12, 13, 14]
    expected = [[4 + i, 4, width, 8] for i, width in enumerate(widths)]
    # The box stays where it was until the key frame that says outside.
    expected += [[8, 4, 14, 8], NAN, NAN, [20, 10, 10, 8], [20, 10, 10, 8]]
    np.testing.assert_allclose(car.boxes_xywh, expected)
    assert [level(frame) for frame in car.frames()] == list(range(2, FRAMES)), "from its first box on"
    assert level(car.frame(0)) == 2 and level(pickle.loads(pickle.dumps(car)).frame(9)) == 11
    person = found["walk-person_1"]
    np.testing.assert_allclose(person.boxes_xywh, [[30, 10, 6, 12]] * 4)
    assert car.video == person.video == "walk" and car.fps == 10
    assert main(["data", "check", str(tmp_path)]) == 0, "the kind is found"
    assert len(pickle.loads(pickle.dumps(open_dataset("cvat", tmp_path)))[1]) == 4


def test_cvat_images_are_numbered_as_in_the_video(tmp_path):
    """A task of every second frame: two frames between two images."""
    write_images(tmp_path / "images", [f"frame_{number:06d}.png" for number in range(4, 12, 2)])
    boxes = [cvat_box(4, (0, 0, 8, 8)), cvat_box(8, (8, 0, 8, 8)), cvat_box(10, (8, 0, 8, 8), 1)]
    (tmp_path / "annotations.xml").write_text(cvat_xml(("car", boxes)))
    (sequence,) = read(tmp_path, "cvat").values()
    np.testing.assert_allclose(sequence.boxes_xywh[:, 0], [0, 4, 8])
    assert [level(frame) for frame in sequence.frames()] == [0, 1, 2]


def test_a_project_of_cvat_has_a_video_a_task(tmp_path):
    write_video(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", 5)
    tasks = "".join(
        f"<task><id>{number}</id><name>{name}</name><stop_frame>4</stop_frame><source>{name}.mp4</source></task>"
        for number, name in ((1, "a"), (2, "b"))
    )
    tracks = "".join(
        f'<track id="{number}" label="car" task_id="{number + 1}">{cvat_box(0, (1, 1, 9, 9))}</track>'
        for number in (0, 1)
    )
    meta = f"<meta><project><id>9</id><name>both</name><tasks>{tasks}</tasks></project></meta>"
    (tmp_path / "annotations.xml").write_text(f"<annotations><version>1.1</version>{meta}{tracks}</annotations>")
    found = read(tmp_path, "cvat")
    assert {name: (len(each), each.root.name) for name, each in found.items()} == {"a": (5, "a.mp4"), "b": (5, "b.mp4")}


def test_mot_frames_and_pixels_count_from_one(tmp_path):
    found = read(write_mot(tmp_path / "walk", MOT), "mot")
    assert list(found) == ["walk-1", "walk-2"], "what is not considered is left out"
    np.testing.assert_allclose(found["walk-1"].boxes_xywh, [[4, 4, 10, 8], [5, 4, 10, 8], NAN, [7, 4, 10, 8]])
    np.testing.assert_allclose(found["walk-2"].boxes_xywh, [[0, 0, 4, 4], NAN, [1, 0, 4, 4]])
    assert [level(frame) for frame in found["walk-2"].frames()] == [2, 3, 4]
    assert found["walk-1"].fps == 14
    rows = [*MOT[:2], "3,1,7,5,10,8,1,1,0"]
    cvat = read(write_mot(tmp_path / "many" / "run", rows, info=False).parent, "mot")
    # CVAT counts pixels from 0, and its visibility is 0 where a target is marked as occluded.
    np.testing.assert_allclose(cvat["run"].boxes_xywh, [[5, 5, 10, 8], [6, 5, 10, 8], [7, 5, 10, 8]])


def test_coco_videos_are_in_the_order_of_their_frames(tmp_path):
    found = read(write_coco(tmp_path), "coco_video")
    assert list(found) == ["a-ball_1", "a-ball_5", "b"]
    np.testing.assert_allclose(found["a-ball_1"].boxes_xywh, [[1, 2, 10, 8], [2, 2, 10, 8], NAN, [4, 2, 10, 8]])
    assert [level(frame) for frame in found["a-ball_5"].frames()] == [1, 2]
    assert [found["b"].frame.path(i).name for i in range(2)] == ["9.jpg", "8.jpg"]
    assert found["a-ball_1"].video == found["a-ball_5"].video != found["b"].video
    assert (found["a-ball_1"].fps, found["b"].fps) == (25, 30)


def test_coco_of_cvat_has_tracks_among_attributes_and_no_videos(tmp_path):
    content = coco()
    for image in content["images"]:
        del image["video_id"], image["frame_id"]
    for annotation in content["annotations"]:
        annotation["attributes"] = {"occluded": False, "track_id": annotation.pop("track_id")}
    del content["videos"]
    found = read(write_coco(tmp_path, content), "coco_video")
    assert set(found) == {"a-ball_1", "a-ball_5", "b"}
    assert found["b"].frame.path(0).name == "8.jpg", "in the order of their names"


def test_label_studio_interpolates_where_enabled(tmp_path):
    found = read(write_studio(tmp_path), "label_studio")
    assert list(found) == ["walk_one-dog_1", "walk_one-dog_2"]
    first = found["walk_one-dog_1"]
    left = [0, 2, 4, 6, 8, np.nan, np.nan, 32, 32, 32]
    np.testing.assert_allclose(first.boxes_xywh[:, 0], left)
    copies = pickle.loads(pickle.dumps(open_dataset("label_studio", tmp_path)))
    np.testing.assert_array_equal(copies[0].boxes_xywh, first.boxes_xywh)
    np.testing.assert_allclose(first.boxes_xywh[0], [0, 6, 16, 24])
    assert level(first.frame(0)) == 1, "frames count from 1"
    assert len(found["walk_one-dog_2"]) == FRAMES, "the last key frame holds to the end"


def test_label_studio_with_another_frame_rate_is_matched_by_time(tmp_path, caplog):
    """24 frames counted on a video of 12: key frame 2 lies between the first and the second frame of the video."""
    found = read(write_studio(tmp_path, studio(2 * FRAMES)), "label_studio")
    boxes = found["walk_one-dog_1"].boxes_xywh
    np.testing.assert_allclose(boxes[:, 0], [2, 6, np.nan, 32, 32])
    assert "another frame rate" in caplog.text


def test_a_target_of_a_video_may_be_turned(tmp_path):
    content = studio()
    for key in content[0]["annotations"][0]["result"][1]["value"]["sequence"]:
        key["rotation"] = 90
    found = read(write_studio(tmp_path, content), "label_studio")["walk_one-dog_2"]
    np.testing.assert_allclose(found.boxes_xywh[0], [32 - 24, 6, 24, 16], atol=1e-9), "about its upper left corner"


def test_plain_folders_are_told_too(tmp_path):
    write_video(tmp_path / "one" / "video.mp4")
    (tmp_path / "one" / "groundtruth.txt").write_text("1,1,8,8\n" * FRAMES)
    assert list(read(tmp_path, "folder")) == ["one"]


@given(st.data())
def test_tracks_go_through_their_key_frames_and_straight_in_between(data):
    frames = sorted(data.draw(st.sets(st.integers(0, 40), min_size=1, max_size=8)))
    boxes = data.draw(st.lists(st.tuples(*[st.integers(1, 50)] * 4), min_size=len(frames), max_size=len(frames)))
    goes_on = np.array(data.draw(st.lists(st.booleans(), min_size=len(frames), max_size=len(frames))), bool)
    keys, boxes = np.array(frames, float), np.array(boxes, float)
    track = Track(keys, boxes, np.ones(len(keys), bool), goes_on)
    np.testing.assert_allclose(track.at(keys), boxes)
    assert np.isnan(track.at(np.array([frames[0] - 1.0]))).all()
    assert np.isnan(track.at(np.array([frames[-1] + 3.0]))).all() == (not goes_on[-1])
    for number, (left, right) in enumerate(itertools.pairwise(frames)):
        middle = track.at(np.array([(left + right) / 2]))[0]
        expected = boxes[number : number + 2].mean(axis=0) if goes_on[number] else np.full(4, np.nan)
        np.testing.assert_allclose(middle, expected)


@given(st.floats(0, 360), st.floats(0, 50), st.floats(1, 50))
def test_the_bounds_of_a_turned_box_hold_its_corners(degrees, x, w):
    box = np.array([x, 5.0, w, 12.0])
    bounds = turned_bounds(box, degrees, box[:2] + box[2:] / 2)
    np.testing.assert_allclose(bounds[:2] + bounds[2:] / 2, box[:2] + box[2:] / 2, atol=1e-6)
    assert (bounds[2:] >= min(box[2:]) - 1e-6).all() and (bounds[2:] <= np.hypot(*box[2:]) + 1e-6).all()
