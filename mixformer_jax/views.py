"""Affine views: one matrix of flip, aspect, rotation, scale and position from a source image to a training crop, and
the target's box under it. Coordinates are continuous: pixel i covers [i, i + 1), as an `xywh` box in whole pixels does;
that `cv2.warpAffine` counts from pixel centres is known to `warp` alone. Where arrays of JAX are taken, too, a device
computes the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from mixformer_jax.boxes import Array, namespace
from mixformer_jax.typed_settings import (
    CropFactor,
    CropSide,
    LogStrength,
    NotNegative,
    OnlineTemplates,
    Range,
    Streams,
    TypedSettings,
    refuse,
)


class UnusableSampleError(ValueError):
    """A drawn sample that cannot serve, such as one with a tiny target; the pipeline draws again."""


@dataclass(frozen=True)
class CropConfig(TypedSettings):
    """Sizes and jitter of template and search crops; a factor is the side of the crop over sqrt(w * h) of the target.

    The jitters of the search crop are the official trainer's: the target size is multiplied per axis by
    exp(N(0, 1) * scale_jitter), the crop centre moves uniformly within +-0.5 * centre_jitter * sqrt(w * h) of that
    jittered size. With centre_jitter <= search_factor the target's centre stays inside the crop.
    """

    template_size: CropSide = 64
    template_factor: CropFactor = 2.0
    search_size: CropSide = 128
    search_factor: CropFactor = 4.0
    num_online_templates: OnlineTemplates = 1
    scale_jitter: LogStrength = 0.4
    centre_jitter: NotNegative = 3.0
    # Bounds exp(scale jitter) on both sides: a target of a few pixels teaches nothing
    max_zoom: Annotated[float, Range(1, 100)] = 2.5
    min_target_pixels: NotNegative = 4.0  # shortest side of the target in the search crop
    streams: Streams = "colour"  # what crops show of frames with a second stream; of both its channels are behind RGB

    def __post_init__(self) -> None:
        super().__post_init__()
        larger = f"centre_jitter {self.centre_jitter} is larger than search_factor {self.search_factor}"
        leaves = f"{larger}: the target would leave the search crop; lower centre_jitter"
        refuse({leaves: self.centre_jitter > self.search_factor})

    @property
    def slots(self) -> int:
        """Template slots of a sample: the template and its online templates."""
        return 1 + self.num_online_templates


class View(NamedTuple):
    """A map from source coordinates to crop coordinates, and the target under it."""

    matrix: Any  # [2, 3], float64 on the host: source -> crop, continuous coordinates
    box_cxcywh: Any  # float32 [4], normalised to the crop, not clipped


class Placement(NamedTuple):
    """Where a crop lies: `zoom` multiplies its side, `offset_xy` moves it in units of sqrt(w * h) * zoom."""

    zoom: float = 1.0
    offset_xy: Sequence[float] | np.ndarray = (0.0, 0.0)


CENTRED = Placement()


def box_outline(box_xywh: Float[Array, "4"]) -> Float[Array, "4 2"]:
    """The four corners of a box, in source coordinates."""
    xp = namespace(box_xywh)
    x, y, w, h = xp.asarray(box_xywh, float)
    return xp.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])


def linear_map(
    flip: bool = False, rotation: float = 0.0, aspect: float = 1.0, shear: float = 0.0
) -> Float64[np.ndarray, "2 2"]:
    """Flip, then shear (x by y), then aspect (w / h multiplied, area kept), then rotation in radians."""
    stretch = math.sqrt(aspect)
    cosine, sine = math.cos(rotation), math.sin(rotation)
    first = np.array([[-1.0 if flip else 1.0, 0.0], [0.0, 1.0]])
    middle = np.array([[stretch, shear * stretch], [0.0, 1.0 / stretch]])
    return np.array([[cosine, -sine], [sine, cosine]]) @ middle @ first


def deform(linear: Float[Array, "2 2"], points_xy: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """Points under a linear map."""
    if namespace(linear, points_xy) is np:
        return points_xy @ linear.T
    # A dot would be rounded to half the digits on some devices.
    return points_xy[:, :1] * linear[:, 0] + points_xy[:, 1:] * linear[:, 1]


def map_points(matrix: Float[Array, "2 3"], points_xy: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """Points under an affine map."""
    return deform(matrix[:, :2], points_xy) + matrix[:, 2]


def target_view(
    outline_xy: Float[Array, "n 2"],
    linear: Float[Array, "2 2"],
    factor: Float[Array, ""] | float,
    size: int,
    placement: Placement = CENTRED,
) -> View:
    """The view of a target whose outline is deformed by `linear`, then cropped `factor` times its size around it; the
    box is the exact bound of the deformed outline."""
    xp = namespace(outline_xy, linear)
    points = deform(linear, outline_xy)
    low, high = points.min(0), points.max(0)
    width_height = high - low
    side = xp.sqrt(width_height[0] * width_height[1]) * placement.zoom
    crop_centre = (low + high) / 2 + xp.asarray(placement.offset_xy) * side
    scale = size / (side * factor)
    matrix = xp.concatenate([linear * scale, (size / 2 - crop_centre * scale)[:, None]], axis=1)
    centre = ((low + high) / 2 - crop_centre) * scale / size + 0.5
    return View(matrix, xp.concatenate([centre, width_height * scale / size]).astype(np.float32))


def check_target(box_cxcywh: Float32[np.ndarray, "4"], crops: CropConfig) -> None:
    """Raises UnusableSampleError unless the target's centre is inside the search crop and its sides are long enough."""
    cx, cy, w, h = (float(v) for v in box_cxcywh)
    if not (0 <= cx <= 1 and 0 <= cy <= 1):
        raise UnusableSampleError(f"target centre ({cx:.2f}, {cy:.2f}) outside the search crop")
    size = crops.search_size
    if min(w, h) * size < crops.min_target_pixels:
        raise UnusableSampleError(f"target of {w * size:.1f} x {h * size:.1f} px in the search crop")


