"""A tracker's network as two functions of plain arrays by name, `encode_templates`, and `locate` on what it gives; and
as files, with one in JSON that says what a program around them must know."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp

import mixformer_jax
from mixformer_jax.files import NameTakenError, is_taken, write_atomically
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.mixformer import Prediction, build_model
from mixformer_jax.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise
from mixformer_jax.tracking.scores import ENTROPY_ABOVE, ENTROPY_RATE
from mixformer_jax.tracking.step import Variables
from mixformer_jax.tracking.tracker import Tracker
from mixformer_jax.typed_settings import ConfigError

Arrays = dict[str, jax.Array]
Shapes = Mapping[str, jax.ShapeDtypeStruct]


class Function(NamedTuple):
    """`call(variables, inputs)`, and what goes in and comes out, by name."""

    name: str
    call: Callable[[Variables, Arrays], Arrays]
    inputs: Shapes
    outputs: Shapes


def tracking_functions(tracker: Tracker, targets: int) -> tuple[Function, ...]:
    """The functions of a tracker for so many targets, in its compute type, for any platform.

    `encode_templates` takes `templates`, uint8 RGB crops [targets, slots, T, T, 3], and for trackers with more than one
    online template `filled`, bool [targets, slots]: which slots hold one. All that it gives goes into `locate`, with
    `search`, uint8 RGB crops [targets, S, S, 3]. That gives `boxes_cxcywh`, float32 [targets, 4], normalised to the
    search crops, and for models with a score prediction module `scores`, float32 [targets] in [0, 1]. Where the
    tracker has an `entropy_margin`, they fall above `entropy_limit`, float32 [targets] in nats, an input; and
    `corner_entropy`, float32 [targets] in nats, is an output, of which `tracking.scores` makes the next limit.

    A model whose templates depend on the search region encodes nothing: its `encode_templates` gives what it takes.
    Crops of a model with a second stream have its three channels behind RGB.
    """
    # Plain operations alone: a kernel of one vendor's would bind the program to it.
    config = dataclasses.replace(tracker.config, attention_kernel="xla")
    model, slots = build_model(config), tracker.settings.num_slots

    inputs = {"templates": _bytes(targets, slots, config.template_size, channels=config.channels)}
    if tracker.settings.num_online_templates > 1:
        inputs["filled"] = jax.ShapeDtypeStruct((targets, slots), jnp.bool_)

    def encode(variables: Variables, inputs: Arrays) -> TemplateCache | Arrays:
        if not config.is_cacheable:
            return inputs
        templates, filled = normalise(inputs["templates"]), inputs.get("filled")
        return cast(TemplateCache, model.apply(variables, templates, filled, method="encode_templates"))

    cached, structure = jax.tree.flatten_with_path(jax.eval_shape(encode, tracker.variables, inputs))
    names = [f"cache_{jax.tree_util.keystr(path, simple=True, separator='_')}" for path, _shape in cached]

    def encode_templates(variables: Variables, inputs: Arrays) -> Arrays:
        return dict(zip(names, jax.tree.leaves(encode(variables, inputs)), strict=True))

    def locate(variables: Variables, inputs: Arrays) -> Arrays:
        cache, search = jax.tree.unflatten(structure, [inputs[name] for name in names]), normalise(inputs["search"])
        if isinstance(cache, TemplateCache):
            found = cast(Prediction, model.apply(variables, cache, search, method="locate"))
        else:
            templates, filled = normalise(cache["templates"]), cache.get("filled")
            found = cast(Prediction, model.apply(variables, templates, search, filled))
        limit = inputs.get("entropy_limit")
        scores, entropy = found.scores_within(limit), None if limit is None else found.corner_entropy
        answer = {"boxes_cxcywh": found.boxes_cxcywh, "scores": scores, "corner_entropy": entropy}
        return {name: value for name, value in answer.items() if value is not None}

    cache = dict(zip(names, (shape for _path, shape in cached), strict=True))
    search = {"search": _bytes(targets, config.search_size, channels=config.channels)}
    if tracker.settings.entropy_margin and config.score_heads:
        search["entropy_limit"] = jax.ShapeDtypeStruct((targets,), jnp.float32)
    return tuple(
        Function(call.__name__, call, shapes, jax.eval_shape(call, tracker.variables, shapes))
        for call, shapes in ((encode_templates, inputs), (locate, search | cache))
    )


def _bytes(*sizes: int, channels: int) -> jax.ShapeDtypeStruct:
    """Square crops: leading axes, and the side."""
    return jax.ShapeDtypeStruct((*sizes, sizes[-1], channels), jnp.uint8)


Format = Literal["stablehlo", "onnx"]
Platform = Literal["cpu", "cuda", "rocm", "tpu"]
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")


def export(
    tracker: Tracker,
    folder: Path,
    format: Format,
    targets: int = 1,
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> list[Path]:
    """Writes `encode_templates.FORMAT`, `locate.FORMAT` (see `tracking_functions`) and, last, `FORMAT.json`.

    The functions have the tracker's compute type, and a row a target in every input; programs of `stablehlo` (for
    `jax.export`) are lowered for the `platforms`. The folder is made where it is not there. Returns the files.

    Raises NameTakenError where a file is there already, ConfigError as `check_format`, ExportError for a model that has
    no form as ONNX, ModuleNotFoundError for ONNX without the extra `export`.
    """
    check_format(format, tracker.config.dtype, platforms)
    config = tracker.config
    made: dict[str, Any] = {"format": format, "dtype": config.dtype}
    if format == "onnx":
        from mixformer_jax.export.onnx_graph import OPSET, onnx_bytes

        made["opset"], to_bytes = OPSET, functools.partial(onnx_bytes, tracker)
    else:
        made["platforms"], to_bytes = list(platforms), functools.partial(_stablehlo_bytes, tracker, platforms)
    functions = tracking_functions(tracker, targets)
    paths = {function.name: folder / f"{function.name}.{format}" for function in functions}
    record = folder / f"{format}.json"
    taken = [str(path) for path in (*paths.values(), record) if not overwrite and is_taken(path)]
    if taken:
        raise NameTakenError(f"{', '.join(taken)}: there already; name another folder, or replace with --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # where it is, all files are there, and of one export
    for function in functions:
        write_atomically(paths[function.name], to_bytes(function))
    where = "inside the functions, which take RGB bytes: (bytes / 255 - mean) / std"
    made |= {
        "made_by": f"mixformer-jax {mixformer_jax.__version__}, jax {jax.__version__}",
        "model": config.name,
        "targets": targets,
        "template_slots": tracker.settings.num_slots,
        "template_size": config.template_size,
        "search_size": config.search_size,
        "normalisation": {"where": where, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        "boxes_cxcywh": "centre x, centre y, width, height; 0 to 1 over the search crop, from its left upper corner",
        "tracker": tracker.settings.to_dict(),
        "entropy_above": ENTROPY_ABOVE,
        "entropy_rate": ENTROPY_RATE,
        "functions": {
            name: {"file": paths[name].name, "inputs": _described(inputs), "outputs": _described(outputs)}
            for name, _call, inputs, outputs in functions
        },
    }
    write_atomically(record, json.dumps(made, indent=1) + "\n")
    return [*paths.values(), record]


def check_format(format: Format, dtype: str, platforms: Sequence[str]) -> None:
    """Raises ConfigError for a compute type or a platform that a format cannot have."""
    if format == "onnx" and dtype != "float32":
        raise ConfigError(f"dtype is {dtype!r}; ONNX files are float32 here: their runtimes convert them")
    unknown = [name for name in platforms if name not in get_args(Platform)]
    if unknown or not platforms:
        raise ConfigError(
            f"platforms {', '.join(unknown) or 'are none'}; expected some of {', '.join(get_args(Platform))}"
        )


def _stablehlo_bytes(tracker: Tracker, platforms: Sequence[str], function: Function) -> bytes:
    def with_weights(inputs: Arrays) -> Arrays:
        return function.call(tracker.variables, inputs)

    exported = jax.export.export(jax.jit(with_weights), platforms=platforms)(dict(function.inputs))
    return bytes(exported.serialize())


def _described(shapes: Shapes) -> dict[str, Any]:
    return {name: {"shape": shape.shape, "dtype": str(shape.dtype)} for name, shape in shapes.items()}
