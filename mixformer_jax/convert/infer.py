"""Which model a state dict belongs to, told by its names and shapes alone."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mixformer_jax.convert.names import COUNTER
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.models.layers import sincos_positions
from mixformer_jax.models.sizes import SIZES

HEAD_WIDTH = 64  # of every attention head in the official builds: ViT, CvT and score module alike
# What a state dict does not hold, or what does not belong to the shape of a model.
UNTOLD = ("name", "drop_path", "dtype", "mimetic_init")


class Hints(NamedTuple):
    """What names and shapes do not tell; None for what the official builds have.

    Attributes:
        num_heads: attention heads of the last stage.
        early_heads: those of the stages before it (MixCvT).
        score_heads: attention heads of the score module.
        search_size, template_size: sides of the crops in pixels. MixViT's are told by its position tables; MixCvT has
            none, and stands at 320 and 128.
        name: what to call the model. Benchmarks have settings by name, and weights do not show what they were trained
            on (`mixvit_b_online_got`).
    """

    num_heads: int | None = None
    early_heads: tuple[int, ...] | None = None
    score_heads: int | None = None
    search_size: int | None = None
    template_size: int | None = None
    name: str | None = None


def infer_config(state: Mapping[str, np.ndarray], hints: Hints = Hints()) -> MixFormerConfig:  # noqa: B008 (immutable)
    """The model of an official state dict.

    A model that equals one of `sizes.SIZES` gets its name, its stochastic depth included; another is called after its
    family.

    Raises:
        WeightsError: names that no architecture of this project has, or shapes that contradict each other or the hints.
    """
    try:
        found = _read(state, hints)
        config = MixFormerConfig(**found)
    except KeyError as error:
        raise WeightsError(f"not an official state dict: missing {error.args[0]}; {_looks_like(state)}") from error
    except ConfigError as error:
        raise WeightsError(f"not an official state dict: {error}; where a number cannot be told, give it") from error
    for size in SIZES.values():
        if dataclasses.replace(config, **{key: getattr(size, key) for key in UNTOLD}) == size:
            return size
    return config


def _read(state: Mapping[str, np.ndarray], hints: Hints) -> dict[str, Any]:
    if "backbone.stage0.patch_embed.proj.weight" in state:
        found = _read_cvt(state, hints)
    elif "backbone.patch_embed1.proj.weight" in state:
        found = _read_convmae(state) | _read_positions(state, hints, 16)
    else:
        found = _read_vit(state)
        found |= _read_positions(state, hints, found["patch_size"])
    width = found["width"]
    found["num_heads"] = hints.num_heads or _heads(width, "num_heads")
    found["head"] = "corner_pyramid" if "box_head.adjust1_tl.0.weight" in state else "corner"
    found["head_width"] = _shape(state, "box_head.conv1_tl.0.weight", 4)[0]
    found["head_norm"] = "batch" if f"box_head.conv1_tl.1.{COUNTER}" in state else "frozen"
    if any(name.startswith("score_branch.") for name in state):
        found["score_heads"] = hints.score_heads or _heads(width, "score_heads")
    return found


def _read_vit(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    width, _, patch, _ = _shape(state, "backbone.patch_embed.proj.weight", 4)
    return {
        "name": "mixvit",
        "patch_size": patch,
        "width": width,
        "depth": _depth(state, "backbone.blocks"),
        "mlp_ratio": _shape(state, "backbone.blocks.0.mlp.fc1.weight", 2)[0] // width,
    }


def _read_convmae(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    widths = [_shape(state, f"backbone.patch_embed{i}.proj.weight", 4)[0] for i in (1, 2, 3)]
    return {
        "name": "mixvit_convmae",
        "patch_embed": "convmae",
        "early_widths": tuple(widths[:2]),
        "early_depths": tuple(_depth(state, f"backbone.blocks{i}") for i in (1, 2)),
        "width": widths[2],
        "depth": _depth(state, "backbone.blocks3"),
        "mlp_ratio": _shape(state, "backbone.blocks3.0.mlp.fc1.weight", 2)[0] // widths[2],
    }


def _read_cvt(state: Mapping[str, np.ndarray], hints: Hints) -> dict[str, Any]:
    stages = [i for i in range(len(state)) if f"backbone.stage{i}.patch_embed.proj.weight" in state]
    widths = [_shape(state, f"backbone.stage{i}.patch_embed.proj.weight", 4)[0] for i in stages]
    depths = [_depth(state, f"backbone.stage{i}.blocks") for i in stages]
    trained = f"backbone.stage0.blocks.0.attn.conv_proj_q.bn.{COUNTER}" in state
    return {
        "name": "mixcvt",
        "backbone": "cvt",
        "patch_size": 2 ** (len(stages) + 1),
        "search_size": hints.search_size or SIZES["mixcvt"].search_size,
        "template_size": hints.template_size or SIZES["mixcvt"].template_size,
        "early_widths": tuple(widths[:-1]),
        "early_depths": tuple(depths[:-1]),
        "early_heads": hints.early_heads or tuple(_heads(width, "early_heads") for width in widths[:-1]),
        "width": widths[-1],
        "depth": depths[-1],
        "mlp_ratio": _shape(state, "backbone.stage0.blocks.0.mlp.fc1.weight", 2)[0] // widths[0],
        "projection": "depthwise",
        "projection_norm": "batch" if trained else "frozen",
    }


def _read_positions(state: Mapping[str, np.ndarray], hints: Hints, patch: int) -> dict[str, Any]:
    """Crop sizes from the position tables, and whether those are the sin-cos ones."""
    found: dict[str, Any] = {"positions": "sincos"}
    for name, key in (("backbone.pos_embed_s", "search_size"), ("backbone.pos_embed_t", "template_size")):
        _, cells, width = _shape(state, name, 3)
        grid = round(cells**0.5)
        if grid * grid != cells:
            raise WeightsError(f"not an official state dict: {name} has {cells} rows, which is no square grid")
        found[key] = grid * patch
        if getattr(hints, key) not in (None, found[key]):
            raise WeightsError(f"{name} is made for a {key} of {found[key]} pixels, not of {getattr(hints, key)}")
        if np.abs(state[name][0] - sincos_positions(grid, width)).max() > 1e-5:
            found["positions"] = "interpolated_frozen"
    return found


def _shape(state: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    shape = state[name].shape
    if len(shape) != axes:
        raise WeightsError(f"not an official state dict: {name} has shape {shape}, expected {axes} axes")
    return shape


def _depth(state: Mapping[str, np.ndarray], blocks: str) -> int:
    pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=-1)


def _heads(width: int, key: str) -> int:
    if width % HEAD_WIDTH:
        raise WeightsError(
            f"{key} cannot be told from a width of {width}: the official builds have heads of {HEAD_WIDTH} channels; "
            f"give {key} to `mixformer convert`"
        )
    return width // HEAD_WIDTH


def _looks_like(state: Mapping[str, np.ndarray]) -> str:
    if not any(name.startswith("box_head.") for name in state) and any("blocks" in name for name in state):
        return "this looks like a backbone without a tracker around it: start a training from it (train.init) instead"
    return f"it has {', '.join(sorted(state)[:3])}, ..."
