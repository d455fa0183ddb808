"""Exports of CVAT, "CVAT for video 1.1": annotations.xml with tracks of boxes (https://docs.cvat.ai, XML format)."""

import functools
import itertools
import logging
import math
import re
import xml.sax
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.handler import ContentHandler
from xml.sax.xmlreader import AttributesImpl, Locator

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, ImageFrames, MissingFrames, TrackingSequence
from mixformer_jax.datasets.tracks import (
    Footage,
    Target,
    Track,
    dataset_of,
    find_video,
    image_footage,
    plain_name,
    sequence_of,
    turned_bounds,
    video_footage,
)

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
        export = _parse(file)
        if not export.tracks:
            shown = "its boxes are on single images: annotate tracks" if export.has_images else "there are no tracks"
            raise DatasetError(f"{file}: {shown}, and export as 'CVAT for video 1.1'")
        for number, track in enumerate(export.tracks):
            task = _task_of(file, export, track)
            video = plain_name(task.source or task.name or (file.parent if len(files) > 1 else root.resolve()).name)
            name = plain_name(f"{track.label}_{track.id or number}")
            is_only = len(export.tasks) <= 1 and beside[file.parent] == 1
            videos.append((video, file.parent))
            targets.append(Target(video, name, functools.partial(_read, file, task, track, is_only)))
    folders = {name: {folder for other, folder in videos if other == name} for name, _ in videos}
    for number, (target, (name, folder)) in enumerate(zip(targets, videos, strict=True)):
        if len(folders[name]) > 1:  # each export calls its video video.mp4
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


@dataclass
class _Task:
    """What `meta` says of a task."""

    id: str = ""
    name: str = ""
    source: str = ""  # the annotated video
    start_frame: int = 0
    stop_frame: int | None = None
    width: int = 0  # of the frames; 0: it does not say
    height: int = 0


@dataclass
class _Box:
    frame: int
    xywh: np.ndarray
    outside: bool
    line: int


@dataclass
class _CvatTrack:
    id: str
    label: str
    task: str
    line: int
    boxes: list[_Box] = field(default_factory=list)


