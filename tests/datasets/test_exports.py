"""Exports of annotation tools, as their documentation has them: what is read, and what is said of what cannot be."""

import itertools
import json
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.cli import main
from mixformer_jax.datasets.annotated import annotation_kind
from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.datasets.tracks import Track, turned_bounds
from mixformer_jax.media.images import SourceError

HEIGHT, WIDTH, FRAMES = 48, 64, 12
NAN = [np.nan] * 4


def write_video(path, count=FRAMES, fps=10.0):
    """Frame i is grey of level 20 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (WIDTH, HEIGHT))
    for index in range(count):
        writer.write(np.full((HEIGHT, WIDTH, 3), 20 * index, np.uint8))
    writer.release()


def write_images(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((HEIGHT, WIDTH, 3), 20 * index, np.uint8))


def level(frame):
    """The number of a frame that was written above."""
    return round(float(frame.mean()) / 20)


def cvat_box(frame, box_xywh, outside=0, keyframe=1, more=""):
    x, y, w, h = box_xywh
    corners = f'xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" ybr="{y + h:.2f}"'
    flags = f'keyframe="{keyframe}" outside="{outside}" occluded="0"'
    return f'    <box frame="{frame}" {flags} {corners} z_order="0"{more}>\n    </box>\n'


def cvat_xml(*tracks, source="walk.mp4", stop=FRAMES - 1):
    """`tracks`: label and boxes."""
    shown = "".join(
        f'  <track id="{number}" label="{label}" source="manual">\n{"".join(boxes)}  </track>\n'
        for number, (label, boxes) in enumerate(tracks)
    )
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id>
      <name>street</name>
      <size>{FRAMES}</size>
      <mode>interpolation</mode>
      <start_frame>0</start_frame>
      <stop_frame>{stop}</stop_frame>
      <labels>
        <label><name>car</name><attributes></attributes></label>
      </labels>
      <owner><username>me</username></owner>
      <source>{source}</source>
    </task>
    <dumped>2026-01-01 00:00:00+00:00</dumped>
  </meta>
{shown}</annotations>
"""


def write_cvat(root, text=None):
    write_video(root / "walk.mp4")
    car = [cvat_box(2, (4, 4, 10, 8)), cvat_box(6, (8, 4, 14, 8)), cvat_box(8, (0, 0, 1, 1), outside=1)]
    car += [cvat_box(10, (20, 10, 10, 8))]
    person = [cvat_box(0, (30, 10, 6, 12)), cvat_box(4, (30, 10, 6, 12), outside=1)]
    polygon = ['    <polygon frame="0" points="1,1;2,2;3,1" outside="0" occluded="0" keyframe="1"></polygon>\n']
    (root / "annotations.xml").write_text(
        text or cvat_xml(("car", car), ("person", person), ("road", polygon)), encoding="utf-8"
    )
    return root


def write_mot(root, rows, info=True):
    write_images(root / "img1", [f"{number:06d}.jpg" for number in range(1, 7)])
    (root / "gt").mkdir()
    (root / "gt" / "gt.txt").write_text("\n".join(rows) + "\n")
    if info:
        (root / "seqinfo.ini").write_text(
            "[Sequence]\nname=walk\nimDir=img1\nframeRate=14\nseqLength=6\nimWidth=64\nimHeight=48\nimExt=.jpg\n"
        )
    return root


MOT = ["1,1,5,5,10,8,1,1,1", "2,1,6,5,10,8,1,1,0.5", "4,1,8,5,10,8,1,1,1", "3,2,1,1,4,4,1,3,1", "4,2,1,1,4,4,1,3,0"]
MOT += ["5,2,2,1,4,4,1,3,1", "1,3,1,1,9,9,0,8,1"]


