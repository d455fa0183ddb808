"""Official PyTorch names and our variable tree, from one table.

The table lists, for a config, every tensor of the official state dict that the network uses, the path of our
variable, and how the layouts differ. Tensors that official checkpoints carry but no forward pass reads are named in
`UNUSED_PREFIXES`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from einops import rearrange
from flax.traverse_util import unflatten_dict

from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.positions import sincos_positions

Layout = Literal["same", "linear", "conv", "patches", "positions"]

UNUSED_PREFIXES = (
    "backbone.cls_token",
    "backbone.pos_embed",  # the 14 x 14 table of pre-training; pos_embed_s and pos_embed_t are the ones in use
    "backbone.norm.",
    "backbone.head.",
)


class Entry(NamedTuple):
    """One tensor under both names."""

    official: str
    path: tuple[str, ...]
    layout: Layout


def name_table(config: MixFormerConfig) -> list[Entry]:
    """Every tensor that the forward pass of `config` reads, in the official order.

    Raises:
        WeightsError: for an architecture that the official code does not have.
    """
    if config.patch_embed != "linear":
        raise WeightsError(f"{config.name}: patch_embed {config.patch_embed!r} has no official counterpart")
    return [*_backbone(config), *_head(config)]


def _backbone(config: MixFormerConfig) -> list[Entry]:
    root = ("params", "backbone")
    entries: list[Entry] = []
    if config.positions != "sincos":
        for suffix, images in (("s", "search"), ("t", "template")):
            path = (*root, f"{images}_positions", "table")
            entries.append(Entry(f"backbone.pos_embed_{suffix}", path, "positions"))
    entries += _affine("backbone.patch_embed.proj", (*root, "patch_embed", "proj"), "patches")
    for index in range(config.depth):
        official, ours = f"backbone.blocks.{index}", (*root, f"blocks_{index}")
        for norm in ("norm1", "norm2"):
            entries.append(Entry(f"{official}.{norm}.weight", (*ours, norm, "scale"), "same"))
            entries.append(Entry(f"{official}.{norm}.bias", (*ours, norm, "bias"), "same"))
        entries += _affine(f"{official}.attn.qkv", (*ours, "attention", "qkv"), "linear")
        entries += _affine(f"{official}.attn.proj", (*ours, "attention", "proj"), "linear")
        entries += _affine(f"{official}.mlp.fc1", (*ours, "mlp", "fc1"), "linear")
        entries += _affine(f"{official}.mlp.fc2", (*ours, "mlp", "fc2"), "linear")
    return entries


def _head(config: MixFormerConfig) -> list[Entry]:
    entries = []
    for suffix, branch in (("tl", "top_left"), ("br", "bottom_right")):
        ours = ("head", branch)
        blocks = {f"conv{i}_{suffix}": f"conv{i}" for i in range(1, 5)}
        if config.head == "corner_pyramid":
            blocks |= {f"adjust{i}_{suffix}": f"adjust{i}" for i in (1, 2)}
            blocks |= {f"adjust3_{suffix}.{i}": f"adjust3_{i}" for i in range(3)}
            blocks |= {f"adjust4_{suffix}.{i}": f"adjust4_{i}" for i in range(2)}
        for official, block in blocks.items():
            entries += _affine(f"box_head.{official}.0", ("params", *ours, block, "conv"), "conv")
            entries += _batch_norm(f"box_head.{official}.1", (*ours, block, "norm"), config.head_norm == "frozen")
        entries += _affine(f"box_head.conv5_{suffix}", ("params", *ours, "conv5"), "conv")
    return entries


def _affine(official: str, path: tuple[str, ...], layout: Layout) -> list[Entry]:
    return [
        Entry(f"{official}.weight", (*path, "kernel"), layout),
        Entry(f"{official}.bias", (*path, "bias"), "same"),
    ]


def _batch_norm(official: str, path: tuple[str, ...], frozen: bool) -> list[Entry]:
    affine, statistics = ("constants", "constants") if frozen else ("params", "batch_stats")
    return [
        Entry(f"{official}.weight", (affine, *path, "scale"), "same"),
        Entry(f"{official}.bias", (affine, *path, "bias"), "same"),
        Entry(f"{official}.running_mean", (statistics, *path, "mean"), "same"),
        Entry(f"{official}.running_var", (statistics, *path, "var"), "same"),
    ]


def _to_ours(value: np.ndarray, layout: Layout) -> np.ndarray:
    match layout:
        case "same":
            ours = value
        case "linear":
            ours = value.T
        case "conv":
            ours = rearrange(value, "o i h w -> h w i o")
        case "patches":
            ours = rearrange(value, "o i h w -> (h w i) o")
        case "positions":
            ours = value[0]
    return np.ascontiguousarray(ours)


def variables_from_official(state: Mapping[str, np.ndarray], config: MixFormerConfig) -> dict[str, Any]:
    """The official state dict (key `net` of a checkpoint, as numpy arrays) as our variables.

    Raises:
        WeightsError: names of the table that are missing, names that nothing uses, or position tables that the
            config takes for sin-cos and that are not; one error lists them all.
    """
    table = name_table(config)
    known = {entry.official for entry in table}
    complaints = [f"missing {entry.official}" for entry in table if entry.official not in state]
    for name, value in state.items():
        position = {"backbone.pos_embed_s": config.search_grid, "backbone.pos_embed_t": config.template_grid}
        if config.positions == "sincos" and name in position:
            expected = sincos_positions(position[name], config.width)
            if value.shape[1:] != expected.shape or np.abs(value[0] - expected).max() > 1e-5:
                complaints.append(f"{name} is not the sin-cos table; use positions='interpolated_frozen'")
        elif name not in known and not name.startswith(UNUSED_PREFIXES) and not name.endswith("num_batches_tracked"):
            complaints.append(f"unexpected {name} {tuple(value.shape)}")
    if complaints:
        raise WeightsError(f"not an official {config.name} state dict:\n  " + "\n  ".join(complaints))
    return unflatten_dict({entry.path: _to_ours(state[entry.official], entry.layout) for entry in table})
