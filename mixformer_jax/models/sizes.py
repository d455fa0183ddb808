"""The models of the paper as settings: the sizes of Tables 1 and 2, and those of its studies."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from mixformer_jax.models.config import ConfigError, MixFormerConfig

_MIXVIT_B = MixFormerConfig(name="mixvit_b")
_MIXVIT_L = MixFormerConfig(name="mixvit_l", search_size=384, template_size=192, width=1024, depth=24, num_heads=16)
_MIXCVT = MixFormerConfig(
    name="mixcvt",
    backbone="cvt",
    search_size=320,
    early_widths=(64, 192),
    early_depths=(1, 4),
    early_heads=(1, 3),
    width=384,
    depth=16,
    num_heads=6,
    projection="depthwise",
    head="corner",
)

# Widths, depths, heads and input sizes: the paper, Table 1 (MixCvT) and Table 2 (MixViT). Box heads, their norms and
# stochastic depth: the official experiments.
_PLAIN = (
    _MIXVIT_B,
    _MIXVIT_L,
    dataclasses.replace(
        _MIXVIT_B,
        name="mixvit_b_convmae",
        patch_embed="convmae",
        early_widths=(256, 384),
        early_depths=(2, 2),
        depth=11,
        drop_path=0.0,
    ),
    dataclasses.replace(
        _MIXVIT_L,
        name="mixvit_l_convmae",
        patch_embed="convmae",
        early_widths=(384, 768),
        early_depths=(2, 2),
        depth=20,
        drop_path=0.0,
    ),
    _MIXCVT,
    dataclasses.replace(
        _MIXCVT,
        name="mixcvt_l",
        early_widths=(192, 768),
        early_depths=(2, 2),
        early_heads=(3, 12),
        width=1024,
        depth=12,
        num_heads=16,
        drop_path=0.3,
    ),
    MixFormerConfig(
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
)


def with_score(config: MixFormerConfig) -> MixFormerConfig:
    """The model of the second training stage: a score module, everything else frozen, its head's norms too."""
    return dataclasses.replace(
        config, name=f"{config.name}_online", score_heads=config.output_width // 64, head_norm="frozen"
    )


SIZES: Mapping[str, MixFormerConfig] = MappingProxyType(
    {config.name: config for plain in _PLAIN for config in (plain, with_score(plain))}
)


def _study(name: str, base: MixFormerConfig, **changes: object) -> MixFormerConfig:
    return dataclasses.replace(base, name=name, **changes)  # type: ignore[arg-type]


# Table 5: from scratch, twelve blocks, plain corner head, layer norm where CvT has batch norm. Blocks by stage, widths
# and heads of the hierarchical ones are not in the paper: those of CvT-13 less one block, and of CvT.
_SCRATCH = dataclasses.replace(_MIXVIT_B, head="corner")
_SCRATCH_STAGES = dataclasses.replace(_MIXCVT, early_depths=(1, 2), depth=9, projection_norm="layer")

# Table 3 was measured without the asymmetric scheme.
_SYMMETRIC = dataclasses.replace(_MIXCVT, attention="symmetric")
_PLAIN_HEAD = dataclasses.replace(_MIXVIT_B, head="corner")

STUDIES: Mapping[str, MixFormerConfig] = MappingProxyType(
    {
        config.name: config
        for config in (
            # Table 3
            _study("sam21_cam1", _MIXCVT, mixed_blocks=0, cross_attention_blocks=1),
            _study("sam21_cam3", _MIXCVT, mixed_blocks=0, cross_attention_blocks=3),
            _study("sam21_transt4", _MIXCVT, mixed_blocks=0, context_augment_layers=4),
            *(_study(f"sam{21 - mixed}_mam{mixed}", _SYMMETRIC, mixed_blocks=mixed) for mixed in (1, 6, 11, 16)),
            _study("mixcvt_symmetric", _SYMMETRIC),
            _study("mixcvt_symmetric_query", _SYMMETRIC, head="query"),
            # Table 5
            _study("scratch_plain", _SCRATCH),
            _study("scratch_stages", _SCRATCH_STAGES, projection="linear"),
            _study("scratch_stages_depthwise", _SCRATCH_STAGES),
            # Table 6
            _study("mixvit_b_corner_v1", _PLAIN_HEAD, positions="interpolated_frozen"),
            _study("mixvit_b_corner_v2", _PLAIN_HEAD, positions="interpolated_learnable"),
            _study("mixvit_b_corner_v3", _PLAIN_HEAD),
            # Fig. 7
            *(_study(f"mixvit_b_depth{depth}", _PLAIN_HEAD, depth=depth) for depth in range(4, 13)),
            *(_study(f"mixvit_b_depth12_d{n}", _PLAIN_HEAD, decoder_blocks=n) for n in (1, 2, 4)),
            *(_study(f"mixvit_b_deit3_depth{d}", _PLAIN_HEAD, depth=d, layer_scale=True) for d in range(4, 13)),
        )
    }
)


def size_config(name: str) -> MixFormerConfig:
    """Looks a size or a study model up.

    Raises:
        ConfigError: for a name that is neither.
    """
    found = SIZES.get(name) or STUDIES.get(name)
    if found is None:
        raise ConfigError(f"unknown model {name!r}; known: {', '.join([*SIZES, *STUDIES])}")
    return found
