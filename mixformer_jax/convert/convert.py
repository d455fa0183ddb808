"""Converts trackers between official files and ours (`mixformer convert`), or reads official files in memory."""

import dataclasses
import functools
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert import alpha_refine, torch_files
from mixformer_jax.convert.names import (
    COUNTER,
    carried_by_table,
    count_parameters,
    name_table,
    variables_from_official,
    variables_to_official,
)
from mixformer_jax.convert.torch_files import TORCH_SUFFIXES
from mixformer_jax.convert.weights import (
    FORMAT,
    Tensors,
    Weights,
    WeightsError,
    check_finite,
    load_weights,
    save_weights,
    what_of,
)
from mixformer_jax.extras import DISTRIBUTION, install_line
from mixformer_jax.models.config import SIZES, ConfigError, MixFormerConfig, TrackerConfig
from mixformer_jax.models.layers import sincos_positions
from mixformer_jax.models.masks import AlphaRefineConfig

RUN_WEIGHTS = "model.safetensors"  # in the folder of a training run
DEFAULT_WEIGHTS = "mixvit_tiny"

# The official experiments' search factors (`TEST.SEARCH_FACTOR` of experiments/*/*.yaml); 4.5 for the others.
SEARCH_FACTORS = MappingProxyType(
    dict.fromkeys(("mixvit_l", "mixvit_l_convmae", "mixcvt", "mixcvt_online", "mixcvt_l", "mixcvt_l_online"), 5.0)
)
# What the official online experiments agree on, renewed every 200 frames (their values for LaSOT). The plain trackers
# have one online template.
ONLINE_SLOTS = 2

HEAD_WIDTH = 64  # of every attention head in the official builds: ViT, CvT and score module alike
# Settings that a state dict does not show.
UNTOLD = ("name", "drop_path", "dtype", "mimetic_init")


class Hints(NamedTuple):
    """What names and shapes do not show; None for what the official builds have."""

    num_heads: int | None = None  # attention heads of the last stage
    early_heads: tuple[int, ...] | None = None  # of the stages before it (MixCvT)
    score_heads: int | None = None  # of the score module
    # Sides of the crops in pixels, which MixViT's position tables show; MixCvT has none, and takes 320 and 128.
    search_size: int | None = None
    template_size: int | None = None
    name: str | None = None  # of the model: benchmarks have settings by name (`mixvit_b_online_got`)


NO_HINTS = Hints()


class Report(NamedTuple):
    """What a conversion did; tensors by their official names."""

    target: Path
    direction: str  # such as "official names -> mixformer_jax"
    model: MixFormerConfig | AlphaRefineConfig
    parameters: int  # of the official module, unused ones included
    tracker: TrackerConfig | None = None  # in a file of ours
    carried: tuple[str, ...] = ()  # unused tensors that were copied
    computed: tuple[str, ...] = ()  # unused tensors that an official file must have and that were filled in
    left_behind: tuple[str, ...] = ()  # content of the source beside the weights
    named_after: tuple[str, ...] = ()  # words of the file's name or experiment that are now in the model's name

    def lines(self) -> list[tuple[str, str]]:
        """Labels and texts, for a terminal."""
        tracker, lines = self.tracker, [("converted", self.direction), *_model_lines(self.model)]
        lines.append(("parameters", f"{self.parameters:,}"))
        if tracker is not None:
            slots = f"{tracker.num_online_templates} online templates, renewed every {tracker.update_interval} frames"
            lines.append(("tracker", f"search factor {tracker.search_factor}, {slots}"))
        if self.named_after:
            words = " and ".join(repr(word) for word in self.named_after)
            lines.insert(2, ("", f"so called after {words} in the file's name or experiment; --name gives another"))
        lists = (("carried", self.carried), ("computed", self.computed), ("left out", self.left_behind))
        lines += [(label, _shortened(names)) for label, names in lists if names]
        return [*lines, ("file", f"{self.target} ({self.target.stat().st_size / 1e6:.0f} MB)")]


def _model_lines(model: MixFormerConfig | AlphaRefineConfig) -> list[tuple[str, str]]:
    if isinstance(model, AlphaRefineConfig):
        bins, depths = model.pool_size, ", ".join(map(str, model.depths))
        what = f"mask network of {bins} x {bins} bins, ResNet of {depths} bottlenecks"
        return [("model", what), ("crops", f"{model.crop_size} pixels")]
    score = f"score module with {model.score_heads} heads" if model.score_heads else "no score module"
    norm = "frozen batch norms" if model.head_norm == "frozen" else "trainable batch norms"
    return [
        ("model", f"{model.name}: {model.backbone} of {model.num_blocks} blocks, width {model.width}"),
        ("head", f"{model.head}, {norm}; {score}"),
        ("crops", f"search {model.search_size}, template {model.template_size} pixels"),
    ]


