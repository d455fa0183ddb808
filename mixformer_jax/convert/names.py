"""Official PyTorch names and our variable tree: one table for both directions.

The table of a config lists the official state dict in its order. An `Entry` is a tensor that the network uses: official
name, path of our variable, and difference of layouts. A `Carried` tensor is in official checkpoints but unused; our
weights files keep it aside for the way back, which otherwise fills it in.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from einops import rearrange
from flax.traverse_util import unflatten_dict

from mixformer_jax.convert import weights
from mixformer_jax.convert.weights import NO_TENSORS, Tensors, WeightsError
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import PRETRAINED_GRID, sincos_positions

TreePath = tuple[str, ...]
Layout = Literal["same", "linear", "pointwise", "conv", "depthwise", "patches", "positions", "token"]

# Official axes -> ours.
PATTERNS: Mapping[Layout, str] = MappingProxyType(
    {
        "same": "... -> ...",
        "linear": "o i -> i o",
        "pointwise": "o i 1 1 -> i o",
        "conv": "o i h w -> h w i o",
        "depthwise": "c 1 h w -> h w c",
        "patches": "o i h w -> (h w i) o",
        "positions": "1 n c -> n c",
        "token": "1 1 c -> c",
    }
)


class Entry(NamedTuple):
    """One tensor under both names; `patch` is the side of the layout `patches`."""

    official: str
    path: TreePath
    layout: Layout
    patch: int = 1

    @property
    def name(self) -> str:
        """Our name, as in weights files and messages."""
        return "/".join(self.path)


class Carried(NamedTuple):
    """One official tensor that no forward pass uses."""

    official: str
    shape: tuple[int, ...]  # in the official builds
    make: Callable[[tuple[int, ...]], np.ndarray]  # the value to fill in, of a shape
    free: int | None = None  # axis of any length: a classifier's classes, a position table's rows
    objection: str | None = None  # complaint about any other value than that of `make`; None: any will do

    def complaints(self, found: np.ndarray) -> Iterator[str]:
        """What is wrong with a tensor."""
        differing = [axis for axis, pair in enumerate(zip(found.shape, self.shape, strict=False)) if len(set(pair)) > 1]
        if found.ndim != len(self.shape) or set(differing) - {self.free}:
            yield f"misshapen {self.official}: {found.shape}, expected {self.shape}"
        elif self.objection is not None and np.abs(found - self.make(self.shape)).max() > 1e-5:
            yield f"{self.official} {self.objection}"


def official_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The official shape for that of our variable."""
    return to_official(np.broadcast_to(np.float32(0), shape), entry).shape


def to_ours(value: np.ndarray, layout: Layout) -> np.ndarray:
    return rearrange(value, PATTERNS[layout])


def to_official(value: np.ndarray, entry: Entry) -> np.ndarray:
    official, ours = PATTERNS[entry.layout].split(" -> ")
    sides = {"h": entry.patch, "w": entry.patch} if entry.layout == "patches" else {}
    return rearrange(value, f"{ours} -> {official}", **sides)


def affine(official: str, path: TreePath, layout: Layout, patch: int = 1) -> list[Entry]:
    kernel = Entry(f"{official}.weight", (*path, "kernel"), layout, patch)
    return [kernel, Entry(f"{official}.bias", (*path, "bias"), "same")]


def norm(official: str, path: TreePath) -> list[Entry]:
    return [Entry(f"{official}.weight", (*path, "scale"), "same"), Entry(f"{official}.bias", (*path, "bias"), "same")]


def batch_norm(official: str, path: TreePath, frozen: bool) -> list[Entry]:
    parameters, statistics = ("constants", "constants") if frozen else ("params", "batch_stats")
    names = ("mean", "var")
    tracked = [Entry(f"{official}.running_{name}", (statistics, *path, name), "same") for name in names]
    return norm(official, (parameters, *path)) + tracked


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def sincos(shape: tuple[int, ...]) -> np.ndarray:
    _, cells, width = shape
    return sincos_positions(round(cells**0.5), width)[None].astype(np.float32)


