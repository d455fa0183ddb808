import functools
import re

import jax
import pytest

from mixformer_jax.models.config import SIZES, STUDIES, ConfigError, MixFormerConfig, TrackerConfig, size_config
from mixformer_jax.models.mixformer import build_model, variable_shapes


@functools.cache
def count(name):
    """Learned parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(build_model(size_config(name)))["params"]))


def unused(width, tokens):
    """Official parameters of MixViT that are none here: what no forward pass reads (class token, 197-row position
    table, final norm, 1000-way classifier), and the sin-cos tables, which are constants."""
    return width + 197 * width + 2 * width + (width + 1) * 1000 + tokens * width


@pytest.mark.parametrize(
    ("name", "official", "not_here"),
    [
        ("mixvit_b", 98_403_894, unused(768, 18**2 + 8**2)),
        ("mixvit_l", 319_698_742, unused(1024, 24**2 + 12**2)),
        ("mixvit_b_online", 104_311_151, unused(768, 18**2 + 8**2)),
        ("mixvit_b_convmae", 96_291_534, 2 * 768 + (18**2 + 8**2) * 768),
        ("mixvit_l_convmae", 287_529_422, 2 * 1024 + (24**2 + 12**2) * 1024),
        ("mixcvt", 35_980_906, 2 * 384 + 385 * 1000),
        ("mixcvt_l", 184_894_122, 2 * 1024 + 1025 * 1000),
    ],
)
def test_parameters_of_the_sizes(name, official, not_here):
    assert count(name) == official - not_here


def test_the_shipped_size_is_small():
    assert count("mixvit_tiny") <= 6_000_000


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # Table 3; its other rows are in tests/planning/test_profile.py, which counts their operations, too
        *(("sam21_cam1", 37.35), ("sam20_mam1", 35.57), ("sam5_mam16", 35.87), ("mixcvt_symmetric", 35.97)),
        # Tables 1 and 2
        *(("mixcvt", 35.61), ("mixcvt_l", 183.89), ("mixvit_b", 97.0), ("mixvit_l", 318.0)),
        *(("mixvit_b_convmae", 96.0), ("mixvit_l_convmae", 286.0)),
    ],
)
def test_parameters_of_the_paper(name, millions):
    assert count(name) / 1e6 == pytest.approx(millions, rel=0.03)


def test_studies_have_the_blocks_of_their_rows():
    """Table 3: SAM(n) + W-MAM(m) of 21; Table 5: twelve in all; Fig. 7: 4 to 12, and N of the decoder."""
    for separate, mixed in [(20, 1), (15, 6), (10, 11), (5, 16)]:
        row = STUDIES[f"sam{separate}_mam{mixed}"]
        assert (row.num_blocks, row.mixed_blocks, row.attention) == (separate + mixed, mixed, "symmetric")
    for name, cross, context in [("sam21_cam1", 1, 0), ("sam21_cam3", 3, 0), ("sam21_transt4", 0, 4)]:
        row = STUDIES[name]
        assert (row.num_blocks, row.mixed_blocks) == (21, 0)
        assert (row.cross_attention_blocks, row.context_augment_layers) == (cross, context)
    for name, head in [("mixcvt_symmetric", "corner"), ("mixcvt_symmetric_query", "query")]:
        assert (STUDIES[name].num_blocks, STUDIES[name].mixed_blocks, STUDIES[name].head) == (21, None, head)
    assert {row.num_blocks for name, row in STUDIES.items() if name.startswith("scratch_")} == {12}
    for depth in range(4, 13):
        for name in (f"mixvit_b_depth{depth}", f"mixvit_b_deit3_depth{depth}"):
            assert (STUDIES[name].num_blocks, STUDIES[name].head) == (depth, "corner")
    assert [STUDIES[f"mixvit_b_depth12_d{n}"].num_blocks for n in (1, 2, 4)] == [13, 14, 16]


# Of a row of studies that differ in depth alone, the ends are built.
@pytest.mark.parametrize("name", [name for name in STUDIES if not re.search(r"_depth([5-9]|1[01])$", name)])
def test_every_study_can_be_built(name):
    assert STUDIES[name].name == name
    assert count(name) > 1e6


def test_sizes_follow_table_2():
    rows = {"mixvit_b": (12, 768, 288, 128), "mixvit_l": (24, 1024, 384, 192)}
    for name, row in rows.items():
        size = SIZES[name]
        assert (size.depth, size.width, size.search_size, size.template_size) == row
    with pytest.raises(ConfigError, match="mixvit_b, mixvit_b_online, mixvit_l"):
        size_config("mixvit_xxl")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wdith": 3}, "did you mean 'width'"),
        ({"search_size": 100}, "multiple of patch_size"),
        ({"num_heads": 5}, "does not divide"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"head": "query3"}, "corner, corner_pyramid"),
        ({"depth": 0}, "depth is 0; expected a whole number, at least 1"),
        ({"score_heads": 7}, "7 score_heads"),
        ({"backbone": "cvt", "positions": "learnable"}, "settings of the backbone 'vit'"),
        ({"backbone": "cvt", "early_widths": (64, 192)}, "one value for each early stage"),
        ({"backbone": "cvt"}, "has stride 4"),
        ({"projection": "depthwise"}, "setting of the backbone 'cvt'"),
        ({"patch_embed": "convmae"}, "2 early stages"),
        ({"mixed_blocks": 13}, "mixed_blocks is 13; expected 0 to 12"),
        ({"mixed_blocks": 0}, "the target would never be seen"),
        ({"context_augment_layers": 4, "score_heads": 4}, "corner head alone"),
        ({"decoder_blocks": 2, "cross_attention_blocks": 1}, "decoder_blocks continue"),
        ({"dtype": "float64"}, "float32, bfloat16"),
    ],
)
def test_settings_that_cannot_work(values, message):
    with pytest.raises(ConfigError, match=message):
        MixFormerConfig.from_dict(values)


def test_tracker_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="search_factor is 0"):
        TrackerConfig(search_factor=0.0)
    with pytest.raises(ConfigError, match="num_online_templates"):
        TrackerConfig(num_online_templates=-1)
