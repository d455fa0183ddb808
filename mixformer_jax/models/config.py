"""Model and tracker settings as frozen values, which travel inside every weights file; the paper's models by name."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from mixformer_jax.typed_settings import (
    ConfigError,
    Count,
    CropFactor,
    NaturalNumber,
    OnlineTemplates,
    Range,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    Streams,
    TypedSettings,
    dataclass_from_mapping,
    refuse,
)

__all__ = ["SIZES", "STUDIES", "ConfigError", "MixFormerConfig", "TrackerConfig", "dataclass_from_mapping"]
__all__ += ["size_config", "with_score"]

BackboneKind = Literal["vit", "cvt"]
PositionKind = Literal["sincos", "interpolated_frozen", "interpolated_learnable", "learnable"]
NormKind = Literal["frozen", "batch", "layer"]
HeadKind = Literal["corner", "corner_pyramid", "query"]
HeadNormKind = Literal["frozen", "batch"]
ComputeDtype = Literal["float32", "bfloat16"]
AttentionKernel = Literal["auto", "xla", "cudnn", "pallas"]
# Of `jax.checkpoint_policies`.
RematPolicy = Literal["nothing_saveable", "dots_with_no_batch_dims_saveable", "dots_saveable"]

# MAE's decoder (He et al. 2022, section 4.1).
DECODER_WIDTH, DECODER_HEADS = 512, 16

# Files that others wrote hold settings, too. The upper ends are far above any model of the paper, and below what takes
# minutes or all memory.
MOST_TOKENS = 128  # along a side of a crop
MOST_STAGES = 8
Width = Annotated[int, Range(1, 4096)]
Blocks = Annotated[int, Range(0, 64)]
SomeBlocks = Annotated[int, Range(1, 64)]
SomeHeads = Annotated[int, Range(1, 256)]


@dataclasses.dataclass(frozen=True)
class MixFormerConfig(TypedSettings):
    """Architecture of one MixFormer; `sizes.SIZES` holds those of the paper, whose sections and tables are named here.

    Attributes:
        name: of the size, shown to users.
        search_size: side of the square search crop, pixels.
        template_size: side of the square template crops, pixels.
        backbone: `vit`, one stage on a grid of patches (MixViT, section 3.3), or `cvt`, stages with convolutional
            embeddings between them (MixCvT, section 3.2).
        patch_size: side of a token of the last stage, pixels (the backbone's stride).
        patch_embed: of `vit`: `linear` projection, `convmae`'s two convolutional stages, or `convolutional`, a 4x4
            patchify layer and strided 3x3 convolutions (Xiao et al. 2021).
        early_widths: channels of the stages before the last one (`convmae` and `cvt`).
        early_depths: their blocks.
        early_heads: their attention heads (`cvt`).
        width: token channels of the last stage.
        depth: mixed attention blocks of the last stage.
        num_heads: attention heads of the last stage.
        mlp_ratio: hidden width of the MLP over the block's width.
        drop_path: stochastic depth of the last block; grows linearly from 0 over the last stage.
        layer_scale: a learned factor per channel on both residual branches (Touvron et al. 2021), as in DeiT3.
        positions: position embeddings of `vit` (section 3.3); `learnable` tables start at random, for training from
            scratch.
        projection: of queries, keys and values: `linear` (S-MAM), or first `depthwise` 3x3 convolutions, with stride 2
            for keys and values (W-MAM, section 3.1; `cvt` only).
        projection_norm: norm after the depth-wise convolutions; `layer` for Table 5.
        attention: `asymmetric` is eq. 2, templates do not see the search region; `symmetric` is eq. 1.
        mixed_blocks: so many last blocks of all stages mix, the earlier ones attend within each image alone (Table 3,
            rows 4-7). None: all.
        cross_attention_blocks: blocks after the backbone in which the search region attends to the templates (Table 3,
            rows 1 and 2).
        context_augment_layers: TransT's ECA + CFA layers after the backbone (Table 3, row 3).
        decoder_blocks: mixed attention blocks in the shape of MAE's decoder after the encoder (Fig. 7, "+DN").
        head: box head, section 3.2 (corner, query) or 3.3 (pyramidal corner).
        head_width: channels of a corner head's first convolution.
        head_norm: batch norm of a corner head: `batch` learns and tracks statistics, `frozen` holds them constant.
        score_heads: attention heads of the score prediction module (section 3.5); 0 is a model without one.
        second_stream: what crops show beside RGB, in three more channels, such as depth or thermal images (not in the
            paper): `added`, tokens of a patch embedding of its own, times a factor per channel that starts at zero, are
            added to RGB's; `concatenated`, such tokens stand beside RGB's, and those of patches without any measurement
            are masked; `alone`, the second stream is read in the place of RGB. See docs/depth.md.
        colour_map: the second stream's three equal channels become those of a colour map.
        mimetic_init: query/key and value/output products start near the identity (Trockman & Kolter 2023), so that
            tokens attend to tokens alike; for training from scratch.
        dtype: compute type; parameters, softmax, norms, losses and boxes stay float32.
        attention_kernel: what computes attention: `xla` (plain operations), `cudnn` (NVIDIA, bfloat16), `pallas` (TPU,
            in training); `auto` takes the fused kernel where device, type and shapes allow it.
    """

    name: str = "mixvit_b"
    search_size: Annotated[int, Range(1, 2048)] = 288
    template_size: Annotated[int, Range(1, 2048)] = 128
    backbone: BackboneKind = "vit"
    patch_size: Annotated[int, Range(1, 256)] = 16
    patch_embed: Literal["linear", "convolutional", "convmae"] = "linear"
    early_widths: tuple[Width, ...] = ()
    early_depths: tuple[SomeBlocks, ...] = ()
    early_heads: tuple[SomeHeads, ...] = ()
    width: Width = 768
    depth: SomeBlocks = 12
    num_heads: SomeHeads = 12
    mlp_ratio: Annotated[int, Range(1, 32)] = 4
    drop_path: ShareBelowOne = 0.1
    layer_scale: bool = False
    positions: PositionKind = "sincos"
    projection: Literal["linear", "depthwise"] = "linear"
    projection_norm: NormKind = "frozen"
    attention: Literal["asymmetric", "symmetric"] = "asymmetric"
    mixed_blocks: NaturalNumber | None = None
    cross_attention_blocks: Blocks = 0
    context_augment_layers: Blocks = 0
    decoder_blocks: Blocks = 0
    head: HeadKind = "corner_pyramid"
    head_width: Width = 384
    head_norm: HeadNormKind = "batch"
    score_heads: Annotated[int, Range(0, 256)] = 0
    second_stream: Literal["none", "added", "concatenated", "alone"] = "none"
    colour_map: bool = False
    mimetic_init: bool = False
    dtype: ComputeDtype = "float32"
    attention_kernel: AttentionKernel = "auto"

    section = "model"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("search_size", "template_size"):
            size, patch = getattr(self, key), self.patch_size
            expected = f"expected a positive multiple of patch_size {patch}, at most {MOST_TOKENS} of them"
            refuse({f"{key} is {size}; {expected}": size % patch or size > MOST_TOKENS * patch})
        self._check_stages()
        self._check_parts()

    def _check_stages(self) -> None:
        early = {"early_widths": self.early_widths, "early_depths": self.early_depths, "early_heads": self.early_heads}
        lengths, patch, embed = tuple(map(len, early.values())), self.patch_size, self.patch_embed
        refuse({f"expected at most {MOST_STAGES} early stages, got {early}": max(lengths) > MOST_STAGES})
        if self.backbone == "cvt":
            stride, vit_only = 4 * 2 ** lengths[0], embed != "linear" or self.positions != "sincos"
            stated = f"patch_size is {patch}; with {lengths[0]} early stages the backbone 'cvt' has stride {stride}"
            refuse(
                {
                    "patch_embed and positions are settings of the backbone 'vit', not of 'cvt'": vit_only,
                    f"expected one value for each early stage, got {early}": len(set(lengths)) > 1,
                    stated: patch != stride,
                }
            )
        else:
            stages, no_power = 2 if embed == "convmae" else 0, patch < 4 or patch & (patch - 1)
            allowed = f"patch_embed {embed!r} has {stages} early stages and no heads; got {early}"
            powers = f"patch_size {patch} must be 4, 8, 16, ... for patch_embed 'convolutional'"
            refuse(
                {
                    "projection 'depthwise' is a setting of the backbone 'cvt'": self.projection != "linear",
                    allowed: lengths != (stages, stages, 0),
                    f"patch_size is {patch}; patch_embed 'convmae' has stride 16": stages and patch != 16,
                    powers: embed == "convolutional" and no_power,
                    f"width {self.width} must be a multiple of 4 for two-axis sin-cos positions": self.width % 4,
                }
            )
        refuse({f"width {w} does not divide into {heads} heads": w % heads for _depth, w, heads in self.stages})

    def _check_parts(self) -> None:
        mixed, cross, context = self.mixed_blocks, self.cross_attention_blocks, self.context_augment_layers
        width, heads, second = self.output_width, self.score_heads, self.second_stream
        is_vit, is_query = self.backbone == "vit", self.head == "query"
        is_plain = is_vit and mixed is None and not (cross or context or self.decoder_blocks or is_query)
        too_many = f"mixed_blocks is {mixed}; expected 0 to {self.num_blocks}, or None for all"
        unseen = "mixed_blocks is 0 and nothing after the backbone mixes: the target would never be seen"
        decoder = "decoder_blocks continue the plain encoder of the backbone 'vit' and nothing else"
        fused = "context_augment_layers go with a corner head alone"
        plain = "goes with the backbone 'vit' whose blocks all mix, nothing after them, and a corner head"
        mapped = "colour_map is of a second stream, and second_stream is 'none'"
        narrow = f"head_width is {self.head_width}; expected at least 8: a corner head divides it by 8"
        refuse(
            {
                too_many: mixed is not None and mixed > self.num_blocks,
                unseen: mixed == 0 and not (cross or context),
                decoder: self.decoder_blocks and (not is_vit or cross or context),
                fused: context and (cross or is_query or heads),
                f"second_stream 'concatenated' {plain}": second == "concatenated" and not is_plain,
                mapped: self.colour_map and second == "none",
                f"width {width} does not divide into {heads} score_heads": width % max(1, heads),
                narrow: not is_query and self.head_width < 8,
            }
        )

    @property
    def streams(self) -> Streams:
        """What is read of a frame with two streams."""
        if self.second_stream == "none":
            return "colour"
        return "second" if self.second_stream == "alone" else "both"

    @property
    def channels(self) -> int:
        """Of the crops."""
        return 6 if self.streams == "both" else 3

    @property
    def search_grid(self) -> int:
        """Tokens along one side of the search crop."""
        return self.search_size // self.patch_size

    @property
    def template_grid(self) -> int:
        """Tokens along one side of a template crop."""
        return self.template_size // self.patch_size

    @property
    def stages(self) -> tuple[tuple[int, int, int], ...]:
        """Depth, width and heads of every stage of attention blocks; ConvMAE's convolutional ones are none."""
        early = zip(self.early_depths, self.early_widths, self.early_heads, strict=False)
        decoder = [(self.decoder_blocks, DECODER_WIDTH, DECODER_HEADS)] if self.decoder_blocks else []
        return (*early, (self.depth, self.width, self.num_heads), *decoder)

    @property
    def num_blocks(self) -> int:
        """Attention blocks of the backbone through all stages."""
        return sum(depth for depth, _width, _heads in self.stages)

    @property
    def output_width(self) -> int:
        """Channels of the features that the head reads."""
        return DECODER_WIDTH if self.decoder_blocks else self.width

    @property
    def is_cacheable(self) -> bool:
        """Whether templates can be encoded without the search region."""
        return self.attention == "asymmetric" and not self.context_augment_layers


@dataclasses.dataclass(frozen=True)
class TrackerConfig(TypedSettings):
    """How a tracker cuts its crops, renews its templates, and tells that it lost a target.

    Scores, and what depends on them (`candidate_above`, `max_score_decay`, `lost_*`, `found_*`, `redetect_*`,
    `entropy_margin`, `long_term`), are those of models with a score prediction module. Losing and finding are not in
    the paper, and change no box without `redetect_every` or `long_term`.

    Attributes:
        template_factor: side of a template crop over the square root of the box area.
        search_factor: the same for the search region.
        num_online_templates: online template slots beside the initial template.
        update_interval: frames between renewals of an online template.
        candidate_above: score above which a crop may become an online template (0.5 in the paper).
        max_score_decay: factor on the best score of an interval for each frame, so that a later crop may take the place
            of an earlier one that was a little better.
        clip_margin: pixels by which a box must reach into the frame, and its least width and height (10 in the official
            trackers).
        clip_share: that margin is at most this share of the given box's shorter side, and at least a pixel, so that
            small targets have small boxes; 0: `clip_margin` whatever the target. Not in the paper.
        lost_below: a target counts as lost after `lost_after` frames in a row with a score below this.
        lost_after: see `lost_below`.
        found_above: it counts as found again after `found_after` frames in a row with a score above this.
        found_after: see `found_above`.
        redetect_every: while a target is lost, every so many frames another search crop looks elsewhere in the frame,
            see `tracking/scores.py`; 0: never, as in the paper.
        redetect_above: score above which what is found elsewhere counts.
        entropy_margin: nats by which the entropy of both corner maps together may be above what is usual for the
            target before its score falls: the odds are divided by the exponential of the excess, that is by how many
            times more places the corners may be at; 0: never, as in the paper. For corner heads.
        long_term: for videos in which the target goes and comes back: a lost one is looked for (`redetect_every`, or
            every frame where that is 0), and its score is multiplied by `lost_below`, so that scores tell whether the
            target is there.
        size_smoothing: share of the last box in the next one's size (geometric mean); 0: none, as in the paper.
    """

    template_factor: CropFactor = 2.0
    search_factor: CropFactor = 4.5
    num_online_templates: OnlineTemplates = 1
    update_interval: Count = 200
    candidate_above: Share = 0.5
    max_score_decay: ShareAboveZero = 1.0
    clip_margin: Annotated[int, Range(0, 1000)] = 10
    clip_share: Share = 0.0
    lost_below: Share = 0.25
    lost_after: Count = 5
    found_above: Share = 0.5
    found_after: Count = 2
    redetect_every: Annotated[int, Range(0, 1000)] = 0
    redetect_above: Share = 0.6
    entropy_margin: Annotated[float, Range(0.0, 100.0)] = 0.0
    long_term: bool = False
    size_smoothing: Annotated[float, Range(0.0, 0.9)] = 0.0

    section = "tracker"

    def __post_init__(self) -> None:
        super().__post_init__()
        both = f"lost_below is {self.lost_below} and found_above {self.found_above}"
        refuse({f"{both}; expected the first not above the second": self.lost_below > self.found_above})

    @property
    def num_slots(self) -> int:
        """Template slots: the initial template and the online ones."""
        return 1 + self.num_online_templates

    @property
    def look_every(self) -> int:
        """While a target is lost, it is looked for elsewhere every so many frames; 0: never."""
        return self.redetect_every or int(self.long_term)


def _variant(base: MixFormerConfig, name: str, **changes: Any) -> MixFormerConfig:
    return dataclasses.replace(base, name=name, **changes)


# Widths, depths, heads and input sizes: the paper, Table 1 (MixCvT) and Table 2 (MixViT). Box heads, their norms and
# stochastic depth: the official experiments.
_MIXVIT_B = MixFormerConfig(name="mixvit_b")
_MIXVIT_L = _variant(_MIXVIT_B, "mixvit_l", search_size=384, template_size=192, width=1024, depth=24, num_heads=16)
_CONVMAE: dict[str, Any] = {"patch_embed": "convmae", "early_depths": (2, 2), "drop_path": 0.0}
_CVT13: dict[str, Any] = {
    "early_widths": (64, 192),
    "early_depths": (1, 4),
    "early_heads": (1, 3),
    "width": 384,
    "num_heads": 6,
}
_CVT_W24: dict[str, Any] = {
    "early_widths": (192, 768),
    "early_depths": (2, 2),
    "early_heads": (3, 12),
    "width": 1024,
    "num_heads": 16,
}
_MIXCVT = MixFormerConfig(
    "mixcvt", backbone="cvt", search_size=320, depth=16, projection="depthwise", head="corner", **_CVT13
)
_MIXVIT_NANO = MixFormerConfig(
    "mixvit_nano",
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
)
_PLAIN = (
    _MIXVIT_B,
    _MIXVIT_L,
    _variant(_MIXVIT_B, "mixvit_b_convmae", early_widths=(256, 384), depth=11, **_CONVMAE),
    _variant(_MIXVIT_L, "mixvit_l_convmae", early_widths=(384, 768), depth=20, **_CONVMAE),
    _MIXCVT,
    _variant(_MIXCVT, "mixcvt_l", depth=12, drop_path=0.3, **_CVT_W24),
    _MIXVIT_NANO,
    _variant(_MIXVIT_NANO, "mixvit_tiny", search_size=192, template_size=96),
)


def with_score(config: MixFormerConfig) -> MixFormerConfig:
    """The model of the second training stage: a score module, everything else frozen, its head's norms too."""
    return _variant(config, f"{config.name}_online", score_heads=config.output_width // 64, head_norm="frozen")


def _by_name(*configs: MixFormerConfig) -> Mapping[str, MixFormerConfig]:
    return MappingProxyType({config.name: config for config in configs})


SIZES = _by_name(*(config for plain in _PLAIN for config in (plain, with_score(plain))))

# Table 3 was measured without the asymmetric scheme.
_SYMMETRIC = dataclasses.replace(_MIXCVT, attention="symmetric")
_PLAIN_HEAD = dataclasses.replace(_MIXVIT_B, head="corner")
# Table 5: from scratch, twelve blocks, plain corner head, layer norm where CvT has batch norm. Blocks by stage, widths
# and heads of the hierarchical ones are not in the paper: those of CvT-13 less one block, and of CvT.
_SCRATCH_STAGES = dataclasses.replace(_MIXCVT, early_depths=(1, 2), depth=9, projection_norm="layer")

STUDIES = _by_name(
    # Table 3
    _variant(_MIXCVT, "sam21_cam1", mixed_blocks=0, cross_attention_blocks=1),
    _variant(_MIXCVT, "sam21_cam3", mixed_blocks=0, cross_attention_blocks=3),
    _variant(_MIXCVT, "sam21_transt4", mixed_blocks=0, context_augment_layers=4),
    *(_variant(_SYMMETRIC, f"sam{21 - mixed}_mam{mixed}", mixed_blocks=mixed) for mixed in (1, 6, 11, 16)),
    _variant(_SYMMETRIC, "mixcvt_symmetric"),
    _variant(_SYMMETRIC, "mixcvt_symmetric_query", head="query"),
    # Table 5
    _variant(_PLAIN_HEAD, "scratch_plain"),
    _variant(_SCRATCH_STAGES, "scratch_stages", projection="linear"),
    _variant(_SCRATCH_STAGES, "scratch_stages_depthwise"),
    # Table 6
    _variant(_PLAIN_HEAD, "mixvit_b_corner_v1", positions="interpolated_frozen"),
    _variant(_PLAIN_HEAD, "mixvit_b_corner_v2", positions="interpolated_learnable"),
    _variant(_PLAIN_HEAD, "mixvit_b_corner_v3"),
    # Fig. 7
    *(_variant(_PLAIN_HEAD, f"mixvit_b_depth{depth}", depth=depth) for depth in range(4, 13)),
    *(_variant(_PLAIN_HEAD, f"mixvit_b_depth12_d{n}", decoder_blocks=n) for n in (1, 2, 4)),
    *(_variant(_PLAIN_HEAD, f"mixvit_b_deit3_depth{depth}", depth=depth, layer_scale=True) for depth in range(4, 13)),
)


def size_config(name: str) -> MixFormerConfig:
    """The size or study model of a name; ConfigError for a name that is neither."""
    found = SIZES.get(name) or STUDIES.get(name)
    if found is None:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join([*SIZES, *STUDIES])}")
    return found