def sincos_with_class(shape: tuple[int, ...]) -> np.ndarray:
    one, rows, width = shape
    return np.concatenate([zeros((one, 1, width)), sincos((one, rows - 1, width))], axis=1)


Table = Sequence[Entry | Carried]


def read_by_table(state: Tensors, table: Table, shapes: weights.Shapes, title: str) -> dict[str, Any]:
    """A state dict as variables of these shapes, as views of its arrays where a transposition is enough.

    Raises WeightsError ("not `title`") for names of the table that are missing or misshapen, names that nothing uses,
    or values that cannot be carried. Unused tensors may be missing.
    """
    used = [entry for entry in table if isinstance(entry, Entry)]
    unread = {entry.official: entry for entry in table if isinstance(entry, Carried)}
    read = {name: value for name, value in state.items() if name not in unread}
    complaints = weights.mismatches(read, {entry.official: official_shape(entry, shapes[entry.name]) for entry in used})
    for name, entry in unread.items():
        complaints += entry.complaints(state[name]) if name in state else []
    weights.refuse_weights(f"not {title}", complaints)
    return unflatten_dict({entry.path: to_ours(read[entry.official], entry.layout) for entry in used})


def carried_by_table(state: Tensors, table: Table) -> dict[str, np.ndarray]:
    """The unused tensors of a state dict, by their official names."""
    unread = (entry.official for entry in table if isinstance(entry, Carried))
    return {name: state[name] for name in unread if name in state}


def write_by_table(
    variables: Mapping[str, Any], table: Table, shapes: weights.Shapes, carried: Tensors, title: str
) -> dict[str, np.ndarray]:
    """Variables as a state dict, in the table's order; unused tensors are `carried` or filled in.

    Raises WeightsError for variables or carried tensors that are missing, unexpected or misshapen.
    """
    ours = weights.flatten(variables)
    unread = {entry.official: entry for entry in table if isinstance(entry, Carried)}
    complaints = weights.mismatches(ours, shapes)
    for name, value in carried.items():
        unknown = [f"unexpected carried {name} {value.shape}"]
        complaints += unread[name].complaints(value) if name in unread else unknown
    weights.refuse_weights(f"not {title}", complaints)
    return {
        entry.official: to_official(ours[entry.name], entry)
        if isinstance(entry, Entry)
        else carried.get(entry.official, entry.make(entry.shape))
        for entry in table
    }


_NOT_SINCOS = "is not the sin-cos table; use positions='interpolated_frozen'"

_BACKBONE = ("params", "backbone")


def backbone_table(config: MixFormerConfig) -> list[Entry | Carried]:
    """The backbone's part of the table, and LayerScale, which a pre-trained backbone may have."""
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
        *_mlp(official, path, "linear"),
        *scales,
    ]


def _mlp(official: str, path: TreePath, layout: Layout) -> list[Entry]:
    return [entry for fc in ("fc1", "fc2") for entry in affine(f"{official}.mlp.{fc}", (*path, "mlp", fc), layout)]


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
    return entries + _unused_norm(width) + unused_classifier("backbone.head", width)


def _convmae(config: MixFormerConfig) -> list[Entry | Carried]:
    ours = (*_BACKBONE, "patch_embed")
    entries = _positions(config)
    for i, patch in enumerate((4, 2, 2), start=1):
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
    return entries + _unused_norm(config.width) + unused_classifier("backbone.head", config.width)


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
    return entries + norm(f"{official}.norm2", (*path, "norm2")) + _mlp(official, path, "linear")


