"""Pairs of crops with the target's mask, as Alpha-Refine trains on them, from photographs and videos with masks.
A photograph serves as template and search frame both; of a video these are two frames not far apart."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, UInt8

from mixformer_jax.boxes import xywh_to_xyxy
from mixformer_jax.crops import box_in_stretched_crop, stretched_crop
from mixformer_jax.data.samples import MAX_REDRAWS, HostSamples, Rendered
from mixformer_jax.datasets.groundtruth import DatasetError, read_json
from mixformer_jax.masks import FrameMask, decode_rle, mask_box_xywh
from mixformer_jax.media.images import IMAGE_SUFFIXES, SourceError, read_image
from mixformer_jax.typed_settings import (
    ConfigError,
    Count,
    CropFactor,
    NaturalNumber,
    NotNegative,
    Share,
    ShareBelowOne,
    TypedSettings,
)

_FINER, _FRACTION = 5, 4  # a finer grid, and bits of its cells to which outlines are rounded


class CocoMasks:
    """The regions of `instances_*.json` (Lin et al. 2014), by image; crowds are left out.
    COCO 2017 has 860,000 objects: outlines lie in one array, which worker processes share."""

    def __init__(self, annotations: Path) -> None:
        """Parses the file; DatasetError where it is not COCO's, or without regions."""
        self.annotations = annotations
        content, rings, self._runs = read_json(annotations).value, [], {}
        try:
            images = {each["id"]: each for each in content["images"]}
            objects = [each for each in content["annotations"] if not each.get("iscrowd") and each.get("segmentation")]
            # An image's objects one after the other, small ones last: they are painted over large ones.
            rows = {image: row for row, image in enumerate(images)}
            objects.sort(key=lambda each: (rows[each["image_id"]], -float(each.get("area") or 0)))
            for number, each in enumerate(objects):
                if isinstance(each["segmentation"], dict):
                    self._runs[number] = each["segmentation"]
                else:
                    rings += [(number, np.array(ring, np.float32).reshape(-1, 2)) for ring in each["segmentation"]]
            image_of = np.array([rows[each["image_id"]] for each in objects], np.int64)
            self.names = [str(each["file_name"]) for each in images.values()]
            self._sizes = np.array([(each["height"], each["width"]) for each in images.values()], np.int64)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{annotations}: not COCO's instances: {type(error).__name__}: {error}") from error
        if not objects:
            raise DatasetError(f"{annotations}: no regions; expected outlines or run lengths (segmentation)")
        # Objects from `_first[image]` on, rings from `_first_ring[object]` on, points from `_first_point[ring]` on.
        self._first = np.searchsorted(image_of, np.arange(len(images) + 1))
        self._first_ring = np.searchsorted([number for number, _ in rings], np.arange(len(objects) + 1))
        self._first_point = np.cumsum([0, *(len(ring) for _, ring in rings)])
        self._points = np.concatenate([np.empty((0, 2), np.float32), *(ring for _, ring in rings)])

    def images(self) -> list[int]:
        """Those that have objects."""
        return np.flatnonzero(np.diff(self._first)).tolist()

    def labels(self, image: int) -> Int32[np.ndarray, "h w"]:
        """Its objects, 1, 2, ... where they are, 0 elsewhere; DatasetError for run lengths that cannot be read."""
        height, width = self._sizes[image].tolist()
        labels = np.zeros((height, width), np.int32)
        for label, number in enumerate(range(self._first[image], self._first[image + 1]), 1):
            if number in self._runs:
                labels[self._decoded(self._runs[number], image, (height, width))] = label
            for ring in range(self._first_ring[number], self._first_ring[number + 1]):
                _fill(labels, self._points[self._first_point[ring] : self._first_point[ring + 1]], label)
        return labels

    def _decoded(self, record: Any, image: int, size: tuple[int, int]) -> FrameMask:
        where = f"{self.annotations}: {self.names[image]}"
        if isinstance(record.get("counts"), str):
            raise DatasetError(f"{where}: compressed run lengths; expected counts as a list of numbers")
        try:
            mask = decode_rle(record)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{where}: {error}") from error
        if mask.shape != size:
            raise DatasetError(f"{where}: run lengths of {mask.shape} pixels; expected {size}")
        return mask


def _fill(labels: Int32[np.ndarray, "h w"], points: Float[np.ndarray, "n 2"], label: int) -> None:
    """Paints an outline, in place: the pixels whose centres are inside. COCO counts from the edge of the first pixel.

    OpenCV also fills what the outline itself runs through: on a grid five times as fine, as COCO's own tools have it,
    that is a tenth of a pixel.
    """
    size = np.array(labels.shape[::-1])
    first, end = (np.clip(edge, 0, size).astype(int) for edge in (np.floor(points.min(0)), np.ceil(points.max(0))))
    fine = np.zeros(_FINER * (end - first)[::-1], np.uint8)
    if fine.size:
        fixed = np.rint(((points - first) * _FINER - 0.5) * 2**_FRACTION).astype(np.int32)
        cv2.fillPoly(fine, [fixed], 1, lineType=cv2.LINE_8, shift=_FRACTION)
        inside = fine[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER] > 0
        labels[first[1] : end[1], first[0] : end[0]][inside] = label


