"""Model and tracker settings as frozen values, and the one table of sizes.

These records travel inside every weights file, so that a file alone is enough to rebuild its tracker.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

PatchEmbedKind = Literal["linear", "convolutional"]
PositionKind = Literal["sincos", "interpolated_frozen", "interpolated_learnable", "learnable"]
HeadKind = Literal["corner", "corner_pyramid"]
HeadNormKind = Literal["frozen", "batch"]
ComputeDtype = Literal["float32", "bfloat16"]

Record = TypeVar("Record")


class ConfigError(ValueError):
    """A setting that does not exist or has a value that cannot work."""


def dataclass_from_mapping(record_type: type[Record], values: Mapping[str, Any]) -> Record:
    """Builds a settings record, naming every unknown key and its closest known one.

    Raises:
        ConfigError: for unknown keys, choices that do not exist, or where the record itself refuses a value.
    """
    known = [field.name for field in dataclasses.fields(record_type)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        hints = []
        for key in unknown:
            close = difflib.get_close_matches(key, known, n=1)
            hints.append(f"{key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        raise ConfigError(f"{record_type.__name__} has no setting {', '.join(hints)}; it has: {', '.join(known)}")
    for key, hint in get_type_hints(record_type).items():
        if get_origin(hint) is Literal and values.get(key, get_args(hint)[0]) not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise ConfigError(f"{record_type.__name__}.{key} is {values[key]!r}; expected one of {choices}")
    return record_type(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclasses.dataclass(frozen=True)
class MixFormerConfig:
    """Architecture of one MixFormer (the paper's Table 2 for MixViT).

    Attributes:
        name: the size's name, shown to users.
        search_size: side of the square search crop, pixels.
        template_size: side of the square template crops, pixels.
        patch_size: side of a token, pixels (the backbone's stride).
        patch_embed: `linear` is ViT's strided projection; `convolutional` a 4x4 patchify layer and
            strided 3x3 convolutions (Xiao et al. 2021, "Early convolutions help transformers see better").
        width: token channels.
        depth: number of mixed attention blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over `width`.
        drop_path: stochastic depth of the last block; grows linearly from 0 at the first.
        positions: position embeddings of section 3.3; and `learnable`, tables that start at random, for training from
            scratch.
        head: box head, section 3.2 (corner) or 3.3 (pyramidal corner).
        head_width: channels of the head's first convolution.
        head_norm: batch norm of the head: `batch` learns and tracks statistics, `frozen` holds them constant.
        mimetic_init: initialise query/key and value/output products near the identity (Trockman & Kolter 2023,
            "Mimetic initialization of self-attention layers"): at birth, tokens attend to tokens alike. For
            training from scratch.
        dtype: compute type; parameters, softmax, norms, losses and boxes stay float32.
    """

    name: str = "mixvit_b"
    search_size: int = 288
    template_size: int = 128
    patch_size: int = 16
    patch_embed: PatchEmbedKind = "linear"
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    drop_path: float = 0.1
    positions: PositionKind = "sincos"
    head: HeadKind = "corner_pyramid"
    head_width: int = 384
    head_norm: HeadNormKind = "batch"
    mimetic_init: bool = False
    dtype: ComputeDtype = "float32"

    def __post_init__(self) -> None:
        for key in ("search_size", "template_size"):
            if getattr(self, key) % self.patch_size or getattr(self, key) <= 0:
                raise ConfigError(
                    f"{key} is {getattr(self, key)}; expected a positive multiple of patch_size {self.patch_size}"
                )
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} does not divide into {self.num_heads} heads")
        if self.patch_embed == "convolutional" and (self.patch_size < 4 or self.patch_size & (self.patch_size - 1)):
            raise ConfigError(f"patch_size {self.patch_size} must be 4, 8, 16, ... for a convolutional patch_embed")
        if self.width % 4:
            raise ConfigError(f"width {self.width} must be a multiple of 4 for two-axis sin-cos positions")
        if not 0.0 <= self.drop_path < 1.0:
            raise ConfigError(f"drop_path is {self.drop_path}; expected a share in [0, 1)")

    @property
    def search_grid(self) -> int:
        """Tokens along one side of the search crop."""
        return self.search_size // self.patch_size

    @property
    def template_grid(self) -> int:
        """Tokens along one side of a template crop."""
        return self.template_size // self.patch_size

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MixFormerConfig":
        return dataclass_from_mapping(cls, values)


@dataclasses.dataclass(frozen=True)
class TrackerConfig:
    """How a tracker cuts its crops and renews its templates.

    Attributes:
        template_factor: side of a template crop over the square root of the box area.
        search_factor: the same for the search region.
        num_online_templates: online template slots beside the initial template.
        update_interval: frames between renewals of an online template.
        clip_margin: pixels by which a box must reach into the frame.
    """

    template_factor: float = 2.0
    search_factor: float = 4.5
    num_online_templates: int = 1
    update_interval: int = 200
    clip_margin: int = 10

    def __post_init__(self) -> None:
        for key in ("template_factor", "search_factor"):
            if not getattr(self, key) >= 1.0:
                raise ConfigError(f"{key} is {getattr(self, key)}; expected at least 1")
        if self.num_online_templates < 0 or self.update_interval < 1 or self.clip_margin < 0:
            raise ConfigError(
                "expected num_online_templates >= 0, update_interval >= 1, clip_margin >= 0; got "
                f"{self.num_online_templates}, {self.update_interval}, {self.clip_margin}"
            )

    @property
    def num_slots(self) -> int:
        """Template slots: the initial template and the online ones."""
        return 1 + self.num_online_templates

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrackerConfig":
        return dataclass_from_mapping(cls, values)


# The paper, Table 2 (layers, width, input sizes); heads and head norms from the official experiments.
SIZES: Mapping[str, MixFormerConfig] = MappingProxyType(
    {
        "mixvit_b": MixFormerConfig(name="mixvit_b"),
        "mixvit_l": MixFormerConfig(
            name="mixvit_l", search_size=384, template_size=192, width=1024, depth=24, num_heads=16
        ),
        "mixvit_tiny": MixFormerConfig(
            name="mixvit_tiny",
            search_size=128,
            template_size=64,
            patch_embed="convolutional",
            width=192,
            depth=6,
            num_heads=3,
            drop_path=0.0,
            # With the other kinds, template and search tokens of like positions look alike: attention then matches
            # places instead of content, and a small model trained from scratch takes long to unlearn that.
            positions="learnable",
            head_width=96,
            mimetic_init=True,
        ),
    }
)


def size_config(name: str) -> MixFormerConfig:
    """Looks a size up in the table.

    Raises:
        ConfigError: for a name that is not in it.
    """
    if name not in SIZES:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join(SIZES)}")
    return SIZES[name]
