"""What is said of exports that cannot be read, and what must not be taken for something else."""

import numpy as np
import pytest

from mixformer_jax.datasets.sequences import DatasetError, annotation_kind, open_dataset
from mixformer_jax.media.images import SourceError
from tests.datasets.exports import (
    MOT,
    coco,
    cvat_box,
    cvat_xml,
    read,
    studio,
    write_coco,
    write_cvat,
    write_images,
    write_json,
    write_mot,
    write_studio,
    write_video,
)


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


def test_json_that_is_nested_too_deep(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DatasetError, match=r"deep.json: no JSON"):
        annotation_kind(tmp_path)
    for kind in ("coco_video", "label_studio"):
        with pytest.raises(DatasetError, match=r"deep.json: its lists and objects are nested too deep"):
            open_dataset(kind, tmp_path)


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
