"""Exports of annotation tools in JSON: COCO with tracks, and key frames of Label Studio."""

import functools
import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, Place, read_json
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.datasets.tracks import (
    VIDEO_SUFFIXES,
    Footage,
    Target,
    Track,
    dataset_of,
    find_video,
    footage_of,
    plain_name,
    sequence_of,
    turned_bounds,
)
from mixformer_jax.media.images import natural_order
from mixformer_jax.media.sources import DEFAULT_FPS

TRACK, ORDER = ("track_id", "instance_id"), ("frame_id", "frame_index", "frame_idx")  # of COCO
REGION = "videorectangle"  # of Label Studio
UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # before the names of uploaded files
SLACK = 2  # frames by which the lengths of a video may differ before its frame rate is taken to have been another

logger = logging.getLogger(__name__)


class _Video(NamedTuple):
    name: str
    fps: float
    images: tuple[str, ...]  # file names in order
    size: tuple[int, int] | None  # height and width of the first one, where it says so
    where: str  # the first one


class _Targets(NamedTuple):
    """The boxes of one target, and where they stand, by position of their frames."""

    label: str
    boxes_xywh: dict[int, list[float]]
    where: dict[int, str]


def read_coco_video(root: Path, split: str | None = None) -> Dataset:
    """Tracks of COCO files, in the root or its folder `annotations`: images in order, boxes with their track's number.

    Several dialects: CocoVID of MMTracking (`videos`, `frame_id`, `instance_id` or `track_id`), TAO (`frame_index`,
    `track_id`), and exports of CVAT as "COCO 1.0" (`attributes.track_id`, no videos). Images lie where `file_name`
    says: below the root, its `images`, the file's own folder, or the split's folder. Without `video_id` the images of
    one folder are a video; without numbers of frames they are ordered by their names.
    """
    targets = []
    for content in map(read_json, json_files(root)):
        if is_coco(content.value):
            videos, places = _read_videos(content, root)
            for (video, track), boxes in _read_boxes(content, places).items():
                read = functools.partial(_read_coco, root, content.file, videos[video], boxes)
                targets.append(Target(videos[video].name, plain_name(f"{boxes.label}_{track}"), read))
    if not targets:
        raise DatasetError(f"{root}: no COCO file with boxes; expected annotations/NAME.json")
    return dataset_of("coco_video", root, targets)


def json_files(root: Path) -> list[Path]:
    """The JSON files of a folder and of its `annotations`."""
    files = [path for pattern in ("*.json", "annotations/*.json") for path in sorted(root.glob(pattern))]
    return [path for path in files if path.is_file()]


def is_coco(content: Any) -> bool:
    """Whether JSON looks like COCO."""
    return isinstance(content, dict) and {"images", "annotations"} <= set(content)


def frame_order(image: Place) -> tuple[int, Any]:
    """Sorts the images of a video: by the numbers of their frames, else by their names."""
    number = next((found.number() for key in ORDER if (found := image.get(key)) is not None), None)
    return (1, natural_order(Path(image["file_name"].text()))) if number is None else (0, number)


def _read_videos(content: Place, root: Path) -> tuple[dict[Any, _Video], dict[int, tuple[Any, int]]]:
    """Videos by number (or folder), and by number of an image its video and its position there."""
    known = {video["id"].whole(): video for video in listed.items()} if (listed := content.get("videos")) else {}
    members: dict[Any, list[tuple[tuple[int, Any], Place]]] = {}
    for image in content["images"].items():
        name, video = image["file_name"].text(), image.get("video_id")
        if video is not None and known and video.whole() not in known:
            raise video.error(f"the number of one of {len(known)} videos")
        key = str(Path(name).parent) if video is None else video.whole()
        members.setdefault(key, []).append((frame_order(image), image))
    videos, places = {}, {}
    for key, images in members.items():
        images.sort(key=lambda each: each[0])
        for (order, before), (next_order, after) in itertools.pairwise(images):
            if order == next_order:
                raise after.error(f"another frame number than {before.path} has, which is of the same video")
        videos[key] = _video(key, known.get(key), [image for _, image in images], root)
        for position, (_, image) in enumerate(images):
            if (number := image["id"].whole()) in places:
                raise image["id"].error("a number that no other image has")
            places[number] = (key, position)
    return videos, places


