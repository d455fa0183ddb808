"""What a run tells while it trains: its steps, a progress bar, metrics, pictures and curves."""

import contextlib
import functools
import io
import json
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mixformer_jax.files import write_atomically
from mixformer_jax.models.config import ConfigError
from mixformer_jax.training.experiment import RunConfig
from mixformer_jax.training.objective import Batch
from mixformer_jax.training.program import StepReport

LINES_NAME, CURVES_NAME, WANDB_ID_NAME = "metrics.jsonl", "curves.png", "wandb_id.txt"

# What has no curve of its own, or one that tells little.
_LEFT_OUT = {"kind", "step", "samples_per_s", "outside_step", "loader_wait", "seconds"}


class NotFinite(NamedTuple):
    """A step whose loss or gradients are not finite, and what it was made of."""

    step: int
    batch: Batch
    metrics: dict[str, float]
    gradient_squares: np.ndarray


class StepWatch:
    """Follows the device without holding it up: the loop reads the report of a step once the next one is on its way and
    the batch after that is made, so the device always has a step to do. The batches of both are kept, as evidence.
    All of it happens in the loop's own thread, but for the note of when a report came.

    Attributes:
        not_finite: the first bad step, once it is read.
        asked: the largest number that `after_step` got with the steps read so far.
        finished: numbers and metrics of the steps that were read; `Progress.lines` takes them, and sets times to 0.
        idle_s: seconds in which the device had no step to do, pauses left out.
        loading_s: seconds in which the loop waited for a batch.
        paused_s: seconds of pauses.
    """

    def __init__(self) -> None:
        self.not_finite: NotFinite | None = None
        self.asked = 0
        self.finished: list[tuple[int, dict[str, float]]] = []
        self.idle_s = self.loading_s = self.paused_s = 0.0
        self._idle_since = time.perf_counter()
        # With the report on the host come what was asked, and when they came.
        self._pending: deque[tuple[int, Batch, Future[tuple[StepReport, int, float]]]] = deque()
        self._fetching = ThreadPoolExecutor(1, "report")

    def read(self, left: int = 0) -> None:
        """Reads reports, in order, until those of so many steps are left on their way; JaxRuntimeError where a step
        failed."""
        while len(self._pending) > left:
            step, batch, coming = self._pending.popleft()
            report, asked, self._idle_since = coming.result()
            metrics, squares = {name: float(value) for name, value in report.metrics.items()}, report.gradient_squares
            self.finished.append((step, metrics))
            self.asked = max(self.asked, asked)
            if self.not_finite is None and not (np.isfinite(metrics["loss"]) and np.isfinite(squares).all()):
                self.not_finite = NotFinite(step, batch, metrics, np.asarray(squares))

    def before_step(self) -> None:
        """Leaves one step on its way; call it with the batch at hand, right before the next step."""
        self.read(left=1)
        if all(coming.done() for _, _, coming in self._pending):
            done_at = max([self._idle_since, *(coming.result()[2] for _, _, coming in self._pending)])
            self.idle_s += time.perf_counter() - done_at

    def after_step(self, step: int, batch: Batch, report: StepReport, asked: jax.Array | int = 0) -> None:
        """Takes over what was dispatched: the step's number counts from 0, and `asked` comes with its report."""

        def fetch() -> tuple[StepReport, int, float]:
            values, largest = jax.device_get((report, asked))
            return values, int(largest), time.perf_counter()

        self._pending.append((step, batch, self._fetching.submit(fetch)))

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """While the loop waits for a batch."""
        began = time.perf_counter()
        yield
        self.loading_s += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """With no step on its way: what happens inside is neither a step's time nor idle time."""
        began = time.perf_counter()
        yield
        now = time.perf_counter()
        self.idle_s += began - self._idle_since
        self.paused_s += now - began
        self._idle_since = now

    def close(self) -> None:
        """Reads no more."""
        self._fetching.shutdown(wait=False, cancel_futures=True)


class Progress:
    """Makes lines for the log out of finished steps, and shows samples a second and the time left in a bar."""

    def __init__(self, settings: RunConfig, schedule: Callable[[int], Any], first_step: int, shown: bool) -> None:
        self._settings, self._schedule = settings, schedule
        total, done = (steps * settings.batch_size for steps in (settings.steps, first_step))
        disable = None if shown else True
        self._bar = tqdm(total=total, initial=done, unit=" samples", desc="train", smoothing=0.05, disable=disable)
        self._recent: list[dict[str, float]] = []
        self._told: set[str] = set()
        self._since = time.perf_counter()

    def lines(self, watch: StepWatch) -> Iterator[tuple[int, dict[str, float]]]:
        """Means over the steps since the last line, with the number of steps done, where a line is due.

        `outside_step` is the share of time in which the device had no step to do, `loader_wait` that in which the loop
        waited for a batch; validations and checkpoints count neither there nor in `samples_per_s`.
        """
        settings, finished = self._settings, watch.finished
        watch.finished = []
        for step, metrics in finished:
            self._recent.append(metrics)
            self._bar.update(settings.batch_size)
            done = step + 1
            if done % settings.log_every and done != settings.steps:
                continue
            now = time.perf_counter()
            elapsed = max(now - self._since - watch.paused_s, 1e-9)
            line = {name: float(np.mean([each[name] for each in self._recent])) for name in metrics}
            line |= {
                "learning_rate": float(self._schedule(step)),
                "samples_per_s": len(self._recent) * settings.batch_size / elapsed,
                "outside_step": min(watch.idle_s / elapsed, 1.0),
                "loader_wait": min(watch.loading_s / elapsed, 1.0),
            }
            self._bar.set_postfix({name: f"{line[name]:.3f}" for name in metrics if "_" not in name})
            self._recent, self._since = [], now
            watch.idle_s = watch.loading_s = watch.paused_s = 0.0
            yield done, line

    def waits(self, line: dict[str, float]) -> str | None:
        """A sentence on which part waits for which, once for each answer in a run; else None."""
        idle, more = line["outside_step"], ""
        if idle < 0.05:
            answer = "the loader waits for the device"
        elif line["loader_wait"] > idle / 2:
            answer, more = "the device waits for the loader", f"; train.workers is {self._settings.workers}"
        else:
            answer = "the device waits for the host, and not for samples"
        if answer in self._told:
            return None
        self._told.add(answer)
        return f"{answer}: device idle {idle:.0%} of the time, {line['samples_per_s']:.0f} samples/s{more}"

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


class MetricsLog:
    """Writes events of a run into its folder: as JSON, in TensorBoard, and in Weights & Biases where asked for. What a
    lost part of a run wrote is taken back."""

    def __init__(self, folder: Path, first_step: int, config: Mapping[str, Any], wandb_project: str | None) -> None:
        """Opens the log of a run that begins, or goes on, after `first_step` steps.

        Raises ConfigError where Weights & Biases is asked for, and not installed or not to be reached.
        """
        self._folder, self._lines, self._first_step = folder, folder / LINES_NAME, first_step
        kept = [line for line in read_lines(self._lines) if line["step"] <= first_step]
        write_atomically(self._lines, "".join(json.dumps(line) + "\n" for line in kept))
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
        pictures = self._folder / "pictures"
        pictures.mkdir(exist_ok=True)
        write_atomically(pictures / f"step_{step}.png", cv2.imencode(".png", image[..., ::-1])[1].tobytes())
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


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The events of a log; a line that a kill cut off is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def import_wandb() -> Any:
    """The package `wandb`, which a run may be without; ConfigError where it is not installed."""
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
    columns, rows = 3, max(1, math.ceil(len(names) / 3))
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
