"""A tracker that looks at the middle of its search region alone, at the same scale: fewer tokens. Not in the paper."""

import dataclasses

import jax
import numpy as np

from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.layers import sincos_positions
from mixformer_jax.tracking.tracker import Tracker


def narrowed(tracker: Tracker, share: float) -> Tracker:
    """The same weights on a search region of about this share of the side; its tokens are where they were.

    For targets whose place is nearly known: a box that reaches out of the region is not found whole. Of the position
    table the middle is kept; convolutional backbones have none.

    Raises ConfigError: of a model with MAE's decoder, whose positions count from the region's corner; a region that
    would be smaller than the target.
    """
    config, settings = tracker.config, tracker.settings
    cut = round(config.search_grid * (1 - share) / 2)  # tokens on each side
    grid = config.search_grid - 2 * cut
    if cut == 0 or grid < 1:
        return tracker
    if config.decoder_blocks:
        raise ConfigError(f"{config.name} has decoder_blocks, and its search region cannot be narrowed")
    factor = settings.search_factor * grid / config.search_grid
    if factor < 1:
        least = config.search_grid / grid
        raise ConfigError(
            f"tracker.search_factor is {settings.search_factor:g}, of which the middle {grid / config.search_grid:.2g} "
            f"is searched, less than the target; expected at least {least:.3g}"
        )
    changes: dict[str, object] = {"search_size": grid * config.patch_size}
    variables = tracker.variables
    if config.backbone == "vit":
        changes["positions"] = "learnable"  # tables as they are handed in
        backbone = dict(variables["params"]["backbone"])
        for stream, side in (("template", config.template_grid), ("search", config.search_grid)):
            name = f"{stream}_positions"
            table = backbone[name]["table"] if name in backbone else sincos_positions(side, config.width)
            backbone[name] = {"table": np.asarray(jax.device_get(table), np.float32)}
        table = backbone["search_positions"]["table"].reshape(config.search_grid, config.search_grid, -1)
        middle = table[cut : cut + grid, cut : cut + grid].reshape(grid**2, -1)
        backbone["search_positions"] = {"table": middle}
        variables = variables | {"params": variables["params"] | {"backbone": backbone}}
    return Tracker(
        dataclasses.replace(config, **changes),  # type: ignore[arg-type]
        dataclasses.replace(settings, search_factor=factor),
        variables,
        tracker.device,
        tracker.segmenter,
    )