@dataclasses.dataclass(frozen=True)
class MaskDataConfig(TypedSettings):
    """What a training on masks sees: photographs, videos, or both."""

    # Photographs at any depth, NAME.jpg with NAME.png beside it: 0 background, then instances; others are passed over
    root: str | None = None
    # Regions of these photographs, as in COCO's instances_train2017.json; no NAME.png is read then
    coco: str | None = None
    # As DAVIS and YouTube-VOS: JPEGImages/SEQUENCE/00000.jpg and Annotations/SEQUENCE/00000.png
    videos: str | None = None
    video_share: Share = 0.25  # share of samples from videos, where there are both
    held_out_every: NaturalNumber = 10  # every so-many-th photograph, or sequence, is to validate on; 0: none
    max_interval: Count = 50  # frames between the two of a video's pair
    min_pixels: Count = 1000  # smaller targets are passed over; as for YouTube-VOS
    factor: CropFactor = 2.0  # sides of the crops over those of the box
    flip: Share = 0.0  # share of pairs that are mirrored
    scale_jitter: NotNegative = 0.25  # deviation of the logarithm of the search box's width and of its height
    centre_jitter: NotNegative = 0.25  # reach of its centre, over sqrt(width * height); half of it in either direction
    brightness: ShareBelowOne = 0.2  # each crop: gain uniform within 1 +-brightness
    # Training stops when more than this share of samples had to be replaced because of files that cannot be read
    max_bad_share: Share = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None and self.videos is None:
            raise ConfigError("data names neither a root with photographs nor videos; there is nothing to train on")
        if self.root is None and self.coco is not None:
            raise ConfigError("data.coco is of the photographs under data.root, which is not given")


class Still(NamedTuple):
    """A frame and its annotated regions."""

    image: Path
    labels: Path | tuple[CocoMasks, int]  # a file, or an image of COCO


def read_labels(path: Path) -> Int32[np.ndarray, "h w"]:
    """Instances of an annotation image, 0 being the background; of a coloured one each colour but black is one.
    Raises DatasetError for a file that is missing or no image."""
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise DatasetError(f"{path}: missing or no image; expected instances as an image, 0 for the background")
    if labels.ndim == 2:
        return labels.astype(np.int32)
    # A palette is read as its colours.
    blue, green, red = (labels[..., channel].astype(np.int32) for channel in range(3))
    return red + 256 * (green + 256 * blue)


