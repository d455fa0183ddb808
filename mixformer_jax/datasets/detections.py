"""Detections of a video, by frame: from files, or from a detector that looks at each frame.

A detector is any function of an installed module, named `module:function`:

    def detect(frame):  # uint8 RGB [height, width, 3]
        return boxes_xywh, scores  # [n, 4] in pixels, which count from 0, and [n]
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from mixformer_jax.datasets.groundtruth import DatasetError, Place, read_json
from mixformer_jax.datasets.json_exports import frame_order
from mixformer_jax.datasets.mot import LEAST_SIDE, MOST_PIXELS, check_frames, read_mot_rows
from mixformer_jax.media.sources import Frame, TimedFrame

Detector = Callable[[Frame], tuple[Any, Any]]


class Detections(NamedTuple):
    """What a detector says of one frame."""

    boxes_xywh: Float64[np.ndarray, "n 4"]  # pixels, which count from 0
    scores: Float64[np.ndarray, " n"]  # the higher, the surer


NOTHING = Detections(np.zeros((0, 4)), np.zeros(0))


@runtime_checkable
class DetectionsLike(Protocol):
    """Detections by frame; `about` tells runs with others apart."""

    about: str

    def __call__(self, frame: TimedFrame) -> Detections: ...


class ListedDetections:
    """Detections of a file, by the number of the frame."""

    def __init__(self, by_frame: dict[int, Detections]) -> None:
        self.by_frame = by_frame
        digest = hashlib.sha256()
        for number, found in sorted(by_frame.items()):
            digest.update(np.column_stack([np.full(len(found.scores), number), *found]).tobytes())
        self.about = digest.hexdigest()

    def __call__(self, frame: TimedFrame) -> Detections:
        return self.by_frame.get(frame.number, NOTHING)


class CalledDetector:
    """A detector that is asked about every frame."""

    def __init__(self, name: str, detect: Detector) -> None:
        self.about, self._detect = name, detect

    def __call__(self, frame: TimedFrame) -> Detections:
        """What it finds; DatasetError where that is no boxes and scores. It may write into what it gets, a copy."""
        where = f"{self.about}, frame {frame.number}"
        expected = "expected boxes_xywh [n, 4], all with width and height, and scores [n]"
        answer = self._detect(frame.pixels.copy())
        try:
            boxes, scores = answer
            boxes_xywh, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{where}: {error}; {expected}") from error
        if boxes_xywh.size == 0 and scores.size == 0:
            return NOTHING
        if boxes_xywh.ndim != 2 or boxes_xywh.shape[1] != 4 or scores.shape != boxes_xywh.shape[:1]:
            raise DatasetError(f"{where}: boxes of shape {boxes_xywh.shape} and scores of {scores.shape}; {expected}")
        in_reach = (np.abs(boxes_xywh) <= MOST_PIXELS).all(axis=1)  # NaN is not
        wrong = ~in_reach | ~np.isfinite(scores) | (boxes_xywh[:, 2:] < LEAST_SIDE).any(axis=1)
        for row in np.flatnonzero(wrong)[:1].tolist():
            raise DatasetError(f"{where}: box {boxes_xywh[row].tolist()} with score {scores[row]:g}; {expected}")
        return Detections(boxes_xywh, scores)


def is_detector(named: str) -> bool:
    """Whether that is `module:function`, and no file."""
    return not Path(named).expanduser().exists() and bool(re.fullmatch(r"[A-Za-z_][\w.]*:\w+", named))


def open_detections(
    named: str, num_frames: int | None, place: str, origin: float = 0.0, categories: Collection[int] = ()
) -> DetectionsLike:
    """Detections that a user named: MOTChallenge's det.txt, a `.json` file of COCO's, or a detector `module:function`.

    `num_frames` are those of the video `place`, None where it does not say. Pixels of det.txt count from `origin`
    (MOTChallenge's own sets: 1). `categories` are those of COCO to take; none: all.

    Raises DatasetError: a file that cannot be read, frames beyond the video, or no detection at all; no such detector.
    """
    path = Path(named).expanduser()
    if is_detector(named):
        return CalledDetector(named, find_detector(named))
    if path.suffix.lower() == ".json":
        by_frame = _read_coco(path, num_frames, place, categories)
    elif categories:
        raise DatasetError(f"{path}: categories are those of COCO's .json; rows of MOT have none")
    else:
        rows = read_mot_rows(path, "detections")
        if num_frames is not None:
            check_frames(rows, num_frames, place)
        by_frame = _by_frame(rows.frames, rows.boxes_xywh - (origin, origin, 0, 0), rows.scores)
    if not by_frame:
        raise DatasetError(f"{path}: holds no detection, and tracks begin at detections; give the detector's own file")
    return ListedDetections(by_frame)


def find_detector(named: str) -> Detector:
    """The function `module:function`; DatasetError where there is none."""
    module, _, function = named.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"{named}: {error}; install it, or set PYTHONPATH to its folder; or name a file of detections that is there"
        ) from error
    if not callable(found):
        raise DatasetError(f"{named}: {module} has no function {function!r}; it takes a frame, and gives boxes, scores")
    return found


def _read_coco(path: Path, num_frames: int | None, place: str, categories: Collection[int]) -> dict[int, Detections]:
    """COCO's results: a list of image_id, category_id, bbox and score; or `images`, and those under `annotations`.

    In a list alone `image_id` is the number of the frame, from 1. Of `images`, which must be those of one video, the
    order of `frame_id` (or `frame_index`), else of the names says which frame is meant.
    """
    content = read_json(path)
    images = content.get("images") if isinstance(content.value, dict) else None
    numbers = None if images is None else _numbers_of_images(images, num_frames, place)
    frames, boxes, scores = [], [], []
    for found in (content if images is None else content["annotations"]).items():
        if categories and found["category_id"].whole() not in categories:
            continue
        frames.append(_frame_number(found["image_id"], numbers, num_frames, place))
        box_xywh = [each.number() for each in found["bbox"].items()]
        if len(box_xywh) != 4 or min(box_xywh[2:]) < LEAST_SIDE or max(map(abs, box_xywh)) > MOST_PIXELS:
            raise found["bbox"].error(f"x, y, width and height, the last two above 0, all below {MOST_PIXELS:g}")
        boxes.append(box_xywh)
        score = found.get("score")
        scores.append(1.0 if score is None else score.number())
    return _by_frame(np.array(frames, np.int64), np.array(boxes, np.float64).reshape(-1, 4), np.array(scores))


def _numbers_of_images(images: Place, num_frames: int | None, place: str) -> dict[int, int]:
    """Numbers of frames by `id`."""
    ordered = sorted(images.items(), key=frame_order)
    videos = {None if (video := image.get("video_id")) is None else video.whole() for image in ordered}
    if len(videos) > 1:
        raise images.error(f"the images of one video; they are of {len(videos)}")
    if num_frames is not None and len(ordered) != num_frames:
        raise images.error(f"an image for each of the {num_frames} frames of {place}, and there are {len(ordered)}")
    numbers = {image["id"].whole(): number for number, image in enumerate(ordered, start=1)}
    if len(numbers) < len(ordered):
        raise images.error("images with numbers of their own under id")
    return numbers


def _frame_number(image_id: Place, numbers: dict[int, int] | None, num_frames: int | None, place: str) -> int:
    value = image_id.whole()
    if numbers is not None:
        if value not in numbers:
            raise image_id.error(f"the id of one of {len(numbers)} images")
        return numbers[value]
    if value < 1 or (num_frames is not None and value > num_frames):
        most = "" if num_frames is None else f" to {num_frames}, as {place} has"
        raise image_id.error(f"the number of a frame, from 1{most}; where ids are others, add the images")
    return value


def _by_frame(frames: np.ndarray, boxes_xywh: np.ndarray, scores: np.ndarray) -> dict[int, Detections]:
    order = np.argsort(frames, kind="stable")
    numbers, starts = np.unique(frames[order], return_index=True)
    parts = np.split(order, starts[1:])
    return {
        number: Detections(boxes_xywh[part], scores[part])
        for number, part in zip(numbers.tolist(), parts, strict=bool(len(numbers)))
    }
