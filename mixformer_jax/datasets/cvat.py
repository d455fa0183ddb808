"""Exports of CVAT, "CVAT for video 1.1": annotations.xml with tracks of boxes (https://docs.cvat.ai, XML format)."""

import functools
import itertools
import logging
import math
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.layout import image_names
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.datasets.tracks import (
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

LINE = "its line"  # an attribute of elements that no file can have

logger = logging.getLogger(__name__)


def read_cvat(root: Path, split: str | None = None) -> Dataset:
    """Tracks of boxes; an export of a task, or of a project with several.

        annotations.xml             and beside it the annotated video, or images/frame_000000.png, ...
        TASK/annotations.xml        the same for several exports

    A box with `outside` says that the target is absent from there on. Where an export has key frames alone, boxes in
    between are interpolated as CVAT does it. Frames are those of the video, counted from 0.
    """
    files = cvat_files(root)
    if not files:
        raise DatasetError(f"{root}: no annotations.xml; expected an export as 'CVAT for video 1.1', unpacked")
    targets, videos = [], []
    beside = Counter(file.parent for file in files)
    for file in files:
        tracks, num_tasks = _parse(file)
        is_only = num_tasks <= 1 and beside[file.parent] == 1
        for number, track in enumerate(tracks):
            folder = file.parent if len(files) > 1 else root.resolve()
            video = plain_name(track.task.source or track.task.name or folder.name)
            name = plain_name(f"{track.label}_{track.id or number}")
            videos.append((video, file.parent))
            targets.append(Target(video, name, functools.partial(_read, file, track, is_only)))
    folders = Counter(name for name, _ in set(videos))
    for number, (target, (name, folder)) in enumerate(zip(targets, videos, strict=True)):
        if folders[name] > 1:  # each export calls its video video.mp4
            targets[number] = target._replace(video=plain_name(f"{folder.resolve().name}_{name}"))
    return dataset_of("cvat", root, targets)


def cvat_files(root: Path) -> list[Path]:
    """The XML files of CVAT in a folder, or in its sub-folders."""
    files = [path for pattern in ("*.xml", "*/*.xml") for path in sorted(root.glob(pattern))]
    return [path for path in files if path.is_file() and _is_cvat(path)]


def _is_cvat(path: Path) -> bool:
    """Whether an XML file looks like CVAT's, or is what an interrupted copy left of one."""
    with path.open("rb") as file:
        start = file.read(4096)
    return b"<annotations" in start.replace(b"\0", b"") or (not start and path.name == "annotations.xml")  # UTF-16 too


class _Task(NamedTuple):
    """What `meta` says of a task; empty or None where it does not say."""

    name: str = ""
    source: str = ""  # the annotated video
    stop_frame: int | None = None
    size: tuple[int, int] | None = None  # height and width of the frames


class _Box(NamedTuple):
    frame: int
    xywh: np.ndarray
    outside: bool
    line: str


class _CvatTrack(NamedTuple):
    id: str
    label: str
    task: _Task
    where: str  # file and line
    boxes: list[_Box]


def _parse(file: Path) -> tuple[list[_CvatTrack], int]:
    """The tracks with boxes, and the number of tasks."""
    content = _read_xml(file)
    tasks = {}
    if (meta := content.find("meta")) is not None:
        source = meta.findtext("source", "").strip()
        elements = [each for each in meta.iter() if each.tag in ("task", "job")]
        tasks = {each.findtext("id", "").strip(): _task(file, each, source) for each in elements}
    tracks = []
    for track in content.iter("track"):
        identity, where = track.get("id", ""), f"{file}, line {track.get(LINE)}"
        boxes = [_box(file, box) for box in track.iter("box")]
        if boxes:
            number = track.get("task_id", "") if len(tasks) > 1 else next(iter(tasks), "")
            if len(tasks) > 1 and number not in tasks:
                told = f"track {identity} has the task_id {number!r}, but the tasks are {', '.join(tasks)}"
                raise _error(file, track, told)
            task = tasks.get(number, _Task())
            tracks.append(_CvatTrack(identity, track.get("label", "target"), task, where, boxes))
        else:
            logger.warning("%s: track %s has no boxes (polygons, points and masks are left out)", where, identity)
    if not tracks:
        has_images = content.find(".//image") is not None
        shown = "its boxes are on single images: annotate tracks" if has_images else "there are no tracks"
        raise DatasetError(f"{file}: {shown}, and export as 'CVAT for video 1.1'")
    return tracks, len(tasks)


def _read_xml(file: Path) -> Element:
    """The content of a file, whose elements have their line as the attribute LINE."""
    tree, parser = TreeBuilder(), expat.ParserCreate()

    def start(name: str, attributes: dict[str, str]) -> None:
        tree.start(name, attributes | {LINE: str(parser.CurrentLineNumber)})

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, tree.end, tree.data
    try:
        with file.open("rb") as opened:
            parser.ParseFile(opened)
    except expat.ExpatError as error:
        said = expat.ErrorString(error.code)
        raise DatasetError(f"{file}, line {error.lineno}: no XML ({said}); export and unpack anew") from error
    except ValueError as error:  # of the parser, at the first line
        raise DatasetError(f"{file}, line 1: {error}; save it as UTF-8, or export anew") from error
    return tree.close()


def _task(file: Path, task: Element, source: str) -> _Task:
    """`source` is what stands beside the task, for one that names none itself."""
    numbers = []
    for name in ("stop_frame", "original_size/height", "original_size/width"):
        element = task.find(name)
        text = (element.text or "").strip() if element is not None else ""
        numbers.append(_whole(file, element, element.tag, text) if element is not None and text else None)
    stop_frame, height, width = numbers
    size = (height, width) if height and width else None
    return _Task(task.findtext("name", "").strip(), task.findtext("source", "").strip() or source, stop_frame, size)


def _box(file: Path, box: Element) -> _Box:
    frame = _whole(file, box, "frame", box.get("frame", ""))
    left, top, right, bottom = (_number(file, box, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    if right < left or bottom < top:
        raise _error(file, box, f"xbr and ybr must not be less than xtl and ytl, found {left},{top},{right},{bottom}")
    box_xywh = np.array([left, top, right - left, bottom - top])
    if box.get("rotation"):
        box_xywh = turned_bounds(box_xywh, _number(file, box, "rotation"), box_xywh[:2] + box_xywh[2:] / 2)
    outside = box.get("outside", "0")
    if outside not in ("0", "1"):
        raise _error(file, box, f"outside must be 0 or 1, found {outside!r}")
    return _Box(frame, box_xywh, outside == "1", box.get(LINE, ""))


def _number(file: Path, box: Element, name: str) -> float:
    text = box.get(name)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        found = "there is none" if text is None else f"found {text!r}"
        raise _error(file, box, f"a box needs the number {name}, {found}")
    return value


def _whole(file: Path, element: Element, name: str, text: str) -> int:
    if not text.isdecimal():
        raise _error(file, element, f"{name} must be a whole number from 0 on, found {text!r}")
    return int(text)


def _error(file: Path, element: Element, message: str) -> DatasetError:
    return DatasetError(f"{file}, line {element.get(LINE)}: {message}; export anew, or mend the line")


def _read(file: Path, track: _CvatTrack, is_only: bool, name: str, video: str) -> TrackingSequence:
    footage = _footage(file, track, is_only)
    footage.require_size(track.task.size, f"{file}, original_size")
    return sequence_of(name, video, footage, _as_track(file, track), f"{track.where}, track {track.id}")


def _as_track(file: Path, track: _CvatTrack) -> Track:
    boxes = sorted(track.boxes, key=lambda box: box.frame)
    places = [box.xywh for box in boxes]
    for number, (before, after) in enumerate(itertools.pairwise(boxes), start=1):
        if before.frame == after.frame:
            raise DatasetError(
                f"{file}, line {after.line}: track {track.id} has two boxes on frame {after.frame}, the other on line "
                f"{before.line}; remove one"
            )
        if after.outside:
            places[number] = places[number - 1]  # until then the target stays where it was
    seen = np.array([not box.outside for box in boxes])
    return Track(np.array([box.frame for box in boxes], float), np.stack(places), seen, seen)


def _footage(file: Path, track: _CvatTrack, is_only: bool) -> Footage:
    folder, task = file.parent, track.task
    names = [name for name in (task.name, task.source and plain_name(task.source)) if name]
    folders = [place / name for place in (folder / "images", folder) for name in names]
    if is_only:  # a project's images/ mixes the frames of its tasks
        folders += [folder / "images", folder]
    place = next(filter(image_names, folders), None) or find_video(folder, Path(task.source).name, is_only)
    if place is None:
        last = max(box.frame for box in track.boxes)
        called = f" {task.source}" if task.source else ""
        pictures = "images/" if is_only else f"{task.name or 'TASK'}/ with its images alone"
        lack = f"{folder}: neither the annotated video{called} nor {pictures} is there; put it beside {file.name}"
        return Footage(file, MissingFrames(lack), np.arange(max(task.stop_frame or 0, last) + 1))
    footage = footage_of(place)
    if isinstance(footage.frame, ImageFrames):
        # Numbered as in the video, of which it may have every second one.
        matches = [re.fullmatch(r"frame_(\d+)", Path(name).stem) for name in footage.frame.names]
        numbers = np.array([int(match[1]) for match in matches if match])
        return footage._replace(numbers=numbers) if all(matches) else footage
    return footage if task.stop_frame is None else footage._replace(numbers=footage.numbers[: task.stop_frame + 1])