def coco():
    """Two videos; the second one's images in another order than their numbers; a track in both."""
    images = [{"id": 10 + i, "file_name": f"a/{i}.jpg", "video_id": 1, "frame_id": i} for i in range(4)]
    images += [{"id": 20 + i, "file_name": f"b/{9 - i}.jpg", "video_id": 2, "frame_id": i} for i in range(3)]
    boxes = [(10, 1, [1, 2, 10, 8]), (11, 1, [2, 2, 10, 8]), (13, 1, [4, 2, 10, 8]), (11, 5, [30, 20, 6, 6])]
    boxes += [(20, 1, [7, 7, 9, 9]), (21, 1, [8, 7, 9, 9]), (12, 5, [31, 20, 6, 6])]
    return {
        "videos": [{"id": 1, "name": "a", "fps": 25}, {"id": 2, "name": "b"}],
        "images": images,
        "annotations": [
            {"id": number, "image_id": image, "category_id": 1, "track_id": track, "bbox": box}
            for number, (image, track, box) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "ball"}],
    }


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_coco(root, content=None):
    content = content or coco()
    write_images(root / "images" / "a", [f"{i}.jpg" for i in range(4)])
    write_images(root / "images" / "b", ["9.jpg", "8.jpg", "7.jpg"])
    write_json(root / "annotations" / "instances.json", content)
    return root


def studio(frames_count=FRAMES):
    def key(frame, x, enabled=True, **more):
        about = {"rotation": 0, "width": 25, "height": 50, "time": (frame - 1) / 10}
        return {"frame": frame, "enabled": enabled, "x": x, "y": 12.5, **about, **more}

    regions = [[key(2, 0), key(6, 12.5, enabled=False), key(9, 50), key(11, 50, enabled=False)], [key(1, 50)]]
    result = [
        {
            "id": f"region{number}",
            "type": "videorectangle",
            "from_name": "box",
            "to_name": "video",
            "value": {"framesCount": frames_count, "duration": 1.2, "sequence": keys, "labels": ["dog"]},
        }
        for number, keys in enumerate(regions)
    ]
    data = {"video": "/data/upload/3/0f3a77b2-walk%20one.mp4"}
    return [{"id": 1, "data": data, "annotations": [{"id": 5, "was_cancelled": False, "result": result}]}]


def write_studio(root, content=None):
    write_video(root / "walk one.mp4")
    write_json(root / "project-1-at-2026.json", content or studio())
    return root


def read(root, kind):
    assert annotation_kind(root) == kind
    return {sequence.name: sequence for sequence in open_dataset(kind, root)}


# What is read --------------------------------------------------------------------------------------------


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


# What is said --------------------------------------------------------------------------------------------


def refused(root, message):
    with pytest.raises((DatasetError, SourceError), match=message) as caught:
        for sequence in open_dataset(annotation_kind(root), root):
            sequence.require_frames()
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (cvat_xml(("car", ['<box frame="1" xtl="1" ytl="2" xbr="a"/>'])), r"annotations.xml, FIRST: .*'a'"),
        (cvat_xml(("car", [cvat_box(1, (9, 9, -3, 3))])), r"FIRST: xbr and ybr must not be less"),
        (cvat_xml(("car", [cvat_box(1, (9, 9, 3, 3), outside=2)])), r"FIRST: outside must be 0 or 1"),
        (cvat_xml(("car", [cvat_box(-1, (9, 9, 3, 3))])), r"FIRST: frame must be a whole number"),
        (cvat_xml(("car", [cvat_box(1, (9, 9, 3, 3))] * 2)), r"SECOND: track 0 has two boxes on frame 1.* FIRST"),
        (
            cvat_xml(("car", [cvat_box(40, (9, 9, 3, 3))])),
            r"TRACK, track 0: has a box on frame 40.*ends with frame 11",
        ),
        (cvat_xml(("car", [cvat_box(1, (9, 9, 0, 0))])), r"TRACK, track 0: no box with an area on any frame"),
        (cvat_xml(("car", [cvat_box(4, (9, 9, 3, 3))]))[:-20], r"annotations.xml, line \d+: no XML"),
        ("<annotations><image id='0'></image></annotations>", "boxes are on single images: annotate tracks"),
    ],
)
def test_cvat_faults_are_told_by_line(tmp_path, text, message):
    lines = [number for number, line in enumerate(text.splitlines(), start=1) if "<track" in line or "<box" in line]
    for word, number in zip(("TRACK", "FIRST", "SECOND"), lines, strict=False):
        message = message.replace(word, f"line {number}")
    refused(write_cvat(tmp_path, text), message)


