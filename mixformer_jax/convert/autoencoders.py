"""Masked autoencoders in files, and what a tracker takes of one.

The file of a pre-training run is a `.safetensors` like a tracker's (`weights.py`), with the autoencoder's settings in
its header. Its encoder has the names of a tracker's backbone, so that a hand-over copies.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.initial import Initialisation
from mixformer_jax.convert.weights import WeightsError, expected_shapes, read_variables, write_variables
from mixformer_jax.models.autoencoder import Autoencoder, AutoencoderConfig, autoencoder_shapes
from mixformer_jax.models.config import DECODER_HEADS, MixFormerConfig
from mixformer_jax.models.positions import resize_positions, sincos_positions

AUTOENCODER_FORMAT = "mixformer_jax_autoencoder"

# Settings of an encoder that change what its weights mean, and that their shapes do not tell.
_MEANING = ("backbone", "patch_embed", "num_heads", "layer_scale")
# What stands in a tracker's backbone and in no encoder.
_TRACKERS_OWN = re.compile(r"params/backbone/(regression_token$|cross_blocks_)")
_TABLE = re.compile(r"params/backbone/(search|template)_positions/table$")


class AutoencoderWeights(NamedTuple):
    """The content of an autoencoder's file; `carried` are tensors of MAE's that the model does not use."""

    variables: dict[str, Any]
    config: AutoencoderConfig
    carried: Mapping[str, np.ndarray] = MappingProxyType({})


def save_autoencoder(
    path: str | Path,
    variables: Mapping[str, Any],
    config: AutoencoderConfig,
    carried: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
    """Writes an autoencoder atomically.

    Raises:
        WeightsError: a value that is not finite.
    """
    settings = config.to_dict()
    settings["model"] |= {"dtype": "float32"}  # the compute type is not part of a model's weights
    write_variables(Path(path), AUTOENCODER_FORMAT, variables, {"autoencoder": json.dumps(settings)}, carried=carried)


def load_autoencoder(path: str | Path) -> AutoencoderWeights:
    """Reads an autoencoder's file and checks it against the settings in its header.

    Raises:
        WeightsError: no such file, another kind of file, or tensors that are not the model's.
    """
    path = Path(path)
    content = read_variables(path, AUTOENCODER_FORMAT, "a masked autoencoder as a pre-training run writes it")
    config = content.settings(path, "autoencoder", AutoencoderConfig.from_dict)
    variables = content.variables(path, config.model.name, shapes_of_autoencoder(config))
    return AutoencoderWeights(variables, config, content.carried)


@functools.lru_cache(maxsize=4)  # tracing a large model takes seconds
def shapes_of_autoencoder(config: AutoencoderConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of every variable of an autoencoder, by its path (`params/decoder/blocks_0/norm1/scale`)."""
    shapes = flatten_dict(autoencoder_shapes(Autoencoder(config)))
    return MappingProxyType({"/".join(path): value.shape for path, value in shapes.items()})


def hand_over(variables: Mapping[str, Any], source: AutoencoderConfig, target: MixFormerConfig) -> Initialisation:
    """What a tracker takes of an autoencoder: the encoder, and the decoder's first blocks for its `decoder_blocks`.

    Encoder weights keep their names; of a deeper encoder the first blocks are taken. The decoder's part stands behind
    the encoder's (Fig. 7, "+DN"). Position tables of other grids are resized (section 3.3); where the pre-training saw
    single images alone, the templates' table is made of the images' one.

    Args:
        variables: of the autoencoder.
        source: its settings.
        target: the tracker.

    Raises:
        WeightsError: an encoder of another kind, or one that lacks something; one error lists all.
    """
    theirs = {"/".join(path): np.asarray(value) for path, value in flatten_dict(variables).items()}
    expected = {name: shape for name, shape in expected_shapes(target).items() if name.startswith("params/backbone/")}
    complaints = [
        f"{key}: {getattr(source.model, key)!r} there, {getattr(target, key)!r} here"
        for key in _MEANING
        if getattr(source.model, key) != getattr(target, key)
    ]
    if target.positions == "sincos" and source.model.positions != "sincos":
        complaints.append(f"positions: {source.model.positions!r} there, tables that 'sincos' has no place for")
    if target.decoder_blocks and source.decoder_heads != DECODER_HEADS:
        complaints.append(f"decoder_heads: {source.decoder_heads} there; decoder_blocks have {DECODER_HEADS}")
    found: dict[str, np.ndarray] = {}
    used = set()
    for name, shape in expected.items():
        if _TRACKERS_OWN.match(name):
            continue
        table = _TABLE.match(name)
        value: np.ndarray | None
        if table:
            grid = target.search_grid if table[1] == "search" else target.template_grid
            origin, value = _position_table(theirs, source, table[1], grid)
        else:
            origin = _origin(name, target)
            value = theirs.get(origin)
        if value is None:
            complaints.append(f"missing {origin} {shape}")
        elif value.shape != shape:
            complaints.append(f"misshapen {origin}: {value.shape}, expected {shape}")
        else:
            found[name] = value
            used.add(origin)
    if complaints:
        raise WeightsError(
            f"the autoencoder around {source.model.name!r} does not fit the backbone of {target.name!r}:\n  "
            + "\n  ".join(complaints)
        )
    return Initialisation(
        unflatten_dict({tuple(name.split("/")): value for name, value in found.items()}),
        tuple(found),
        tuple(name for name in expected_shapes(target) if name not in found),
        tuple(name for name in theirs if name not in used),
    )


def go_on(found: AutoencoderWeights, config: AutoencoderConfig) -> Initialisation:
    """What one autoencoder takes of another: the encoder, and class token and decoder where it has them alike.

    Raises:
        WeightsError: an encoder of another kind, or one that lacks something; one error lists all.
    """
    encoder = hand_over(found.variables, found.config, config.encoder)
    expected = shapes_of_autoencoder(config)
    theirs = {"/".join(path): np.asarray(value) for path, value in flatten_dict(found.variables).items()}
    values = {"/".join(path): value for path, value in flatten_dict(encoder.variables).items()}
    for part in ("params/class_token", "params/decoder/"):
        wanted = {name: shape for name, shape in expected.items() if name.startswith(part)}
        if wanted == {name: value.shape for name, value in theirs.items() if name.startswith(part)} and (
            "decoder" not in part or found.config.decoder_heads == config.decoder_heads
        ):
            values |= {name: theirs[name] for name in wanted}
    # The templates' position table has no place in an autoencoder of single images.
    values = {name: values[name] for name in expected if name in values}
    return Initialisation(
        unflatten_dict({tuple(name.split("/")): value for name, value in values.items()}),
        tuple(values),
        tuple(name for name in expected if name not in values),
        tuple(name for name in theirs if name not in values),
    )


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
    """The position table of a stream as the encoder learned it, for another grid; and the name of its origin."""
    names = [f"params/backbone/{name}_positions/table" for name in (stream, "search")]
    name = next((name for name in names if name in theirs), "")
    if name:
        table = theirs[name]
    else:
        table = np.asarray(sincos_positions(source.model.search_grid, source.model.width), np.float32)
    if len(table) != grid * grid:
        table = np.asarray(jax.device_get(resize_positions(table, grid)))
    return name, table
