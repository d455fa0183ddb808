"""The data section of an experiment: which material, in which shares, how it is drawn, cut and disturbed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.typed_settings import (
    ConfigError,
    Count,
    InnerShare,
    LogStrength,
    NotNegative,
    Positive,
    Range,
    Share,
    ShareAboveZero,
    TypedSettings,
)
from mixformer_jax.views import CropConfig

FrameScheme = Literal["causal", "trident", "trident_pro"]
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


@dataclass(frozen=True)
class Mix(TypedSettings):
    """Relative weights of the sources; 0 leaves a source out."""

    video: NotNegative = 0.4
    still: NotNegative = 0.2
    pasted: NotNegative = 0.35
    region: NotNegative = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(vars(self).values()):
            raise ConfigError(f"{self}: weights must not all be 0")


@dataclass(frozen=True)
class DatasetConfig(TypedSettings):
    """One data set on disk, in its published layout; or packed, in a folder or at an address (gs://bucket/folder)."""

    root: str
    ratio: Positive = 1.0  # how often it is drawn, relative to other data sets and to the weights of `Mix`
    reader: str | None = None  # see `sequences.TRAINING_READERS`; None: as its name in `DataConfig.datasets`
    split: str | None = None  # a published part of it, such as got10k's `vottrain` or lasot's `train`
    list_file: str | None = None  # a text file with the sequences to take, by name or by position
    min_side: NotNegative = 0.0  # targets with a shorter side, in pixels of the frame, are left out


@dataclass(frozen=True)
class DataConfig(TypedSettings):
    """Everything that decides what sample i of a seed is, but for the files on disk.

    Two kinds of material can be mixed. The pool under `root` is decoded into memory once, and rendered and disturbed
    in many ways: for training from scratch on little data. `datasets` are the published ones, whose frames are read
    when they are drawn, as in the official trainer.
    """

    root: str | None = None  # pool: holds videos/ and images/; None: no pool
    include: tuple[str, ...] | None = None  # pool: sequences to train on; None: all
    exclude: tuple[str, ...] = ()  # pool: sequences held out
    groups: tuple[tuple[str, ...], ...] = ()  # pool: sequences of one scene, drawn as often as one sequence
    max_interval: Count = 100  # frames between template and search; the paper's runs have 200
    max_target_side: Positive = 64.0  # pool: video frames are shrunk until sqrt(w * h) is at most this
    min_target_side: NotNegative = 8.0  # pool: smaller targets are left out
    mix: Mix = field(default_factory=Mix)  # pool
    crops: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)  # pool
    datasets: Mapping[str, DatasetConfig] = field(default_factory=dict)
    validation: Mapping[str, DatasetConfig] = field(default_factory=dict)  # data sets held out
    # Which frames of a sequence of `datasets` make a sample, see `pairs.draw_frames`. The official trainer has
    # `causal` in stage 1 and `trident_pro` in stage 2.
    frames: FrameScheme = "causal"
    # Stage 2 (score module): share of samples whose box holds the target; that of the others holds something else,
    # and every sample has a `label`. None: no labels. The official trainer has 0.5.
    positive_share: InnerShare | None = None
    # `device`: training samples of the pool are rendered on the accelerator; validation stays on the host
    render: Literal["host", "device"] = "host"
    # Training stops when more than this share of samples had to be replaced because of unreadable or broken files
    max_bad_share: Share = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root is None and not self.datasets:
            raise ConfigError("data names neither a root with a pool nor datasets; there is nothing to train on")
        if self.render == "device" and self.datasets:
            raise ConfigError(
                "data.render is 'device', which renders the pool under data.root; data.datasets are read from disk, so "
                "leave them out, or set data.render to 'host'"
            )
        if self.datasets and self.root is None and self.augment.occluder_probability > 0:
            raise ConfigError(
                "data.augment.occluder_probability needs the pool under data.root, which occluders are cut from; "
                "set it to 0"
            )


def held_out(config: DataConfig) -> DataConfig | None:
    """What to validate on: frames that are not trained on, with the training jitter and nothing else disturbed.
    That is `validation` where it is given, else the pool's `exclude`d sequences; None where nothing is held out."""
    undisturbed: dict[str, Any] = {"augment": AugmentConfig.none(), "exclude": (), "validation": {}, "render": "host"}
    if config.validation:
        return dataclasses.replace(config, root=None, groups=(), datasets=config.validation, **undisturbed)
    if not config.exclude:
        return None
    # Negative samples must not show another sequence of the target's scene.
    groups = config.groups if config.positive_share is not None else ()
    mix = Mix(video=1.0, still=0.0, pasted=0.0, region=0.0)
    return dataclasses.replace(config, include=config.exclude, groups=groups, mix=mix, datasets={}, **undisturbed)
