"""The official tracking loops with everything that they need."""

import dataclasses
import json
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from mixformer_jax.convert.names import variables_from_official
from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.tracking.tracker import Tracker
from tests.models.conftest import _golden_config, _golden_state

# The official tracker without scores, and the one with scores and so many online templates.
ONLINE_SLOTS = {"plain": 1, "online1": 1, "online2": 2, "online3": 3}


class GoldenLoop:
    """One loop of the official code: its weights, its settings, its frames, and by name what it did."""

    def __init__(self, arrays: np.lib.npyio.NpzFile, name: str) -> None:
        meta = json.loads(str(arrays["meta"]))
        config, state = _golden_config(arrays), _golden_state(arrays)
        if name == "plain":
            config = dataclasses.replace(config, score_heads=0)
            state = {key: value for key, value in state.items() if not key.startswith("score_branch.")}
        self.config = config
        self.variables = variables_from_official(state, config)
        self.settings = TrackerConfig(
            template_factor=meta["template_factor"],
            search_factor=meta["search_factor"],
            num_online_templates=ONLINE_SLOTS[name],
            update_interval=meta["update_interval"],
        )
        self.frames = np.ascontiguousarray(np.moveaxis(arrays["video_hwct"], -1, 0))
        self.box_xywh = arrays["init_bbox"]
        self._arrays, self._name = arrays, name

    def __getitem__(self, key: str) -> np.ndarray:
        return self._arrays[f"{self._name}/{key}"]

    def tracker(self, **settings: object) -> Tracker:
        return Tracker(self.config, dataclasses.replace(self.settings, **settings), self.variables)


@pytest.fixture(scope="session")
def golden_loop(golden):
    return lambda family, name: GoldenLoop(golden(f"track/{family}.npz"), name)


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """These models are tiny: optimising the programs takes ten times as long as running them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
