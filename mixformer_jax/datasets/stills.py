"""Annotated images to train on, as stills: COCO, and data sets of TensorFlow Datasets."""

import functools
import hashlib
import json
import operator
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, ImageFrames, TrackingSequence
from mixformer_jax.files import user_cache, whole_file
from mixformer_jax.media.images import decode_image

COCO_SPLITS = ("train2017", "val2017")
DEFAULT_TFDS_SPLIT = "train"


class _CocoTable(NamedTuple):
    files: np.ndarray  # bytes, by image
    image_of: Int64[np.ndarray, " n"]  # row in `files`
    ids: Int64[np.ndarray, " n"]
    boxes_xywh: Float32[np.ndarray, "n 4"]


def read_coco(root: Path, split: str | None = None) -> Dataset:
    """COCO 2017 (Lin et al. 2014, https://cocodataset.org): `train2017`, the default, or `val2017`.

        annotations/instances_train2017.json
        train2017/000000000009.jpg ...          or images/train2017

    Each object with an area that is no crowd is a still with one target, in the order of the images. Parsing the file
    takes tens of seconds and gigabytes, so its boxes are kept in the user's cache until the file changes.
    """
    split = split or COCO_SPLITS[0]
    annotations = root / "annotations" / f"instances_{split}.json"
    folders = [root / split, root / "images" / split]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DatasetError(f"{folders[0]}: no such folder; expected the images of COCO's {split}")
    if not annotations.is_file():
        raise DatasetError(f"{annotations}: no such file; expected COCO's boxes")
    table = _read_coco_table(annotations)
    read = functools.partial(_read_coco_object, folder, table, np.argsort(table.ids))
    # Reading a still is cheap: none is kept.
    return Dataset("coco", root, _Keys(table.ids), read, kept=0)


