"""How a run starts: its own checkpoint, another run's, what others trained, or fresh weights."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.pretrained import AUTOENCODER_FORMAT, Initialisation, hand_over, init_from, load_autoencoder
from mixformer_jax.convert.torch_files import is_ours
from mixformer_jax.convert.weights import (
    FORMAT,
    Shapes,
    Weights,
    WeightsError,
    expected_shapes,
    load_weights,
    mismatches,
    refuse_weights,
)
from mixformer_jax.models.config import MixFormerConfig
from mixformer_jax.models.layers import resize_positions
from mixformer_jax.training.checkpoints import CheckpointError, Checkpoints
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.objective import Objective
from mixformer_jax.training.program import TrainProgram, TrainState
from mixformer_jax.training.sharding import place

CHECKPOINTS_NAME = "checkpoints"

# Settings that shapes do not tell and that change what the backbone's weights mean.
_MEANING = (
    *("backbone", "patch_embed", "patch_size", "width", "depth", "num_heads", "early_widths", "early_depths"),
    *("early_heads", "layer_scale", "positions", "projection", "projection_norm", "attention", "mixed_blocks"),
    *("cross_attention_blocks", "decoder_blocks"),
)


def first_state(
    objective: Objective, program: TrainProgram, checkpoints: Checkpoints
) -> tuple[TrainState, int, dict[str, Any] | None, str]:
    """The state of the run's own checkpoint, of another run's, or a new one, whose arrays may still be computed; with
    it the steps that it has behind it, the state of its data, and where it comes from in words.

    Raises:
        CheckpointError: `train.resume` names a folder without a whole checkpoint.
        WeightsError: `train.init` does not fit.
    """
    settings: RunConfig = objective.experiment.train
    found, origin = checkpoints.restore(program.state), "goes on"
    if found is None and settings.resume is not None:
        with Checkpoints(Path(settings.resume) / CHECKPOINTS_NAME, read_only=True) as others:
            found, origin = others.restore(program.state), f"goes on from {settings.resume},"
        if found is None:
            raise CheckpointError(f"train.resume: {settings.resume} holds no whole checkpoint")
    if found is not None:
        step = int(found.state.step)
        return found.state, step, found.data, f"{origin} after step {step}"
    fresh = program.init(jax.random.key(settings.seed))
    if settings.init is not None:
        start = objective.start_from(settings.init)
        return _with_variables(fresh, start.variables), 0, None, _report(settings.init, start)
    return fresh, 0, None, "starts from fresh weights"


def start_from(source: str | Path, config: MixFormerConfig, may_be_fresh: tuple[str, ...]) -> Initialisation:
    """What a pre-trained model gives a tracker: an official backbone (`.pth`, `.safetensors`), a weights file of ours,
    or the folder of a run; of a pre-training too.

    A part of the model (`backbone`, `head`, `score`) comes whole or not at all; the backbone always. Batch norms are
    taken as the model wants them: constant ones from trained ones (stage 2 from stage 1), and the other way. Position
    tables are resized where the crops have another size. From a model of RGB alone, the embedding of a second stream
    starts as RGB's own, and its factors at zero.

    Raises WeightsError: a source that cannot be read, another backbone, or one that lacks a part other than those of
    `may_be_fresh`: all names that are missing or misshapen in one error.
    """
    path = find_weights(source)
    if is_ours(FORMAT, path):
        return _from_weights(path, load_weights(path), config, may_be_fresh)
    if is_ours(AUTOENCODER_FORMAT, path):
        found = load_autoencoder(path)
        start = hand_over(found.variables, found.config, config)
    else:
        start = init_from(path, config)
    values, expected = flatten_dict(start.variables, sep="/"), expected_shapes(config)
    start = Initialisation.of(_with_second_stream(values, expected), expected, start.ignored)
    missing = sorted({_part(name) for name in start.fresh if _part(name) != "backbone"} - set(may_be_fresh))
    if missing:
        raise WeightsError(f"{path}: a backbone alone, without {', '.join(missing)}; expected a trained tracker")
    return start


def _with_variables(state: TrainState, given: Mapping[str, Any]) -> TrainState:
    """The state with these values in the place of its own, and of its average's."""
    values = flatten_dict(given)

    def replaced(variables: dict[str, Any]) -> dict[str, Any]:
        flat = flatten_dict(variables)
        # The average and the parameters must not share buffers: the step gives the state up.
        return unflatten_dict(
            {path: place(values[path], x.sharding) if path in values else x for path, x in flat.items()}
        )

    model_state = replaced(state.variables)
    params = model_state.pop("params")
    return state._replace(params=params, model_state=model_state, ema=replaced(state.ema))


