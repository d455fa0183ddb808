"""Official PyTorch names and our variable tree, from one table for both directions.

The table of a config lists the official state dict in its own order. An `Entry` is a tensor that the network uses: its
official name, the path of our variable, and how the layouts differ. A `Carried` is one that official checkpoints hold
and no forward pass reads; our weights files keep it aside, and `variables_to_official` puts it back or makes it up.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from mixformer_jax.convert.tables import (
    Carried,
    Entry,
    TreePath,
    affine,
    batch_norm,
    carried_by_table,
    norm,
    ones,
    read_by_table,
    sincos,
    sincos_with_class,
    write_by_table,
    zeros,
)
from mixformer_jax.convert.weights import WeightsError, expected_shapes
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import PRETRAINED_GRID

CLASSES = 1000  # of ImageNet, which the unused classifiers tell apart
CONVMAE_PATCHES = (4, 2, 2)
_NOT_SINCOS = "is not the sin-cos table; use positions='interpolated_frozen'"

_BACKBONE = ("params", "backbone")


def backbone_table(config: MixFormerConfig) -> list[Entry | Carried]:
    """The backbone's part of the table, and what a backbone initialisation has beyond it (LayerScale)."""
    if config.backbone == "cvt":
        return _cvt(config)
    return _convmae(config) if config.patch_embed == "convmae" else _vit(config)


def block_entries(official: str, path: TreePath, layer_scale: bool = False) -> list[Entry]:
    """A transformer block with one dense layer for queries, keys and values."""
    scales = [Entry(f"{official}.gamma_{i}", (*path, f"scale{i}"), "same") for i in (1, 2) if layer_scale]
    return [
        *norm(f"{official}.norm1", (*path, "norm1")),
        *affine(f"{official}.attn.qkv", (*path, "attention", "qkv"), "linear"),
        *affine(f"{official}.attn.proj", (*path, "attention", "proj"), "linear"),
        *norm(f"{official}.norm2", (*path, "norm2")),
        *affine(f"{official}.mlp.fc1", (*path, "mlp", "fc1"), "linear"),
        *affine(f"{official}.mlp.fc2", (*path, "mlp", "fc2"), "linear"),
        *scales,
    ]


def _vit(config: MixFormerConfig) -> list[Entry | Carried]:
    width, patch = config.width, config.patch_size
    entries: list[Entry | Carried] = [
        Carried("backbone.cls_token", (1, 1, width), zeros),
        Carried("backbone.pos_embed", (1, 1 + PRETRAINED_GRID**2, width), sincos_with_class, free=1),
        *_positions(config),
        *affine("backbone.patch_embed.proj", (*_BACKBONE, "patch_embed", "proj"), "patches", patch),
    ]
    for i in range(config.depth):
        entries += block_entries(f"backbone.blocks.{i}", (*_BACKBONE, f"blocks_{i}"), config.layer_scale)
    return entries + _unused_norm(width) + _unused_classifier(width)


def _convmae(config: MixFormerConfig) -> list[Entry | Carried]:
    ours = (*_BACKBONE, "patch_embed")
    entries = _positions(config)
    for i, patch in enumerate(CONVMAE_PATCHES, start=1):
        entries += affine(f"backbone.patch_embed{i}.proj", (*ours, f"embed{i}", "proj"), "patches", patch)
        entries += norm(f"backbone.patch_embed{i}.norm", (*ours, f"embed{i}", "norm"))
    entries += affine("backbone.patch_embed4", (*ours, "proj"), "linear")
    for stage, depth in enumerate(config.early_depths, start=1):
        for i in range(depth):
            entries += _convolution_block(f"backbone.blocks{stage}.{i}", (*ours, f"stage{stage}_{i}"))
    for i in range(config.depth):
        entries += block_entries(f"backbone.blocks3.{i}", (*_BACKBONE, f"blocks_{i}"), config.layer_scale)
    return entries + _unused_norm(config.width)


def _cvt(config: MixFormerConfig) -> list[Entry | Carried]:
    entries: list[Entry | Carried] = []
    block = 0
    for stage, depth in enumerate((*config.early_depths, config.depth)):
        official, ours = f"backbone.stage{stage}", (*_BACKBONE, f"embed_{stage}")
        entries += affine(f"{official}.patch_embed.proj", (*ours, "proj"), "conv")
        entries += norm(f"{official}.patch_embed.norm", (*ours, "norm"))
        for i in range(depth):
            names = f"{official}.blocks.{i}", (*_BACKBONE, f"blocks_{block}")
            entries += _wide_block(*names, config) if config.projection == "depthwise" else block_entries(*names)
            block += 1
    return entries + _unused_norm(config.width) + _unused_classifier(config.width)


