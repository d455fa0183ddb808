"""From material to samples on the host: sample i of seed s is one thing, on every machine and in whatever order.
Scenes of the pool are rendered with OpenCV, straight in crop coordinates."""

from __future__ import annotations

import abc
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mixformer_jax.data.augment import Light, Random, disturb, occlude, relight
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.pairs import Sample, SequencePairs, WeightedDataset
from mixformer_jax.data.pool import scenes
from mixformer_jax.data.pool.folder import is_pool_folder, read_images, read_videos
from mixformer_jax.data.pool.pool import CutOut, HostPool, ImagePool, VideoPool
from mixformer_jax.datasets.frame_parts import is_packed
from mixformer_jax.datasets.sequences import Dataset, DatasetError, open_dataset
from mixformer_jax.media.images import SourceError
from mixformer_jax.views import UnusableSampleError, map_points, warp

MAX_REDRAWS = 50
DATASETS = "datasets"  # the name under which data sets on disk stand among the sources
LINE = 14  # pixels of a line of text on a sheet
KIND_NAMES = dict(zip(scenes.KINDS, ("target", "other", "elsewhere", "beside"), strict=True))


@dataclass(frozen=True)
class Material:
    """What samples are drawn from. Kinds that no source needs may be None; data sets on disk are opened, not read."""

    videos: VideoPool | None = None
    images: ImagePool | None = None
    datasets: Mapping[str, Dataset] = field(default_factory=dict)

    @classmethod
    def load(cls, config: DataConfig, num_threads: int = 2) -> Material:
        """Reads what the mix of `config` needs from ROOT/videos and ROOT/images, or from the pool folder ROOT, and
        opens its data sets."""
        videos = images = None
        if config.root is not None:
            packed = is_pool_folder(config.root)
            if config.mix.video > 0:
                limits = (config.max_target_side, config.min_target_side)
                read = read_videos if packed else VideoPool.load
                videos = read(config.root, config.include, config.exclude, *limits, num_threads=num_threads)
            if config.mix.still + config.mix.pasted + config.mix.region > 0:
                images = (read_images if packed else ImagePool.load)(config.root, num_threads=num_threads)
        datasets = {}
        for name, each in config.datasets.items():
            # Of what is packed, the part that was packed.
            reader, split = ("packed", None) if each.reader is None and is_packed(each.root) else (name, each.split)
            datasets[name] = open_dataset(each.reader or reader, each.root, split, each.list_file)
        return cls(videos, images, datasets)


class Rendered(NamedTuple):
    """A sample and how it came about."""

    source: str  # the source of the mix, or the data set
    sample: Sample  # see `TrackingSamples.sample`.
    faults: tuple[str, ...]  # of what was drawn first and could not be read: messages that name the file


class HostSamples(abc.ABC):
    """Samples by index that the host renders: safe to call from several threads, and from several processes.
    Threads block each other: what is drawn and decided in Python takes longer than OpenCV's part."""

    def sample(self, index: int) -> Sample:
        """The arrays of sample `index`; raises as `render`."""
        return self.render(index).sample

    @abc.abstractmethod
    def render(self, index: int) -> Rendered:
        """Sample `index` with all that is known about it; DatasetError where nothing that was drawn can be read."""