def test_a_video_that_is_missing_is_asked_for(tmp_path):
    write_cvat(tmp_path)
    (tmp_path / "walk.mp4").unlink()
    assert "walk.mp4" in refused(tmp_path, "put it beside annotations.xml")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,1,2,3,4", r"gt.txt, line 3: expected the numbers frame,track,x,y,w,h"),
        ("1,1,2,3,4,x,1", r"line 3: expected the numbers"),
        ("0,1,2,3,4,5,1", r"line 3: the first column is the frame, counted from 1; found 0"),
        ("1,-1,2,3,4,5,1", r"line 3: the second column is the number of the track, found -1"),
        ("3,1,2,3,-4,5,1", r"line 3: negative width or height"),
        ("2,1,2,3,4,5,1", r"line 3: a second box of track 1 on frame 2"),
        ("9,1,2,3,4,5,1", r"line 1, track 1: has a box on frame 8 .*ends with frame 5"),
    ],
)
def test_mot_faults_are_told_by_line(tmp_path, row, message):
    refused(write_mot(tmp_path / "walk", [*MOT[:2], row]), message)


def test_another_length_than_seqinfo_says(tmp_path):
    write_mot(tmp_path / "walk", MOT)
    (tmp_path / "walk" / "img1" / "000006.jpg").unlink()
    refused(tmp_path, "seqinfo.ini: seqLength is 6, but .* has 5 frames")


def change(content, path, value):
    """Sets content[path[0]][path[1]]...; None removes it."""
    *way, last = path
    for key in way:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", 2, "bbox"), [1, 2, 3], r"instances.json, annotations\[2\].bbox: expected x, y, w, h"),
        (("annotations", 2, "bbox", 2), "9", r"annotations\[2\].bbox\[2\]: expected a number from 0 on, found \"9\""),
        (("annotations", 1, "track_id"), None, r"annotations\[1\]: expected an object with 'track_id'"),
        (("annotations", 1, "image_id"), 99, r"annotations\[1\].image_id: expected the number of an image"),
        (("annotations", 1, "image_id"), 10, r"annotations\[1\]: expected one box of track 1 on its image"),
        (("images", 3, "frame_id"), 2, r"images\[3\]: expected another frame number than images\[2\] has"),
        (("images", 0, "file_name"), None, r"images\[0\]: expected an object with 'file_name'"),
        (("images", 0, "video_id"), 7, r"images\[0\].video_id: expected the number of one of 2 videos"),
    ],
)
def test_coco_faults_are_told_by_path(tmp_path, path, value, message):
    content = coco()
    change(content, path, value)
    refused(write_coco(tmp_path, content), message)


KEY = (0, "annotations", 0, "result", 0, "value", "sequence")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            (*KEY, 1, "width"),
            "wide",
            r"\[0\].annotations\[0\].result\[0\].value.sequence\[1\].width: expected a number",
        ),
        ((*KEY, 1, "frame"), 0, r"sequence\[1\].frame: expected a number from 1 on, found 0"),
        ((*KEY, 1, "frame"), 2, r"value.sequence: expected one key frame a frame \(frame 2 has two\)"),
        ((*KEY, 1, "enabled"), "no", r"sequence\[1\].enabled: expected true or false"),
        (KEY, [], r"value.sequence: expected key frames, found \[\]"),
        ((0, "annotations"), None, r"\[0\]: expected a task with 'annotations': export as JSON, not as JSON-MIN"),
        ((0, "data", "video"), "s3://bucket/run.mp4", None),
    ],
)
def test_label_studio_faults_are_told_by_path(tmp_path, path, value, message):
    content = studio()
    change(content, path, value)
    write_studio(tmp_path, content)
    if message is None:  # the only video of the folder is the only task's
        assert len(open_dataset("label_studio", tmp_path)[0]) == 10
        (tmp_path / "walk one.mp4").unlink()
        message = r"\[0\].data.video: the annotated video run.mp4 is not in"
    refused(tmp_path, message)