def _convolution_block(official: str, path: TreePath) -> list[Entry]:
    """ConvMAE's block: a 5x5 depth-wise convolution, named attention, between two 1x1 ones."""
    return [
        *norm(f"{official}.norm1", (*path, "norm1")),
        *affine(f"{official}.conv1", (*path, "conv1"), "pointwise"),
        *affine(f"{official}.conv2", (*path, "conv2"), "pointwise"),
        *affine(f"{official}.attn", (*path, "depthwise"), "depthwise"),
        *norm(f"{official}.norm2", (*path, "norm2")),
        *_mlp(official, path, "pointwise"),
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
    ones = functools.partial(np.ones, dtype=np.float32)
    return [Carried("backbone.norm.weight", (width,), ones), Carried("backbone.norm.bias", (width,), zeros)]


def unused_classifier(official: str, width: int) -> list[Entry | Carried]:
    """ImageNet's, of any number of classes."""
    weight = Carried(f"{official}.weight", (1000, width), zeros, free=0)
    return [weight, Carried(f"{official}.bias", (1000,), zeros, free=0)]


COUNTER = "num_batches_tracked"


def name_table(config: MixFormerConfig) -> list[Entry | Carried]:
    """The official state dict of a config; WeightsError for an architecture that the official code does not have."""
    _check_official(config)
    entries = [*backbone_table(config), *_head(config), *(_score() if config.score_heads else [])]
    return list(with_counters(entries))


def variables_from_official(state: Tensors, config: MixFormerConfig) -> dict[str, Any]:
    """The official state dict (key `net` of a checkpoint, as numpy arrays) as our variables; see `read_by_table`."""
    return read_by_table(
        state, name_table(config), weights.expected_shapes(config), f"an official {config.name} state dict"
    )


def variables_to_official(
    variables: Mapping[str, Any], config: MixFormerConfig, carried: Tensors = NO_TENSORS
) -> dict[str, np.ndarray]:
    """Our variables as an official state dict, in the official order.

    Unused tensors are from `carried`, or filled in: sin-cos position tables (MAE's 14 x 14 one for `pos_embed`), the
    identity for `norm`, zeros for class token, classifier and batch counters. The official modules load the result with
    `strict=True`, and compute the same with it.

    Raises WeightsError for an architecture without official counterpart, and as `write_by_table`.
    """
    title = f"the weights of the model {config.name!r}"
    return write_by_table(variables, name_table(config), weights.expected_shapes(config), carried, title)


def count_parameters(config: MixFormerConfig) -> int:
    """Parameters of the official module, unused ones included; buffers are none."""
    shapes = weights.expected_shapes(config)
    used = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("params/"))
    unread = [entry for entry in name_table(config) if isinstance(entry, Carried)]
    return used + sum(math.prod(entry.shape) for entry in unread if not entry.official.endswith(COUNTER))


def _check_official(config: MixFormerConfig) -> None:
    is_cvt = config.backbone == "cvt"
    refuse_unknown(
        f"the model {config.name!r} has no official counterpart: the official code",
        {
            "head 'query'": config.head == "query",
            "head 'corner_pyramid' on the backbone 'cvt'": config.head == "corner_pyramid" and is_cvt,
            f"patch_embed {config.patch_embed!r}": config.patch_embed == "convolutional",
            "attention 'symmetric'": config.attention == "symmetric",
            f"second_stream {config.second_stream!r}": config.second_stream != "none",
            "layer_scale": config.layer_scale,
            "mixed_blocks": config.mixed_blocks is not None,
            "cross_attention_blocks": config.cross_attention_blocks,
            "context_augment_layers": config.context_augment_layers,
            "decoder_blocks": config.decoder_blocks,
            "projection 'linear' on the backbone 'cvt'": is_cvt and config.projection == "linear",
            "projection_norm 'layer'": config.projection == "depthwise" and config.projection_norm == "layer",
        },
    )


def refuse_unknown(whose: str, features: Mapping[str, object]) -> None:
    """Raises WeightsError with the features that are there, and that `whose` code does not have."""
    if found := [name for name, is_there in features.items() if is_there]:
        raise WeightsError(f"{whose} has no {', '.join(found)}")


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
    """The score prediction module: there, projections are lists by kind; here, by attention."""
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


def with_counters(entries: list[Entry | Carried]) -> Iterator[Entry | Carried]:
    """PyTorch's batch norms count batches; frozen ones do not."""
    for entry in entries:
        yield entry
        if isinstance(entry, Entry) and entry.path[0] == "batch_stats" and entry.path[-1] == "var":
            name = entry.official.replace("running_var", COUNTER)
            yield Carried(name, (), functools.partial(np.zeros, dtype=np.int64))