class TrackingSamples(HostSamples):
    """Training samples: templates uint8 [slots, T, T, 3], search uint8 [S, S, 3], box_cxcywh float32 [4].

    The box is normalised to the search crop and may reach beyond it. With `DataConfig.positive_share` also
    label float32 [], 1 or 0. With both `CropConfig.streams` crops have six channels.

    A drawn sample that cannot serve is drawn again from the same generator, so the index decides everything;
    `redrawn()` counts those of this process by source. One whose files cannot be read is drawn again, too, and named in
    `Rendered.faults`.
    """

    def __init__(self, material: Material, config: DataConfig, seed: int, names: Sequence[str] | None = None) -> None:
        """Builds the sources; `names` are those of the arrays wanted, None for all. ValueError where one has no
        material."""
        self.config, self.seed, self._material, self._names = config, seed, material, names
        self.pool = HostPool(material.videos, material.images, config) if config.root is not None else None
        self._sources: dict[str, PoolSource | SequencePairs] = {}
        if self.pool is not None:
            self._sources |= {name: PoolSource(name, self.pool, config) for name in scenes.sources_of(config)}
        weights = [getattr(config.mix, name) for name in self._sources]
        if config.datasets:
            missing = sorted(set(config.datasets) - set(material.datasets))
            if missing:
                raise ValueError(f"the config names the data sets {', '.join(missing)}, which are not opened")
            weighted = [
                WeightedDataset(name, material.datasets[name], each.ratio, each.min_side)
                for name, each in config.datasets.items()
            ]
            settings = config.crops, config.augment, config.frames, config.max_interval, config.positive_share
            self._sources[DATASETS] = SequencePairs(weighted, *settings)
            weights.append(sum(each.ratio for each in weighted))
        self._cumulative = np.cumsum(np.array(weights) / sum(weights))
        self._redrawn: Counter[str] = Counter()
        self._lock = threading.Lock()  # of the counts

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def render(self, index: int) -> Rendered:
        return self._described(index)[1]

    def describe(self, index: int) -> str:
        """Where sample `index` comes from, for messages: the source; for data sets, sequences and frames, too."""
        return self._described(index)[0]

    def redrawn(self) -> dict[str, int]:
        """How many unusable samples each source has given so far."""
        with self._lock:
            return dict(self._redrawn)

    def _described(self, index: int) -> tuple[str, Rendered]:
        rng = np.random.default_rng((self.seed, index))
        name, source = list(self._sources.items())[Random(rng).entry(self._cumulative)]
        faults: list[str] = []
        decided = source.decide(rng)  # what is hard to place stays in its share
        for _ in range(MAX_REDRAWS):
            try:
                label, text, sample = source.sample(rng, decided)
            except UnusableSampleError:
                with self._lock:
                    self._redrawn[name] += 1
            except (DatasetError, SourceError) as error:
                faults.append(str(error))
            else:
                sample = self._disturbed(Random(rng), source, sample)
                wanted = sample if self._names is None else {name: sample[name] for name in self._names}
                return text, Rendered(label, wanted, tuple(faults))
        if faults:
            raise DatasetError(
                f"sample {index} of seed {self.seed}: {len(faults)} of {MAX_REDRAWS} draws met files that cannot be "
                f"read, and none gave a sample; the last one: {faults[-1]}"
            )
        raise ValueError(
            f"sample {index} of seed {self.seed}: source {name!r} gave no usable sample in {MAX_REDRAWS} "
            "draws; its material does not suit the crop sizes and jitters of the config"
        )

    def _disturbed(self, random: Random, source: PoolSource | SequencePairs, sample: Sample) -> Sample:
        config, search = self.config.augment, sample["search"]
        if not source.has_occluders and random.chance(config.occluder_probability):
            assert self.pool is not None  # as `DataConfig` demands
            search = occlude(random, search, sample["box_cxcywh"], draw_texture(random, self.pool), config)
        streams, whole = self.config.crops.streams, {"templates": sample["templates"], "search": search}
        if streams == "second":  # light and image quality are the colour camera's
            return sample
        disturbed = disturb(random, whole["templates"][..., :3], search[..., :3], config)
        shown = dict(zip(whole, disturbed, strict=True))
        if streams == "both":
            shown = {name: np.concatenate([shown[name], whole[name][..., 3:]], axis=-1) for name in whole}
        return sample | shown


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
        return scenes.draw_kind(Random(rng), self.config.positive_share, self.name == "video")

    def draw_scene(self, rng: np.random.Generator, kind: int = scenes.TARGET) -> scenes.Scene:
        """What a sample shows; UnusableSampleError where what was drawn does not serve."""
        draw = scenes.SCENES[self.name]
        return scenes.draw_labelled(
            Random(rng), lambda random, beside: draw(random, self.pool, self.config, beside), kind, self.config
        )

    def sample(self, rng: np.random.Generator, kind: int = scenes.TARGET) -> tuple[str, str, dict[str, np.ndarray]]:
        """The source's name, a description and a sample; raises as `draw_scene`."""
        scene = self.draw_scene(rng, kind)
        sample = self.render(scene)
        if self.config.positive_share is None:
            return self.name, self.name, sample
        label = np.array(kind == scenes.TARGET, np.float32)
        return self.name, f"{self.name}, {KIND_NAMES[kind]}", sample | {"label": label}

    def render(self, scene: scenes.Scene) -> dict[str, np.ndarray]:
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

    def _warped(self, picture: scenes.Picture, size: int) -> np.ndarray:
        border = cv2.BORDER_REPLICATE if picture.replicate else cv2.BORDER_CONSTANT
        return warp(self.pool.pictures[picture.image], picture.matrix, (size, size), picture.finer, border)

    def _paste(self, canvas: np.ndarray, layer: scenes.Pasted) -> np.ndarray:
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
    image = pool.pictures[scenes.draw_texture_picture(random, pool.tables)][-1]
    height, width = image.shape[:2]
    h, w = max(2, height // 3), max(2, width // 3)
    top, left = random.below(height - h + 1), random.below(width - w + 1)
    return image[top : top + h, left : left + w]


def contact_sheet(
    samples: Sequence[Sample], names: Sequence[str] | None = None, columns: int = 4
) -> UInt8[np.ndarray, "h w 3"]:
    """Samples side by side: templates stacked at the left, the search crop with its box at the right.
    The box is green, and red where the sample's `label` says that it is not the target of the templates."""
    cells = [_cell(sample, names[i] if names else "") for i, sample in enumerate(samples)]
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=0)


def _cell(sample: Sample, name: str) -> np.ndarray:
    templates, search = sample["templates"][..., :3], sample["search"][..., :3].copy()
    size, edge = search.shape[0], templates.shape[1]
    cx, cy, w, h = sample["box_cxcywh"] * size
    edges = (cx - w / 2 - 0.5, cy - h / 2 - 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5)
    corners = [round(float(edge) * 16) for edge in edges]
    colour = (0, 255, 0) if sample.get("label", 1) else (255, 0, 0)
    cv2.rectangle(search, corners[:2], corners[2:], colour, 1, cv2.LINE_AA, shift=4)
    height = max(size, len(templates) * edge)
    cell = np.full((height + 2, edge + size + 4, 3), 64, np.uint8)
    cell[: len(templates) * edge, :edge] = np.concatenate(templates)
    cell[:size, edge : edge + size] = search
    for line, text in enumerate(name.splitlines()):
        place = (edge + 2, 10 + line * LINE)
        cv2.putText(cell, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0), 1, cv2.LINE_AA)
    return cell
