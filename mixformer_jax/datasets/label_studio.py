"""Exports of Label Studio, JSON: `videorectangle` regions in key frames (https://labelstud.io)."""

import functools
import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, Place, read_json
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.datasets.tracks import (
    VIDEO_SUFFIXES,
    Footage,
    Target,
    Track,
    dataset_of,
    find_video,
    plain_name,
    sequence_of,
    turned_bounds,
    video_footage,
)

REGION = "videorectangle"
UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")  # before the names of uploaded files
SLACK = 2  # frames by which the lengths of a video may differ before its frame rate is taken to have been another

logger = logging.getLogger(__name__)


def read_label_studio(root: Path, split: str | None = None) -> Dataset:
    """Video regions of JSON files in the root; the annotated videos lie beside them, or in `videos`.

    Coordinates are percent of the frame, and frames count from 1. Between key frames boxes are interpolated; behind one
    with `enabled` false the target is absent until the next one. Label Studio tells frames by time and the frame rate
    of its project: where its `framesCount` is not the video's, frames are found by time.
    """
    targets = []
    files = [path for path in sorted(root.glob("*.json")) if path.is_file() and is_label_studio(read_json(path).value)]
    for file in files:
        tasks = list(read_json(file).items())
        for task in tasks:
            if task.get("annotations") is None:
                raise task.error("a task with 'annotations': export as JSON, not as JSON-MIN")
            regions = _regions(task)
            video = plain_name(_file_name(_address(task))) if regions else ""
            for number, region in enumerate(regions, start=1):
                read = functools.partial(_read, file.parent, task, region, len(tasks) == len(files) == 1)
                targets.append(Target(video, plain_name(f"{_label(region)}_{number}"), read))
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
    annotations = [
        each
        for each in task["annotations"].items()
        if each.get("was_cancelled") is None or not each["was_cancelled"].value
    ]
    if not annotations:
        return []
    chosen = next((each for each in annotations if each.value.get("ground_truth")), annotations[-1])
    if len(annotations) > 1:
        logger.warning("%s, %s: %d annotations; %s is taken", task.file, task.path, len(annotations), chosen.path)
    return [each for each in chosen["result"].items() if each["type"].text().lower() == REGION]


def _label(region: Place) -> str:
    labels = region["value"].get("labels")
    return next((each.text() for each in labels.items()), "target") if labels is not None else "target"


def _address(task: Place) -> Place:
    data = task["data"]
    if not isinstance(data.value, dict):
        raise data.error("an object with the address of a video")
    texts = [Place(data.file, f"{data.path}.{key}", text) for key, text in data.value.items() if isinstance(text, str)]
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


def _read(folder: Path, task: Place, region: Place, is_only: bool, name: str, video: str) -> TrackingSequence:
    address = _address(task)
    called = _file_name(address)
    whole_name = Path(unquote(urlsplit(address.text()).path)).name
    path = find_video(folder, called, False) or find_video(folder, whole_name, is_only)
    if path is None:
        raise DatasetError(
            f"{address.file}, {address.path}: the annotated video {called} is not in {folder}, and coordinates are "
            "percent of its frames; put it there"
        )
    footage = video_footage(path)
    return sequence_of(name, video, footage, _track(region["value"], footage), f"{region.file}, {region.path}")


def _track(value: Place, footage: Footage) -> Track:
    assert footage.size is not None
    height, width = footage.size
    pixels = np.array([width, height, width, height]) / 100
    keys, boxes, enabled = [], [], []
    for key in value["sequence"].items():
        box_xywh = pixels * [key["x"].number(), key["y"].number(), key["width"].number(0.0), key["height"].number(0.0)]
        if (rotation := key.get("rotation")) is not None and rotation.number():
            box_xywh = turned_bounds(box_xywh, rotation.number(), box_xywh[:2])
        if (flag := key.get("enabled")) is not None and not isinstance(flag.value, bool):
            raise flag.error("true or false")
        keys.append(key["frame"].whole(1.0) - 1)
        boxes.append(box_xywh)
        enabled.append(flag is None or flag.value)
    if not keys:
        raise value["sequence"].error("key frames")
    order = np.argsort(keys, kind="stable")
    frames = np.array(keys, float)[order]
    if (np.diff(frames) == 0).any():
        twice = int(frames[np.flatnonzero(np.diff(frames) == 0)[0]]) + 1
        raise value["sequence"].error(f"one key frame a frame (frame {twice} has two)")
    if (count := value.get("framesCount")) is not None:
        # Frames of Label Studio are times: with another frame rate they lie between those of the video.
        length = len(footage.numbers)
        if frames[-1] >= count.whole(1.0) + SLACK:
            raise value["sequence"].error(f"key frames up to framesCount, {count.value} (one is {int(frames[-1]) + 1})")
        if abs(count.whole(1.0) - length) > SLACK:
            frames = frames * (length / count.whole(1.0))
            logger.warning(
                "%s, %s: counts %d frames where the video has %d (another frame rate in the project); they are matched "
                "by time",
                *(count.file, count.path, count.value, length),
            )
    frames = np.minimum(frames, max(len(footage.numbers) - 1, 0)) if count is not None else frames
    on = np.array(enabled, bool)[order]
    return Track(frames, np.stack(boxes)[order], np.ones(len(on), bool), on)
