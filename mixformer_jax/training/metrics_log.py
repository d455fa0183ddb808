"""A run's metrics: JSON lines, TensorBoard, Weights & Biases where asked for, and the curve to look at."""

import functools
import io
import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.files import write_atomically
from mixformer_jax.models.config import ConfigError

LINES_NAME, CURVES_NAME, WANDB_ID_NAME = "metrics.jsonl", "curves.png", "wandb_id.txt"

# What has no curve of its own, or one that tells little.
_LEFT_OUT = {"kind", "step", "samples_per_s", "outside_step", "loader_wait", "seconds"}


class MetricsLog:
    """Writes events of a run into its folder. What a lost part of a run wrote is taken back."""

    def __init__(self, folder: Path, first_step: int, config: Mapping[str, Any], wandb_project: str | None) -> None:
        """Opens the log of a run that begins, or goes on, after `first_step` steps.

        Raises:
            ConfigError: Weights & Biases is asked for, and not installed or not to be reached.
        """
        self._folder, self._lines = folder, folder / LINES_NAME
        kept = [line for line in read_lines(self._lines) if line["step"] <= first_step]
        write_atomically(self._lines, "".join(json.dumps(line) + "\n" for line in kept))
        self._first_step = first_step
        self._wandb = _wandb_run(wandb_project, folder, config) if wandb_project else None

    @functools.cached_property
    def _board(self) -> Any:
        # Once steps are on their way: it imports PyTorch, where that is installed, for seconds.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first_step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one event."""
        with self._lines.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        named = {f"{kind}/{name}": value for name, value in values.items()}
        for name, value in named.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(named, step=step)

    def picture(self, step: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Writes `pictures/step_N.png`."""
        encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        (self._folder / "pictures").mkdir(exist_ok=True)
        write_atomically(self._folder / "pictures" / f"step_{step}.png", encoded)
        self._board.add_image("validation", image, step, dataformats="HWC")

    def draw(self) -> None:
        """Writes the training curves, `curves.png`."""
        write_atomically(self._folder / CURVES_NAME, draw_curves(read_lines(self._lines)))

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if "_board" in vars(self):
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


class NoLog:
    """What the other processes of a distributed run have in the place of a log."""

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        pass

    def picture(self, step: int, image: UInt8[np.ndarray, "h w 3"]) -> None:
        pass

    def draw(self) -> None:
        pass

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a line that a kill cut off is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def import_wandb() -> Any:
    """The package `wandb`, which a run may be without.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ConfigError("train.wandb_project is set, and wandb is not installed: pip install wandb") from error
    return wandb


def _wandb_run(project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    wandb = import_wandb()
    # One run of theirs for one run of ours, whatever was killed between and wherever its folder moves.
    kept = folder / WANDB_ID_NAME
    if not kept.exists():
        write_atomically(kept, uuid.uuid4().hex)
    settings = {"name": folder.resolve().name, "dir": str(folder), "config": dict(config)}
    try:
        return wandb.init(project=project, id=kept.read_text().strip(), resume="allow", **settings)
    except wandb.Error as error:
        raise ConfigError(
            f"train.wandb_project is {project!r}, and Weights & Biases does not take the run: {error}. Log in (wandb "
            "login), record on this machine alone (WANDB_MODE=offline), or set train.wandb_project to None"
        ) from error


def draw_curves(lines: Sequence[dict[str, Any]]) -> bytes:
    """A PNG with a panel for every metric of the events of `MetricsLog`: training as a line, validation as points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = [line for line in lines if line["kind"] == "train"]
    validated = [line for line in lines if line["kind"] == "validation"]
    names = list(dict.fromkeys(name for line in (*validated, *trained) for name in line if name not in _LEFT_OUT))
    columns = 3
    rows = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(name.replace("_", " "), fontsize=10)
        for label, events, style in (("training", trained, "-"), ("validation", validated, "o-")):
            points = [(line["step"], line[name]) for line in events if name in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
        if name.startswith("loss") and all(line.get(name, 1.0) > 0 for line in (*trained, *validated)):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)
    for axes in figure.axes[-columns:]:
        axes.set_xlabel("step", fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
