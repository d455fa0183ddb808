"""Instances of COCO as labels: outlines and run lengths of an annotation file, painted when they are asked for."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Int32

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.json_places import read_json
from mixformer_jax.masks import FrameMask, decode_rle

_FINER, _FRACTION = 5, 4  # a finer grid, and bits of its cells to which outlines are rounded


class CocoMasks:
    """The regions of `instances_*.json` (Lin et al. 2014), by image; crowds are left out.

    COCO 2017 has 860,000 objects: outlines lie in one array, which worker processes share.
    """

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
