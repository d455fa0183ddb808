"""The training loop, from top to bottom: model, data, resume, then evaluate - save - batch - step."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mixformer_jax.convert.weights import WeightsError, load_weights, save_weights
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.pipeline import DataConfig, Mix, Pools, TrackingSamples, batches
from mixformer_jax.files import write_atomically
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.training.checkpoints import Checkpoints
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from mixformer_jax.training.steps import TrainState, make_train_step, make_validation_step, new_train_state

WEIGHTS_NAME = "model.safetensors"


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says where its evidence lies."""


class MetricsFile:
    """JSON lines, one an event, that survive a kill: what a lost part of a run wrote is taken back."""

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first_step]
        write_atomically(path, "".join(line + "\n" for line in kept))

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one event."""
        with self._path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")


def train(config: Mapping[str, Any], out: str | Path) -> Path:
    """Trains one experiment; returns the weights file. Started again on the same folder, it goes on.

    The folder holds `config.json`, `metrics.jsonl` (one line an event), `checkpoints/`, and `model.safetensors`:
    the averaged weights at the last checkpoint, which `mixformer_jax.load` takes.

    Raises:
        ConfigError: the config.
        TrainingError: a loss that is not finite (step and batch are saved), or a folder of another experiment.
    """
    experiment = Experiment.from_mapping(config)
    settings = experiment.train
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _claim_folder(out / "config.json", experiment)

    # --- model and optimizer ---
    model = build_model(experiment.model)
    variables = init_variables(model, jax.random.key(settings.seed))
    optimizer = make_optimizer(settings, experiment.model.positions == "interpolated_frozen")
    train_step = make_train_step(model, optimizer, settings)
    validation_step = make_validation_step(model)
    schedule = learning_rate_schedule(settings)

    with Checkpoints(out / "checkpoints") as checkpoints:
        # --- resume: 1. this run's checkpoint, 2. the weights file of train.init, 3. fresh weights ---
        state = new_train_state(variables, optimizer)
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state)
        elif settings.init is not None:
            state = new_train_state(_initial_weights(settings.init, experiment), optimizer)
        first_step = int(state.step)
        if first_step >= settings.steps:
            print(f"{out}: already trained for {first_step} steps")
            return _export(out, state, experiment)

        # --- data ---
        samples = TrackingSamples(Pools.load(experiment.data), experiment.data, settings.seed)
        stream = batches(samples, settings.batch_size, first_step, settings.num_threads)
        validation = _validation_batches(experiment)

        # --- loop ---
        log = MetricsFile(out / "metrics.jsonl", first_step)
        recent: list[dict[str, jax.Array]] = []
        waited, since = 0.0, time.perf_counter()
        with tqdm(total=settings.steps, initial=first_step, unit="step", desc="train", smoothing=0.05) as progress:
            for step in range(first_step, settings.steps):
                batch_at = time.perf_counter()
                batch = next(stream)
                waited += time.perf_counter() - batch_at
                state, metrics = train_step(state, batch)
                recent.append(metrics)
                if not np.isfinite(float(metrics["loss"])):
                    raise TrainingError(_save_evidence(out, step, batch, metrics))
                progress.update()
                done = step + 1
                if done % settings.log_every == 0 or done == settings.steps:
                    elapsed = time.perf_counter() - since
                    line = {key: float(np.mean([m[key] for m in recent])) for key in recent[0]}
                    line |= {
                        "learning_rate": float(schedule(step)),
                        "samples_per_s": len(recent) * settings.batch_size / elapsed,
                        "waiting_for_data": waited / elapsed,
                    }
                    log.write("train", done, line)
                    progress.set_postfix(loss=f"{line['loss']:.3f}", iou=f"{line['iou']:.3f}")
                    recent, waited, since = [], 0.0, time.perf_counter()
                if validation and (done % settings.validate_every == 0 or done == settings.steps):
                    overlaps = [validation_step(state.ema, pairs) for pairs in validation]
                    line = {
                        "iou": float(np.mean(overlaps)),
                        "iou_above_half": float(np.mean(np.stack(overlaps) > 0.5)),
                    }
                    log.write("validation", done, line)
                    shown = f"IoU {line['iou']:.3f}, above 0.5: {line['iou_above_half']:.3f}"
                    progress.write(f"step {done}: held-out pairs: {shown}")
                if done % settings.checkpoint_every == 0 or done == settings.steps:
                    checkpoints.save(state)
                    _export(out, state, experiment)
    return out / WEIGHTS_NAME


def _claim_folder(path: Path, experiment: Experiment) -> None:
    """Writes the experiment into a new run's folder; refuses to go on with a different one."""
    mine = json.loads(json.dumps(dataclasses.asdict(experiment)))
    if not path.exists():
        write_atomically(path, json.dumps(mine, indent=2))
        return
    theirs = json.loads(path.read_text())
    # What may change between two parts of one run: where the data lie, and housekeeping.
    free = {"root", "log_every", "validate_every", "checkpoint_every", "num_threads", "validation_pairs"}
    differences = [
        f"{section}.{key}: {theirs.get(section, {}).get(key)!r} there, {value!r} now"
        for section, values in mine.items()
        for key, value in values.items()
        if theirs.get(section, {}).get(key) != value and key not in free
    ]
    if differences:
        listed = "\n  ".join(differences)
        raise TrainingError(f"{path.parent} holds another experiment; give a new --out, or undo:\n  {listed}")


