"""The backbones' tables of names: MixViT, MixViT with ConvMAE's embedding, MixCvT."""

from mixformer_jax.convert.entries import (
    Carried,
    Entry,
    TreePath,
    affine,
    batch_norm,
    norm,
    ones,
    sincos,
    sincos_with_class,
    zeros,
)
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.positions import PRETRAINED_GRID

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