def _video(key: Any, about: Place | None, images: Sequence[Place], root: Path) -> _Video:
    names = tuple(image["file_name"].text() for image in images)
    first = images[0]
    if about is None:
        # CVAT tells the images of several tasks apart by a second number.
        matches = [re.fullmatch(r"frame_\d{6}(_\d+)?", Path(name).stem) for name in names]
        if len({match[1] is None for match in matches if match}) > 1:
            raise first["file_name"].error("frames of one video in a folder; export each task of the project by itself")
    name = next((found.text() for each in ("name", "file_name") if about and (found := about.get(each))), str(key))
    fps = found.number(1e-3) if about and (found := about.get("fps")) else DEFAULT_FPS
    height, width = (found.whole(0) if (found := first.get(side)) else 0 for side in ("height", "width"))
    size = (height, width) if height and width else None
    return _Video(plain_name(root.resolve().name if name == "." else name), fps, names, size, first.path)


def _read_boxes(content: Place, places: dict[int, tuple[Any, int]]) -> dict[tuple[Any, int], _Targets]:
    """The boxes of every target, by video and track."""
    labels: dict[int, str] = {}
    if (categories := content.get("categories")) is not None:
        labels = {each["id"].whole(): each["name"].text() for each in categories.items()}
    targets: dict[tuple[Any, int], _Targets] = {}
    for annotation in content["annotations"].items():
        place = places.get(annotation["image_id"].whole())
        if place is None:
            raise annotation["image_id"].error("the number of an image of the file")
        inside = annotation.get("attributes")
        found = [at.get(key) for at in (annotation, inside) if at is not None for key in TRACK]
        track = next((each for each in found if each is not None), None)
        if track is None:
            raise annotation.error("an object with 'track_id' (COCO without tracks is read by --dataset coco)")
        numbers = list(annotation["bbox"].items())
        if len(numbers) != 4:
            raise annotation["bbox"].error("x, y, w, h")
        box = [numbers[0].number(), numbers[1].number(), numbers[2].number(0.0), numbers[3].number(0.0)]
        if inside is not None and (turned := inside.get("rotation")) is not None and turned.number():
            upright = np.array(box)  # CVAT writes the box before it is turned about its centre
            box = turned_bounds(upright, turned.number(), upright[:2] + upright[2:] / 2).tolist()
        video, position = place
        category = annotation.get("category_id")
        label = labels.get(category.whole(), "target") if category is not None else "target"
        target = targets.setdefault((video, track.whole()), _Targets(label, {}, {}))
        if position in target.boxes_xywh:
            raise annotation.error(f"one box of track {track.value} on its image, and {target.where[position]} is one")
        target.boxes_xywh[position], target.where[position] = box, annotation.path
    return targets


def _read_coco(root: Path, file: Path, video: _Video, target: _Targets, name: str, shown: str) -> TrackingSequence:
    places = (root, root / "images", file.parent, root / file.stem, root / "images" / file.stem)
    named = [*places, root / "images" / "default", *(place / video.name for place in places)]
    folder = next((place for place in named if (place / video.images[0]).is_file()), None)
    frame: ImageFrames | MissingFrames
    if folder is None:
        frame = MissingFrames(f"{root}: no image {video.images[0]}, neither there nor in images/; lay the images there")
    else:
        frame = ImageFrames(folder, video.images)
    footage = Footage((folder or root) / video.name, frame, np.arange(len(video.images)), video.fps)
    footage.require_size(video.size, f"{file}, {video.where}")
    track = Track.of_frames(np.array(list(target.boxes_xywh)), np.array(list(target.boxes_xywh.values())))
    return sequence_of(name, shown, footage, track, f"{file}, {next(iter(target.where.values()))}")


def read_label_studio(root: Path, split: str | None = None) -> Dataset:
    """Video regions (https://labelstud.io) of JSON files in the root; the annotated videos lie beside them, or in
    `videos`.

    Coordinates are percent of the frame, and frames count from 1. Between key frames boxes are interpolated; behind one
    with `enabled` false the target is absent until the next one. Label Studio tells frames by time and the frame rate
    of its project: where its `framesCount` is not the video's, frames are found by time.
    """
    contents = [read_json(path) for path in sorted(root.glob("*.json")) if path.is_file()]
    exports = [list(content.items()) for content in contents if is_label_studio(content.value)]
    is_only = sum(map(len, exports)) == 1
    targets = []
    for task in itertools.chain.from_iterable(exports):
        if task.get("annotations") is None:
            raise task.error("a task with 'annotations': export as JSON, not as JSON-MIN")
        regions = _regions(task)
        video = plain_name(_file_name(_address(task))) if regions else ""
        for number, region in enumerate(regions, start=1):
            labels = region["value"].get("labels")
            label = next((each.text() for each in labels.items()), "target") if labels is not None else "target"
            read = functools.partial(_read_region, task, region, is_only)
            targets.append(Target(video, plain_name(f"{label}_{number}"), read))
    if not targets:
        raise DatasetError(
            f"{root}: no regions of the type {REGION}; expected Label Studio's export of annotated videos"
        )
    return dataset_of("label_studio", root, targets)


