"""The models of the paper as settings: the sizes of Tables 1 and 2, and those of its studies."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mixformer_jax.models.config import ConfigError, MixFormerConfig


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
