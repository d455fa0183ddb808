"""Weights of Alpha-Refine's mask network: our file, and official checkpoints both ways, by one table of names.

A file of ours is a `.safetensors` like a tracker's (`weights.py`), with the network's sizes in its header. The official
trainer keeps the pool size in a pickled record alone, which is not run: it is read off the shapes.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.names import (
    CLASSES,
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
    with_counters,
    write_by_table,
    zeros,
)
from mixformer_jax.convert.pretrained import Initialisation
from mixformer_jax.convert.torch_files import OfficialState, is_official, read_official
from mixformer_jax.convert.weights import (
    NO_TENSORS,
    Shapes,
    WeightsError,
    check_finite,
    mismatches,
    read_variables,
    refuse_weights,
    shapes_of,
    write_variables,
)
from mixformer_jax.models.alpha_refine import EXPANSION, AlphaRefine, AlphaRefineConfig
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.mixformer import variable_shapes

ALPHA_REFINE_FORMAT = "mixformer_jax_alpha_refine"

_BACKBONE, _NECK, _HEAD = "feature_extractor", "neck", "refiner"
# The official head counts its levels from the stem on: layer5 is the deepest.
_LEVELS = {"layer5": "stride32", "layer4": "stride16", "layer3": "stride8", "layer2": "stride4"}
# Its name of the first convolution that takes the correlation, whose inputs are the bins of the pooling.
_SQUEEZE = f"{_NECK}.channel_attention.fc1.weight"


class AlphaRefineWeights(NamedTuple):
    """The content of a file; `carried` are tensors of an official checkpoint that no forward pass uses."""

    variables: dict[str, Any]
    config: AlphaRefineConfig
    carried: Mapping[str, np.ndarray] = NO_TENSORS


def save_alpha_refine(
    path: str | Path,
    variables: Mapping[str, Any],
    config: AlphaRefineConfig,
    carried: Mapping[str, np.ndarray] = NO_TENSORS,
) -> None:
    """Writes a file of ours; see `weights.save_weights`."""
    header = {config.section: json.dumps(config.to_dict())}
    write_variables(Path(path), ALPHA_REFINE_FORMAT, variables, header, carried=carried)


def load_alpha_refine(path: str | Path) -> AlphaRefineWeights:
    """Reads a file of ours and checks it against its header.

    Raises WeightsError for no such file, another kind of file, or tensors that are not the network's.
    """
    path = Path(path)
    content = read_variables(path, ALPHA_REFINE_FORMAT, "weights of Alpha-Refine's mask network")
    config = content.settings(path, AlphaRefineConfig)
    variables = content.variables(path, config.name, shapes_of_alpha_refine(config))
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


def is_alpha_refine(names: Mapping[str, np.ndarray]) -> bool:
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
    table, shapes = alpha_refine_table(found.config), shapes_of_alpha_refine(found.config)
    return write_by_table(
        found.variables, table, shapes, found.carried, f"the weights of the mask network {found.config.name!r}"
    )


def count_parameters(state: Mapping[str, np.ndarray]) -> int:
    """Parameters of an official state dict, the classifier's included; buffers are none."""
    buffers = ("running_mean", "running_var", COUNTER)
    return sum(value.size for name, value in state.items() if not name.endswith(buffers))


def infer_alpha_refine(state: Mapping[str, np.ndarray]) -> AlphaRefineConfig:
    """The sizes of an official state dict, from its names and shapes; WeightsError where they do not tell."""
    stem, squeeze, project = f"{_BACKBONE}.conv1.weight", _SQUEEZE, f"{_HEAD}.project.conv1.weight"
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
    return shapes_of(variable_shapes(AlphaRefine(config)))


def alpha_refine_table(config: AlphaRefineConfig) -> list[Entry | Carried]:
    """The official state dict in its order."""
    width = EXPANSION * 8 * config.stem_width
    classifier = [
        Carried(f"{_BACKBONE}.fc.weight", (CLASSES, width), zeros, free=0),
        Carried(f"{_BACKBONE}.fc.bias", (CLASSES,), zeros, free=0),
    ]
    return list(with_counters([*_resnet(config, f"{_BACKBONE}."), *classifier, *_neck(), *_mask_head()]))


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