def _initial_weights(path: str, experiment: Experiment) -> dict[str, Any]:
    weights = load_weights(path)
    ignored = {"name", "drop_path", "dtype", "mimetic_init"}
    differences = [
        f"{key}: {value!r} there, {getattr(experiment.model, key)!r} here"
        for key, value in weights.model.to_dict().items()
        if key not in ignored and getattr(experiment.model, key) != value
    ]
    if differences:
        raise WeightsError(f"{path}: weights of another model: {'; '.join(differences)}")
    return jax.tree.map(jax.numpy.asarray, weights.variables)


def _validation_batches(experiment: Experiment) -> list[dict[str, np.ndarray]]:
    """Fixed frame pairs of the held-out sequences (`data.exclude`): the training jitter, nothing else disturbed."""
    data, settings = experiment.data, experiment.train
    if not data.exclude:
        return []
    undisturbed = AugmentConfig(**{field.name: 0.0 for field in dataclasses.fields(AugmentConfig)})
    held_out = DataConfig(
        root=data.root,
        include=data.exclude,
        max_interval=data.max_interval,
        max_target_side=data.max_target_side,
        min_target_side=data.min_target_side,
        mix=Mix(video=1.0, still=0.0, pasted=0.0, region=0.0),
        crops=data.crops,
        augment=undisturbed,
    )
    samples = TrackingSamples(Pools.load(held_out), held_out, seed=0)
    size = min(settings.batch_size, settings.validation_pairs)
    stream = batches(samples, size, num_threads=0)
    return [next(stream) for _ in range(settings.validation_pairs // size)]


def _export(out: Path, state: TrainState, experiment: Experiment) -> Path:
    path = out / WEIGHTS_NAME
    save_weights(path, jax.device_get(state.ema), experiment.model, experiment.tracker)
    return path


def _save_evidence(out: Path, step: int, batch: Mapping[str, np.ndarray], metrics: Mapping[str, jax.Array]) -> str:
    path = out / f"not_finite_step_{step}.npz"
    arrays = dict(batch) | {f"metrics/{key}": np.asarray(value) for key, value in metrics.items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    return (
        f"the loss of step {step} is {float(metrics['loss'])}; its batch and metrics are in {path}. "
        "Lower train.learning_rate or train.clip_norm, or look at the batch."
    )
