"""Weights of Alpha-Refine's mask network: our file, and official checkpoints both ways, by one table of names.

The official trainer keeps the pool size in a pickled record alone, which is not run: it is read off the shapes.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.names import (
    COUNTER,
    Carried,
    Entry,
    TreePath,
    affine,
    batch_norm,
    carried_by_table,
    official_shape,
    read_by_table,
    to_ours,
    unused_classifier,
    with_counters,
    write_by_table,
)
from mixformer_jax.convert.pretrained import Initialisation
from mixformer_jax.convert.torch_files import OfficialState, is_official, read_official
from mixformer_jax.convert.weights import (
    NO_TENSORS,
    Shapes,
    Tensors,
    WeightsError,
    check_finite,
    mismatches,
    read_variables,
    refuse_weights,
    shapes_of,
    write_variables,
)
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.masks import EXPANSION, AlphaRefine, AlphaRefineConfig

ALPHA_REFINE_FORMAT = "mixformer_jax_alpha_refine"

_BACKBONE, _NECK, _HEAD = "feature_extractor", "neck", "refiner"
# Layers by their official names, in the official order: those of the neck, and of each part of a level of the head.
_CORRELATION = {
    "channel_attention.fc1": "squeeze",
    "channel_attention.fc2": "excite",
    "spatial_attention.g.0": "g",
    "spatial_attention.W.0": "expand",
    "spatial_attention.W.1": "expand_norm",
    "spatial_attention.theta": "theta",
    "spatial_attention.phi.0": "phi",
}
_REFINEMENT = {"conv1x1": "conv1", "bblock.0": "conv2", "bblock.1": "norm", "bblock.3": "conv3"}
_PARTS = {
    "TSE": {"reduce.0": "reduce1", "reduce.2": "reduce2"} | {f"transform.{2 * i}": f"mix{i + 1}" for i in range(3)},
    "RRB1": {official: f"refine1/{name}" for official, name in _REFINEMENT.items()},
    "CAB": {"convreluconv.0": "gate1", "convreluconv.2": "gate2"},
    "RRB2": {official: f"refine2/{name}" for official, name in _REFINEMENT.items()},
}
# The official head counts its levels from the stem on: layer5 is the deepest.
_LEVELS = {"layer5": "stride32", "layer4": "stride16", "layer3": "stride8", "layer2": "stride4"}


class AlphaRefineWeights(NamedTuple):
    """The content of a file; `carried` are tensors of an official checkpoint that no forward pass uses."""

    variables: dict[str, Any]
    config: AlphaRefineConfig
    carried: Tensors = NO_TENSORS


def save_alpha_refine(
    path: str | Path, variables: Mapping[str, Any], config: AlphaRefineConfig, carried: Tensors = NO_TENSORS
) -> None:
    """Writes a file of ours; see `weights.save_weights`."""
    write_variables(path, ALPHA_REFINE_FORMAT, variables, [config], carried=carried)


def load_alpha_refine(path: str | Path) -> AlphaRefineWeights:
    """Reads a file of ours and checks it against its header.

    Raises WeightsError for no such file, another kind of file, or tensors that are not the network's.
    """
    content = read_variables(path, ALPHA_REFINE_FORMAT, "weights of Alpha-Refine's mask network")
    config = content.settings(AlphaRefineConfig)
    variables = content.variables(config.name, shapes_of_alpha_refine(config))
    return AlphaRefineWeights(variables, config, content.carried)


def read_alpha_refine(path: str | Path) -> AlphaRefineWeights:
    """Reads a file of ours, or an official checkpoint in memory.

    Raises WeightsError as `load_alpha_refine`, and for an official file that does not fit; ModuleNotFoundError for a
    `.pth` without PyTorch.
    """
    path = Path(path)
    if path.is_file() and is_official(path):
        found = from_official(path, read_official(path))
        return found._replace(variables=jax.tree.map(np.array, found.variables))  # the file may change meanwhile
    return load_alpha_refine(path)


def is_alpha_refine(names: Tensors) -> bool:
    """Whether a state dict is of Alpha-Refine's family, by its names."""
    return any(name.startswith(f"{_HEAD}.") for name in names)


def from_official(where: object, found: OfficialState) -> AlphaRefineWeights:
    """An official checkpoint as ours, as views of its tensors; WeightsError naming `where` if it does not fit."""
    try:
        config = infer_alpha_refine(found.tensors)
        table = alpha_refine_table(config)
        title = "an official state dict of Alpha-Refine's mask network"
        variables = read_by_table(found.tensors, table, shapes_of_alpha_refine(config), title)
    except (WeightsError, ConfigError) as error:
        raise WeightsError(f"{where}: {error}") from error
    check_finite(where, flatten_dict(variables, sep="/"))
    return AlphaRefineWeights(variables, config, carried_by_table(found.tensors, table))


def to_official(found: AlphaRefineWeights) -> dict[str, np.ndarray]:
    """The official state dict, in its order; what no forward pass uses is carried, or zeros.

    Raises WeightsError for variables or carried tensors that are missing, unexpected or misshapen.
    """
    variables, config, carried = found
    title = f"the weights of the mask network {config.name!r}"
    return write_by_table(variables, alpha_refine_table(config), shapes_of_alpha_refine(config), carried, title)


