"""Our model with the weights of a golden file, as fixtures."""

import json
from typing import Any

import numpy as np
import pytest

from mixformer_jax.convert.names import variables_from_official
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.mixformer import MixFormer, build_model


def _golden_state(arrays: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    """The official state dict in a golden file."""
    return {name.removeprefix("state/"): arrays[name] for name in arrays.files if name.startswith("state/")}


def _golden_config(arrays: np.lib.npyio.NpzFile) -> MixFormerConfig:
    """The settings of a golden file, from what it says about itself."""
    meta = json.loads(str(arrays["meta"]))
    online = "state/score_branch.score_token" in arrays.files
    common = {
        "name": meta["arch"],
        "search_size": meta["search"],
        "template_size": meta["template"],
        "head": "corner_pyramid" if meta["head_type"] == "CORNER_UP" else "corner",
        "head_width": meta["head_dim"],
        "head_norm": "frozen" if meta["head_frozen"] else "batch",
        "score_heads": meta["spm_heads"] if online else 0,
    }
    dims, depth, heads = meta["dims"], meta["depth"], meta["heads"]
    if meta["arch"] == "vit":
        return MixFormerConfig(width=dims, depth=depth, num_heads=heads, **common)
    stages = {
        "early_widths": tuple(dims[:2]),
        "width": dims[2],
        "early_depths": tuple(depth[:2]),
        "depth": depth[2],
    }
    if meta["arch"] == "convmae":
        return MixFormerConfig(patch_embed="convmae", num_heads=heads, **stages, **common)
    return MixFormerConfig(
        backbone="cvt",
        early_heads=tuple(heads[:2]),
        num_heads=heads[2],
        projection="depthwise",
        projection_norm="frozen" if meta["bb_frozen"] else "batch",
        **stages,
        **common,
    )


def _golden_model(arrays: np.lib.npyio.NpzFile) -> tuple[MixFormer, dict[str, Any]]:
    """Model and variables of a golden file."""
    config = _golden_config(arrays)
    return build_model(config), variables_from_official(_golden_state(arrays), config)


@pytest.fixture(scope="session")
def golden_state():
    return _golden_state


@pytest.fixture(scope="session")
def golden_model():
    """`golden_model(arrays)`: the model and variables of a golden file, built once."""
    built: dict[str, tuple[MixFormer, dict[str, Any]]] = {}

    def model_of(arrays: np.lib.npyio.NpzFile) -> tuple[MixFormer, dict[str, Any]]:
        name = arrays.zip.filename
        if name not in built:
            built[name] = _golden_model(arrays)
        return built[name]

    return model_of
