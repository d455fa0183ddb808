"""Weights of mask decoders: a file of the decoder alone, which names the tracker whose backbone it was trained on.

The header has a digest of that backbone: other weights would give masks of nothing, without a word.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.convert import find_weights, read_weights
from mixformer_jax.convert.weights import Shapes, WeightsError, flatten, read_variables, shapes_of, write_variables
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.models.masks import MaskDecoderConfig, TokenMasks

MASK_DECODER_FORMAT = "mixformer_jax_mask_decoder"
BACKBONE = "backbone"


class Backbone(NamedTuple):
    """What masks need of a tracker: its settings, and its backbone's variables, by path (`params/backbone/...`)."""

    tracker: MixFormerConfig
    values: Mapping[str, np.ndarray]

    @property
    def digest(self) -> str:
        """Of names and values."""
        digest = hashlib.sha256()
        for name in sorted(self.values):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(self.values[name], np.float32).data)
        return digest.hexdigest()


class MaskDecoderWeights(NamedTuple):
    """A decoder with its backbone: variables of `TokenMasks`, its sizes, and the tracker."""

    variables: dict[str, Any]
    config: MaskDecoderConfig
    tracker: MixFormerConfig


def read_backbone(config: MaskDecoderConfig) -> Backbone:
    """The backbone that a decoder reads.

    Raises WeightsError where it cannot be read; ConfigError for one whose tokens this decoder cannot read.
    """
    weights = read_weights(find_weights(config.tracker))
    config.check_tracker(weights.model)
    flat = flatten(weights.variables)
    return Backbone(weights.model, {name: flat[name] for name in flat if _is_of_backbone(name)})


def save_mask_decoder(path: str | Path, variables: Mapping[str, Any], config: MaskDecoderConfig) -> None:
    """Writes the decoder of `TokenMasks`' variables, as float16; see `weights.save_weights`."""
    flat = flatten_dict(variables, sep="/")
    decoder = unflatten_dict({name: flat[name] for name in flat if not _is_of_backbone(name)}, sep="/")
    # Of the file, not of the variables: a moving average of what never moves is rounded.
    digest = read_backbone(config).digest
    write_variables(path, MASK_DECODER_FORMAT, decoder, [config], store="float16", backbone_sha256=digest)


def load_mask_decoder(path: str | Path) -> MaskDecoderWeights:
    """Reads such a file, and the backbone of the tracker that it names.

    Raises WeightsError for no such file, another kind of file, or a tracker that is not the one it was trained on.
    """
    content = read_variables(path, MASK_DECODER_FORMAT, "weights of a mask decoder")
    config = content.settings(MaskDecoderConfig)
    try:
        backbone = read_backbone(config)
    except (WeightsError, ConfigError) as error:
        raise WeightsError(f"{path}: needs the tracker {config.tracker!r}, on which it was trained: {error}") from error
    if content.header.get("backbone_sha256") != backbone.digest:
        raise WeightsError(
            f"{path}: was trained on another backbone than that of {config.tracker!r} here, and would give masks of "
            "nothing; train it again (mixformer train), or take the tracker's weights of then"
        )
    shapes = shapes_of_masks(backbone.tracker, config)
    expected = {name: shapes[name] for name in shapes if not _is_of_backbone(name)}
    decoder = flatten_dict(content.variables(config.name, expected), sep="/")
    variables = unflatten_dict({**backbone.values, **decoder}, sep="/")
    return MaskDecoderWeights(variables, config, backbone.tracker)


@functools.lru_cache(maxsize=4)
def shapes_of_masks(tracker: MixFormerConfig, config: MaskDecoderConfig) -> Shapes:
    """Shape of every variable of `TokenMasks`, by its path."""
    return shapes_of(TokenMasks(tracker, config))


def _is_of_backbone(name: str) -> bool:
    return name.split("/")[1] == BACKBONE