def seen_share(matrix: Float64[np.ndarray, "2 3"], size: int, width_height: tuple[int, int] | np.ndarray) -> float:
    """Share of a crop that shows the source image; the rest is black border."""
    width, height = width_height
    corners = map_points(matrix, box_outline(np.array([0.0, 0.0, width, height])))
    crop = box_outline(np.array([0.0, 0.0, size, size]))
    area, _ = cv2.intersectConvexConvex(corners.astype(np.float32), crop.astype(np.float32))
    return float(area) / size**2


def shrunk(image: UInt8[np.ndarray, "h w c"], ratio: float) -> UInt8[np.ndarray, "_h _w c"]:
    """The image at `ratio` times its size, by area averages; as it is for a ratio of 1 or more."""
    if ratio >= 1:
        return image
    size = [max(1, round(side * ratio)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def pyramid(image: UInt8[np.ndarray, "h w c"], levels: int = 3) -> tuple[np.ndarray, ...]:
    """The image and its halvings (area averages), so that a strongly shrunk view needs but one bilinear look-up."""
    chain = [image]
    while len(chain) < levels and min(chain[-1].shape[:2]) >= 32:
        height, width = chain[-1].shape[:2]
        chain.append(cv2.resize(chain[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    return tuple(chain)


def warp(
    levels: Sequence[np.ndarray],
    matrix: Float64[np.ndarray, "2 3"],
    width_height: tuple[int, int],
    finer: int = 0,
    border: int = cv2.BORDER_CONSTANT,
) -> UInt8[np.ndarray, "h w c"]:
    """Renders one view of an image pyramid; `matrix` maps the finest level to the output (continuous coordinates).

    The level is the coarsest that still has the output's resolution; with `finer` steps towards the full image the view
    is aliased, as the tracker's own crops of large targets are (plain bilinear resizing).
    """
    scale = math.sqrt(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    level = min(max(math.floor(-math.log2(scale)) - finer, 0), len(levels) - 1)
    image = levels[level]
    on_level = matrix.copy()
    on_level[:, 0] *= levels[0].shape[1] / image.shape[1]
    on_level[:, 1] *= levels[0].shape[0] / image.shape[0]
    on_level[:, 2] += (on_level[:, 0] + on_level[:, 1]) / 2 - 0.5
    return cv2.warpAffine(image, on_level, width_height, flags=cv2.INTER_LINEAR, borderMode=border)
