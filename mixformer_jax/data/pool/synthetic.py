"""Pairs rendered from still photographs: pasted cut-outs, annotated objects in place, and regions without
annotation.

Host form (numpy and OpenCV). Everything is rendered straight in crop coordinates: no frame is ever composed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from mixformer_jax.data.augment import AugmentConfig, Light, draw_light, relight
from mixformer_jax.data.pool.pool import CutOut, ImagePool
from mixformer_jax.data.sampling import Drawn, Sample
from mixformer_jax.typed_settings import ConfigError, LogStrength, Range, Share, ShareAboveZero, TypedSettings
from mixformer_jax.views import (
    CropConfig,
    UnusableSampleError,
    View,
    box_outline,
    check_target,
    draw_placement,
    linear_map,
    seen_share,
    target_view,
    warp,
)

# Deviation of a region in grey levels; sky and walls have less, and nothing to recognise.
MIN_TEXTURE = 8.0

Degrees = Annotated[float, Range(0, 180)]


@dataclass(frozen=True)
class SyntheticConfig(TypedSettings):
    """Deformations of a target between template and search, and what surrounds a pasted one."""

    rotation_degrees: Degrees = 20.0  # pasted: uniform within +-
    aspect: LogStrength = 0.15  # pasted: log of width / height uniform within +-
    shear: Annotated[float, Range(0, 5)] = 0.1  # pasted
    still_rotation_degrees: Degrees = 7.0  # stills and regions: the whole picture turns
    still_aspect: LogStrength = 0.12
    max_still_side: ShareAboveZero = 0.5  # stills: sqrt(box area / image area)
    min_seen: Share = 0.5  # stills and regions: share of the search crop inside the photograph
    # Pasted: probability that the search shows the template's background, shifted
    same_background: Share = 0.5
    max_distractors: Annotated[int, Range(0, 100)] = 3
    # Probability of a distractor from the target's folder, mostly its kind
    same_source_distractor: Share = 0.5
    occluder: Share = 0.3  # probability that one more cut-out lies over the target
    max_occluded: Share = 0.5  # share of the target's pixels
    finer: Share = 0.3  # probability of an aliased view (see views.warp)
    region_area: tuple[ShareAboveZero, ShareAboveZero] = (0.01, 0.12)  # share of the photograph
    region_aspect: LogStrength = 0.6931471805599453  # log of width / height uniform within +-, here up to 2
    region_candidates: Annotated[int, Range(1, 1000)] = 4  # the most textured of these is taken

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.region_area[0] > self.region_area[1]:
            raise ConfigError(f"region_area is {self.region_area}; expected the smaller share first")


class PastedPairs:
    """A cut-out object pasted on photographs, deformed anew in every crop, among distractors and occluders.

    The box is the bound of the transformed mask outline: exact, and whole even where an occluder lies over
    the object.
    """

    def __init__(self, pool: ImagePool, crops: CropConfig, augment: AugmentConfig, config: SyntheticConfig) -> None:
        if not pool.cutouts:
            raise ValueError(
                "pasted pairs need photographs with instance masks (NAME.png beside NAME.jpg); none usable"
            )
        self.pool, self.crops, self.augment, self.config = pool, crops, augment, config
        self._cutouts = ByFolder(pool.cutouts)

    @property
    def origins(self) -> set[int]:
        """The photographs that targets are cut from, by their number."""
        return {cutout.photo for cutout in self.pool.cutouts}

    def __call__(self, rng: np.random.Generator) -> Sample:
        return self.draw(rng).sample

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One sample, with the boxes of its distractors."""
        crops, config = self.crops, self.config
        target = self._cutouts.draw(rng)
        flip = bool(rng.random() < self.augment.flip_probability)
        # One light on the object for the whole sample: its colours vary from sample to sample.
        light = self._object_light(rng)
        background = _Background(rng, self.pool)

        templates = np.empty((crops.slots, crops.template_size, crops.template_size, 3), np.uint8)
        for slot in range(crops.slots):
            view = target_view(
                target.pasted_outline_xy,
                self._deformation(rng, flip),
                crops.template_factor,
                crops.template_size,
            )
            # The template's crop covers this share of what a search crop covers.
            span = crops.template_factor / crops.search_factor
            canvas = background.render(rng, crops.template_size, span)
            finer = _finer(rng, config)
            paste(canvas, target, view.matrix, light, finer)
            templates[slot] = canvas

        placement = draw_placement(rng, crops)
        view = target_view(
            target.pasted_outline_xy,
            self._deformation(rng, flip),
            crops.search_factor,
            crops.search_size,
            placement,
        )
        check_target(view.box_cxcywh, crops)
        if rng.random() >= config.same_background:
            background = _Background(rng, self.pool)
        search = background.render(rng, crops.search_size, min(placement.zoom, 1.0))
        distractors = tuple(
            self._paste_distractor(rng, search, target, view)
            for _ in range(int(rng.integers(config.max_distractors + 1)))
        )
        covered = paste(search, target, view.matrix, light, _finer(rng, config))
        if rng.random() < config.occluder:
            search = self._occluded(rng, search, target, view, covered)
        sample = {"templates": templates, "search": search, "box_cxcywh": view.box_cxcywh}
        return Drawn(sample, target.photo, view.matrix, None, distractors)

    def _object_light(self, rng: np.random.Generator) -> Light:
        # Saturation costs more than all the rest, and the whole crop gets its own later.
        return replace(draw_light(rng, self.augment), saturation=0.0)

    def _deformation(self, rng: np.random.Generator, flip: bool) -> Float64[np.ndarray, "2 2"]:
        u = 2 * rng.random(3) - 1
        return linear_map(
            flip=flip,
            rotation=float(u[0]) * math.radians(self.config.rotation_degrees),
            aspect=math.exp(float(u[1]) * self.config.aspect),
            shear=float(u[2]) * self.config.shear,
        )

    def _other(self, rng: np.random.Generator, target: CutOut) -> CutOut:
        source = target.source if rng.random() < self.config.same_source_distractor else None
        for _ in range(8):
            other = self._cutouts.draw(rng, source)
            # Two objects of one photograph may be parts of one thing.
            if other.photo != target.photo:
                return other
        raise UnusableSampleError(f"no cut-out of another photograph than {target.photo} to serve as a distractor")

    def _placed(
        self, rng: np.random.Generator, other: CutOut, view: View, centre_xy: np.ndarray, ratio: float
    ) -> Float64[np.ndarray, "2 3"]:
        """The matrix that puts `other` at a point of the search crop, `ratio` times the target's size."""
        size = self.crops.search_size
        target_side = math.sqrt(float(view.box_cxcywh[2] * view.box_cxcywh[3]))
        deformation = self._deformation(rng, bool(rng.random() < 0.5))
        matrix = target_view(other.pasted_outline_xy, deformation, 1 / (target_side * ratio), size).matrix
        matrix[:, 2] += np.asarray(centre_xy) - size / 2
        return matrix

    def _paste_distractor(
        self, rng: np.random.Generator, search: np.ndarray, target: CutOut, view: View
    ) -> Float32[np.ndarray, "4"]:
        """Pastes in place; returns the distractor's box_cxcywh, normalised to the crop."""
        other = self._other(rng, target)
        matrix = self._placed(rng, other, view, rng.random(2) * self.crops.search_size, rng.uniform(0.6, 1.6))
        paste(search, other, matrix, self._object_light(rng), _finer(rng, self.config))
        points = (other.pasted_outline_xy @ matrix[:, :2].T + matrix[:, 2]) / self.crops.search_size
        low, high = points.min(0), points.max(0)
        return np.concatenate([(low + high) / 2, high - low]).astype(np.float32)

    def _occluded(
        self, rng: np.random.Generator, search: np.ndarray, target: CutOut, view: View, covered: np.ndarray
    ) -> np.ndarray:
        """The search crop with one more object over the target, or as it was if that hides too much."""
        size = self.crops.search_size
        centre = (view.box_cxcywh[:2] + view.box_cxcywh[2:] * rng.uniform(-0.7, 0.7, 2)) * size
        other = self._other(rng, target)
        matrix = self._placed(rng, other, view, centre, rng.uniform(0.5, 1.2))
        result = search.copy()
        over = paste(result, other, matrix, self._object_light(rng), _finer(rng, self.config))
        hidden = float(np.minimum(over, covered).sum(dtype=np.int64))
        return result if hidden <= self.config.max_occluded * float(covered.sum(dtype=np.int64)) else search