def _wide_block(official: str, path: TreePath, config: MixFormerConfig) -> list[Entry]:
    """W-MAM: depth-wise convolutions before the projections."""
    attention = (*path, "attention")
    entries = norm(f"{official}.norm1", (*path, "norm1"))
    for name in "qkv":
        convolution, ours = f"{official}.attn.conv_proj_{name}", (*attention, f"depthwise_{name}")
        entries.append(Entry(f"{convolution}.conv.weight", (*ours, "kernel"), "depthwise"))
        entries += batch_norm(f"{convolution}.bn", (*ours[1:], "norm"), config.projection_norm == "frozen")
    for name in "qkv":
        entries += affine(f"{official}.attn.proj_{name}", (*attention, name), "linear")
    entries += affine(f"{official}.attn.proj", (*attention, "proj"), "linear")
    entries += norm(f"{official}.norm2", (*path, "norm2"))
    for name in ("fc1", "fc2"):
        entries += affine(f"{official}.mlp.{name}", (*path, "mlp", name), "linear")
    return entries


def _convolution_block(official: str, path: TreePath) -> list[Entry]:
    """ConvMAE's block: a 5x5 depth-wise convolution, called attention, between two 1x1 ones."""
    return [
        *norm(f"{official}.norm1", (*path, "norm1")),
        *affine(f"{official}.conv1", (*path, "conv1"), "pointwise"),
        *affine(f"{official}.conv2", (*path, "conv2"), "pointwise"),
        *affine(f"{official}.attn", (*path, "depthwise"), "depthwise"),
        *norm(f"{official}.norm2", (*path, "norm2")),
        *affine(f"{official}.mlp.fc1", (*path, "mlp", "fc1"), "pointwise"),
        *affine(f"{official}.mlp.fc2", (*path, "mlp", "fc2"), "pointwise"),
    ]


def _positions(config: MixFormerConfig) -> list[Entry | Carried]:
    tables: list[Entry | Carried] = []
    for suffix, images, grid in (("s", "search", config.search_grid), ("t", "template", config.template_grid)):
        official = f"backbone.pos_embed_{suffix}"
        if config.positions == "sincos":
            tables.append(Carried(official, (1, grid**2, config.width), sincos, objection=_NOT_SINCOS))
        else:
            tables.append(Entry(official, (*_BACKBONE, f"{images}_positions", "table"), "positions"))
    return tables


def _unused_norm(width: int) -> list[Entry | Carried]:
    return [Carried("backbone.norm.weight", (width,), ones), Carried("backbone.norm.bias", (width,), zeros)]


def _unused_classifier(width: int) -> list[Entry | Carried]:
    weight = Carried("backbone.head.weight", (CLASSES, width), zeros, free=0)
    return [weight, Carried("backbone.head.bias", (CLASSES,), zeros, free=0)]


COUNTER = "num_batches_tracked"


def name_table(config: MixFormerConfig) -> list[Entry | Carried]:
    """The whole official state dict of a config.

    Raises:
        WeightsError: for an architecture that the official code does not have.
    """
    _check_official(config)
    entries = [*backbone_table(config), *_head(config), *(_score() if config.score_heads else [])]
    return list(_with_counters(entries))


def variables_from_official(state: Mapping[str, np.ndarray], config: MixFormerConfig) -> dict[str, Any]:
    """The official state dict (key `net` of a checkpoint, as numpy arrays) as our variables.

    The variables are views of the official arrays wherever a transposition is all it takes.

    Raises:
        WeightsError: names of the table that are missing or have another shape, names that nothing uses, or position
            tables that the config takes for sin-cos and that are not; one error lists them all. Tensors that no
            forward pass reads may be missing.
    """
    title = f"an official {config.name} state dict"
    return read_by_table(state, name_table(config), expected_shapes(config), title)


def carried_from_official(state: Mapping[str, np.ndarray], config: MixFormerConfig) -> dict[str, np.ndarray]:
    """The tensors of an official state dict that no forward pass reads, by their official names."""
    return carried_by_table(state, name_table(config))


