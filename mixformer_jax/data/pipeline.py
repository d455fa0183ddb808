"""From pools of material to batches: sample i of seed s is one thing, whatever the order, threads or
start."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import grain
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.data.augment import AugmentConfig, disturb, occlude
from mixformer_jax.data.pool import ImagePool, VideoPool
from mixformer_jax.data.sampling import Sample, VideoPairs
from mixformer_jax.data.synthetic import PastedPairs, RegionPairs, StillPairs, SyntheticConfig
from mixformer_jax.data.views import CropConfig, UnusableSampleError

MAX_REDRAWS = 50


@dataclass(frozen=True)
class Mix:
    """Relative weights of the sources; 0 leaves a source out."""

    video: float = 0.4
    still: float = 0.2
    pasted: float = 0.35
    region: float = 0.05

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0 or sum(vars(self).values()) <= 0:
            raise ValueError(f"{self}: weights must be at least 0 and not all 0")


@dataclass(frozen=True)
class DataConfig:
    """Everything that decides what sample i of a seed is, but for the files under `root`."""

    root: str
    include: tuple[str, ...] | None = None  # sequences to train on; None: all
    exclude: tuple[str, ...] = ()  # sequences held out
    groups: tuple[tuple[str, ...], ...] = ()  # sequences of one scene, drawn as often as one sequence
    max_interval: int = 100  # frames between template and search
    max_target_side: float = 64.0  # pooled video frames are shrunk until sqrt(w * h) is at most this
    min_target_side: float = 8.0  # smaller targets are left out
    mix: Mix = field(default_factory=Mix)
    crops: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)


@dataclass(frozen=True)
class Pools:
    """The material in memory; a pool that no source draws from may be None."""

    videos: VideoPool | None = None
    images: ImagePool | None = None

    @classmethod
    def load(cls, config: DataConfig, num_threads: int = 2) -> Pools:
        """Read what the mix of `config` needs from ROOT/videos and ROOT/images."""
        videos = images = None
        if config.mix.video > 0:
            videos = VideoPool.load(
                config.root,
                config.include,
                config.exclude,
                max_target_side=config.max_target_side,
                min_target_side=config.min_target_side,
                num_threads=num_threads,
            )
        if config.mix.still + config.mix.pasted + config.mix.region > 0:
            images = ImagePool.load(config.root, num_threads=num_threads)
        return cls(videos, images)


class TrackingSamples:
    """Training samples by index. Safe to call from several threads.

    A drawn sample that cannot serve is drawn again from the same generator, so the index decides everything;
    `redrawn()` counts them by source.
    """

    def __init__(self, pools: Pools, config: DataConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._pools = pools
        self._sources = self._build_sources()
        weights = np.array([getattr(config.mix, name) for name in self._sources])
        self._cumulative = np.cumsum(weights / weights.sum())
        self._redrawn: Counter[str] = Counter()
        self._lock = threading.Lock()

    def sample(self, index: int) -> Sample:
        """Sample `index`: templates uint8 [slots, T, T, 3], search uint8 [S, S, 3], box_cxcywh float32 [4].

        The box is normalised to the search crop and may reach beyond it.
        """
        return self.sample_with_source(index)[1]

    def sample_with_source(self, index: int) -> tuple[str, Sample]:
        """Sample `index` and the name of the source that it came from."""
        rng = np.random.default_rng((self.seed, index))
        names = list(self._sources)
        name = names[min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(names) - 1)]
        for _ in range(MAX_REDRAWS):
            try:
                sample = self._sources[name](rng)
            except UnusableSampleError:
                with self._lock:
                    self._redrawn[name] += 1
                continue
            return name, self._augment(rng, name, sample)
        raise ValueError(
            f"sample {index} of seed {self.seed}: source {name!r} gave no usable sample in {MAX_REDRAWS} "
            "draws; its material does not suit the crop sizes and jitters of the config"
        )

    def redrawn(self) -> dict[str, int]:
        """How many unusable samples each source has given so far."""
        with self._lock:
            return dict(self._redrawn)

    def _build_sources(self) -> dict[str, Callable[[np.random.Generator], Sample]]:
        config, pools = self.config, self._pools
        sources: dict[str, Callable[[np.random.Generator], Sample]] = {}
        if config.mix.video > 0:
            if pools.videos is None:
                raise ValueError("the mix asks for video pairs, but no videos are loaded")
            sources["video"] = VideoPairs(
                pools.videos, config.crops, config.augment, config.max_interval, config.groups
            )
        for name, kind in (("still", StillPairs), ("pasted", PastedPairs), ("region", RegionPairs)):
            if getattr(config.mix, name) > 0:
                if pools.images is None:
                    raise ValueError(f"the mix asks for {name} pairs, but no photographs are loaded")
                sources[name] = kind(pools.images, config.crops, config.augment, config.synthetic)
        return sources

    def _augment(self, rng: np.random.Generator, name: str, sample: Sample) -> Sample:
        config = self.config.augment
        search = sample["search"]
        # Pasted pairs bring occluders of their own.
        if name != "pasted" and rng.random() < config.occluder_probability:
            search = occlude(rng, search, sample["box_cxcywh"], self._texture(rng), config)
        templates, search = disturb(rng, sample["templates"], search, config)
        return {"templates": templates, "search": search, "box_cxcywh": sample["box_cxcywh"]}

    def _texture(self, rng: np.random.Generator) -> np.ndarray:
        """A piece of some picture, to serve as an occluder."""
        if self._pools.images is not None:
            image = self._pools.images.photos[int(rng.integers(len(self._pools.images.photos)))][-1]
        else:
            assert self._pools.videos is not None
            clip = self._pools.videos.clips[int(rng.integers(len(self._pools.videos.clips)))]
            image = clip.frames[int(rng.integers(len(clip)))]
        height, width = image.shape[:2]
        h, w = max(2, height // 3), max(2, width // 3)
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        return image[top : top + h, left : left + w]


def batches(
    samples: TrackingSamples,
    batch_size: int,
    start_step: int = 0,
    num_threads: int = 2,
    prefetch: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches (arrays of `samples.sample` stacked on a new first axis) from batch `start_step` on.

    Batch k holds samples k * batch_size ... (k + 1) * batch_size - 1, so a run resumes by its step number
    alone. `num_threads` 0 renders in the calling thread. OpenCV's own threads are switched off for the whole
    process: crops are small, and the threads here already fill the cores.
    """
    if batch_size < 1 or start_step < 0:
        raise ValueError(f"batch_size {batch_size} must be at least 1 and start_step {start_step} at least 0")
    cv2.setNumThreads(1)
    indices = grain.MapDataset.range(start_step * batch_size, sys.maxsize)
    dataset = indices.map(samples.sample).batch(batch_size)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch if num_threads else 0)
    return iter(dataset.to_iter_dataset(options))


def contact_sheet(
    samples: Sequence[Sample], names: Sequence[str] | None = None, columns: int = 4
) -> UInt8[np.ndarray, "h w 3"]:
    """Samples side by side: templates stacked at the left, the search crop with its box at the right."""
    cells = [_cell(sample, names[i] if names else "") for i, sample in enumerate(samples)]
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=0)


def _cell(sample: Sample, name: str) -> np.ndarray:
    templates, search = sample["templates"], sample["search"].copy()
    size, edge = search.shape[0], templates.shape[1]
    cx, cy, w, h = sample["box_cxcywh"] * size
    edges = (cx - w / 2 - 0.5, cy - h / 2 - 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5)
    corners = [round(float(edge) * 16) for edge in edges]
    cv2.rectangle(search, corners[:2], corners[2:], (0, 255, 0), 1, cv2.LINE_AA, shift=4)
    height = max(size, len(templates) * edge)
    cell = np.full((height + 2, edge + size + 4, 3), 64, np.uint8)
    for slot, template in enumerate(templates):
        cell[slot * edge : (slot + 1) * edge, :edge] = template
    cell[:size, edge : edge + size] = search
    cv2.putText(cell, name, (edge + 2, 10), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0), 1, cv2.LINE_AA)
    return cell
