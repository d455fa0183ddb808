"""COCO 2017 (Lin et al. 2014, https://cocodataset.org): each annotated object is a still with one target.

The layout, as published; the images may also lie in images/train2017:

    annotations/instances_train2017.json
    train2017/000000000009.jpg ...
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.layout import check_split
from mixformer_jax.datasets.records import Dataset, StillFrames, TrackingSequence
from mixformer_jax.files import whole_file

SPLITS = ("train2017", "val2017")


def read_coco(root: Path, split: str | None = None) -> Dataset:
    """One still for each object that is not a crowd and has an area, by image. The default split is train2017.

    The annotation file takes tens of seconds and gigabytes to parse, so a table of its boxes is kept beside the user's
    other caches ($XDG_CACHE_HOME or ~/.cache, mixformer_jax); it is made anew when the file changes.

    Raises:
        DatasetError: no annotation file or no folder of images, or an annotation file that is none.
    """
    check_split("coco", split, SPLITS)
    split = split or SPLITS[0]
    annotations = root / "annotations" / f"instances_{split}.json"
    folders = [root / split, root / "images" / split]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DatasetError(f"{folders[0]}: no such folder; expected the images of COCO's {split}")
    if not annotations.is_file():
        raise DatasetError(f"{annotations}: no such file; expected COCO's boxes")
    files, image_of, ids, boxes_xywh = _read_table(annotations)
    keys = _Keys(ids)
    # Reading a still costs nothing, so none is kept.
    return Dataset("coco", root, keys, _Reader(folder, files, image_of, ids, boxes_xywh), kept=0)


class _Keys(Sequence[str]):
    """Annotation numbers as keys: a list of 850,000 texts would fill the memory of every worker."""

    def __init__(self, ids: Int64[np.ndarray, " n"]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        return _Keys(self._ids[index]) if isinstance(index, slice) else str(self._ids[index])


class _Reader:
    def __init__(
        self,
        folder: Path,
        files: np.ndarray,
        image_of: Int64[np.ndarray, " n"],
        ids: Int64[np.ndarray, " n"],
        boxes_xywh: Float32[np.ndarray, "n 4"],
    ) -> None:
        self.folder, self.files, self.image_of, self.ids, self.boxes_xywh = folder, files, image_of, ids, boxes_xywh
        self.order = np.argsort(ids)

    def __call__(self, key: str) -> TrackingSequence:
        number = int(key)
        row = int(self.order[np.searchsorted(self.ids, number, sorter=self.order)])
        file = self.folder / self.files[self.image_of[row]].decode()
        box_xywh = self.boxes_xywh[row : row + 1].astype(np.float64)
        return TrackingSequence(key, box_xywh, StillFrames(file), 1.0, self.folder, is_still=True)


def _read_table(annotations: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """File names (bytes) by image; and by object its image's row, its number, and its box."""
    cache = _cache_path(annotations)
    names = ("files", "image_of", "ids", "boxes_xywh")
    if cache.is_file():
        try:
            with np.load(cache, allow_pickle=False) as table:
                return tuple(table[name] for name in names)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{cache}: damaged; delete it, and it is made anew from {annotations}: {error}"
            ) from error
    table = _parse(annotations)
    cache.parent.mkdir(parents=True, exist_ok=True)
    # By process: several may start at once on one machine.
    with whole_file(cache, f".{os.getpid()}") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(zip(names, table, strict=True)))
    return table


def _cache_path(annotations: Path) -> Path:
    state = annotations.stat()
    key = hashlib.sha256(f"{annotations.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "mixformer_jax" / f"{annotations.stem}-{key}.npz"


def _parse(annotations: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    try:
        content = json.loads(annotations.read_bytes())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        objects = [
            (each["image_id"], each["id"], each["bbox"])
            for each in content["annotations"]
            if not each.get("iscrowd") and min(each["bbox"][2:]) > 0
        ]
        objects.sort(key=lambda each: each[:2])
        rows = {number: row for row, number in enumerate(files)}
        image_of = np.array([rows[image] for image, _, _ in objects], np.int64)
        ids = np.array([number for _, number, _ in objects], np.int64)
        boxes_xywh = np.array([box for _, _, box in objects], np.float32).reshape(-1, 4)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{annotations}: not COCO's instances: {type(error).__name__}: {error}") from error
    if not len(ids):
        raise DatasetError(f"{annotations}: no objects")
    if len(np.unique(ids)) < len(ids):
        raise DatasetError(f"{annotations}: the numbers of its annotations are not unique")
    return np.array([name.encode() for name in files.values()]), image_of, ids, boxes_xywh