def variables_to_official(
    variables: Mapping[str, Any],
    config: MixFormerConfig,
    carried: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """Our variables as an official state dict, in the official order.

    What no forward pass reads is taken from `carried`. Where that has nothing, sin-cos position tables are computed
    (MAE's 14 x 14 table for `pos_embed`), `norm` is the identity, class token, classifier and batch counters are zero:
    the official modules load the result with `strict=True`, and compute with it what our model computes.

    Raises:
        WeightsError: an architecture without official counterpart, or variables or carried tensors that are missing,
            unexpected or misshapen; one error lists them all.
    """
    title = f"the weights of the model {config.name!r}"
    return write_by_table(variables, name_table(config), expected_shapes(config), carried, title)


def count_parameters(config: MixFormerConfig) -> int:
    """Parameters of the official module, those that no forward pass reads included; buffers are none."""
    shapes = expected_shapes(config)
    used = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))
    unread = [entry for entry in name_table(config) if isinstance(entry, Carried)]
    return used + sum(math.prod(entry.shape) for entry in unread if not entry.official.endswith(COUNTER))


def _check_official(config: MixFormerConfig) -> None:
    missing = {
        "head 'query'": config.head == "query",
        "head 'corner_pyramid' on the backbone 'cvt'": config.head == "corner_pyramid" and config.backbone == "cvt",
        f"patch_embed {config.patch_embed!r}": config.patch_embed == "convolutional",
        "attention 'symmetric'": config.attention == "symmetric",
        "layer_scale": config.layer_scale,
        "mixed_blocks": config.mixed_blocks is not None,
        "cross_attention_blocks": config.cross_attention_blocks > 0,
        "context_augment_layers": config.context_augment_layers > 0,
        "decoder_blocks": config.decoder_blocks > 0,
        "projection 'linear' on the backbone 'cvt'": config.backbone == "cvt" and config.projection == "linear",
        "projection_norm 'layer'": config.projection == "depthwise" and config.projection_norm == "layer",
    }
    if any(missing.values()):
        listed = ", ".join(text for text, is_missing in missing.items() if is_missing)
        raise WeightsError(f"the model {config.name!r} has no official counterpart: the official code has no {listed}")


def _head(config: MixFormerConfig) -> list[Entry]:
    blocks = {f"conv{i}_*": f"conv{i}" for i in range(1, 6)}
    if config.head == "corner_pyramid":
        blocks |= {f"adjust{i}_*": f"adjust{i}" for i in (1, 2)}
        blocks |= {f"adjust3_*.{i}": f"adjust3_{i}" for i in range(3)}
        blocks |= {f"adjust4_*.{i}": f"adjust4_{i}" for i in range(2)}
    entries = []
    for suffix, branch in (("tl", "top_left"), ("br", "bottom_right")):
        for pattern, block in blocks.items():
            official, path = f"box_head.{pattern.replace('*', suffix)}", ("head", branch, block)
            if block == "conv5":
                entries += affine(official, ("params", *path), "conv")
                continue
            entries += affine(f"{official}.0", ("params", *path, "conv"), "conv")
            entries += batch_norm(f"{official}.1", (*path, "norm"), config.head_norm == "frozen")
    return entries


def _score() -> list[Entry]:
    """The score prediction module: projections are lists by kind there, and by attention here."""
    official, ours = "score_branch", ("params", "score")
    entries = [Entry(f"{official}.score_token", (*ours, "token"), "token")]
    for i in range(3):
        entries += affine(f"{official}.score_head.layers.{i}", (*ours, f"fc{i}"), "linear")
    for theirs, name in (("proj_q", "q"), ("proj_k", "k"), ("proj_v", "v"), ("proj", "proj")):
        for i in range(2):
            entries += affine(f"{official}.{theirs}.{i}", (*ours, f"attention_{i}", name), "linear")
    entries += norm(f"{official}.norm1", (*ours, "norm_token"))
    for i in range(2):
        entries += norm(f"{official}.norm2.{i}", (*ours, f"norm_{i}"))
    return entries


def _with_counters(entries: list[Entry | Carried]) -> Iterator[Entry | Carried]:
    """PyTorch's batch norms count the batches they saw; frozen ones do not."""
    for entry in entries:
        yield entry
        if isinstance(entry, Entry) and entry.path[0] == "batch_stats" and entry.path[-1] == "var":
            name = entry.official.replace("running_var", COUNTER)
            yield Carried(name, (), functools.partial(np.zeros, dtype=np.int64))
