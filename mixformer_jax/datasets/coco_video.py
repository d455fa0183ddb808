"""COCO with tracks: images with their order in videos, boxes with the number of their track.

Several dialects: CocoVID of MMTracking (`videos`, `frame_id`, `instance_id` or `track_id`), TAO (`frame_index`,
`track_id`), and exports of CVAT as "COCO 1.0" (`attributes.track_id`, no videos).
"""

import functools
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, Place, read_json
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.datasets.tracks import Footage, Target, Track, dataset_of, plain_name, sequence_of, turned_bounds
from mixformer_jax.media.images import natural_order
from mixformer_jax.media.sources import DEFAULT_FPS

TRACK, ORDER = ("track_id", "instance_id"), ("frame_id", "frame_index", "frame_idx")


class _Video(NamedTuple):
    name: str
    fps: float
    images: tuple[str, ...]  # file names in order
    size: tuple[int, int] | None  # height and width of the first one, where it says so
    where: str  # the first one


class _Targets(NamedTuple):
    """The boxes of one target, by position of their frames."""

    boxes_xywh: dict[int, list[float]]
    where: dict[int, str]
    label: str


def read_coco_video(root: Path, split: str | None = None) -> Dataset:
    """Tracks of COCO files, in the root or its folder `annotations`.

    Images lie where `file_name` says: below the root, its `images`, the file's own folder, or the split's folder.
    Without `video_id` the images of one folder are a video; without numbers of frames they are ordered by their names.
    """
    targets = []
    for file in [path for path in json_files(root) if is_coco(read_json(path).value)]:
        content = read_json(file)
        videos, places = _read_videos(content, root)
        for (video, track), boxes in _read_boxes(content, places).items():
            read = functools.partial(_read, root, file, videos[video], boxes)
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


def _read_videos(content: Place, root: Path) -> tuple[dict[Any, _Video], dict[int, tuple[Any, int]]]:
    """Videos by number (or folder), and by number of an image its video and its position there."""
    known = {video["id"].whole(): video for video in listed.items()} if (listed := content.get("videos")) else {}
    members: dict[Any, list[tuple[Any, int, Place]]] = {}
    for image in content["images"].items():
        name, video = image["file_name"].text(), image.get("video_id")
        if video is not None and known and video.whole() not in known:
            raise video.error(f"the number of one of {len(known)} videos")
        number = next((found.number() for key in ORDER if (found := image.get(key)) is not None), None)
        order = (0, number) if number is not None else (1, natural_order(Path(name)))
        key = str(Path(name).parent) if video is None else video.whole()
        members.setdefault(key, []).append((order, image["id"].whole(), image))
    videos, places = {}, {}
    for key, images in members.items():
        images.sort(key=lambda each: each[0])
        for before, after in itertools.pairwise(images):
            if before[0] == after[0]:
                raise after[2].error(f"another frame number than {before[2].path} has, which is of the same video")
        about = known.get(key)
        name = next((found.text() for each in ("name", "file_name") if about and (found := about.get(each))), str(key))
        fps = found.number(1e-3) if about and (found := about.get("fps")) else DEFAULT_FPS
        name = plain_name(root.resolve().name if name == "." else name)
        names = tuple(image["file_name"].text() for _, _, image in images)
        first = images[0][2]
        if known.get(key) is None:
            _check_one_task(first, names)
        width, height = (0 if (said := first.get(side)) is None else said.whole(0) for side in ("width", "height"))
        videos[key] = _Video(name, fps, names, (height, width) if height and width else None, first.path)
        for position, (_, number, image) in enumerate(images):
            if number in places:
                raise image["id"].error("a number that no other image has")
            places[number] = (key, position)
    return videos, places


def _check_one_task(first: Place, names: Sequence[str]) -> None:
    """Raises DatasetError where images are those of several tasks of CVAT, which it tells apart by a second number."""
    kinds = {match[1] is None for name in names if (match := re.fullmatch(r"frame_\d{6}(_\d+)?", Path(name).stem))}
    if len(kinds) > 1:
        raise first["file_name"].error("frames of one video in a folder; export each task of the project by itself")


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
        target = targets.setdefault((video, track.whole()), _Targets({}, {}, label))
        if position in target.boxes_xywh:
            raise annotation.error(f"one box of track {track.value} on its image, and {target.where[position]} is one")
        target.boxes_xywh[position], target.where[position] = box, annotation.path
    return targets


def _read(root: Path, file: Path, video: _Video, target: _Targets, name: str, shown: str) -> TrackingSequence:
    places = (root, root / "images", file.parent, root / file.stem, root / "images" / file.stem)
    named = [*places, root / "images" / "default", *(place / video.name for place in places)]
    folder = next((place for place in named if (place / video.images[0]).is_file()), None)
    frame: ImageFrames | MissingFrames
    if folder is None:
        frame = MissingFrames(f"{root}: no image {video.images[0]}, neither there nor in images/; lay the images there")
    else:
        frame = ImageFrames(folder, video.images)
    place = (folder or root) / video.name
    footage = Footage(place, frame, np.arange(len(video.images)), video.fps)
    footage.require_size(video.size, f"{file}, {video.where}")
    where = f"{file}, {next(iter(target.where.values()))}"
    return sequence_of(name, shown, footage, Track.of_frames(target.boxes_xywh), where)
