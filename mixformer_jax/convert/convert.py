"""A whole tracker from official files to ours, in memory or as `mixformer convert`, and back."""

import dataclasses
import re
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mixformer_jax.convert.infer import Hints, infer_config
from mixformer_jax.convert.names import (
    carried_from_official,
    count_parameters,
    variables_from_official,
    variables_to_official,
)
from mixformer_jax.convert.torch_files import (
    TORCH_SUFFIXES,
    OfficialState,
    is_safetensors_of,
    is_torch_file,
    read_official,
    safetensors_format,
    write_official_safetensors,
    write_torch,
)
from mixformer_jax.convert.weights import (
    FORMAT,
    NOT_FINITE,
    Weights,
    WeightsError,
    load_weights,
    not_finite,
    save_weights,
)
from mixformer_jax.extras import DISTRIBUTION, install_line
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig
from mixformer_jax.models.sizes import SIZES

RUN_WEIGHTS = "model.safetensors"  # in the folder of a training run
DEFAULT_WEIGHTS = "mixvit_tiny"

# The official experiments' own search factors (`TEST.SEARCH_FACTOR` of experiments/*/*.yaml); 4.5 for the others. They
# hold for any source of frames; what the published benchmark runs used instead differs by benchmark.
SEARCH_FACTORS = MappingProxyType(
    {
        "mixvit_l": 5.0,
        "mixvit_l_convmae": 5.0,
        "mixcvt": 5.0,
        "mixcvt_online": 5.0,
        "mixcvt_l": 5.0,
        "mixcvt_l_online": 5.0,
    }
)
# Two slots, renewed every 200 frames: what the official online experiments agree on (their values for LaSOT). The plain
# trackers have one online template.
ONLINE_SLOTS = 2


class Report(NamedTuple):
    """What a conversion did.

    Attributes:
        source, target: the files read and written.
        direction: such as "official PyTorch -> mixformer_jax".
        model: settings of the model.
        tracker: settings of the tracker, in a file of ours.
        parameters: of the official module, with those that no forward pass reads.
        carried: official names of the tensors that no forward pass reads and that went along.
        computed: those that an official file must have and that were made up.
        left_behind: what the source held beside the weights and the target does not.
        named_after: words of the file's name or of its experiment that became part of the model's name.
    """

    source: Path
    target: Path
    direction: str
    model: MixFormerConfig
    tracker: TrackerConfig | None
    parameters: int
    carried: tuple[str, ...] = ()
    computed: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    named_after: tuple[str, ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        """The report as labels and texts, for a terminal."""
        model, tracker = self.model, self.tracker
        score = f"score module with {model.score_heads} heads" if model.score_heads else "no score module"
        norm = "frozen batch norms" if model.head_norm == "frozen" else "trainable batch norms"
        lines = [
            ("converted", self.direction),
            ("model", f"{model.name}: {model.backbone} of {model.num_blocks} blocks, width {model.width}"),
            ("head", f"{model.head}, {norm}; {score}"),
            ("crops", f"search {model.search_size}, template {model.template_size} pixels"),
            ("parameters", f"{self.parameters:,}"),
        ]
        if tracker is not None:
            slots = f"{tracker.num_online_templates} online templates, renewed every {tracker.update_interval} frames"
            lines.append(("tracker", f"search factor {tracker.search_factor}, {slots}"))
        if self.named_after:
            words = " and ".join(repr(word) for word in self.named_after)
            lines.insert(2, ("", f"so called after {words} in the file's name or experiment; --name gives another"))
        for label, names in (("carried", self.carried), ("computed", self.computed), ("left out", self.left_behind)):
            if names:
                lines.append((label, _shortened(names)))
        return [*lines, ("file", f"{self.target} ({self.target.stat().st_size / 1e6:.0f} MB)")]


def convert(source: str | Path, target: str | Path, *, official: bool = False, hints: Hints = Hints()) -> Report:  # noqa: B008 (immutable)
    """Converts a tracker between official PyTorch files and ours.

    The direction follows from the files: official `.pth`, `.pth.tar` or `.safetensors` become a `.safetensors` of
    ours; a `.safetensors` of ours, or a run's folder, becomes a `.pth` or `.pth.tar`. Between official formats, tensors
    are checked and copied.

    Args:
        source: file or folder of a training run.
        target: file to write; what it holds is replaced.
        official: a `.safetensors` target gets official names and layouts.
        hints: what names and shapes of official files do not tell.

    Raises:
        WeightsError: a source that cannot be read, that is no tracker or has no official counterpart, names or shapes
            that do not fit (one error lists them all), or a target of an unknown kind.
        ModuleNotFoundError: for `.pth` files where PyTorch is not installed.
    """
    source, target = find_weights(source), Path(target)
    is_torch = target.name.endswith(TORCH_SUFFIXES)
    if not is_torch and target.suffix != ".safetensors":
        raise WeightsError(f"{target}: expected a name that ends in .safetensors or {', '.join(TORCH_SUFFIXES)}")
    if not target.parent.is_dir():
        raise WeightsError(f"{target}: no such folder; make it first")
    if target.exists() and target.samefile(source):
        raise WeightsError(f"{target}: source and target are one file; give another name to the target")
    from_ours = source.suffix == ".safetensors" and is_safetensors_of(FORMAT, source)
    if from_ours and not (is_torch or official):
        raise WeightsError(
            f"{source}: already in this project's format; for official names, give a target that ends in .pth, or "
            "ask for official .safetensors"
        )
    if from_ours:
        return _to_official(source, target, is_torch)
    return _from_official(source, target, is_torch, official, hints)


def find_weights(weights: str | Path | None) -> Path:
    """A weights file: itself, the one in the folder of a training run, or the embedded one of this name.

    Raises:
        WeightsError: there is none.
    """
    path = Path(DEFAULT_WEIGHTS if weights is None else weights)
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
    """A tracker's weights: a file of ours, or an official one, which is converted in memory.

    Of an official file what no forward pass reads is left out.

    Raises:
        WeightsError: a file that cannot be read or belongs to another model, an official one that `convert` would
            refuse, and one of PyTorch's where PyTorch is not installed.
    """
    path = Path(path)
    if not path.is_file() or not _is_official(path):
        return load_weights(path)
    try:
        state = read_official(path)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"{path}: an official checkpoint, to be read by PyTorch, which is not installed (extra "
            f"{DISTRIBUTION}[torch]): {install_line('torch')}; or convert the file where it is, with "
            f"`mixformer convert {path.name} NAME.safetensors`, and take that"
        ) from error
    model, _named_after, tracker, views = _from_state(path, state, Hints())
    variables = jax.tree.map(np.array, views)  # the file may change while a tracker runs
    return Weights(variables, model, tracker)


