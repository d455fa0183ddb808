"""Our model with the weights of a golden file, as fixtures."""

import json
from typing import Any

import numpy as np
import pytest

from mixformer_jax.convert.names import variables_from_official
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.mixformer import MixFormer, build_model


def _golden_state(arrays: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    """The official state dict in a golden file, without the score module."""
    names = [name for name in arrays.files if name.startswith("state/") and "score_branch" not in name]
    return {name.removeprefix("state/"): arrays[name] for name in names}


def _golden_model(arrays: np.lib.npyio.NpzFile) -> tuple[MixFormer, dict[str, Any]]:
    """Model and variables of a golden file of the plain ViT builds."""
    meta = json.loads(str(arrays["meta"]))
    config = MixFormerConfig(
        name=meta["build"] if "build" in meta else meta["arch"],
        search_size=meta["search"],
        template_size=meta["template"],
        width=meta["dims"],
        depth=meta["depth"],
        num_heads=meta["heads"],
        head="corner_pyramid" if meta["head_type"] == "CORNER_UP" else "corner",
        head_width=meta["head_dim"],
        head_norm="frozen" if meta["head_frozen"] else "batch",
    )
    return build_model(config), variables_from_official(_golden_state(arrays), config)


@pytest.fixture(scope="session")
def golden_state():
    return _golden_state


@pytest.fixture(scope="session")
def golden_model():
    return _golden_model