def count_parameters(state: Tensors) -> int:
    """Parameters of an official state dict, the classifier's included; buffers are none."""
    buffers = ("running_mean", "running_var", COUNTER)
    return sum(value.size for name, value in state.items() if not name.endswith(buffers))


def infer_alpha_refine(state: Tensors) -> AlphaRefineConfig:
    """The sizes of an official state dict, from its names and shapes; WeightsError where they do not tell."""
    stem, project = f"{_BACKBONE}.conv1.weight", f"{_HEAD}.project.conv1.weight"
    squeeze = f"{_NECK}.channel_attention.fc1.weight"  # takes the correlation: a map for each bin of the pooling
    if missing := [name for name in (stem, squeeze, project) if name not in state or state[name].ndim != 4]:
        raise WeightsError(f"not Alpha-Refine's mask network: no convolution {', '.join(missing)}")
    bins = state[squeeze].shape[1]
    pool_size = round(bins**0.5)
    if pool_size**2 != bins:
        raise WeightsError(f"not Alpha-Refine's mask network: {squeeze} takes {bins} maps, which are no square of bins")
    blocks = [re.match(rf"{_BACKBONE}\.layer(\d)\.(\d+)\.", name) for name in state]
    depths = [1 + max((int(b[2]) for b in blocks if b and b[1] == str(i)), default=-1) for i in (1, 2, 3, 4)]
    sizes = {"stem_width": state[stem].shape[0], "head_width": state[project].shape[1]}
    return AlphaRefineConfig(pool_size=pool_size, depths=tuple(depths), **sizes)


@functools.lru_cache(maxsize=4)
def shapes_of_alpha_refine(config: AlphaRefineConfig) -> Shapes:
    """Shape of every variable, by its path (`params/head/stride4/mix1/kernel`)."""
    return shapes_of(AlphaRefine(config))


def alpha_refine_table(config: AlphaRefineConfig) -> list[Entry | Carried]:
    """The official state dict in its order."""
    head = [
        entry
        for part, names in _PARTS.items()
        for level, ours in _LEVELS.items()
        for entry in _layers(f"{_HEAD}.{part}.{level}.", ("head", ours), names)
    ]
    head += _layers(f"{_HEAD}.project.", ("head",), {"conv1": "project1", "conv2": "project2"})
    neck = _layers(f"{_NECK}.", ("correlation",), _CORRELATION)
    classifier = unused_classifier(f"{_BACKBONE}.fc", EXPANSION * 8 * config.stem_width)
    return list(with_counters([*_resnet(config, f"{_BACKBONE}."), *classifier, *neck, *head]))


def init_resnet(source: str | Path, config: AlphaRefineConfig) -> Initialisation:
    """What a ResNet of torchvision's names, pre-trained on ImageNet, gives: the backbone.

    Raises WeightsError for a file that cannot be read, is no such ResNet or one of another size.
    """
    tensors = read_official(source).tensors
    table, shapes = _resnet(config, ""), shapes_of_alpha_refine(config)
    expected = {entry.official: official_shape(entry, shapes[entry.name]) for entry in table}
    state = {name: tensors[name] for name in tensors if name in expected}
    refuse_weights(f"{source}: does not fit the ResNet of {config.name!r}", mismatches(state, expected))
    values = {entry.name: np.array(to_ours(state[entry.official], entry.layout)) for entry in table}
    check_finite(source, values)
    return Initialisation.of(values, shapes, (name for name in tensors if name not in expected))


def _resnet(config: AlphaRefineConfig, prefix: str) -> list[Entry]:
    """In torchvision's names and order, without the classifier."""
    entries = _layers(prefix, ("backbone", "stem"), {"conv1": "conv", "bn1": "norm"})
    block: dict[str, str] = {}
    for i in (1, 2, 3):
        block |= {f"conv{i}": f"conv{i}", f"bn{i}": f"conv{i}_norm"}
    shortcut = {"downsample.0": "shortcut", "downsample.1": "shortcut_norm"}
    for layer, depth in enumerate(config.depths, start=1):
        for i in range(depth):
            path = ("backbone", f"layer{layer}_{i}")
            entries += _layers(f"{prefix}layer{layer}.{i}.", path, block if i else block | shortcut)
    return entries


def _layers(prefix: str, path: TreePath, names: Mapping[str, str]) -> list[Entry]:
    """Convolutions and batch norms of a module, official names to ours; of the ResNet, and in refinements the last
    one, convolutions have no bias."""
    entries: list[Entry] = []
    for official, name in names.items():
        ours = (*path, *name.split("/"))
        if name.endswith("norm"):
            entries += batch_norm(f"{prefix}{official}", ours, frozen=False)
        else:
            kernel, bias = affine(f"{prefix}{official}", ("params", *ours), "conv")
            entries += [kernel] if path[0] == "backbone" or official == "bblock.3" else [kernel, bias]
    return entries