def _report(source: str, start: Initialisation) -> str:
    """What was taken and what starts fresh, by the parts of the model."""

    def parts(names: Sequence[str]) -> str:
        counts = Counter(_part(name) for name in names)
        return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"

    ignored = f"; ignored: {len(start.ignored)} ({', '.join(start.ignored[:4])}, ...)" if start.ignored else ""
    return f"starts from {source}: taken: {parts(start.taken)}; fresh: {parts(start.fresh)}{ignored}"


def _from_weights(
    path: Path, weights: Weights, config: MixFormerConfig, may_be_fresh: tuple[str, ...]
) -> Initialisation:
    theirs = weights.model
    differences = [
        f"{key}: {getattr(theirs, key)!r} there, {getattr(config, key)!r} here"
        for key in _MEANING
        if getattr(theirs, key) != getattr(config, key)
    ]
    if theirs.second_stream not in ("none", config.second_stream):
        differences.append(f"second_stream: {theirs.second_stream!r} there, {config.second_stream!r} here")
    if differences:
        raise WeightsError(f"{path}: the backbone of another model: {'; '.join(differences)}")
    expected = expected_shapes(config)
    found = _with_second_stream(_as_wanted(flatten_dict(weights.variables, sep="/"), expected), expected)
    complaints: dict[str, list[str]] = {}
    for part in dict.fromkeys(map(_part, expected)):
        shapes = {name: shape for name, shape in expected.items() if _part(name) == part}
        complaints[part] = mismatches({name: found[name] for name in shapes if name in found}, shapes)
    if config.head != theirs.head:
        complaints["head"].append(f"head: {theirs.head!r} there, {config.head!r} here")
    fatal = [line for part, lines in complaints.items() if part not in may_be_fresh for line in lines]
    refuse_weights(f"{path}: does not fit {config.name!r}", fatal)
    taken = {name: found[name] for name in expected if not complaints[_part(name)]}
    return Initialisation.of(taken, expected, (name for name in found if name not in taken))


def _with_second_stream(found: Mapping[str, np.ndarray], expected: Shapes) -> dict[str, np.ndarray]:
    """What was found, and what a model with a second stream needs beside that: RGB's embedding again, zero factors."""
    filled = dict(found)
    for name in (name for name in expected if name not in found):
        names = (name.replace("/second_embed/", f"/{embed}/") for embed in ("patch_embed", "embed_0"))
        given = next((found[other] for other in names if other != name and other in found), None)
        if name.endswith("/second_scale"):
            given = np.zeros(expected[name], np.float32)
        if given is not None:
            filled[name] = given
    return filled


def _part(name: str) -> str:
    """`head` of `batch_stats/head/top_left/...`; the query head's token is the head's, wherever it lives."""
    return "head" if name.endswith("/regression_token") else name.split("/")[1]


def _as_wanted(found: Mapping[str, np.ndarray], expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Batch norms in the collections where the model has them: learned and tracked, or constant; position tables of
    crops of another size resized."""
    moved = {}
    for name, value in found.items():
        collection, _, rest = name.partition("/")
        learned = "batch_stats" if rest.endswith(("/mean", "/var")) else "params"
        other = "constants" if collection in ("params", "batch_stats") else learned
        target = f"{other}/{rest}" if name not in expected and f"{other}/{rest}" in expected else name
        if target.endswith("_positions/table") and target in expected and len(value) != expected[target][0]:
            value = np.asarray(jax.device_get(resize_positions(value, math.isqrt(expected[target][0]))))
        moved[target] = value
    return moved