def convert(source: str | Path, target: str | Path, *, official: bool = False, hints: Hints = NO_HINTS) -> Report:
    """Converts a tracker, or Alpha-Refine's mask network, between official files (`.pth`, `.pth.tar`, `.safetensors`)
    and ours (`.safetensors`).

    The files tell the direction; between official formats, tensors are checked and copied. The source may be the folder
    of a training run. An `official` `.safetensors` target has official names and layouts.

    Raises WeightsError for a source that cannot be read or has no counterpart, names or shapes that do not fit (all
    listed), or a target of an unknown kind; ModuleNotFoundError for `.pth` files without PyTorch.
    """
    source, target = find_weights(source), Path(target)
    is_torch = target.name.endswith(TORCH_SUFFIXES)
    if not is_torch and target.suffix != ".safetensors":
        raise WeightsError(f"{target}: expected a name that ends in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    if not target.parent.is_dir():
        raise WeightsError(f"{target}: no such folder; make it first")
    if target.exists() and target.samefile(source):
        raise WeightsError(f"{target}: source and target are one file; give another name to the target")
    kind = torch_files.safetensors_format(source) if source.suffix == ".safetensors" else None
    from_ours = kind in (FORMAT, alpha_refine.ALPHA_REFINE_FORMAT)
    if kind is not None and kind.startswith(FORMAT) and not from_ours:
        raise WeightsError(
            f"{source}: weights of {what_of(kind)}, which official files do not have; nothing to convert"
        )
    if from_ours and not (is_torch or official):
        raise WeightsError(
            f"{source}: already in this project's format; for official names, give a target that ends in .pth, or "
            "ask for official .safetensors"
        )
    if from_ours:
        return _to_official(source, target, is_torch, kind == FORMAT)
    return _from_official(source, target, is_torch, official, hints)


def find_weights(weights: str | Path | None) -> Path:
    """The path of a weights file, of the one in a training run's folder, or of embedded weights of this name;
    WeightsError where there is none."""
    path = Path(DEFAULT_WEIGHTS if weights is None else weights)
    if weights == "":
        raise WeightsError("the name of the weights is empty; expected a file, a run's folder, or embedded weights")
    if path.is_dir():
        if (path / RUN_WEIGHTS).is_file():
            return path / RUN_WEIGHTS
        official = sorted(path.glob("*.pth*"))
        instead = f"; for an official checkpoint give the file itself, such as {official[-1]}" if official else ""
        raise WeightsError(f"{path}: a folder without {RUN_WEIGHTS}; expected the folder of a training run{instead}")
    if path.is_file():
        return path
    assets = Path(str(resources.files("mixformer_jax") / "assets"))
    embedded = assets / f"{path}.safetensors"
    if not embedded.is_file():
        known = ", ".join(sorted(file.stem for file in assets.glob("*.safetensors")))
        raise WeightsError(f"{path}: no such file, folder or embedded weights; embedded: {known}")
    return embedded


def read_weights(path: str | Path) -> Weights:
    """A tracker's weights: a file of ours, or an official one, converted in memory without unused tensors.

    Raises WeightsError for a file that cannot be read, belongs to another model, or needs PyTorch where that is not
    installed; and for what `convert` would refuse.
    """
    path = Path(path)
    if not path.is_file() or not torch_files.is_official(path):
        return load_weights(path)
    try:
        state = torch_files.read_official(path)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: an official checkpoint, to be read by PyTorch, which is not installed (extra "
            f"{DISTRIBUTION}[torch]): {install_line('torch')}; or convert the file where it is, with "
            f"`mixformer convert {path.name} NAME.safetensors`, and take that"
        ) from error
    found, _words = _from_state(path, state, NO_HINTS)
    return found._replace(variables=jax.tree.map(np.array, found.variables))  # the file may change meanwhile


def variant_words(model: MixFormerConfig, text: str) -> tuple[str, ...]:
    """Words in a file's name that tell how a published model was trained, which weights do not show: `1k`, `got`.

    `1k` is MixCvT from ImageNet-1k (others start from ImageNet-22k), `got` the protocol of GOT-10k alone.
    """
    if model.name not in SIZES:
        return ()
    words = set(re.findall("[a-z0-9]+", text.lower()))
    is_1k, is_got = model.backbone == "cvt" and "1k" in words, bool(words & {"got", "got10k"})
    return ("1k",) * is_1k + ("got",) * is_got


def tracker_settings(model: MixFormerConfig) -> TrackerConfig:
    """An official model's tracker settings for any video."""
    return TrackerConfig(
        search_factor=SEARCH_FACTORS.get(model.name, 4.5), num_online_templates=ONLINE_SLOTS if model.score_heads else 1
    )


def _from_state(source: Path, found: torch_files.OfficialState, hints: Hints) -> tuple[Weights, tuple[str, ...]]:
    """The tracker of an official file, as views of its tensors, and words of the file's name in the model's."""
    try:
        model = infer_config(found.tensors, hints)
        variables = variables_from_official(found.tensors, model)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    check_finite(source, flatten_dict(variables, sep="/"))
    words = () if hints.name else variant_words(model, f"{source.name} {found.experiment or ''}")
    name = hints.name or "_".join((model.name, *words))
    return Weights(variables, dataclasses.replace(model, name=name), tracker_settings(model)), words


def _from_official(source: Path, target: Path, is_torch: bool, official: bool, hints: Hints) -> Report:
    found = torch_files.read_official(source)
    model: MixFormerConfig | AlphaRefineConfig
    tracker: TrackerConfig | None = None
    words: tuple[str, ...] = ()
    if alpha_refine.is_alpha_refine(found.tensors):
        weights = alpha_refine.from_official(source, found)
        model, carried, parameters = weights.config, weights.carried, alpha_refine.count_parameters(found.tensors)
        save = functools.partial(alpha_refine.save_alpha_refine, target, *weights)
    else:
        (variables, model, tracker, _none), words = _from_state(source, found, hints)
        carried, parameters = carried_by_table(found.tensors, name_table(model)), count_parameters(model)
        save = functools.partial(save_weights, target, variables, model, tracker, carried=carried)
    if is_torch or official:
        kind, tracker = _write_official(target, found.tensors, is_torch), None
    else:
        kind = "mixformer_jax"
        save()
    about = (f"official names -> {kind}", model, parameters, tracker, tuple(carried))
    return Report(target, *about, left_behind=found.left_behind, named_after=words)


def _to_official(source: Path, target: Path, is_torch: bool, is_tracker: bool) -> Report:
    model: MixFormerConfig | AlphaRefineConfig
    if is_tracker:
        variables, model, _tracker, kept = load_weights(source)
        state, table = variables_to_official(variables, model, kept), name_table(model)
        parameters = count_parameters(model)
    else:
        variables, model, kept = weights = alpha_refine.load_alpha_refine(source)
        state, table = alpha_refine.to_official(weights), alpha_refine.alpha_refine_table(model)
        parameters = alpha_refine.count_parameters(state)
        del weights
    unread = list(carried_by_table(state, table))
    carried, computed = (tuple(name for name in unread if (name in kept) == has) for has in (True, False))
    del variables, kept  # each array is held once, and freed when it is written
    kind = _write_official(target, state, is_torch)
    return Report(target, f"mixformer_jax -> {kind}", model, parameters, carried=carried, computed=computed)


def _write_official(target: Path, tensors: Tensors, is_torch: bool) -> str:
    """Writes official names, and empties a dict of them on the way; returns the kind of file in words."""
    if not is_torch:
        torch_files.write_official_safetensors(target, tensors)
        return "official .safetensors"
    items: Iterable[tuple[str, np.ndarray]] = tensors.items()  # of an official file they are read on access
    if isinstance(tensors, dict):
        items = ((name, tensors.pop(name)) for name in list(tensors))
    torch_files.write_torch(target, items)
    return "official PyTorch file"


def _shortened(names: tuple[str, ...], limit: int = 6) -> str:
    counters = [name for name in names if name.endswith("num_batches_tracked")]
    shown = [name for name in names if name not in counters][:limit]
    rest = len(names) - len(shown) - len(counters)
    parts = [*shown, *([f"{rest} more"] if rest else []), *([f"{len(counters)} batch counters"] if counters else [])]
    return ", ".join(parts)


def infer_config(state: Tensors, hints: Hints = NO_HINTS) -> MixFormerConfig:
    """The model of an official state dict, from names and shapes alone: one of `SIZES`, or named by its family.

    Raises WeightsError for names that no architecture here has, or shapes that contradict each other or the hints.
    """
    try:
        found = _read(state, hints)
        config = MixFormerConfig(**found)
    except KeyError as error:
        raise WeightsError(f"not an official state dict: missing {error.args[0]}; {_looks_like(state)}") from error
    except ConfigError as error:
        raise WeightsError(f"not an official state dict: {error}; give the numbers that cannot be inferred") from error
    for size in SIZES.values():
        if dataclasses.replace(config, **{key: getattr(size, key) for key in UNTOLD}) == size:
            return size
    return config


def _read(state: Tensors, hints: Hints) -> dict[str, Any]:
    stages = [i for i in range(len(state)) if f"backbone.stage{i}.patch_embed.proj.weight" in state]
    is_convmae = "backbone.patch_embed1.proj.weight" in state
    parts = [("backbone.patch_embed", "backbone.blocks")]
    if stages:
        parts = [(f"backbone.stage{i}.patch_embed", f"backbone.stage{i}.blocks") for i in stages]
    elif is_convmae:
        parts = [(f"backbone.patch_embed{i}", f"backbone.blocks{i}") for i in (1, 2, 3)]
    embeddings = [_shape(state, f"{embedding}.proj.weight", 4) for embedding, _blocks in parts]
    widths, depths = [shape[0] for shape in embeddings], [_depth(state, blocks) for _embedding, blocks in parts]
    width, mlp = widths[-1], _shape(state, f"{parts[-1][1]}.0.mlp.fc1.weight", 2)
    found: dict[str, Any] = {"width": width, "depth": depths[-1], "mlp_ratio": mlp[0] // width}
    found |= {"early_widths": tuple(widths[:-1]), "early_depths": tuple(depths[:-1])}
    if stages:
        trained = f"backbone.stage0.blocks.0.attn.conv_proj_q.bn.{COUNTER}" in state
        found |= {
            "name": "mixcvt",
            "backbone": "cvt",
            "patch_size": 2 ** (len(stages) + 1),
            "search_size": hints.search_size or SIZES["mixcvt"].search_size,
            "template_size": hints.template_size or SIZES["mixcvt"].template_size,
            "early_heads": hints.early_heads or tuple(_heads(early, "early_heads") for early in widths[:-1]),
            "projection": "depthwise",
            "projection_norm": "batch" if trained else "frozen",
        }
    else:
        kind = {"name": "mixvit_convmae", "patch_embed": "convmae"} if is_convmae else {"name": "mixvit"}
        patch = 16 if is_convmae else embeddings[0][2]
        found |= kind | {"patch_size": patch} | _read_positions(state, hints, patch)
    found["num_heads"] = hints.num_heads or _heads(width, "num_heads")
    found["head"] = "corner_pyramid" if "box_head.adjust1_tl.0.weight" in state else "corner"
    found["head_width"] = _shape(state, "box_head.conv1_tl.0.weight", 4)[0]
    found["head_norm"] = "batch" if f"box_head.conv1_tl.1.{COUNTER}" in state else "frozen"
    if any(name.startswith("score_branch.") for name in state):
        found["score_heads"] = hints.score_heads or _heads(width, "score_heads")
    return found


def _read_positions(state: Tensors, hints: Hints, patch: int) -> dict[str, Any]:
    """Crop sizes from the position tables, and whether those are sin-cos."""
    found: dict[str, Any] = {"positions": "sincos"}
    for name, key in (("backbone.pos_embed_s", "search_size"), ("backbone.pos_embed_t", "template_size")):
        _, cells, width = _shape(state, name, 3)
        grid = round(cells**0.5)
        if grid * grid != cells:
            raise WeightsError(f"not an official state dict: {name} has {cells} rows, which is no square grid")
        found[key] = grid * patch
        if getattr(hints, key) not in (None, found[key]):
            raise WeightsError(f"{name} is made for a {key} of {found[key]} pixels, not of {getattr(hints, key)}")
        if np.abs(state[name][0] - sincos_positions(grid, width)).max() > 1e-5:
            found["positions"] = "interpolated_frozen"
    return found


def _shape(state: Tensors, name: str, axes: int) -> tuple[int, ...]:
    shape = state[name].shape
    if len(shape) != axes:
        raise WeightsError(f"not an official state dict: {name} has shape {shape}, expected {axes} axes")
    return shape


def _depth(state: Tensors, blocks: str) -> int:
    pattern = re.compile(re.escape(blocks) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in state if (match := pattern.match(name))), default=-1)


def _heads(width: int, key: str) -> int:
    if width % HEAD_WIDTH:
        raise WeightsError(
            f"{key} cannot be inferred from a width of {width}: the official builds have heads of {HEAD_WIDTH} "
            f"channels; give {key} to `mixformer convert`"
        )
    return width // HEAD_WIDTH


def _looks_like(state: Tensors) -> str:
    if not any(name.startswith("box_head.") for name in state) and any("blocks" in name for name in state):
        return "this looks like a backbone without a tracker around it: start a training from it (train.init) instead"
    return f"it has {', '.join(sorted(state)[:3])}, ..."