class _Export(ContentHandler):
    """Collects tasks and tracks, with lines for messages."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.tasks: dict[str, _Task] = {}
        self.tracks: list[_CvatTrack] = []
        self.has_images = False
        self._path: list[str] = []
        self._texts: list[str] = []
        self._task = _Task()
        self._track: _CvatTrack | None = None
        self._locator: Locator | None = None

    def setDocumentLocator(self, locator: Locator) -> None:
        self._locator = locator

    def startElement(self, name: str, attributes: "AttributesImpl[str]") -> None:
        self._path.append(name)
        self._texts = []
        if name in ("task", "job") and "labels" not in self._path:
            self._task = _Task()
        elif name == "image":
            self.has_images = True
        elif name == "track":
            identity, label = attributes.get("id", ""), attributes.get("label", "target")
            self._track = _CvatTrack(identity, label, attributes.get("task_id", ""), self._line)
        elif name == "box" and self._track is not None:
            self._track.boxes.append(self._box(dict(attributes.items())))

    def characters(self, content: str) -> None:
        self._texts.append(content)

    def endElement(self, name: str) -> None:
        self._path.pop()
        text = "".join(self._texts).strip()
        if name == "track" and self._track is not None:
            if self._track.boxes:
                self.tracks.append(self._track)
            else:
                logger.warning(
                    "%s, line %d: track %s has no boxes (polygons, points and masks are left out)",
                    *(self.file, self._track.line, self._track.id),
                )
            self._track = None
        elif self._path and self._path[-1] in ("task", "job"):
            if name in ("id", "name", "source"):
                setattr(self._task, name, text)
            elif name in ("start_frame", "stop_frame") and text:
                setattr(self._task, name, self._whole(name, text))
        elif name in ("task", "job") and "meta" in self._path:
            self.tasks[self._task.id] = self._task
        elif name in ("width", "height") and self._path[-1:] == ["original_size"] and text:
            setattr(self._task, name, self._whole(name, text))
        elif name == "source" and self._path == ["annotations", "meta"]:
            for task in self.tasks.values():
                task.source = task.source or text

    @property
    def _line(self) -> int:
        return 0 if self._locator is None else self._locator.getLineNumber() or 0

    def _box(self, attributes: Mapping[str, str]) -> _Box:
        frame = self._whole("frame", attributes.get("frame", ""))
        left, top, right, bottom = (self._number(name, attributes) for name in ("xtl", "ytl", "xbr", "ybr"))
        if right < left or bottom < top:
            raise self._error(f"xbr and ybr must not be less than xtl and ytl, found {left},{top},{right},{bottom}")
        box_xywh = np.array([left, top, right - left, bottom - top])
        if attributes.get("rotation"):
            centre = box_xywh[:2] + box_xywh[2:] / 2
            box_xywh = turned_bounds(box_xywh, self._number("rotation", attributes), centre)
        outside = attributes.get("outside", "0")
        if outside not in ("0", "1"):
            raise self._error(f"outside must be 0 or 1, found {outside!r}")
        return _Box(frame, box_xywh, outside == "1", self._line)

    def _number(self, name: str, attributes: Mapping[str, str]) -> float:
        text = attributes.get(name)
        try:
            value = float(text or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            found = "there is none" if text is None else f"found {text!r}"
            raise self._error(f"a box needs the number {name}, {found}")
        return value

    def _whole(self, name: str, text: str) -> int:
        if not text.isdecimal():
            raise self._error(f"{name} must be a whole number from 0 on, found {text!r}")
        return int(text)

    def _error(self, message: str) -> DatasetError:
        return DatasetError(f"{self.file}, line {self._line}: {message}; export anew, or mend the line")


def _parse(file: Path) -> _Export:
    export = _Export(file)
    try:
        xml.sax.parse(str(file), export)
    except xml.sax.SAXParseException as error:
        raise DatasetError(
            f"{file}, line {error.getLineNumber()}: no XML ({error.getMessage()}); export and unpack anew"
        ) from error
    except DatasetError:
        raise
    except ValueError as error:  # of the parser, at the first line
        raise DatasetError(f"{file}, line 1: {error}; save it as UTF-8, or export anew") from error
    return export


def _read(file: Path, task: _Task, track: _CvatTrack, is_only: bool, name: str, video: str) -> TrackingSequence:
    where = f"{file}, line {track.line}, track {track.id}"
    footage = _footage(file, task, track, is_only)
    footage.require_size((task.height, task.width) if task.height and task.width else None, f"{file}, original_size")
    return sequence_of(name, video, footage, _as_track(file, track), where)


def _as_track(file: Path, track: _CvatTrack) -> Track:
    boxes = sorted(track.boxes, key=lambda box: box.frame)
    for before, after in itertools.pairwise(boxes):
        if before.frame == after.frame:
            raise DatasetError(
                f"{file}, line {after.line}: track {track.id} has two boxes on frame {after.frame}, the other on line "
                f"{before.line}; remove one"
            )
        if after.outside:
            after.xywh = before.xywh  # until then the target stays where it was
    seen = np.array([not box.outside for box in boxes])
    return Track(np.array([box.frame for box in boxes], float), np.stack([box.xywh for box in boxes]), seen, seen)


def _task_of(file: Path, export: _Export, track: _CvatTrack) -> _Task:
    if len(export.tasks) <= 1:
        return next(iter(export.tasks.values()), _Task())
    if track.task not in export.tasks:
        raise DatasetError(
            f"{file}, line {track.line}: track {track.id} has the task_id {track.task!r}, but the tasks are "
            f"{', '.join(export.tasks)}; export anew, or mend the line"
        )
    return export.tasks[track.task]


def _footage(file: Path, task: _Task, track: _CvatTrack, is_only: bool) -> Footage:
    for folder in _image_folders(file.parent, task, is_only):
        if folder.is_dir() and (images := image_footage(folder)) is not None:
            assert isinstance(images.frame, ImageFrames)
            numbers = [re.fullmatch(r"frame_(\d+)", Path(name).stem) for name in images.frame.names]
            if all(numbers):  # numbered as in the video, of which it may have every second one
                return images._replace(numbers=np.array([int(match[1]) for match in numbers if match]))
            return images
    path = find_video(file.parent, Path(task.source).name, is_only)
    last = max(box.frame for box in track.boxes)
    if path is None:
        stop = last if task.stop_frame is None else task.stop_frame
        called = f" {task.source}" if task.source else ""
        pictures = "images/" if is_only else f"{task.name or 'TASK'}/ with its images alone"
        lack = f"{file.parent}: neither the annotated video{called} nor {pictures} is there; put it beside {file.name}"
        return Footage(file, MissingFrames(lack), np.arange(max(stop, last) + 1))
    footage = video_footage(path)
    end = len(footage.numbers) if task.stop_frame is None else min(task.stop_frame + 1, len(footage.numbers))
    return footage._replace(numbers=footage.numbers[:end])


def _image_folders(folder: Path, task: _Task, is_only: bool) -> Iterator[Path]:
    for place in (folder / "images", folder):
        if task.name:
            yield place / task.name
        if task.source:
            yield place / plain_name(task.source)
    if is_only:  # a project's images/ mixes the frames of its tasks
        yield folder / "images"
        yield folder