def is_label_studio(content: Any) -> bool:
    """Whether JSON looks like a list of Label Studio's tasks."""
    return isinstance(content, list) and bool(content) and all(isinstance(task, dict) for task in content)


def _regions(task: Place) -> list[Place]:
    """The video regions of a task: of the annotation marked as ground truth, else of the last one."""
    flags = ((each, each.get("was_cancelled")) for each in task["annotations"].items())
    annotations = [each for each, is_cancelled in flags if is_cancelled is None or not is_cancelled.value]
    if not annotations:
        return []
    chosen = next((each for each in annotations if each.value.get("ground_truth")), annotations[-1])
    if len(annotations) > 1:
        logger.warning("%s, %s: %d annotations; %s is taken", task.file, task.path, len(annotations), chosen.path)
    return [each for each in chosen["result"].items() if each["type"].text().lower() == REGION]


def _address(task: Place) -> Place:
    data = task["data"]
    if not isinstance(data.value, dict):
        raise data.error("an object with the address of a video")
    texts = [data[key] for key, text in data.value.items() if isinstance(text, str)]
    films = [each for each in texts if Path(each.value).suffix.lower() in VIDEO_SUFFIXES]
    named = [each for each in texts if each.path.endswith(".video")] or films or texts
    if not named:
        raise data.error("the address of a video")
    return named[0]


def _file_name(address: Place) -> str:
    """`clip.mp4` of /data/upload/1/0f3a77b2-clip.mp4, /data/local-files/?d=videos/clip.mp4 or s3://bucket/clip.mp4."""
    try:
        parts = urlsplit(address.text())
    except ValueError as error:
        raise address.error(f"the address of a video ({error})") from error
    path = parse_qs(parts.query).get("d", [parts.path])[0]
    return UPLOADED.sub("", Path(unquote(path)).name)


def _read_region(task: Place, region: Place, is_only: bool, name: str, video: str) -> TrackingSequence:
    address, folder = _address(task), task.file.parent
    called = _file_name(address)
    whole_name = Path(unquote(urlsplit(address.text()).path)).name
    path = find_video(folder, called, False) or find_video(folder, whole_name, is_only)
    if path is None:
        raise DatasetError(
            f"{address.file}, {address.path}: the annotated video {called} is not in {folder}, and coordinates are "
            "percent of its frames; put it there"
        )
    footage = footage_of(path)
    return sequence_of(name, video, footage, _key_frames(region["value"], footage), f"{region.file}, {region.path}")


def _key_frames(value: Place, footage: Footage) -> Track:
    assert footage.size is not None
    height, width = footage.size
    pixels = np.array([width, height, width, height]) / 100
    sequence = value["sequence"]
    keys, boxes, enabled = [], [], []
    for key in sequence.items():
        box_xywh = pixels * [key["x"].number(), key["y"].number(), key["width"].number(0.0), key["height"].number(0.0)]
        if (rotation := key.get("rotation")) is not None and rotation.number():
            box_xywh = turned_bounds(box_xywh, rotation.number(), box_xywh[:2])
        if (flag := key.get("enabled")) is not None and not isinstance(flag.value, bool):
            raise flag.error("true or false")
        keys.append(key["frame"].whole(1.0) - 1)
        boxes.append(box_xywh)
        enabled.append(flag is None or flag.value)
    if not keys:
        raise sequence.error("key frames")
    order = np.argsort(keys, kind="stable")
    frames = np.array(keys, float)[order]
    for place in np.flatnonzero(np.diff(frames) == 0)[:1].tolist():
        raise sequence.error(f"one key frame a frame (frame {int(frames[place]) + 1} has two)")
    if (said := value.get("framesCount")) is not None:
        # Frames of Label Studio are times: with another frame rate they lie between those of the video.
        count, length = said.whole(1.0), len(footage.numbers)
        if frames[-1] >= count + SLACK:
            raise sequence.error(f"key frames up to framesCount, {count} (one is {int(frames[-1]) + 1})")
        if abs(count - length) > SLACK:
            frames = frames * (length / count)
            logger.warning(
                "%s, %s: counts %d frames where the video has %d (another frame rate in the project); they are matched "
                "by time",
                *(said.file, said.path, count, length),
            )
        frames = np.minimum(frames, max(length - 1, 0))
    on = np.array(enabled, bool)[order]
    return Track(frames, np.stack(boxes)[order], np.ones(len(on), bool), on)