class MaskSamples(HostSamples):
    """Template and search uint8 [size, size, 3], box_xyxy float32 [4] of the target in the template's pixels, and mask
    uint8 [size, size] of 0 and 1 on the search crop; sample i of a seed is one thing on every machine.

    Those to validate on (`held_out`) have the same jitter, and the brightness as it is.
    """

    def __init__(self, config: MaskDataConfig, size: int, seed: int, held_out: bool = False) -> None:
        """Lists the files; DatasetError where there are none."""
        self.config, self.size, self.seed, self.held_out = config, size, seed, held_out
        # Every photograph is a sequence of one frame.
        photographs = [] if config.root is None else [(still,) for still in _photographs(config)]
        videos = [] if config.videos is None else _videos(Path(config.videos))
        self._photographs, self._videos = (self._part(each) for each in (photographs, videos))
        if not (self._photographs or self._videos):
            kept = "held out" if held_out else "left to train on"
            raise DatasetError(f"{config.root or config.videos}: no photograph or video with masks is {kept}")

    def _part(self, found: Sequence[Sequence[Still]]) -> list[Sequence[Still]]:
        every = self.config.held_out_every
        return [each for number, each in enumerate(found) if (every > 0 and number % every == 0) == self.held_out]

    def render(self, index: int) -> Rendered:
        rng, faults = np.random.default_rng((self.seed, index)), []
        has_both = bool(self._photographs and self._videos)
        of_video = rng.random() < self.config.video_share if has_both else bool(self._videos)
        sources = self._videos if of_video else self._photographs
        for _ in range(MAX_REDRAWS):
            frames = sources[int(rng.integers(len(sources)))]
            try:
                sample = self._draw(rng, frames)
            except (DatasetError, SourceError) as error:
                faults.append(str(error))
                continue
            if sample is not None:
                return Rendered("videos" if of_video else "photographs", sample, tuple(faults))
        last = f"; the last file that cannot be read: {faults[-1]}" if faults else ""
        raise DatasetError(
            f"sample {index} of seed {self.seed}: none of {MAX_REDRAWS} draws met a target of "
            f"{self.config.min_pixels} pixels (data.min_pixels){last}"
        )

    def _draw(self, rng: np.random.Generator, frames: Sequence[Still]) -> dict[str, np.ndarray] | None:
        """A pair of a random target; None where the frames that were drawn show none."""
        at = int(rng.integers(len(frames)))
        image, labels = _read(frames[at])
        instances = [each for each in np.unique(labels[labels > 0]).tolist() if self._is_large(labels == each)]
        if not instances:
            return None
        chosen = instances[int(rng.integers(len(instances)))]
        template, box_xywh = image, mask_box_xywh(labels == chosen)
        if len(frames) > 1:
            reach = self.config.max_interval
            near = [i for i in range(max(0, at - reach), min(len(frames), at + reach + 1)) if i != at]
            image, labels = _read(frames[near[int(rng.integers(len(near)))]])
            if not self._is_large(labels == chosen):
                return None
        mask = labels == chosen
        around = self._jittered(rng, mask_box_xywh(mask))
        factor, size = self.config.factor, self.size
        sample = {
            "template": self._lit(rng, stretched_crop(template, box_xywh, factor, size)),
            "box_xyxy": xywh_to_xyxy(box_in_stretched_crop(box_xywh, box_xywh, factor, size)),
            "search": self._lit(rng, stretched_crop(image, around, factor, size)),
            # OpenCV rounds its bytes: the mask stays 0 and 1.
            "mask": stretched_crop(mask.astype(np.uint8), around, factor, size),
        }
        if self.config.flip and not self.held_out and rng.random() < self.config.flip:
            left, top, right, bottom = sample.pop("box_xyxy")
            sample = {name: np.ascontiguousarray(image[:, ::-1]) for name, image in sample.items()}
            sample["box_xyxy"] = np.array([size - right, top, size - left, bottom], np.float32)
        return sample

    def _is_large(self, mask: Bool[np.ndarray, "h w"]) -> bool:
        return int(np.count_nonzero(mask)) >= self.config.min_pixels

    def _jittered(self, rng: np.random.Generator, box_xywh: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "4"]:
        sides = np.maximum(1.0, box_xywh[2:] * np.exp(self.config.scale_jitter * rng.standard_normal(2)))
        reach = np.sqrt(sides.prod()) * self.config.centre_jitter
        centre = box_xywh[:2] + box_xywh[2:] / 2 + reach * rng.uniform(-0.5, 0.5, 2)
        return np.concatenate([centre - sides / 2, sides])

    def _lit(self, rng: np.random.Generator, crop: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
        if self.held_out:
            return crop
        factor = rng.uniform(1 - self.config.brightness, 1 + self.config.brightness)
        return np.clip(np.rint(crop * factor), 0, 255).astype(np.uint8)


def _read(still: Still) -> tuple[UInt8[np.ndarray, "h w 3"], Int32[np.ndarray, "h w"]]:
    image = read_image(still.image)
    if isinstance(still.labels, Path):
        labels, where = read_labels(still.labels), still.labels
    else:
        coco, index = still.labels
        labels, where = coco.labels(index), coco.annotations
    if image.shape[:2] != labels.shape:
        raise DatasetError(f"{where}: {labels.shape} pixels; expected {image.shape[:2]}, as {still.image.name}")
    return image, labels


def _photographs(config: MaskDataConfig) -> list[Still]:
    root = Path(str(config.root))
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected one with photographs NAME.jpg and their masks NAME.png")
    if config.coco is not None:
        coco = CocoMasks(Path(config.coco))
        return [Still(root / coco.names[index], (coco, index)) for index in coco.images()]
    walk = os.walk(root, followlinks=True)
    paths = sorted(Path(folder, name) for folder, _, names in walk for name in names if name.endswith(".jpg"))
    return [Still(path, path.with_suffix(".png")) for path in paths if path.with_suffix(".png").is_file()]


def _videos(root: Path) -> list[tuple[Still, ...]]:
    images, annotations = root / "JPEGImages", root / "Annotations"
    if not (images.is_dir() and annotations.is_dir()):
        raise DatasetError(f"{root}: expected the folders JPEGImages and Annotations, as in DAVIS and YouTube-VOS")
    found = []
    for folder in sorted(path for path in annotations.iterdir() if path.is_dir()):
        frames = {path.stem: path for path in (images / folder.name).glob("*") if path.suffix in IMAGE_SUFFIXES}
        labels = sorted(folder.glob("*.png"))
        stills = tuple(Still(frames[path.stem], path) for path in labels if path.stem in frames)
        if len(stills) > 1:
            found.append(stills)
    return found
