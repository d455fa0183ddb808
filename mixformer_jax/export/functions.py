"""A tracker's network as two functions of plain arrays by name: `encode_templates`, and `locate` on what it gives."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from mixformer_jax.crops import normalise
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.models.mixformer import Prediction, build_model
from mixformer_jax.tracking.step import Variables
from mixformer_jax.tracking.tracker import Tracker

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
    search crops, and for models with a score prediction module `scores`, float32 [targets] in [0, 1].

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
        answer = {"boxes_cxcywh": found.boxes_cxcywh}
        scores = found.scores_within(tracker.settings.corner_entropy)
        return answer if scores is None else {**answer, "scores": scores}

    cache = dict(zip(names, (shape for _path, shape in cached), strict=True))
    search = {"search": _bytes(targets, config.search_size, channels=config.channels)}
    return tuple(
        Function(call.__name__, call, shapes, jax.eval_shape(call, tracker.variables, shapes))
        for call, shapes in ((encode_templates, inputs), (locate, search | cache))
    )


def _bytes(*sizes: int, channels: int) -> jax.ShapeDtypeStruct:
    """Square crops: leading axes, and the side."""
    return jax.ShapeDtypeStruct((*sizes, sizes[-1], channels), jnp.uint8)
