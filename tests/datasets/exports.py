"""Exports of annotation tools as their documentation has them, to be read and to be damaged."""

import json

import cv2
import numpy as np

from mixformer_jax.datasets.sequences import annotation_kind, open_dataset

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