class StillPairs:
    """An annotated object in its own photograph: template and search are two affine views of it."""

    def __init__(self, pool: ImagePool, crops: CropConfig, augment: AugmentConfig, config: SyntheticConfig) -> None:
        self.pool, self.crops, self.augment, self.config = pool, crops, augment, config
        usable = [c for c in pool.cutouts if still_share(c, pool.photos[c.photo][0]) <= config.max_still_side]
        if not usable:
            raise ValueError(
                f"still pairs need annotated objects of at most {config.max_still_side} of their "
                f"photograph's side; none among {len(pool.cutouts)}"
            )
        self._cutouts = ByFolder(usable)
        self._photos = {cutout.photo for cutout in usable}

    @property
    def origins(self) -> set[int]:
        """The photographs that targets are drawn from, by their number."""
        return set(self._photos)

    def __call__(self, rng: np.random.Generator) -> Sample:
        return self.draw(rng).sample

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One sample."""
        target = self._cutouts.draw(rng)
        return _picture_pair(
            rng,
            target.photo,
            self.pool.photos[target.photo],
            target.outline_xy,
            self.crops,
            self.augment,
            self.config,
            turn_search=True,
        )


def still_share(cutout: CutOut, photo: UInt8[np.ndarray, "h w 3"]) -> float:
    """sqrt(area of the object's box / area of its photograph)."""
    width, height = cutout.width_height
    return math.sqrt(width * height / (photo.shape[0] * photo.shape[1]))


class RegionPairs:
    """A random textured box of any photograph as the target: no annotation at all."""

    def __init__(self, pool: ImagePool, crops: CropConfig, augment: AugmentConfig, config: SyntheticConfig) -> None:
        self.pool, self.crops, self.augment, self.config = pool, crops, augment, config

    @property
    def origins(self) -> set[int]:
        """All photographs, by their number."""
        return set(range(len(self.pool.photos)))

    def __call__(self, rng: np.random.Generator) -> Sample:
        return self.draw(rng).sample

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One sample."""
        photo = int(rng.integers(len(self.pool.photos)))
        levels = self.pool.photos[photo]
        boxes = [self._draw_box(rng, levels[0].shape) for _ in range(self.config.region_candidates)]
        texture = [_texture(levels[-1], box, levels[0].shape) for box in boxes]
        best = int(np.argmax(texture))
        if texture[best] < MIN_TEXTURE:
            raise UnusableSampleError("flat region")
        # The box of a rotated box is larger than what was chosen, so the search view does not turn.
        return _picture_pair(
            rng, photo, levels, box_outline(boxes[best]), self.crops, self.augment, self.config, turn_search=False
        )

    def _draw_box(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Float64[np.ndarray, "4"]:
        height, width = shape[:2]
        low, high = self.config.region_area
        area = math.exp(rng.uniform(math.log(low), math.log(high))) * height * width
        aspect = math.exp(rng.uniform(-1, 1) * self.config.region_aspect)
        w, h = min(math.sqrt(area * aspect), 0.9 * width), min(math.sqrt(area / aspect), 0.9 * height)
        return np.array([rng.uniform(0, width - w), rng.uniform(0, height - h), w, h])


def paste(
    canvas: UInt8[np.ndarray, "s s 3"],
    cutout: CutOut,
    matrix: Float64[np.ndarray, "2 3"],
    light: Light,
    finer: int = 0,
) -> UInt8[np.ndarray, "s s"]:
    """Blend a cut-out into `canvas` in place and return its alpha on the whole canvas."""
    size = canvas.shape[0]
    alpha_plane = np.zeros((size, size), np.uint8)
    points = cutout.pasted_outline_xy @ matrix[:, :2].T + matrix[:, 2]
    left, top = np.maximum(np.floor(points.min(0)).astype(int) - 2, 0)
    right, bottom = np.minimum(np.ceil(points.max(0)).astype(int) + 2, size)
    if right - left < 1 or bottom - top < 1:
        return alpha_plane
    local = matrix.copy()
    local[:, 2] -= [left, top]
    rgba = warp(cutout.levels, local, (int(right - left), int(bottom - top)), finer=finer)
    pixels = relight(cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB), light)
    alpha = rgba[..., 3]
    window = canvas[top:bottom, left:right]
    change = cv2.subtract(pixels, window, dtype=cv2.CV_16S)
    change = cv2.multiply(change, cv2.merge([alpha] * 3), scale=1 / 255, dtype=cv2.CV_16S)
    window[:] = cv2.add(window, change, dtype=cv2.CV_8U)
    alpha_plane[top:bottom, left:right] = alpha
    return alpha_plane


class ByFolder:
    """Cut-outs drawn folder first (weighted by the square root of its size), so that no folder crowds out
    the others.

    Attributes:
        folders: the cut-outs of each, by name.
        cumulative: weight of the folders up to and with this one.
    """

    def __init__(self, cutouts: Sequence[CutOut]) -> None:
        self.folders: dict[str, list[CutOut]] = {}
        for cutout in cutouts:
            self.folders.setdefault(cutout.source, []).append(cutout)
        self._names = list(self.folders)
        self.cumulative = np.cumsum([math.sqrt(len(folder)) for folder in self.folders.values()])

    def draw(self, rng: np.random.Generator, source: str | None = None) -> CutOut:
        """One cut-out, of the folder `source` if one is named."""
        if source is None:
            source = self._names[
                int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right"))
            ]
        folder = self.folders[source]
        return folder[int(rng.integers(len(folder)))]


class _Background:
    """One photograph behind a sample: every view of it has the same scale and light, and a nearby centre."""

    def __init__(self, rng: np.random.Generator, pool: ImagePool) -> None:
        self._levels = pool.photos[pool.backgrounds[int(rng.integers(len(pool.backgrounds)))]]
        height, width = self._levels[0].shape[:2]
        # Photograph pixels across an unzoomed search crop
        self._side = min(height, width) * rng.uniform(0.5, 1.0)
        self._extent = np.array([width, height], np.float64)
        self._centre = rng.uniform(0.3, 0.7, 2) * self._extent
        self._flip = bool(rng.random() < 0.5)

    def render(self, rng: np.random.Generator, size: int, span: float) -> UInt8[np.ndarray, "s s 3"]:
        """A crop that is `span` of the search crop wide, shifted at random, wholly inside the photograph."""
        side = self._side * span
        centre = self._centre + rng.uniform(-0.25, 0.25, 2) * self._side
        centre = np.clip(centre, side / 2, self._extent - side / 2)
        linear = linear_map(flip=self._flip) * (size / side)
        matrix = np.column_stack([linear, size / 2 - linear @ centre])
        return warp(self._levels, matrix, (size, size), border=cv2.BORDER_REPLICATE)


def _finer(rng: np.random.Generator, config: SyntheticConfig) -> int:
    return int(rng.random() < config.finer)


def _texture(image: np.ndarray, box_xywh: np.ndarray, full_shape: tuple[int, ...]) -> float:
    ratio = image.shape[0] / full_shape[0]
    x, y, w, h = (box_xywh * ratio).astype(int)
    return float(image[y : y + h + 1, x : x + w + 1, 1].std())


def _picture_pair(
    rng: np.random.Generator,
    photo: int,
    levels: Sequence[np.ndarray],
    outline_xy: np.ndarray,
    crops: CropConfig,
    augment: AugmentConfig,
    config: SyntheticConfig,
    turn_search: bool,
) -> Drawn:
    flip = bool(rng.random() < augment.flip_probability)

    def deformation(turn: bool) -> np.ndarray:
        u = 2 * rng.random(2) - 1
        rotation = float(u[0]) * math.radians(config.still_rotation_degrees) if turn else 0.0
        return linear_map(flip=flip, rotation=rotation, aspect=math.exp(float(u[1]) * config.still_aspect))

    def render(view: View, size: int) -> np.ndarray:
        return warp(levels, view.matrix, (size, size), finer=_finer(rng, config))

    linear = deformation(turn_search)
    view = target_view(outline_xy, linear, crops.search_factor, crops.search_size, draw_placement(rng, crops))
    check_target(view.box_cxcywh, crops)
    height, width = levels[0].shape[:2]
    seen = seen_share(view.matrix, crops.search_size, (width, height))
    if seen < config.min_seen:
        raise UnusableSampleError(f"only {seen:.0%} of the search crop inside the photograph")

    templates = np.empty((crops.slots, crops.template_size, crops.template_size, 3), np.uint8)
    for slot in range(crops.slots):
        template_view = target_view(outline_xy, deformation(True), crops.template_factor, crops.template_size)
        templates[slot] = render(template_view, crops.template_size)
    sample = {"templates": templates, "search": render(view, crops.search_size), "box_cxcywh": view.box_cxcywh}
    return Drawn(sample, photo, view.matrix, (width, height))
