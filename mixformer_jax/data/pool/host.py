"""Samples of the pool on the host: scenes rendered with OpenCV, straight in crop coordinates."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mixformer_jax.data.augment import Light, Random, relight
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pool.pool import CutOut, HostPool
from mixformer_jax.data.pool.scenes import (
    KINDS,
    SCENES,
    TARGET,
    Pasted,
    Picture,
    Scene,
    draw_kind,
    draw_labelled,
    draw_texture_picture,
)
from mixformer_jax.views import map_points, warp

KIND_NAMES = dict(zip(KINDS, ("target", "other", "elsewhere", "beside"), strict=True))


class PoolSource:
    """One source of the mix.

    With `DataConfig.positive_share` samples have a `label`: 1 for that share, which are as without labels, and 0 for
    the others, half of them with another target and half with a box where the target is not, see `scenes.KINDS`.
    """

    def __init__(self, name: str, pool: HostPool, config: DataConfig) -> None:
        """Raises ValueError where negative samples are asked for, and all targets are of one scene."""
        tables = pool.tables
        origins = {
            "video": tables.clip_origin,
            "still": tables.cutout_photo[tables.stills.members],
            "pasted": tables.cutout_photo,
            "region": tables.photos,
        }
        if config.positive_share is not None and len(np.unique(origins[name])) < 2:
            raise ValueError(
                f"data.positive_share asks for negative samples, and the source {name!r} of the pool has targets of "
                "one sequence, group of sequences or photograph alone; they show two, so give it more (data.include "
                "and data.exclude say which sequences train and which validate), or set its weight in data.mix to 0"
            )
        self.name, self.pool, self.config = name, pool, config
        self.has_occluders = name == "pasted"

    def decide(self, rng: np.random.Generator) -> int:
        """The kind of sample, one of `scenes.KINDS`; it stays when the sample is drawn again."""
        return draw_kind(Random(rng), self.config.positive_share, self.name == "video")

    def draw_scene(self, rng: np.random.Generator, kind: int = TARGET) -> Scene:
        """What a sample shows; UnusableSampleError where what was drawn does not serve."""
        draw = SCENES[self.name]
        return draw_labelled(
            Random(rng), lambda random, beside: draw(random, self.pool, self.config, beside), kind, self.config
        )

    def sample(self, rng: np.random.Generator, kind: int = TARGET) -> tuple[str, str, dict[str, np.ndarray]]:
        """The source's name, a description and a sample; raises as `draw_scene`."""
        scene = self.draw_scene(rng, kind)
        sample = self.render(scene)
        if self.config.positive_share is None:
            return self.name, self.name, sample
        label = np.array(kind == TARGET, np.float32)
        return self.name, f"{self.name}, {KIND_NAMES[kind]}", sample | {"label": label}

    def render(self, scene: Scene) -> dict[str, np.ndarray]:
        """The crops of a scene, before light and colour are disturbed."""
        crops = self.config.crops
        templates = np.stack([self._warped(base, crops.template_size) for base in scene.template_base])
        for canvas, target in zip(templates, scene.template_target or (), strict=bool(scene.template_target)):
            self._paste(canvas, target)
        search = self._warped(scene.search_base, crops.search_size)
        covered = [self._paste(search, layer) for layer in scene.search_pasted or ()]
        for layer in scene.occluder or ():
            occluded = search.copy()
            hidden = np.minimum(self._paste(occluded, layer), covered[-1]).sum(dtype=np.int64)
            if hidden <= self.config.synthetic.max_occluded * float(covered[-1].sum(dtype=np.int64)):
                search = occluded
        return {"templates": templates, "search": search, "box_cxcywh": scene.box_cxcywh}

    def _warped(self, picture: Picture, size: int) -> np.ndarray:
        border = cv2.BORDER_REPLICATE if picture.replicate else cv2.BORDER_CONSTANT
        return warp(self.pool.pictures[picture.image], picture.matrix, (size, size), picture.finer, border)

    def _paste(self, canvas: np.ndarray, layer: Pasted) -> np.ndarray:
        picture = layer.picture
        cutout = self.pool.cutouts[picture.image - self.pool.tables.cutout_image[0]]
        return paste(canvas, cutout, picture.matrix, layer.light, picture.finer)


def paste(
    canvas: UInt8[np.ndarray, "s s 3"], cutout: CutOut, matrix: Float[np.ndarray, "2 3"], light: Light, finer: int = 0
) -> UInt8[np.ndarray, "s s"]:
    """Blend a cut-out into `canvas` in place and return its alpha on the whole canvas."""
    size = canvas.shape[0]
    alpha_plane = np.zeros((size, size), np.uint8)
    points = map_points(matrix, cutout.pasted_outline_xy)
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


def draw_texture(random: Random, pool: HostPool) -> np.ndarray:
    """A piece of some picture, to serve as an occluder."""
    image = pool.pictures[draw_texture_picture(random, pool.tables)][-1]
    height, width = image.shape[:2]
    h, w = max(2, height // 3), max(2, width // 3)
    top, left = random.below(height - h + 1), random.below(width - w + 1)
    return image[top : top + h, left : left + w]