def test_no_kind_and_several_kinds(tmp_path):
    with pytest.raises(DatasetError, match=r"no annotations found; expected SEQUENCE/groundtruth\.txt"):
        annotation_kind(tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        annotation_kind(tmp_path / "gone")
    write_cvat(tmp_path)
    with pytest.raises(DatasetError, match="is a file; unpack it and give the folder"):
        annotation_kind(tmp_path / "annotations.xml")
    with pytest.raises(DatasetError, match="is a file; unpack it and give the folder"):
        open_dataset("cvat", tmp_path / "annotations.xml")
    write_coco(tmp_path)
    with pytest.raises(DatasetError, match=r"several kinds: cvat .*coco_video.*; say which: --dataset"):
        annotation_kind(tmp_path)
    (tmp_path / "more.json").write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"more.json: no JSON .*line 1"):
        annotation_kind(tmp_path)


def test_each_export_of_a_folder_has_its_own_video(tmp_path):
    """One whose video is missing takes no other's."""
    for name in "ab":
        boxes = [cvat_box(0, (4, 4, 10, 8))]
        (tmp_path / f"{name}.xml").write_text(cvat_xml(("car", boxes), source=f"{name}.mp4"))
    write_video(tmp_path / "b.mp4")
    refused(tmp_path, "the annotated video a.mp4")
    (tmp_path / "a.xml").unlink()
    (tmp_path / "b.xml").unlink()
    for name in "ab":
        content = studio()
        content[0]["data"]["video"] = f"/data/upload/{name}.mp4"
        write_json(tmp_path / f"{name}.json", content)
    refused(tmp_path, "the annotated video a.mp4 is not in")


def write_project(root, last_task=2):
    """Of two tasks, whose images CVAT lays into one folder."""
    tasks = "".join(f"<task><id>{i}</id><name>{i}</name><source>{i}.mp4</source></task>" for i in (1, 2))
    tracks = "".join(
        f'<track id="{i}" label="car" task_id="{i}">{cvat_box(0, (1, 1, 9, 9))}</track>\n' for i in (1, last_task)
    )
    meta = f"<meta><project><tasks>{tasks}</tasks></project></meta>\n"
    (root / "annotations.xml").write_text(f"<annotations>{meta}{tracks}</annotations>")
    write_images(root / "images", ["frame_000000.png", "frame_000000_1.png"])


def test_a_projects_images_are_not_taken_for_one_video(tmp_path):
    write_project(tmp_path)
    refused(tmp_path, "neither the annotated video 1.mp4 nor 1/ with its images alone is there")
    write_project(tmp_path, last_task=9)
    refused(tmp_path, r"annotations.xml, line 5: track 9 has the task_id '9', but the tasks are 1, 2")


def test_key_frames_behind_the_end_are_not_moved_there(tmp_path):
    content = studio()
    change(content, (*KEY, 3, "frame"), 40)
    write_studio(tmp_path, content)
    refused(tmp_path, r"value.sequence: expected key frames up to framesCount, 12 \(one is 40\)")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotations.xml", b"", "annotations.xml, line 1: no XML"),
        (
            "annotations.xml",
            b"<?xml version='1.0' encoding='big5'?><annotations/>",
            "line 1: multi-byte.*save it as UTF",
        ),
        ("a.json", b'[{"annotations": [3]}]', r"a.json, \[0\].annotations\[0\]: expected an object"),
        ("export.zip", b"PK", r"no annotations found \(unpack export.zip\)"),
    ],
)
def test_damaged_exports_are_told_in_a_sentence(tmp_path, name, content, message):
    (tmp_path / "folder.xml").mkdir()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"video": "http://[walk.mp4"}, r"\[0\].data.video: expected the address"),
        ("walk.mp4", r"data: expected an obj"),
    ],
)
def test_addresses_that_are_none(tmp_path, data, message):
    content = studio()
    change(content, (0, "data"), data)
    refused(write_studio(tmp_path, content), message)


