"""`mixformer convert`: a whole tracker from official files to ours, and back."""

from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mixformer_jax.convert.infer import Hints, infer_config
from mixformer_jax.convert.names import (
    carried_from_official,
    count_parameters,
    variables_from_official,
    variables_to_official,
)
from mixformer_jax.convert.torch_files import (
    is_safetensors_of,
    read_official,
    write_official_safetensors,
    write_torch,
)
from mixformer_jax.convert.weights import FORMAT, WeightsError, load_weights, save_weights
from mixformer_jax.models.config import MixFormerConfig, TrackerConfig

TORCH_SUFFIXES = (".pth", ".pth.tar", ".pt")
RUN_WEIGHTS = "model.safetensors"  # in the folder of a training run

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
    source, target = Path(source), Path(target)
    if source.is_dir():
        source = source / RUN_WEIGHTS
    if not source.is_file():
        raise WeightsError(f"{source}: no such file; expected weights, or the folder of a training run")
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


def tracker_settings(model: MixFormerConfig) -> TrackerConfig:
    """How an official model tracks where nothing is known of the video."""
    return TrackerConfig(
        search_factor=SEARCH_FACTORS.get(model.name, 4.5), num_online_templates=ONLINE_SLOTS if model.score_heads else 1
    )


def _from_official(source: Path, target: Path, is_torch: bool, official: bool, hints: Hints) -> Report:
    state, left_behind = read_official(source)
    try:
        model = infer_config(state, hints)
        variables = variables_from_official(state, model)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    carried = carried_from_official(state, model)
    report = Report(source, target, "", model, None, count_parameters(model), tuple(carried), (), left_behind)
    if is_torch:
        write_torch(target, state.items())
        return report._replace(direction="official names -> official PyTorch file")
    if official:
        write_official_safetensors(target, state)
        return report._replace(direction="official names -> official .safetensors")
    tracker = tracker_settings(model)
    save_weights(target, variables, model, tracker, carried=carried)
    return report._replace(direction="official names -> mixformer_jax", tracker=tracker)


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
