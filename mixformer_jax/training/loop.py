"""The training loop, from top to bottom: mesh, programs, start, data, then evaluate - save - next batch - step.
One for every objective (`objective.py`), on one device or many, in one process or several."""

import contextlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import UInt8
from tqdm import tqdm

from mixformer_jax.convert.convert import RUN_WEIGHTS
from mixformer_jax.convert.pretrained import Initialisation
from mixformer_jax.data.pipeline import batches, one_opencv_thread
from mixformer_jax.signals import Stopped, StopSignals, listening
from mixformer_jax.training.checkpoints import CheckpointError, Checkpoints
from mixformer_jax.training.distributed import PeerWatch, connect, gather, is_first, largest, process_table
from mixformer_jax.training.experiment import Experiment, RunConfig
from mixformer_jax.training.folder import (
    NO_ROOM,
    TrainingError,
    check_folder,
    claim_folder,
    locked,
    save_evidence,
    writing,
)
from mixformer_jax.training.masks import NETWORKS, MaskExperiment, mask_objective
from mixformer_jax.training.objective import Objective, Variables
from mixformer_jax.training.pretraining import MaskedPretraining, PretrainExperiment
from mixformer_jax.training.program import TrainProgram, TrainState, learning_rate_schedule, train_program
from mixformer_jax.training.progress import MetricsLog, Progress, StepWatch, import_wandb
from mixformer_jax.training.sharding import make_mesh, place, process_rows, put_batch, to_devices
from mixformer_jax.training.supervised import part_of, tracking_objective

CHECKPOINTS_NAME = "checkpoints"
AnyExperiment = Experiment | PretrainExperiment | MaskExperiment


def experiment_type(config: Mapping[str, Any]) -> type[AnyExperiment]:
    """What a config describes, by its sections: an autoencoder, a mask network, or else a tracker."""
    if "autoencoder" in config:
        return PretrainExperiment
    return Experiment if NETWORKS.keys().isdisjoint(config) else MaskExperiment


def objective_of(experiment: AnyExperiment) -> Objective:
    """What an experiment trains."""
    if isinstance(experiment, PretrainExperiment):
        return MaskedPretraining(experiment)
    return mask_objective(experiment) if isinstance(experiment, MaskExperiment) else tracking_objective(experiment)


def train(config: Mapping[str, Any], out: str | Path, devices: Sequence[jax.Device] | None = None) -> Path:
    """Trains a tracker, an autoencoder or a mask network, by its config (ConfigError); returns the weights file."""
    return run(objective_of(experiment_type(config).from_mapping(config)), out, devices)


def run(objective: Objective, out: str | Path, devices: Sequence[jax.Device] | None = None) -> Path:
    """Trains one objective, on these devices or all; returns the file that it exports. Started again on the same
    folder, which takes one experiment, it goes on.

    The folder holds `config.json`, `metrics.jsonl` (one line an event), `curves.png`, `tensorboard/`, `pictures/`,
    `checkpoints/`, and `model.safetensors`: the weights of the last checkpoint, averaged where an average is kept.
    Beside it stand those of the steps that `keep_every` keeps, `model_STEP.safetensors`.

    Raises:
        ConfigError: a mesh or a batch that does not fit the devices.
        TrainingError: numbers that are not finite (step, batch and names are saved), a folder of another experiment, in
            use, or one that cannot be written to.
        CheckpointError: a checkpoint that could not be written or restored.
        Stopped: SIGTERM or Ctrl-C, of any of the processes; all is saved.

    The process of a distributed run ends where another one is gone or has failed, see `PeerWatch`.
    """
    # --- processes ---
    settings = objective.experiment.train
    connect(settings)
    peers = PeerWatch(settings.peer_timeout_s)
    with listening() as signals, peers, signals.saving(0.0, peers.stop), peers.telling():
        for line in process_table(settings):
            tell(line)
        return _run(objective, Path(out), make_mesh(settings.mesh, devices), signals, peers)