def test_names_stay_in_their_folder_and_utf16_is_read(tmp_path):
    write_cvat(tmp_path)
    text = cvat_xml(("car", [cvat_box(0, (4, 4, 10, 8))]), source="..").replace('"utf-8"', '"utf-16"')
    (tmp_path / "annotations.xml").write_bytes(text.encode("utf-16"))
    assert list(read(tmp_path, "cvat")) == ["video"]


def test_a_title_is_no_address(tmp_path):
    content = studio()
    change(content, (0, "data"), {"title": "A walk", "clip": content[0]["data"]["video"]})
    assert next(iter(read(write_studio(tmp_path, content), "label_studio"))).startswith("walk_one")


def test_frames_of_another_size_are_refused(tmp_path):
    size = "<original_size><width>640</width><height>480</height></original_size><source>"
    text = cvat_xml(("car", [cvat_box(0, (4, 4, 10, 8))])).replace("<source>", size)
    refused(
        write_cvat(tmp_path / "cvat", text), "original_size: the annotated frames have 640x480 pixels, .* 64x48; put"
    )
    content = coco()
    content["images"][4] |= {"width": 64, "height": 40}
    refused(write_coco(tmp_path / "coco", content), r"images\[4\]: the annotated frames have 64x40")
    root = write_mot(tmp_path / "mot", MOT)
    change_text(root / "seqinfo.ini", "imWidth=64", "imWidth=65")
    refused(root, "imWidth and imHeight: the annotated frames have 65x48")
    change_text(root / "seqinfo.ini", "frameRate=14", "frameRate=0")
    refused(root, "seqinfo.ini: frameRate is 0")


def change_text(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def test_mot_images_with_a_gap_are_refused(tmp_path):
    """Frame 4 of the annotations would be the picture of frame 5."""
    root = write_mot(tmp_path, MOT, info=False)
    (root / "img1" / "000003.jpg").unlink()
    refused(root, "img1: no image between 000002.jpg and 000004.jpg")


def test_coco_of_cvat_turns_boxes_and_keeps_tasks_apart(tmp_path):
    write_images(tmp_path / "images" / "default", ["frame_000000.PNG", "frame_000000_1.PNG"])
    box = {"id": 1, "image_id": 1, "bbox": [10, 10, 20, 4], "attributes": {"track_id": 0, "rotation": 90.0}}
    images = [{"id": 1, "file_name": "frame_000000.PNG"}, {"id": 2, "file_name": "frame_000000_1.PNG"}]
    write_json(tmp_path / "a.json", {"images": images[:1], "annotations": [box]})
    (found,) = read(tmp_path, "coco_video").values()
    np.testing.assert_allclose(found.boxes_xywh, [[18, 2, 4, 20]])
    write_json(tmp_path / "a.json", {"images": images, "annotations": [box]})
    refused(tmp_path, r"images\[0\].file_name: expected frames of one video in a folder; export each task")


def test_exports_that_call_their_videos_alike_are_told_apart_by_folder(tmp_path):
    """With other labels they would pass for two targets of one video."""
    for folder, label in (("a", "car"), ("b", "car"), ("c", "dog")):
        write_video(tmp_path / folder / "video.mp4", 2)
        text = cvat_xml((label, [cvat_box(0, (4, 4, 10, 8))]), source="video.mp4")
        (tmp_path / folder / "annotations.xml").write_text(text)
    found = read(tmp_path, "cvat")
    assert {name: each.root.parent.name for name, each in found.items()} == {f"{x}_video": x for x in "abc"}
    assert len({each.video for each in found.values()}) == 3
