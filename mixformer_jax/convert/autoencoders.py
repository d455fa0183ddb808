"""Files of masked autoencoders, those of facebookresearch/mae included, and what a tracker takes from one.

A pre-training writes a `.safetensors` like a tracker's (`weights.py`), with the autoencoder's settings in its header
and its encoder under the names of a tracker's backbone. An autoencoder with a class token computes what MAE's
`models_mae.py` does; one table of names converts both ways.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.initial import Initialisation
from mixformer_jax.convert.names import (
    Carried,
    Entry,
    affine,
    block_entries,
    norm,
    read_by_table,
    refuse_unknown,
    sincos_with_class,
    write_by_table,
)
from mixformer_jax.convert.torch_files import read_official, write_official_safetensors, write_torch
from mixformer_jax.convert.weights import (
    NO_TENSORS,
    Shapes,
    WeightsError,
    expected_shapes,
    mismatches,
    read_variables,
    refuse_weights,
    shapes_of,
    write_variables,
)
from mixformer_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from mixformer_jax.models.config import DECODER_HEADS, MixFormerConfig
from mixformer_jax.models.layers import resize_positions, sincos_positions
from mixformer_jax.models.mixformer import variable_shapes

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
    carried: Mapping[str, np.ndarray] = NO_TENSORS


def save_autoencoder(
    path: str | Path,
    variables: Mapping[str, Any],
    config: AutoencoderConfig,
    carried: Mapping[str, np.ndarray] = NO_TENSORS,
) -> None:
    """Writes an autoencoder's file; see `weights.save_weights`."""
    settings = config.to_dict()
    settings["model"] |= {"dtype": "float32"}  # weights do not depend on the compute type
    header = {config.section: json.dumps(settings)}
    write_variables(Path(path), AUTOENCODER_FORMAT, variables, header, carried=carried)


def load_autoencoder(path: str | Path) -> AutoencoderWeights:
    """Reads an autoencoder's file and checks it against the settings in its header.

    Raises WeightsError for no such file, another kind of file, or tensors that are not the model's.
    """
    path = Path(path)
    content = read_variables(path, AUTOENCODER_FORMAT, "a masked autoencoder as a pre-training run writes it")
    config = content.settings(path, AutoencoderConfig)
    variables = content.variables(path, config.model.name, shapes_of_autoencoder(config))
    return AutoencoderWeights(variables, config, content.carried)


@functools.lru_cache(maxsize=64)  # tracing a large model takes seconds
def shapes_of_autoencoder(config: AutoencoderConfig) -> Shapes:
    """Shape of every variable of an autoencoder, by its path (`params/decoder/blocks_0/norm1/scale`)."""
    return shapes_of(variable_shapes(Autoencoder(config)))


def hand_over(variables: Mapping[str, Any], source: AutoencoderConfig, target: MixFormerConfig) -> Initialisation:
    """What a tracker takes from an autoencoder: the encoder, and the decoder's first blocks for its `decoder_blocks`.

    Of a deeper encoder, the first blocks are taken. Decoder blocks follow the encoder's (Fig. 7, "+DN"). Position
    tables of other grids are resized (section 3.3); after a pre-training on single images, the templates' table is made
    from the images'.

    Raises WeightsError for an encoder of another kind, or without something that is needed; all is listed.
    """
    theirs = _flat(variables)
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
    """What one autoencoder takes from another: the encoder, and class token and decoder where they are alike.

    Raises WeightsError as `hand_over`.
    """
    theirs, expected = _flat(found.variables), shapes_of_autoencoder(config)
    values = _flat(hand_over(found.variables, found.config, config.encoder).variables)
    for part in ("params/class_token", "params/decoder/"):
        wanted = {name: shape for name, shape in expected.items() if name.startswith(part)}
        if wanted == {name: value.shape for name, value in theirs.items() if name.startswith(part)} and (
            "decoder" not in part or found.config.decoder_heads == config.decoder_heads
        ):
            values |= {name: theirs[name] for name in wanted}
    # An autoencoder of single images has no position table for templates.
    values = {name: values[name] for name in expected if name in values}
    return Initialisation.of(values, expected, (name for name in theirs if name not in values))


def _flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten_dict(variables, sep="/").items()}


def _origin(name: str, target: MixFormerConfig) -> str:
    """The autoencoder's name for a variable of the tracker's backbone."""
    name = re.sub(r"^params/backbone/decoder_(norm|embed)/", r"params/decoder/\1/", name)
    block = re.match(r"params/backbone/blocks_(\d+)/", name)
    if block and int(block[1]) >= target.depth:
        return name.replace(block[0], f"params/decoder/blocks_{int(block[1]) - target.depth}/")
    return name


def _position_table(
    theirs: Mapping[str, np.ndarray], source: AutoencoderConfig, stream: str, grid: int
) -> tuple[str, np.ndarray]:
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
    variables: Mapping[str, Any], config: AutoencoderConfig, carried: Mapping[str, np.ndarray] = NO_TENSORS
) -> dict[str, np.ndarray]:
    """An autoencoder as MAE's state dict; WeightsError as in `mae_table` and `write_by_table`."""
    title = f"the weights of an autoencoder around {config.model.name!r}"
    return write_by_table(variables, mae_table(config), shapes_of_autoencoder(config), carried, title)


def export_to_mae(source: str | Path, target: str | Path) -> AutoencoderConfig:
    """Writes a pre-training's file as a checkpoint of MAE: `.pth`, or `.safetensors` with MAE's names.

    Raises:
        WeightsError: a source that is no autoencoder or has no counterpart, or a target of an unknown kind.
        ModuleNotFoundError: for `.pth` without PyTorch.
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


def start_from_mae(source: str | Path | Mapping[str, np.ndarray], config: AutoencoderConfig) -> Initialisation:
    """What an autoencoder takes from MAE's checkpoint or state dict: all, or the encoder where there is no decoder.

    MAE's published encoders come without decoders. Without a class token here, MAE's is ignored.

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
    return Initialisation.of(_flat(variables), shapes_of_autoencoder(config), ignored)


def _is_sincos(table: np.ndarray) -> bool:
    rows = table.shape[1] if table.ndim == 3 else 0
    if rows < 2 or round((rows - 1) ** 0.5) ** 2 != rows - 1 or table.shape[2] % 4:
        return False
    return bool(np.abs(table - sincos_with_class(table.shape)).max() <= 1e-5)