def _convolution(official: str, path: TreePath) -> Entry:
    return Entry(f"{official}.weight", ("params", *path, "kernel"), "conv")


def _biased(official: str, path: TreePath) -> list[Entry]:
    return affine(official, ("params", *path), "conv")


def _norm(official: str, path: TreePath) -> list[Entry]:
    return batch_norm(official, path, frozen=False)


def _resnet(config: AlphaRefineConfig, prefix: str) -> list[Entry]:
    """In torchvision's names and order, without the classifier."""
    stem = ("backbone", "stem")
    entries = [_convolution(f"{prefix}conv1", (*stem, "conv")), *_norm(f"{prefix}bn1", (*stem, "norm"))]
    for layer, depth in enumerate(config.depths, start=1):
        for block in range(depth):
            official, path = f"{prefix}layer{layer}.{block}", ("backbone", f"layer{layer}_{block}")
            names = [(f"conv{i}", f"bn{i}", f"conv{i}") for i in (1, 2, 3)]
            names += [("downsample.0", "downsample.1", "shortcut")] if block == 0 else []
            for conv, norm, ours in names:
                entries.append(_convolution(f"{official}.{conv}", (*path, ours)))
                entries += _norm(f"{official}.{norm}", (*path, f"{ours}_norm"))
    return entries


def _neck() -> list[Entry]:
    channels, spatial, ours = f"{_NECK}.channel_attention", f"{_NECK}.spatial_attention", "correlation"
    return [
        *_biased(f"{channels}.fc1", (ours, "squeeze")),
        *_biased(f"{channels}.fc2", (ours, "excite")),
        *_biased(f"{spatial}.g.0", (ours, "g")),
        *_biased(f"{spatial}.W.0", (ours, "expand")),
        *_norm(f"{spatial}.W.1", (ours, "expand_norm")),
        *_biased(f"{spatial}.theta", (ours, "theta")),
        *_biased(f"{spatial}.phi.0", (ours, "phi")),
    ]


def _mask_head() -> list[Entry]:
    def enrich(official: str, path: TreePath) -> list[Entry]:
        names = {"reduce.0": "reduce1", "reduce.2": "reduce2"}
        names |= {f"transform.{2 * i}": f"mix{i + 1}" for i in range(3)}
        return [entry for theirs, name in names.items() for entry in _biased(f"{official}.{theirs}", (*path, name))]

    def gate(official: str, path: TreePath) -> list[Entry]:
        names = {"0": "gate1", "2": "gate2"}
        parts = [_biased(f"{official}.convreluconv.{theirs}", (*path, name)) for theirs, name in names.items()]
        return [entry for part in parts for entry in part]

    def refine(name: str, official: str, path: TreePath) -> list[Entry]:
        return [
            *_biased(f"{official}.conv1x1", (*path, name, "conv1")),
            *_biased(f"{official}.bblock.0", (*path, name, "conv2")),
            *_norm(f"{official}.bblock.1", (*path, name, "norm")),
            _convolution(f"{official}.bblock.3", (*path, name, "conv3")),
        ]

    # By part, and in each part by level.
    parts: dict[str, Callable[[str, TreePath], list[Entry]]] = {
        "TSE": enrich,
        "RRB1": functools.partial(refine, "refine1"),
        "CAB": gate,
        "RRB2": functools.partial(refine, "refine2"),
    }
    entries = [
        entry
        for part, of_level in parts.items()
        for level, ours in _LEVELS.items()
        for entry in of_level(f"{_HEAD}.{part}.{level}", ("head", ours))
    ]
    for i in (1, 2):
        entries += _biased(f"{_HEAD}.project.conv{i}", ("head", f"project{i}"))
    return entries
