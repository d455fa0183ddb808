"""Architecture, head and sizes told by names and shapes: the tiny golden models, and what cannot be inferred."""

import dataclasses
import json

import numpy as np
import pytest

from mixformer_jax.convert.convert import Hints, infer_config
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.config import SIZES, MixFormerConfig
from tests.convert.layouts import read_layout

TINY = Hints(num_heads=3, score_heads=3)
TINY_CVT = Hints(num_heads=6, early_heads=(1, 3), score_heads=3, search_size=96, template_size=64)
COMMON = MixFormerConfig(search_size=96, template_size=64, width=48, depth=3, num_heads=3, head_width=32)
CONVMAE = dataclasses.replace(COMMON, patch_embed="convmae", early_widths=(16, 24), early_depths=(1, 1))
CVT = dataclasses.replace(
    COMMON,
    backbone="cvt",
    early_widths=(16, 24),
    early_depths=(1, 1),
    early_heads=(1, 3),
    depth=2,
    num_heads=6,
    projection="depthwise",
    head="corner",
)
BUILDS = {"vit": COMMON, "convmae": CONVMAE, "cvt": CVT}
FILES = [
    "mixformer_vit__corner__bn",
    "mixformer_vit_online__corner_up__bn",
    "mixformer_convmae_online__corner_up__frozenbn",
    "mixformer_convmae__corner__frozenbn",
    "mixformer_cvt__corner__frozenbn",
    "mixformer_cvt__corner__bn",
    "mixformer_cvt_online__corner__frozenbn",
]


def state_of(layout):
    """A state dict of zeros in a layout's shapes, without its memory."""
    return {name: np.broadcast_to(np.zeros((), dtype), shape) for name, shape, dtype in layout["entries"]}


@pytest.mark.parametrize("name", FILES)
def test_tiny_models(golden, name):
    arrays = golden(f"model/{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    state = {key.removeprefix("state/"): arrays[key] for key in arrays.files if key.startswith("state/")}
    expected = dataclasses.replace(
        BUILDS[meta["arch"]],
        head="corner_pyramid" if meta["head_type"] == "CORNER_UP" else "corner",
        head_norm="frozen" if meta["head_frozen"] else "batch",
        score_heads=3 if "online" in name else 0,
    )
    if meta["arch"] == "cvt":
        expected = dataclasses.replace(expected, projection_norm="frozen" if meta["bb_frozen"] else "batch")
    found = infer_config(state, TINY_CVT if meta["arch"] == "cvt" else TINY)
    assert dataclasses.replace(found, name=expected.name) == expected
    with pytest.raises(WeightsError, match="heads cannot be inferred from a width of"):
        infer_config(state)


def test_positions_that_are_not_sincos():
    state = state_of(read_layout("mixformer_vit__baseline"))
    found = infer_config(state)  # tables of zeros
    assert found.positions == "interpolated_frozen"
    assert dataclasses.replace(found, positions="sincos", name="mixvit_b") == SIZES["mixvit_b"]


def test_hints_that_contradict_the_tables():
    state = state_of(read_layout("mixformer_vit__baseline"))
    with pytest.raises(WeightsError, match="made for a search_size of 288 pixels, not of 320"):
        infer_config(state, Hints(search_size=320))


def test_cvt_at_another_size():
    state = state_of(read_layout("mixformer_cvt__baseline"))
    assert infer_config(state) == SIZES["mixcvt"]
    found = infer_config(state, Hints(search_size=384))
    assert (found.search_size, found.template_size) == (384, 128)
    with pytest.raises(WeightsError, match="search_size is 100; expected a positive multiple"):
        infer_config(state, Hints(search_size=100))


def test_what_is_no_tracker():
    state = state_of(read_layout("mixformer_vit__baseline"))
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if "box_head" not in name}
    with pytest.raises(WeightsError, match=r"missing backbone.patch_embed.proj.weight.*start a training from it"):
        infer_config(backbone)
    with pytest.raises(WeightsError, match=r"missing backbone.patch_embed.proj.weight; it has a.weight, b, \.\.\."):
        infer_config({"b": np.zeros(3), "a.weight": np.zeros((3, 3))})
    with pytest.raises(WeightsError, match=r"has shape \(768,\), expected 4 axes"):
        infer_config(state | {"backbone.patch_embed.proj.weight": np.zeros(768, np.float32)})
    with pytest.raises(WeightsError, match="323 rows, which is no square grid"):
        infer_config(state | {"backbone.pos_embed_s": np.zeros((1, 323, 768), np.float32)})
    no_blocks = {name: value for name, value in state.items() if ".blocks." not in name}
    with pytest.raises(WeightsError, match=r"missing backbone\.blocks\.0\.mlp\.fc1\.weight"):
        infer_config(no_blocks)