def _run(objective: Objective, out: Path, mesh: Mesh, signals: StopSignals, peers: PeerWatch) -> Path:
    experiment = objective.experiment
    settings: RunConfig = experiment.train
    if settings.wandb_project and is_first():
        import_wandb()
    # --- mesh ---
    weights = out / RUN_WEIGHTS
    part = process_rows(settings.batch_size, mesh)

    # --- programs ---
    program = train_program(objective, settings, mesh)
    schedule = learning_rate_schedule(settings)

    with (
        locked(out),
        writing(out, only=NO_ROOM),
        Checkpoints(out / CHECKPOINTS_NAME, settings.keep_latest, settings.keep_every) as checkpoints,
        peers.telling(),
        one_opencv_thread(),
        contextlib.ExitStack() as opened,
    ):
        # --- compile, while all else is read and made ---
        check_folder(out, experiment)
        compiling = None
        if max(checkpoints.steps(), default=0) < settings.steps:
            compiling = _in_thread(program.step.find(program.state, program.batch))

        # --- start ---
        state, first_step, data_state, origin = _first_state(objective, program, checkpoints)
        tell(f"{out}: {origin}")
        if first_step >= settings.steps:
            tell(f"{out}: already trained for {first_step} steps")
            if settings.export == "last" or not weights.exists():
                _export(objective, weights, state.shipped)
            return weights

        # --- data ---
        samples = objective.samples()
        index, count = part
        size, workers = settings.batch_size, settings.workers
        stream = batches(samples, size, first_step, workers=workers, process_index=index, process_count=count)
        opened.enter_context(contextlib.closing(stream))
        if data_state is not None:
            stream.set_state(data_state)
        to_mesh = to_devices(samples, mesh, size)
        del samples  # worker processes have the pool where they share it, and this one need not hold another
        stream.start()
        validation = Validation(objective, settings, program, part)
        # Where the newest checkpoint cannot be restored, there is more to do than it seemed.
        compiling = compiling or _in_thread(program.step.find(program.state, program.batch))
        step_program, seconds = compiling.result()
        tell(f"{len(mesh.devices.flat)} devices {dict(mesh.shape)}; compiled in {seconds:.1f} s")

        # --- loop ---
        record = claim_folder(out, experiment)  # from here on there is something to keep
        log = MetricsLog(out, first_step, record, settings.wandb_project) if is_first() else None
        largest_of = largest(mesh)
        best_of_all = checkpoints.best()
        with (
            contextlib.closing(StepWatch()) as watch,
            log or contextlib.nullcontext(),
            contextlib.closing(Progress(settings, schedule, first_step, shown=is_first())) as progress,
            contextlib.ExitStack() as once_trained,
        ):
            step = first_step
            while True:
                last = step == settings.steps
                # What several processes were told comes with the steps' reports: all read it at the same step.
                stopped = watch.asked if jax.process_count() > 1 else signals.asked()
                evaluate_now = step > first_step and (last or step % settings.validate_every == 0)
                save_now = step > first_step and (last or stopped or step % settings.checkpoint_every == 0)
                if evaluate_now or save_now:
                    watch.read()  # a step that went wrong is neither evaluated nor saved
                for done, line in progress.lines(watch):
                    if log:
                        log.write("train", done, line)
                    if told := progress.waits(line):
                        tell(f"step {done}: {told}")
                if watch.not_finite is not None:
                    raise TrainingError(save_evidence(out, objective, program.state.params, watch.not_finite))

                if evaluate_now or save_now:
                    with watch.paused(), writing(out):
                        best = None
                        if evaluate_now and validation:
                            measured, picture = validation(state.shipped)
                            best = objective.rank(measured)
                            if log:
                                log.write("validation", step, measured)
                                log.picture(step, picture)
                            shown = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
                            tell(f"step {step}: held out: {shown}")
                        if save_now:
                            checkpoints.save(state, stream, record, best)
                            rank = -math.inf if best is None else best
                            if settings.export == "last" or rank >= best_of_all:
                                _export(objective, weights, state.shipped)
                            best_of_all = max(best_of_all, rank)
                            if settings.keep_every and step % settings.keep_every == 0:
                                _export(objective, weights.with_stem(f"{weights.stem}_{step}"), state.shipped)
                            if log:
                                log.draw()
                    if save_now and jax.process_count() == 1:
                        stopped = signals.asked()  # meanwhile, too: once saved is enough
                if last or stopped:
                    checkpoints.wait()
                    break

                with watch.loading():
                    made = next(stream)
                batch = to_mesh(made)
                watch.before_step()
                state, report = step_program(state, batch)
                watch.after_step(step, batch, report, largest_of(signals.asked()))
                if step == first_step:
                    once_trained.enter_context(signals.saving())
                step += 1
    if not last:
        tell(f"{out}: stopped after {step} steps; the same command goes on from there")
        raise Stopped(stopped)
    return weights


