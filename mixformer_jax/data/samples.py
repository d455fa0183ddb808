"""From material to samples: sample i of seed s is one thing, on every machine and in whatever order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mixformer_jax.data.augment import disturb, occlude
from mixformer_jax.data.config import DataConfig
from mixformer_jax.data.labelled import LabelledPairs, PoolPairs
from mixformer_jax.data.pairs import SequencePairs, Source
from mixformer_jax.data.pool.folder import is_pool_folder, read_images, read_videos
from mixformer_jax.data.pool.pool import ImagePool, VideoPool
from mixformer_jax.data.pool.synthetic import PastedPairs, RegionPairs, StillPairs
from mixformer_jax.data.sampling import Sample, VideoPairs
from mixformer_jax.datasets.sequences import Dataset, DatasetError, open_dataset
from mixformer_jax.media.images import SourceError
from mixformer_jax.views import UnusableSampleError

MAX_REDRAWS = 50
Draw = Callable[[np.random.Generator], Sample] | LabelledPairs
# The name under which data sets on disk stand among the sources of the pool.
DATASETS = "datasets"


@dataclass(frozen=True)
class Pools:
    """The material. A pool that no source draws from may be None; data sets on disk are opened and not more."""

    videos: VideoPool | None = None
    images: ImagePool | None = None
    datasets: Mapping[str, Dataset] = field(default_factory=dict)

    @classmethod
    def load(cls, config: DataConfig, num_threads: int = 2) -> Pools:
        """Read what the mix of `config` needs from ROOT/videos and ROOT/images, or from the pool folder ROOT, and open
        its data sets."""
        videos = images = None
        if config.root is not None:
            packed = is_pool_folder(config.root)
            if config.mix.video > 0:
                videos = (read_videos if packed else VideoPool.load)(
                    config.root,
                    config.include,
                    config.exclude,
                    max_target_side=config.max_target_side,
                    min_target_side=config.min_target_side,
                    num_threads=num_threads,
                )
            if config.mix.still + config.mix.pasted + config.mix.region > 0:
                images = (read_images if packed else ImagePool.load)(config.root, num_threads=num_threads)
        datasets = {
            name: open_dataset(each.reader or name, each.root, each.split, each.list_file)
            for name, each in config.datasets.items()
        }
        return cls(videos, images, datasets)


class Rendered(NamedTuple):
    """A sample and how it came about.

    Attributes:
        source: the source of the pool, or the data set.
        sample: see `TrackingSamples.sample`.
        faults: of what was drawn first and could not be read: messages that name the file.
    """

    source: str
    sample: Sample
    faults: tuple[str, ...]


class TrackingSamples:
    """Training samples by index. Safe to call from several threads, and from several processes.

    A drawn sample that cannot serve is drawn again from the same generator, so the index decides everything;
    `redrawn()` counts them by source. One whose files cannot be read is drawn again, too, and named in
    `Rendered.faults`.
    """

    def __init__(self, pools: Pools, config: DataConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._pools = pools
        self._sources = self._build_sources()
        weights = np.array(
            [
                sum(each.ratio for each in config.datasets.values()) if name == DATASETS else getattr(config.mix, name)
                for name in self._sources
            ]
        )
        self._cumulative = np.cumsum(weights / weights.sum())
        self._redrawn: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def for_processes(self) -> bool:
        """Whether copies in worker processes make sense: data sets are read there, while a pool is in memory here."""
        return self._pools.videos is None and self._pools.images is None

    def sample(self, index: int) -> Sample:
        """Sample `index`: templates uint8 [slots, T, T, 3], search uint8 [S, S, 3], box_cxcywh float32 [4].

        The box is normalised to the search crop and may reach beyond it. With `DataConfig.positive_share` also
        label float32 [], 1 or 0.
        """
        return self.render(index).sample

    def sample_with_source(self, index: int) -> tuple[str, Sample]:
        """Sample `index` and the name of the source that it came from."""
        rendered = self.render(index)
        return rendered.source, rendered.sample

    def render(self, index: int) -> Rendered:
        """Sample `index` with all that is known about it.

        Raises:
            DatasetError: nothing that was drawn can be read.
        """
        _, rendered = self._render(index)
        return rendered

    def describe(self, index: int) -> str:
        """Where sample `index` comes from, for messages: the source; for data sets, sequences and frames, too."""
        return self._render(index)[0]

    def redrawn(self) -> dict[str, int]:
        """How many unusable samples each source has given so far."""
        with self._lock:
            return dict(self._redrawn)

    def _render(self, index: int) -> tuple[str, Rendered]:
        rng = np.random.default_rng((self.seed, index))
        names = list(self._sources)
        name = names[min(int(np.searchsorted(self._cumulative, rng.random(), side="right")), len(names) - 1)]
        source = self._sources[name]
        faults: list[str] = []
        # Drawn once: what is hard to place is drawn again and stays in its share.
        kind = source.draw_kind(rng) if isinstance(source, LabelledPairs) else None
        for _ in range(MAX_REDRAWS):
            try:
                if isinstance(source, SequencePairs):
                    draw = source.draw(rng)
                    label, text, sample = draw.source, str(draw), source.render(rng, draw)
                elif isinstance(source, LabelledPairs):
                    assert kind is not None
                    label, text, sample = name, f"{name}, {kind}", source.draw(rng, kind)
                else:
                    label, text, sample = name, name, source(rng)
            except UnusableSampleError:
                with self._lock:
                    self._redrawn[name] += 1
                continue
            except (DatasetError, SourceError) as error:
                faults.append(str(error))
                continue
            return text, Rendered(label, self._augment(rng, name, sample), tuple(faults))
        if faults:
            raise DatasetError(
                f"sample {index} of seed {self.seed}: {len(faults)} of {MAX_REDRAWS} draws met files that cannot be "
                f"read, and none gave a sample; the last one: {faults[-1]}"
            )
        raise ValueError(
            f"sample {index} of seed {self.seed}: source {name!r} gave no usable sample in {MAX_REDRAWS} "
            "draws; its material does not suit the crop sizes and jitters of the config"
        )

    def _build_sources(self) -> dict[str, Draw]:
        config, pools = self.config, self._pools
        sources: dict[str, Draw] = {}
        if config.root is not None:
            sources |= self._build_pool_sources()
        if config.datasets:
            missing = sorted(set(config.datasets) - set(pools.datasets))
            if missing:
                raise ValueError(f"the config names the data sets {', '.join(missing)}, which are not opened")
            sources[DATASETS] = SequencePairs(
                [
                    Source(name, pools.datasets[name], each.ratio, each.min_side)
                    for name, each in config.datasets.items()
                ],
                config.crops,
                config.augment,
                config.frames,
                config.max_interval,
                config.positive_share,
            )
        return sources

    def _build_pool_sources(self) -> dict[str, Draw]:
        config, pools = self.config, self._pools
        sources: dict[str, PoolPairs] = {}
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
        if config.positive_share is None:
            return dict(sources)
        share = config.positive_share
        return {name: LabelledPairs(name, source, config.crops, share) for name, source in sources.items()}

    def _augment(self, rng: np.random.Generator, name: str, sample: Sample) -> Sample:
        config = self.config.augment
        search = sample["search"]
        # Pasted pairs bring occluders of their own.
        if name != "pasted" and rng.random() < config.occluder_probability:
            search = occlude(rng, search, sample["box_cxcywh"], self._texture(rng), config)
        templates, search = disturb(rng, sample["templates"], search, config)
        return sample | {"templates": templates, "search": search}

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

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())
