"""Pre-trained backbones from elsewhere, to start a training.

Known are MAE ViT (facebookresearch/mae), ConvMAE (Alpha-VL/ConvMAE), CvT-21 and CvT-24-W (microsoft/CvT), DeiT3
(facebookresearch/deit, with LayerScale) and plain ViTs of timm. Their names are those of the official tracker's
backbone without its prefix, so `backbone_table` serves here too.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mixformer_jax.convert.names import Entry, affine, backbone_table, block_entries, norm, official_shape, to_ours
from mixformer_jax.convert.torch_files import read_official
from mixformer_jax.convert.weights import WeightsError, check_finite, expected_shapes, mismatches, refuse_weights
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import resize_positions

_BACKBONE = ("params", "backbone")
# What a tracker does not need of a pre-trained model: tokens, classifiers, decoders, counters.
_IGNORED = re.compile(
    r"(cls_token|dist_token|mask_token|norm\.|fc_norm\.|head\.|head_dist\.|pre_logits\.|decoder_|"
    r"stage[12]_output_decode\.|stage\d\.cls_token|.*\.num_batches_tracked$)"
)
_POSITIONS = "pos_embed"
_CVT_PROJECTIONS = (("depthwise", "frozen"), ("depthwise", "batch"))


class Initialisation(NamedTuple):
    """The variables of a model that a pre-trained one gives."""

    variables: dict[str, Any]  # those variables alone, in the model's tree, as numpy arrays
    taken: tuple[str, ...]  # their names, such as `params/backbone/blocks_0/norm1/scale`
    fresh: tuple[str, ...]  # the model's other variables, which keep their random initialisation
    ignored: tuple[str, ...]  # names in the source that this model has no use for

    @classmethod
    def of(cls, values: Mapping[str, np.ndarray], expected: Iterable[str], ignored: Iterable[str]) -> "Initialisation":
        """From the given values, and the names of all variables of the model."""
        fresh = tuple(name for name in expected if name not in values)
        return cls(unflatten_dict(dict(values), sep="/"), tuple(values), fresh, tuple(ignored))


def init_from(source: str | Path | Mapping[str, np.ndarray], config: MixFormerConfig) -> Initialisation:
    """Reads a pre-trained backbone for a model, from a `.pth` or `.safetensors` file or a state dict.

    All blocks of the model, its embeddings and the norms between them must be there; of a deeper source the first
    blocks of the last stage are taken (the paper, section 4.1: 16 of CvT24-W's layers; Fig. 7). Interpolated position
    tables are the source's, resized to both grids (section 3.3). `decoder_blocks` are MAE's first decoder blocks,
    behind the encoder's final norm.

    Raises WeightsError for a file that cannot be read, values that are not finite, or names and shapes that do not fit
    (all listed).
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
    # timm's name of LayerScale.
    originals = {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): name for name in tensors}
    table, shapes = _table(config), expected_shapes(config)
    expected = {entry.official: official_shape(entry, shapes[entry.name]) for entry in table}
    state = {name: tensors[original] for name, original in originals.items() if name in expected}
    complaints, ignored = mismatches(state, expected), []
    interpolates = config.positions.startswith("interpolated")
    for name, original in originals.items():
        if name in expected or (name == _POSITIONS and interpolates):
            continue
        if name == _POSITIONS or _IGNORED.match(name) or _is_deeper(name, config):
            ignored.append(original)
        else:
            hint = ": it has LayerScale, set layer_scale=True" if ".gamma_" in name else ""
            complaints.append(f"unexpected {original} {tensors[original].shape}{hint}")
    tables, problem = _resized_positions(tensors.get(_POSITIONS), config) if interpolates else ({}, [])
    refuse_weights(f"{where}: does not fit the backbone of {config.name!r}", complaints + problem)
    found = {entry.name: to_ours(state[entry.official], entry.layout) for entry in table} | tables
    check_finite(where, found)
    return Initialisation.of(found, shapes, ignored)


def _table(config: MixFormerConfig) -> list[Entry]:
    """What the source must have, by its own names."""
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
    """Whether this belongs to a block of the last stage beyond the model's depth."""
    stage = {"cvt": f"stage{len(config.early_depths)}.blocks", "convmae": "blocks3"}
    blocks = stage.get("cvt" if config.backbone == "cvt" else config.patch_embed, "blocks")
    match = re.match(re.escape(blocks) + r"\.(\d+)\.", name)
    return match is not None and int(match[1]) >= config.depth


def _resized_positions(table: np.ndarray | None, config: MixFormerConfig) -> tuple[dict[str, np.ndarray], list[str]]:
    """The position tables of both grids, or what is wrong with the source's table."""
    if table is None:
        return {}, [f"missing {_POSITIONS}, which positions {config.positions!r} interpolates"]
    rows = table.shape[1] if table.ndim == 3 else 0
    # The first rows may be of a class token and a distillation token; ConvMAE and DeiT3 have neither.
    prefixes = [prefix for prefix in (0, 1, 2) if rows > prefix and round((rows - prefix) ** 0.5) ** 2 == rows - prefix]
    if table.shape[0] != 1 or table.shape[2:] != (config.width,) or not prefixes:
        return {}, [f"misshapen {_POSITIONS}: {table.shape}, expected (1, rows of a square grid, {config.width})"]
    cells = table[0, prefixes[0] :]
    grids = {"search": config.search_grid, "template": config.template_grid}
    resized = {stream: np.asarray(jax.device_get(resize_positions(cells, grid))) for stream, grid in grids.items()}
    return {f"params/backbone/{stream}_positions/table": value for stream, value in resized.items()}, []
