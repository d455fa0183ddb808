"""Masked autoencoders and the checkpoints of facebookresearch/mae (`models_mae.py`): one table of names, both ways.

An autoencoder with a class token computes what MAE computes, so that its checkpoints can be gone on with, and ours be
read by its code.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.autoencoders import load_autoencoder, shapes_of_autoencoder
from mixformer_jax.convert.backbone_names import block_entries
from mixformer_jax.convert.entries import Carried, Entry, affine, norm, sincos_with_class
from mixformer_jax.convert.initial import Initialisation
from mixformer_jax.convert.tables import carried_by_table, read_by_table, write_by_table
from mixformer_jax.convert.torch_files import read_official, write_official_safetensors, write_torch
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.autoencoder import AutoencoderConfig

_NOT_SINCOS = "is not the sin-cos table, which MAE never trains"
_DECODER = ("mask_token", "decoder_")
_TABLES = ("pos_embed", "decoder_pos_embed")


def mae_table(config: AutoencoderConfig) -> list[Entry | Carried]:
    """The whole state dict of MAE for an autoencoder, in its own order.

    Raises:
        WeightsError: for an architecture that MAE does not have.
    """
    _check_mae(config)
    model, width, rows = config.model, config.decoder_width, 1 + config.model.search_grid**2
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


def autoencoder_from_mae(state: Mapping[str, np.ndarray], config: AutoencoderConfig) -> dict[str, Any]:
    """MAE's state dict as the variables of an autoencoder.

    Raises:
        WeightsError: names or shapes that do not fit; one error lists them all.
    """
    return read_by_table(state, mae_table(config), shapes_of_autoencoder(config), _title(config))


def carried_from_mae(state: Mapping[str, np.ndarray], config: AutoencoderConfig) -> dict[str, np.ndarray]:
    """MAE's position tables, by their names there: with them an export is the checkpoint again, bit for bit."""
    return carried_by_table(state, mae_table(config))


def autoencoder_to_mae(
    variables: Mapping[str, Any],
    config: AutoencoderConfig,
    carried: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
    """The variables of an autoencoder as MAE's state dict, in its order.

    Raises:
        WeightsError: an architecture that MAE does not have, or variables that are not the config's.
    """
    title = f"the weights of an autoencoder around {config.model.name!r}"
    return write_by_table(variables, mae_table(config), shapes_of_autoencoder(config), carried, title)


def export_to_mae(source: str | Path, target: str | Path) -> AutoencoderConfig:
    """Writes the file of a pre-training as a checkpoint of MAE: `.pth`, or `.safetensors` with MAE's names.

    Raises:
        WeightsError: a source that is no autoencoder or has no counterpart, or a target of an unknown kind.
        ModuleNotFoundError: for `.pth` files where PyTorch is not installed.
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
    """What a checkpoint of MAE gives an autoencoder: everything, or the encoder alone where it holds no decoder.

    MAE's published encoders come without their decoders. An autoencoder without class token leaves MAE's aside.

    Args:
        source: a `.pth` or `.safetensors` file, or the state dict itself.
        config: the autoencoder.

    Raises:
        WeightsError: a file that cannot be read, or names and shapes that do not fit.
    """
    where = "state dict" if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else read_official(source).tensors
    complaints = [f"{name} {_NOT_SINCOS}" for name in _TABLES if name in tensors and not _is_sincos(tensors[name])]
    if complaints:
        raise WeightsError(f"{where}: {', '.join(complaints)}")
    # Tables of other grids than ours are no obstacle: ours are computed.
    state = {name: tensors[name] for name in tensors if name not in _TABLES}
    has_decoder = any(name.startswith(_DECODER) for name in state)
    with_class = dataclasses.replace(config, class_token=True)
    table = [entry for entry in mae_table(with_class) if has_decoder or not entry.official.startswith(_DECODER)]
    variables = read_by_table(state, table, shapes_of_autoencoder(with_class), f"{_title(config)} ({where})")
    ignored = tuple(name for name in tensors if name in _TABLES)
    if not config.class_token:
        del variables["params"]["class_token"]
        ignored += ("cls_token",)
    taken = tuple("/".join(path) for path in flatten_dict(variables))
    fresh = tuple(name for name in shapes_of_autoencoder(config) if name not in set(taken))
    return Initialisation(variables, taken, fresh, ignored)


def _title(config: AutoencoderConfig) -> str:
    return f"MAE's state dict for an autoencoder around {config.model.name!r}"


def _is_sincos(table: np.ndarray) -> bool:
    rows = table.shape[1] if table.ndim == 3 else 0
    if rows < 2 or round((rows - 1) ** 0.5) ** 2 != rows - 1 or table.shape[2] % 4:
        return False
    return bool(np.abs(table - sincos_with_class(table.shape)).max() <= 1e-5)


def _check_mae(config: AutoencoderConfig) -> None:
    missing = {
        "model without class_token": not config.class_token,
        f"patch_embed {config.model.patch_embed!r}": config.model.patch_embed != "linear",
        f"positions {config.model.positions!r}": config.model.positions != "sincos",
        "layer_scale": config.model.layer_scale,
    }
    if any(missing.values()):
        listed = ", ".join(text for text, is_missing in missing.items() if is_missing)
        raise WeightsError(f"the autoencoder around {config.model.name!r} has no counterpart: MAE has no {listed}")