def tell(message: str) -> None:
    """A line for people, above the progress bar; once, however many processes there are."""
    if is_first():
        tqdm.write(message)


def _in_thread(compile_it: Callable[[], jax.stages.Compiled]) -> Future[tuple[jax.stages.Compiled, float]]:
    """A program being compiled, and the seconds that it takes."""

    def compiled() -> tuple[jax.stages.Compiled, float]:
        began = time.perf_counter()
        return compile_it(), time.perf_counter() - began

    thread = ThreadPoolExecutor(1, "compile")
    compiling = thread.submit(compiled)
    thread.shutdown(wait=False)  # whoever fails meanwhile is not held up
    return compiling


def _export(objective: Objective, path: Path, variables: dict[str, Any]) -> None:
    """Writes the weights file, from one process."""
    whole = gather(variables)
    if is_first():
        objective.export(path, whole)


def _first_state(
    objective: Objective, program: TrainProgram, checkpoints: Checkpoints
) -> tuple[TrainState, int, dict[str, Any] | None, str]:
    """The state of the run's own checkpoint, of another run's, or a new one, whose arrays may still be computed; with
    it the steps that it has behind it, the state of its data, and where it comes from in words.

    Raises CheckpointError: `train.resume` names a folder without a whole one; WeightsError: `train.init` does not fit.
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
        counts = Counter(part_of(name) for name in names)
        return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"

    ignored = f"; ignored: {len(start.ignored)} ({', '.join(start.ignored[:4])}, ...)" if start.ignored else ""
    return f"starts from {source}: taken: {parts(start.taken)}; fresh: {parts(start.fresh)}{ignored}"


class Validation:
    """The held-out batches of an objective; false where nothing is held out."""

    def __init__(self, objective: Objective, settings: RunConfig, program: TrainProgram, part: tuple[int, int]) -> None:
        """Reads `train.validation_pairs` samples, this process's part of each batch."""
        self._objective, self._program, self._pairs = objective, program, settings.validation_pairs
        self._batches: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        samples, size, (index, count) = objective.validation_samples(), settings.batch_size, part
        if samples is None:
            return
        # In threads: for a few batches, processes would take longer to start.
        stream = batches(samples, size, num_threads=settings.workers, process_index=index, process_count=count)
        with contextlib.closing(stream):
            for first in range(0, self._pairs, size):
                rows = first + index * (size // count) + np.arange(size // count)
                self._batches.append((next(stream), (rows < self._pairs).astype(np.float32)))

    def __bool__(self) -> bool:
        return bool(self._batches)

    def __call__(self, variables: Variables) -> tuple[dict[str, float], UInt8[np.ndarray, "h w 3"]]:
        """Means of the objective's metrics over all samples, and its picture of the first ones."""
        mesh, totals = self._program.mesh, defaultdict[str, float](float)
        for batch, weights in self._batches:
            on_device = put_batch(batch, mesh), put_batch({"weights": weights}, mesh)["weights"]
            for name, value in jax.device_get(self._program.evaluate(variables, *on_device)).items():
                totals[name] += float(value)
        batch, _weights = self._batches[0]
        shown = gather(self._program.show(variables, put_batch(batch, mesh)))
        own = len(next(iter(batch.values())))
        picture = self._objective.draw(batch, {name: value[:own] for name, value in shown.items()})
        return {name: total / self._pairs for name, total in totals.items()}, picture