def variant_words(model: MixFormerConfig, told: str) -> tuple[str, ...]:
    """What a name says of how a published model was trained, which its weights do not show: `1k`, `got`, or both.

    `1k` is MixCvT from ImageNet-1k (others start from ImageNet-22k), `got` is the protocol of GOT-10k alone.
    """
    if model.name not in SIZES:
        return ()
    words = set(re.findall("[a-z0-9]+", told.lower()))
    is_1k, is_got = model.backbone == "cvt" and "1k" in words, bool(words & {"got", "got10k"})
    return ("1k",) * is_1k + ("got",) * is_got


def tracker_settings(model: MixFormerConfig) -> TrackerConfig:
    """How an official model tracks where nothing is known of the video."""
    return TrackerConfig(
        search_factor=SEARCH_FACTORS.get(model.name, 4.5), num_online_templates=ONLINE_SLOTS if model.score_heads else 1
    )


def _from_official(source: Path, target: Path, is_torch: bool, official: bool, hints: Hints) -> Report:
    found = read_official(source)
    model, named_after, tracker, variables = _from_state(source, found, hints)
    state = found.tensors
    carried = carried_from_official(state, model)
    report = Report(
        source,
        target,
        "",
        model,
        None,
        count_parameters(model),
        tuple(carried),
        left_behind=found.left_behind,
        named_after=named_after,
    )
    if is_torch:
        write_torch(target, state.items())
        return report._replace(direction="official names -> official PyTorch file")
    if official:
        write_official_safetensors(target, state)
        return report._replace(direction="official names -> official .safetensors")
    save_weights(target, variables, model, tracker, carried=carried)
    return report._replace(direction="official names -> mixformer_jax", tracker=tracker)


class _Converted(NamedTuple):
    model: MixFormerConfig
    named_after: tuple[str, ...]
    tracker: TrackerConfig
    variables: dict[str, Any]


def _from_state(source: Path, found: OfficialState, hints: Hints) -> _Converted:
    """The model of an official file, how it tracks, and its variables: views of what the file holds."""
    try:
        model = infer_config(found.tensors, hints)
        variables = variables_from_official(found.tensors, model)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    if broken := not_finite(flatten_dict(variables, sep="/")):
        raise WeightsError(f"{source}: {NOT_FINITE} {', '.join(broken)}")
    words = () if hints.name else variant_words(model, f"{source.name} {found.experiment or ''}")
    name = hints.name or "_".join((model.name, *words))
    return _Converted(dataclasses.replace(model, name=name), words, tracker_settings(model), variables)


def _is_official(path: Path) -> bool:
    # The header of every file of ours names a format that begins so.
    return is_torch_file(path) or not (safetensors_format(path) or "").startswith(FORMAT)


def _to_official(source: Path, target: Path, is_torch: bool) -> Report:
    weights = load_weights(source)
    model = weights.model
    state = variables_to_official(weights.variables, model, weights.carried)
    unread = list(carried_from_official(state, model))
    report = Report(
        source,
        target,
        "",
        model,
        None,
        count_parameters(model),
        carried=tuple(name for name in unread if name in weights.carried),
        computed=tuple(name for name in unread if name not in weights.carried),
    )
    if is_torch:
        # From here on each array is held once: what is written is let go of.
        del weights
        write_torch(target, ((name, state.pop(name)) for name in list(state)))
        return report._replace(direction="mixformer_jax -> official PyTorch file")
    write_official_safetensors(target, state)
    return report._replace(direction="mixformer_jax -> official .safetensors")


def _shortened(names: tuple[str, ...], limit: int = 6) -> str:
    counters = [name for name in names if name.endswith("num_batches_tracked")]
    shown = [name for name in names if name not in counters][:limit]
    rest = len(names) - len(shown) - len(counters)
    parts = [*shown, *([f"{rest} more"] if rest else []), *([f"{len(counters)} batch counters"] if counters else [])]
    return ", ".join(parts)
