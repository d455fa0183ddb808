"""Backbones that others pre-trained, as the start of a training.

Known are MAE ViT (facebookresearch/mae), ConvMAE (Alpha-VL/ConvMAE), CvT-21 and CvT-24-W (microsoft/CvT), DeiT3
(facebookresearch/deit, with LayerScale) and plain ViTs of timm. Their names are those of the official tracker's
backbone without its prefix, so the table of `backbone_names` serves here too.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.names import backbone_table, block_entries
from mixformer_jax.convert.tables import Entry, affine, norm, official_shape, to_ours
from mixformer_jax.convert.torch_files import read_official
from mixformer_jax.convert.weights import NOT_FINITE, WeightsError, expected_shapes, not_finite
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import resize_positions

_BACKBONE = ("params", "backbone")
# What pre-trained models hold that a tracker has no use for: tokens, classifiers, decoders, counters.
_IGNORED = re.compile(
    r"(cls_token|dist_token|mask_token|norm\.|fc_norm\.|head\.|head_dist\.|pre_logits\.|decoder_|"
    r"stage[12]_output_decode\.|stage\d\.cls_token|.*\.num_batches_tracked$)"
)
_POSITIONS = "pos_embed"


class Initialisation(NamedTuple):
    """The part of a model's variables that a pre-trained backbone gives.

    Attributes:
        variables: the variable tree of `init_variables`, with the given variables alone.
        taken: their names, such as `params/backbone/blocks_0/norm1/scale`.
        fresh: names of the model's other variables, which keep their random start.
        ignored: names in the source that this model has no use for.
    """

    variables: dict[str, Any]
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]

    def onto(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The model's variables with the given ones in place of the random ones."""
        return unflatten_dict(flatten_dict(variables) | flatten_dict(self.variables))


def init_from(source: str | Path | Mapping[str, np.ndarray], config: MixFormerConfig) -> Initialisation:
    """Reads a pre-trained backbone for a model.

    All blocks of the model, its embeddings and the norms between them must be in the source; of a deeper source the
    first blocks of the last stage are taken (the paper, section 4.1: 16 of CvT24-W's layers; Fig. 7). Position tables
    of the interpolated kinds are the source's own, resized to both grids (section 3.3). `decoder_blocks` are MAE's
    first decoder blocks, behind the encoder's final norm.

    Args:
        source: a `.pth` or `.safetensors` file, or the state dict itself.
        config: the model.

    Raises:
        WeightsError: a file that cannot be read, values that are not finite, or a source that does not fit: one error
            lists all missing, unexpected and misshapen names.
    """
    where = "state dict" if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else read_official(source).tensors
    if any(name.startswith(("backbone.", "box_head.")) for name in tensors):
        raise WeightsError(f"{where}: a whole tracker, not a backbone: convert it, and start from the converted file")
    if config.backbone == "cvt" and (config.projection, config.projection_norm) not in _CVT_PROJECTIONS:
        raise WeightsError(
            f"{config.name}: no pre-trained backbone has projection {config.projection!r} with projection_norm "
            f"{config.projection_norm!r}: CvT's has depth-wise projections and batch norms"
        )
    # timm's name for DeiT3's factors.
    state = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): name for name in tensors}
    table = _table(config)
    shapes = expected_shapes(config)
    complaints, ignored = [], []
    for entry in table:
        expected = official_shape(entry, shapes[entry.name])
        if entry.official not in state:
            complaints.append(f"missing {entry.official} {expected}")
            continue
        shape = tensors[state[entry.official]].shape
        if shape != expected:
            complaints.append(f"misshapen {entry.official}: {shape}, expected {expected}")
    known = {entry.official for entry in table}
    for name, original in state.items():
        if name in known or (name == _POSITIONS and config.positions.startswith("interpolated")):
            continue
        if name == _POSITIONS or _IGNORED.match(name) or _is_deeper(name, config):
            ignored.append(original)
        else:
            hint = ": it has LayerScale, set layer_scale=True" if ".gamma_" in name else ""
            complaints.append(f"unexpected {original} {tensors[original].shape}{hint}")
    tables: dict[tuple[str, ...], np.ndarray] = {}
    if config.backbone == "vit" and config.positions.startswith("interpolated"):
        tables, problem = _resized_positions(tensors.get(_POSITIONS), config)
        complaints += problem
    if complaints:
        raise WeightsError(f"{where}: does not fit the backbone of {config.name!r}:\n  " + "\n  ".join(complaints))
    found = {entry.path: to_ours(tensors[state[entry.official]], entry.layout) for entry in table} | tables
    taken = tuple("/".join(path) for path in found)
    if broken := not_finite(dict(zip(taken, found.values(), strict=True))):
        raise WeightsError(f"{where}: {NOT_FINITE} {', '.join(broken)}")
    fresh = tuple(name for name in shapes if name not in set(taken))
    return Initialisation(unflatten_dict(found), taken, fresh, tuple(ignored))


_CVT_PROJECTIONS = (("depthwise", "frozen"), ("depthwise", "batch"))


def _table(config: MixFormerConfig) -> list[Entry]:
    """What must be in the source, under its names there."""
    entries = [entry for entry in backbone_table(config) if isinstance(entry, Entry) and entry.layout != "positions"]
    table = [entry._replace(official=entry.official.removeprefix("backbone.")) for entry in entries]
    if config.decoder_blocks:
        table += norm("norm", (*_BACKBONE, "decoder_norm"))
        table += affine("decoder_embed", (*_BACKBONE, "decoder_embed"), "linear")
    for i in range(config.decoder_blocks):
        path = (*_BACKBONE, f"blocks_{config.depth + i}")
        table += block_entries(f"decoder_blocks.{i}", path, config.layer_scale)
    return table


def _is_deeper(name: str, config: MixFormerConfig) -> bool:
    """Whether this belongs to a block of the last stage that the model does not have."""
    stage = {"cvt": f"stage{len(config.early_depths)}.blocks", "convmae": "blocks3"}
    blocks = stage.get("cvt" if config.backbone == "cvt" else config.patch_embed, "blocks")
    match = re.match(re.escape(blocks) + r"\.(\d+)\.", name)
    return match is not None and int(match[1]) >= config.depth


def _resized_positions(
    table: np.ndarray | None, config: MixFormerConfig
) -> tuple[dict[tuple[str, ...], np.ndarray], list[str]]:
    """The position tables of both grids, or what is wrong with the source's."""
    if table is None:
        return {}, [f"missing {_POSITIONS}, which positions {config.positions!r} interpolates"]
    rows = table.shape[1] if table.ndim == 3 else 0
    # A class token's row comes first, and a distillation token's after it; ConvMAE and DeiT3 have neither.
    prefixes = [prefix for prefix in (0, 1, 2) if rows > prefix and round((rows - prefix) ** 0.5) ** 2 == rows - prefix]
    if table.shape[0] != 1 or table.shape[2:] != (config.width,) or not prefixes:
        return {}, [f"misshapen {_POSITIONS}: {table.shape}, expected (1, rows of a square grid, {config.width})"]
    cells = table[0, prefixes[0] :]
    grids = {"search_positions": config.search_grid, "template_positions": config.template_grid}
    return {
        (*_BACKBONE, name, "table"): np.asarray(jax.device_get(resize_positions(cells, grid)))
        for name, grid in grids.items()
    }, []
