"""Image data sets of TensorFlow Datasets (https://www.tensorflow.org/datasets), read without TensorFlow.

The root is the folder of one prepared version in ArrayRecord format, such as tensorflow_datasets/coco/2017/1.1.0, which
holds dataset_info.json, features.json and the shards. Each example is a still; its targets are the boxes of its
bounding box feature. Preparing a data set needs TensorFlow, reading it does not.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.layout import check_split
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.images import decode_image

DEFAULT_SPLIT = "train"


def read_tfds(root: Path, split: str | None = None) -> Dataset:
    """One still for each example of a split, `train` unless another is named.

    Raises:
        DatasetError: not a prepared data set in ArrayRecord format, or one without an image or without boxes. When an
            example is read: an image that does not decode.
    """
    builder, split = open_prepared(root, split)
    import tensorflow_datasets as tfds

    images = _find(builder.info.features, tfds.features.Image)
    boxes = _find(builder.info.features, tfds.features.BBoxFeature)
    if not images or not boxes:
        raise DatasetError(f"{root}: needs an image and bounding boxes; its features are {builder.info.features}")
    keys = [str(index) for index in range(builder.info.splits[split].num_examples)]
    # An example is read and decoded anew each time: kept images would fill the memory.
    return Dataset("tfds", root, keys, _Reader(TfdsImages(root, split, images[0]), boxes[0]), kept=0)


def read_tfds_images(root: Path, split: str | None) -> "TfdsImages":
    """The images of a split alone, whatever else the data set holds.

    Raises:
        DatasetError: not a prepared data set in ArrayRecord format, or one without an image.
    """
    builder, split = open_prepared(root, split)
    import tensorflow_datasets as tfds

    images = _find(builder.info.features, tfds.features.Image)
    if not images:
        raise DatasetError(f"{root}: needs an image; its features are {builder.info.features}")
    return TfdsImages(root, split, images[0])


def open_prepared(root: Path, split: str | None) -> tuple[Any, str]:
    """The builder of a prepared data set, and the split, `train` unless another is named.

    Raises:
        DatasetError: not a prepared data set in ArrayRecord format, or no such split.
    """
    if not (root / "dataset_info.json").is_file():
        raise DatasetError(
            f"{root}: no dataset_info.json; expected one version of a prepared data set, such as coco/2017/1.1.0"
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(root))
    check_split(f"{root}:", split, sorted(builder.info.splits))
    split = split or DEFAULT_SPLIT
    if split not in builder.info.splits:
        raise DatasetError(f"{root}: no split {split!r}; name one of: {', '.join(sorted(builder.info.splits))}")
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise DatasetError(
            f"{root}: its format is {builder.info.file_format}; prepare it with file_format='array_record', "
            "which is read without TensorFlow"
        )
    return builder, split


def _find(features: Any, kind: type, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the features of a kind: ("image",), ("objects", "bbox")."""
    if isinstance(features, kind):
        return [path]
    inside = getattr(features, "feature", features)  # a sequence of features wraps one
    if not hasattr(inside, "items"):
        return [path] if isinstance(inside, kind) else []
    return [found for name, feature in inside.items() for found in _find(feature, kind, (*path, name))]


class TfdsImages:
    """The images of a split by index; a copy in another process opens the data set anew."""

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
        """All features of an example, its image still encoded."""
        return self._opened()[index]

    def pixels(self, example: Any, index: int) -> UInt8[np.ndarray, "h w 3"]:
        """The image of an example; `index` is for messages."""
        return decode_image(_at(example, self.image), f"{self.root}, {self.split} example {index}")

    def _opened(self) -> Any:
        if self._source is None:
            import tensorflow_datasets as tfds

            decoders: Any = tfds.decode.SkipDecoding()
            for name in reversed(self.image):
                decoders = {name: decoders}
            builder = tfds.builder_from_directory(str(self.root))
            self._source = builder.as_data_source(split=self.split, decoders=decoders)
        return self._source


class _Reader:
    def __init__(self, images: TfdsImages, boxes: tuple[str, ...]) -> None:
        self.images, self.boxes = images, boxes

    def __call__(self, key: str) -> TrackingSequence:
        example = self.images.example(int(key))
        pixels = self.images.pixels(example, int(key))
        height, width = pixels.shape[:2]
        # TFDS keeps ymin, xmin, ymax, xmax as shares of the image.
        shares = np.asarray(_at(example, self.boxes), np.float64).reshape(-1, 4)
        corners = shares[:, [1, 0, 3, 2]] * [width, height, width, height]
        boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        name, root = f"{self.images.split}/{key}", self.images.root
        return TrackingSequence(name, boxes_xywh, _OneImage(pixels), 1.0, root, is_still=True)


class _OneImage:
    def __init__(self, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        self.pixels = pixels

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.pixels


def _at(example: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        example = example[name]
    return example
