"""What models take from pre-trained ones, and files of masked autoencoders.

Backbones that trainings start from: MAE ViT (facebookresearch/mae), ConvMAE (Alpha-VL/ConvMAE), CvT-21 and CvT-24-W
(microsoft/CvT), DeiT3 (facebookresearch/deit, with LayerScale) and plain ViTs of timm. Their names are those of the
official tracker's backbone without its prefix, so `backbone_table` serves here too.

An autoencoder's encoder has the names of a tracker's backbone; with a class token it computes what MAE's
`models_mae.py` does, and one table of names converts both ways.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mixformer_jax.convert.names import (
    Carried,
    Entry,
    affine,
    backbone_table,
    block_entries,
    norm,
    official_shape,
    read_by_table,
    refuse_unknown,
    sincos_with_class,
    to_ours,
    write_by_table,
)
from mixformer_jax.convert.torch_files import read_official, write_official_safetensors, write_torch
from mixformer_jax.convert.weights import (
    NO_TENSORS,
    Shapes,
    Tensors,
    WeightsError,
    check_finite,
    expected_shapes,
    flatten,
    mismatches,
    read_variables,
    refuse_weights,
    shapes_of,
    write_variables,
)
from mixformer_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from mixformer_jax.models.config import DECODER_HEADS, MixFormerConfig
from mixformer_jax.models.layers import resize_positions, sincos_positions

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
    def of(cls, values: Tensors, expected: Iterable[str], ignored: Iterable[str]) -> "Initialisation":
        """From the given values, and the names of all variables of the model."""
        fresh = tuple(name for name in expected if name not in values)
        return cls(unflatten_dict(dict(values), sep="/"), tuple(values), fresh, tuple(ignored))


def init_from(source: str | Path | Tensors, config: MixFormerConfig) -> Initialisation:
    """Reads a pre-trained backbone for a model, from a `.pth` or `.safetensors` file or a state dict.

    All blocks of the model, its embeddings and the norms between them must be there; of a deeper source the first
    blocks of the last stage are taken (the paper, section 4.1: 16 of CvT24-W's layers; Fig. 7). Interpolated position
    tables are the source's, resized to both grids (section 3.3). `decoder_blocks` are MAE's first decoder blocks.

    Raises WeightsError for a file that cannot be read, or values, names and shapes that do not fit (all listed).
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


AUTOENCODER_FORMAT = "mixformer_jax_autoencoder"

# Settings of an encoder that its weights depend on and shapes do not show.
_MEANING = ("backbone", "patch_embed", "num_heads", "layer_scale")
# Variables of a tracker's backbone that no encoder has.
_TRACKERS_OWN = re.compile(r"params/backbone/(regression_token$|cross_blocks_)")
_TABLE = re.compile(r"params/backbone/(search|template)_positions/table$")
_NOT_SINCOS = "is not the sin-cos table, which MAE never trains"
_DECODER = ("mask_token", "decoder_")
_TABLES = ("pos_embed", "decoder_pos_embed")


class AutoencoderWeights(NamedTuple):
    """The content of an autoencoder's file; `carried` are MAE's tensors that the model does not use."""

    variables: dict[str, Any]
    config: AutoencoderConfig
    carried: Tensors = NO_TENSORS


def save_autoencoder(
    path: str | Path, variables: Mapping[str, Any], config: AutoencoderConfig, carried: Tensors = NO_TENSORS
) -> None:
    """Writes an autoencoder's file; see `weights.save_weights`."""
    # Weights do not depend on the compute type.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
    write_variables(path, AUTOENCODER_FORMAT, variables, [config], carried=carried)


def load_autoencoder(path: str | Path) -> AutoencoderWeights:
    """Reads an autoencoder's file and checks it against the settings in its header.

    Raises WeightsError for no such file, another kind of file, or tensors that are not the model's.
    """
    content = read_variables(path, AUTOENCODER_FORMAT, "a masked autoencoder as a pre-training run writes it")
    config = content.settings(AutoencoderConfig)
    variables = content.variables(config.model.name, shapes_of_autoencoder(config))
    return AutoencoderWeights(variables, config, content.carried)


@functools.lru_cache(maxsize=64)  # tracing a large model takes seconds
def shapes_of_autoencoder(config: AutoencoderConfig) -> Shapes:
    """Shape of every variable of an autoencoder, by its path (`params/decoder/blocks_0/norm1/scale`)."""
    return shapes_of(Autoencoder(config))


def hand_over(variables: Mapping[str, Any], source: AutoencoderConfig, target: MixFormerConfig) -> Initialisation:
    """What a tracker takes from an autoencoder: the encoder, and the decoder's first blocks for its `decoder_blocks`.

    Of a deeper encoder, the first blocks are taken. Decoder blocks follow the encoder's (Fig. 7, "+DN"). Position
    tables of other grids are resized (section 3.3); after a pre-training on single images, the templates' table is made
    from the images'.

    Raises WeightsError for an encoder of another kind, or without something that is needed; all is listed.
    """
    theirs = flatten(variables)
    expected = {
        name: shape
        for name, shape in expected_shapes(target).items()
        if name.startswith("params/backbone/") and not _TRACKERS_OWN.match(name)
    }
    complaints = [
        f"{key}: {getattr(source.model, key)!r} there, {getattr(target, key)!r} here"
        for key in _MEANING
        if getattr(source.model, key) != getattr(target, key)
    ]
    if target.positions == "sincos" and source.model.positions != "sincos":
        complaints.append(f"positions: {source.model.positions!r} there, tables that 'sincos' has no place for")
    if target.decoder_blocks and source.decoder_heads != DECODER_HEADS:
        complaints.append(f"decoder_heads: {source.decoder_heads} there; decoder_blocks have {DECODER_HEADS}")
    origins = {name: _origin(name, target) for name in expected}
    found = {name: theirs[origin] for name, origin in origins.items() if origin in theirs}
    for name in expected:
        if table := _TABLE.match(name):
            grid = target.search_grid if table[1] == "search" else target.template_grid
            origins[name], found[name] = _position_table(theirs, source, table[1], grid)
    labels = {name: name if _TABLE.match(name) else origins[name] for name in expected}
    shapes = {labels[name]: shape for name, shape in expected.items()}
    complaints += mismatches({labels[name]: value for name, value in found.items()}, shapes)
    refuse_weights(
        f"the autoencoder around {source.model.name!r} does not fit the backbone of {target.name!r}", complaints
    )
    used = set(origins.values())
    values = {name: found[name] for name in expected}
    return Initialisation.of(values, expected_shapes(target), (name for name in theirs if name not in used))


def go_on(found: AutoencoderWeights, config: AutoencoderConfig) -> Initialisation:
    """What one autoencoder takes from another: the encoder, and class token and decoder where they are alike; raises
    WeightsError as `hand_over`."""
    theirs, expected = flatten(found.variables), shapes_of_autoencoder(config)
    values = flatten(hand_over(found.variables, found.config, config.encoder).variables)
    for part in ("params/class_token", "params/decoder/"):
        wanted = {name: shape for name, shape in expected.items() if name.startswith(part)}
        if wanted == {name: value.shape for name, value in theirs.items() if name.startswith(part)} and (
            "decoder" not in part or found.config.decoder_heads == config.decoder_heads
        ):
            values |= {name: theirs[name] for name in wanted}
    # An autoencoder of single images has no position table for templates.
    values = {name: values[name] for name in expected if name in values}
    return Initialisation.of(values, expected, (name for name in theirs if name not in values))


def _origin(name: str, target: MixFormerConfig) -> str:
    """The autoencoder's name for a variable of the tracker's backbone."""
    name = re.sub(r"^params/backbone/decoder_(norm|embed)/", r"params/decoder/\1/", name)
    block = re.match(r"params/backbone/blocks_(\d+)/", name)
    if block and int(block[1]) >= target.depth:
        return name.replace(block[0], f"params/decoder/blocks_{int(block[1]) - target.depth}/")
    return name


def _position_table(theirs: Tensors, source: AutoencoderConfig, stream: str, grid: int) -> tuple[str, np.ndarray]:
    """The encoder's position table for a stream, on another grid; and the name of the variable that it is from."""
    names = [f"params/backbone/{name}_positions/table" for name in (stream, "search")]
    name = next((name for name in names if name in theirs), "")
    computed = sincos_positions(source.model.search_grid, source.model.width)
    table = theirs[name] if name else np.asarray(computed, np.float32)
    if len(table) != grid * grid:
        table = np.asarray(jax.device_get(resize_positions(table, grid)))
    return name, table


def mae_table(config: AutoencoderConfig) -> list[Entry | Carried]:
    """MAE's state dict, in its order; WeightsError for an architecture that MAE does not have."""
    model = config.model
    refuse_unknown(
        f"the autoencoder around {model.name!r} has no counterpart: MAE",
        {
            "model without class_token": not config.class_token,
            f"patch_embed {model.patch_embed!r}": model.patch_embed != "linear",
            f"positions {model.positions!r}": model.positions != "sincos",
            "layer_scale": model.layer_scale,
        },
    )
    width, rows = config.decoder_width, 1 + model.search_grid**2
    encoder, decoder = ("params", "backbone"), ("params", "decoder")
    entries: list[Entry | Carried] = [
        Entry("cls_token", ("params", "class_token"), "token"),
        Carried("pos_embed", (1, rows, model.width), sincos_with_class, objection=_NOT_SINCOS),
        Entry("mask_token", (*decoder, "mask_token"), "token"),
        Carried("decoder_pos_embed", (1, rows, width), sincos_with_class, objection=_NOT_SINCOS),
        *affine("patch_embed.proj", (*encoder, "patch_embed", "proj"), "patches", model.patch_size),
    ]
    for i in range(model.depth):
        entries += block_entries(f"blocks.{i}", (*encoder, f"blocks_{i}"))
    entries += norm("norm", (*decoder, "norm"))
    entries += affine("decoder_embed", (*decoder, "embed"), "linear")
    for i in range(config.decoder_depth):
        entries += block_entries(f"decoder_blocks.{i}", (*decoder, f"blocks_{i}"))
    entries += norm("decoder_norm", (*decoder, "output_norm"))
    return entries + affine("decoder_pred", (*decoder, "pixels"), "linear")


def autoencoder_to_mae(
    variables: Mapping[str, Any], config: AutoencoderConfig, carried: Tensors = NO_TENSORS
) -> dict[str, np.ndarray]:
    """An autoencoder as MAE's state dict; WeightsError as in `mae_table` and `write_by_table`."""
    title = f"the weights of an autoencoder around {config.model.name!r}"
    return write_by_table(variables, mae_table(config), shapes_of_autoencoder(config), carried, title)


def export_to_mae(source: str | Path, target: str | Path) -> AutoencoderConfig:
    """Writes a pre-training's file as a checkpoint of MAE: `.pth`, or `.safetensors` with MAE's names.

    Raises WeightsError for a source that is no autoencoder or has no counterpart, or a target of an unknown kind;
    ModuleNotFoundError for `.pth` without PyTorch.
    """
    found, target = load_autoencoder(source), Path(target)
    state = autoencoder_to_mae(found.variables, found.config, found.carried)
    if target.suffix == ".safetensors":
        write_official_safetensors(target, state)
    elif target.suffix == ".pth":
        write_torch(target, state.items(), key="model")
    else:
        raise WeightsError(f"{target}: expected a name that ends in .pth or .safetensors")
    return found.config


def start_from_mae(source: str | Path | Tensors, config: AutoencoderConfig) -> Initialisation:
    """What an autoencoder takes from MAE's checkpoint or state dict: all, or the encoder where there is no decoder, as
    in MAE's published ones. Without a class token here, MAE's is ignored.

    Raises WeightsError for a file that cannot be read, or names and shapes that do not fit.
    """
    where = "state dict" if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else read_official(source).tensors
    complaints = [f"{name} {_NOT_SINCOS}" for name in _TABLES if name in tensors and not _is_sincos(tensors[name])]
    if complaints:
        raise WeightsError(f"{where}: {', '.join(complaints)}")
    # Ours are computed, whatever the grid of MAE's.
    state = {name: tensors[name] for name in tensors if name not in _TABLES}
    has_decoder = any(name.startswith(_DECODER) for name in state)
    with_class = dataclasses.replace(config, class_token=True)
    table = [entry for entry in mae_table(with_class) if has_decoder or not entry.official.startswith(_DECODER)]
    title = f"MAE's state dict for an autoencoder around {config.model.name!r} ({where})"
    variables = read_by_table(state, table, shapes_of_autoencoder(with_class), title)
    ignored = tuple(name for name in tensors if name in _TABLES)
    if not config.class_token:
        del variables["params"]["class_token"]
        ignored += ("cls_token",)
    return Initialisation.of(flatten(variables), shapes_of_autoencoder(config), ignored)


def _is_sincos(table: np.ndarray) -> bool:
    rows = table.shape[1] if table.ndim == 3 else 0
    if rows < 2 or round((rows - 1) ** 0.5) ** 2 != rows - 1 or table.shape[2] % 4:
        return False
    return bool(np.abs(table - sincos_with_class(table.shape)).max() <= 1e-5)