class _Keys(Sequence[str]):
    """Annotation ids as keys: 850,000 strings would fill the memory of every worker."""

    def __init__(self, ids: Int64[np.ndarray, " n"]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        return _Keys(self._ids[index]) if isinstance(index, slice) else str(self._ids[index])


def _read_coco_object(folder: Path, table: _CocoTable, order: Int64[np.ndarray, " n"], key: str) -> TrackingSequence:
    row = int(order[np.searchsorted(table.ids, int(key), sorter=order)])
    frames = ImageFrames(folder, (table.files[table.image_of[row]].decode(),))
    return TrackingSequence(key, table.boxes_xywh[row : row + 1].astype(np.float64), frames, 1.0, folder, is_still=True)


def _read_coco_table(annotations: Path) -> _CocoTable:
    state = annotations.stat()
    key = hashlib.sha256(f"{annotations.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:16]
    cache = user_cache() / f"{annotations.stem}-{key}.npz"
    if cache.is_file():
        try:
            with np.load(cache, allow_pickle=False) as arrays:
                return _CocoTable(*(arrays[name] for name in _CocoTable._fields))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            mend = f"delete it, and it is written again from {annotations}"
            raise DatasetError(f"{cache}: damaged; {mend}: {error}") from error
    table = _parse_coco(annotations)
    cache.parent.mkdir(parents=True, exist_ok=True)
    # One temporary file a process: several may start at once.
    with whole_file(cache, f".{os.getpid()}") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **table._asdict())
    return table


def _parse_coco(annotations: Path) -> _CocoTable:
    try:
        content = json.loads(annotations.read_bytes())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        kept = (each for each in content["annotations"] if not each.get("iscrowd") and min(each["bbox"][2:]) > 0)
        objects = sorted(kept, key=operator.itemgetter("image_id", "id"))
        rows = {number: row for row, number in enumerate(files)}
        image_of = np.array([rows[each["image_id"]] for each in objects], np.int64)
        ids = np.array([each["id"] for each in objects], np.int64)
        boxes_xywh = np.array([each["bbox"] for each in objects], np.float32).reshape(-1, 4)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{annotations}: not COCO's instances: {type(error).__name__}: {error}") from error
    if not len(ids):
        raise DatasetError(f"{annotations}: no objects")
    if len(np.unique(ids)) < len(ids):
        raise DatasetError(f"{annotations}: the numbers of its annotations are not unique")
    return _CocoTable(np.array([name.encode() for name in files.values()]), image_of, ids, boxes_xywh)


def read_tfds(root: Path, split: str | None = None) -> Dataset:
    """An image data set of TensorFlow Datasets (https://www.tensorflow.org/datasets), read without TensorFlow.

    The root is one prepared version in ArrayRecord format, such as tensorflow_datasets/coco/2017/1.1.0, with
    dataset_info.json, features.json and the shards. Each example of the split (default: `train`) is a still, whose
    targets are its bounding boxes.
    """
    info, images = _open_tfds(root, split, "an image and bounding boxes")
    import tensorflow_datasets as tfds

    boxes = _find_features(info.features, tfds.features.BBoxFeature)
    if not boxes:
        raise DatasetError(f"{root}: needs an image and bounding boxes; its features are {info.features}")
    keys = [str(index) for index in range(info.splits[images.split].num_examples)]
    # None is kept: images would fill the memory.
    return Dataset("tfds", root, keys, functools.partial(_read_tfds_example, images, boxes[0]), kept=0)


def read_tfds_images(root: Path, split: str | None) -> "TfdsImages":
    """The images of a split, without boxes; DatasetError as in `read_tfds`."""
    return _open_tfds(root, split, "an image")[1]


def _open_tfds(root: Path, split: str | None, needs: str) -> tuple[Any, "TfdsImages"]:
    """The info of a prepared data set, and the images of a split."""
    if not (root / "dataset_info.json").is_file():
        raise DatasetError(
            f"{root}: no dataset_info.json; expected one version of a prepared data set, such as coco/2017/1.1.0"
        )
    import tensorflow_datasets as tfds

    info, split = tfds.builder_from_directory(str(root)).info, split or DEFAULT_TFDS_SPLIT
    if split not in info.splits:
        raise DatasetError(f"{root}: has no split {split!r}; known are: {', '.join(sorted(info.splits))}")
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise DatasetError(
            f"{root}: its format is {info.file_format}; prepare it with file_format='array_record', "
            "which is read without TensorFlow"
        )
    images = _find_features(info.features, tfds.features.Image)
    if not images:
        raise DatasetError(f"{root}: needs {needs}; its features are {info.features}")
    return info, TfdsImages(root, split, images[0])


def _find_features(features: Any, kind: type, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the features of a kind: ("image",), ("objects", "bbox")."""
    if isinstance(features, kind):
        return [path]
    inside = getattr(features, "feature", features)  # of a sequence of features, the feature
    if not hasattr(inside, "items"):
        return [path] if isinstance(inside, kind) else []
    return [found for name, feature in inside.items() for found in _find_features(feature, kind, (*path, name))]


class TfdsImages:
    """The images of a split by index; a pickled copy opens the data set for itself."""

    def __init__(self, root: Path, split: str, image: tuple[str, ...]) -> None:
        self.root, self.split, self.image = root, split, image
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_source": None}

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.pixels(self.example(index), index)

    def example(self, index: int) -> Any:
        """All features of an example, the image encoded."""
        return self._opened()[index]

    def pixels(self, example: Any, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image of an example; `index` is for messages."""
        image = functools.reduce(lambda inside, name: inside[name], self.image, example)
        return decode_image(image, f"{self.root}, {self.split} example {index}")

    def _opened(self) -> Any:
        if self._source is None:
            import tensorflow_datasets as tfds

            decoders: Any = tfds.decode.SkipDecoding()
            for name in reversed(self.image):
                decoders = {name: decoders}
            builder = tfds.builder_from_directory(str(self.root))
            self._source = builder.as_data_source(split=self.split, decoders=decoders)
        return self._source


def _read_tfds_example(images: TfdsImages, boxes: tuple[str, ...], key: str) -> TrackingSequence:
    example = images.example(int(key))
    pixels = images.pixels(example, int(key))
    height, width = pixels.shape[:2]
    # TFDS has ymin, xmin, ymax, xmax as fractions of the image.
    shares = np.asarray(functools.reduce(lambda inside, name: inside[name], boxes, example), np.float64).reshape(-1, 4)
    corners = shares[:, [1, 0, 3, 2]] * [width, height, width, height]
    boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    frame = functools.partial(_same_pixels, pixels)
    return TrackingSequence(f"{images.split}/{key}", boxes_xywh, frame, 1.0, images.root, is_still=True)


def _same_pixels(pixels: UInt8[np.ndarray, "h w 3"], index: int) -> UInt8[np.ndarray, "h w 3"]:
    return pixels
