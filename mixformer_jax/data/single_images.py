"""Single images for masked autoencoders: a folder of images or a prepared data set, cut at random (He et al. 2022)."""

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from mixformer_jax.data.samples import MAX_REDRAWS, HostSamples, Rendered
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.stills import read_tfds_images
from mixformer_jax.media.images import IMAGE_SUFFIXES, SourceError, read_image
from mixformer_jax.typed_settings import Range, Share, ShareAboveZero, TypedSettings

CENTRE_SHARE = 224 / 256  # of the shorter side: what classifiers are validated on


@dataclass(frozen=True)
class ImagesConfig(TypedSettings):
    """Single images and how they are cut."""

    root: str  # a folder with images at any depth, or one version of a data set that TensorFlow Datasets prepared
    split: str | None = None  # of a prepared data set; None: `train`
    validation_root: str | None = None  # images to validate on, likewise
    validation_split: str | None = None  # of the images to validate on; without `validation_root`, of `root`
    min_area: ShareAboveZero = 0.2  # a crop's least share of the image (as in MAE); its greatest is 1
    max_aspect: Annotated[float, Range(1, 100)] = 4 / 3  # greatest ratio of a crop's sides
    flip_probability: Share = 0.5
    # Training stops when more than this share of samples had to be replaced because of images that cannot be read
    max_bad_share: Share = 0.01


@runtime_checkable
class Images(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]: ...


class ImageFolder:
    """All images of a folder and its subfolders, in the order of their paths."""

    def __init__(self, root: Path) -> None:
        """Lists the folder; DatasetError for no such folder, or no image in it."""
        if not root.is_dir():
            raise DatasetError(f"{root}: no such folder; expected one with images")
        self.root = root
        self._paths = sorted(
            os.path.join(folder, name)  # noqa: PTH118 (a million paths)
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )
        if not self._paths:
            raise DatasetError(f"{root}: no images in this folder nor below; known are {', '.join(IMAGE_SUFFIXES)}")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_image(self._paths[index])


def open_images(root: str, split: str | None) -> Images:
    """A folder of images, or a prepared data set; DatasetError for neither of them, or no such split."""
    if (Path(root) / "dataset_info.json").is_file():
        return read_tfds_images(Path(root), split)
    if split is not None:
        raise DatasetError(f"{root}: split {split!r} is asked for, but a folder of images has none")
    return ImageFolder(Path(root))


class ImageSamples(HostSamples):
    """Crops, search uint8 [size, size, 3]: every image once an epoch, in an order of that epoch.
    An image that cannot be read is replaced by another one of the sample's own draw, and named in `Rendered.faults`."""

    def __init__(self, config: ImagesConfig, images: Images, size: int, seed: int) -> None:
        self.config, self.size, self.seed, self._images = config, size, seed, images

    def render(self, index: int) -> Rendered:
        rng = np.random.default_rng((self.seed, index))
        epoch, number = divmod(index, len(self._images))
        position = int(_order(self.seed, epoch, len(self._images))[number])
        image, faults = _readable(self._images, position, rng)
        crop = _resized(random_part(rng, image, self.config), self.size)
        if rng.random() < self.config.flip_probability:
            crop = np.ascontiguousarray(crop[:, ::-1])
        return Rendered("images", {"search": crop}, faults)


@functools.lru_cache(maxsize=2)  # batches are made ahead, across the border of two epochs
def _order(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    return np.random.default_rng((seed, epoch, 1)).permutation(count)


class CentreCrops(HostSamples):
    """Fixed crops from the middle of images, spread evenly over them, to validate on."""

    def __init__(self, images: Images, size: int) -> None:
        self.size, self._images = size, images

    def render(self, index: int) -> Rendered:
        # The golden ratio's multiples spread the first n of them over the whole list, whatever n is.
        position = int(len(self._images) * math.modf((index + 0.5) * (math.sqrt(5) - 1) / 2)[0])
        image, faults = _readable(self._images, position, np.random.default_rng(index))
        side = max(1, round(min(image.shape[:2]) * CENTRE_SHARE))
        top, left = ((extent - side) // 2 for extent in image.shape[:2])
        crop = _resized(image[top : top + side, left : left + side], self.size)
        return Rendered("images", {"search": crop}, faults)


def _readable(
    images: Images, position: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[str, ...]]:
    """The image at a position, or the first one that can be read of those drawn in its place; and what could not."""
    faults: list[str] = []
    for _ in range(MAX_REDRAWS):
        try:
            return images[position], tuple(faults)
        except (DatasetError, SourceError) as error:
            faults.append(str(error))
            position = int(rng.integers(len(images)))
    raise DatasetError(f"none of {MAX_REDRAWS} drawn images can be read; the last one: {faults[-1]}")


def random_part(
    rng: np.random.Generator, image: UInt8[np.ndarray, "h w 3"], config: ImagesConfig
) -> UInt8[np.ndarray, "part_h part_w 3"]:
    """A part of random area and aspect, where it fits; after ten draws that do not, the largest in the middle."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(config.min_area, 1.0)
        aspect = math.exp(rng.uniform(-1.0, 1.0) * math.log(config.max_aspect))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return image[top : top + h, left : left + w]
    w, h = min(width, round(height * config.max_aspect)), min(height, round(width * config.max_aspect))
    top, left = (height - h) // 2, (width - w) // 2
    return image[top : top + h, left : left + w]


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    interpolation = cv2.INTER_AREA if min(image.shape[:2]) > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=interpolation)
