"""How a run goes, whatever it trains: length, rates, devices, and what it keeps."""

import dataclasses
from typing import Annotated, Literal

from mixformer_jax.typed_settings import (
    ConfigError,
    Count,
    NaturalNumber,
    NotNegative,
    Positive,
    Range,
    Share,
    ShareBelowOne,
    TypedSettings,
)


@dataclasses.dataclass(frozen=True)
class RunConfig(TypedSettings):
    """Schedule, devices and housekeeping of a run.

    Attributes:
        steps: optimizer steps of the whole run.
        batch_size: samples a step, over all devices and processes.
        seed: of initialisation, samples and stochastic depth.
        learning_rate: peak rate of the head.
        backbone_rate: the backbone's rate over the head's (the paper: 0.1, pre-trained; 1 from scratch).
        weight_decay: of kernels; biases, norms and positions have none.
        beta2: of AdamW's second moment (MAE: 0.95).
        schedule: `step` divides the rate by ten after `decay_at` of the run (the paper); `cosine` to zero.
        decay_at: share of the run after which `step` decays.
        warmup_steps: linear warm-up.
        clip_norm: global norm to which gradients are clipped.
        accumulate: the parts in which a batch goes through the model, one after the other, for want of memory.
        remat: keep only what goes from block to block, and compute the rest again for the gradient.
        ema_decay: decay of the exponential moving average of the weights that are validated and exported; 0: none.
        mesh: devices along the axes data, fsdp and tensor, see `sharding.py`; -1 takes all that are left.
        distributed: this is one of several processes; JAX finds the others (TPU pods, Slurm, Open MPI, or the variables
            JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID).
        peer_timeout_s: seconds without a sign of life after which a process of a distributed run counts as lost.
        log_every: steps between lines of metrics.
        validate_every: steps between validations on held-out samples.
        validation_pairs: samples in a validation.
        checkpoint_every: steps between checkpoints.
        keep_latest: newest checkpoints to keep, beside the best one.
        keep_every: checkpoints of multiples of so many steps are kept for good, and weights files with them; 0: none.
        workers: what makes samples in the background; 0 makes them between steps.
        init: pre-trained weights to start from: an official backbone, a weights file, a run's folder, or the name
            of embedded weights.
        resume: folder of another run whose newest checkpoint this one goes on from, optimizer and step included.
        wandb_project: project on Weights & Biases that gets the metrics too (the package `wandb` must be installed).
    """

    steps: Count = 1000
    batch_size: Count = 32
    seed: NaturalNumber = 0
    learning_rate: Positive = 4e-4
    backbone_rate: NotNegative = 0.1
    weight_decay: NotNegative = 1e-4
    beta2: ShareBelowOne = 0.999
    schedule: Literal["step", "cosine"] = "step"
    decay_at: Share = 0.8
    warmup_steps: NaturalNumber = 0
    clip_norm: Positive = 0.1
    accumulate: Count = 1
    remat: bool = False
    ema_decay: ShareBelowOne = 0.0
    mesh: tuple[int, ...] = (-1, 1, 1)
    distributed: bool = False
    peer_timeout_s: Annotated[int, Range(5)] = 100
    log_every: Count = 50
    validate_every: Count = 1000
    validation_pairs: Count = 256
    checkpoint_every: Count = 1000
    keep_latest: Count = 2
    keep_every: NaturalNumber = 0
    workers: Annotated[int, Range(0, 1024)] = 2
    init: str | None = None
    resume: str | None = None
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"train.warmup_steps is {self.warmup_steps}; expected less than steps ({self.steps})")
        if self.init and self.resume:
            raise ConfigError(
                "train.init and train.resume exclude each other: new weights, or another run's whole state"
            )


# What may change between two parts of one run: its devices and its housekeeping change no sample and no update.
FREE_SETTINGS = (
    "mesh",
    "distributed",
    "peer_timeout_s",
    "remat",
    "log_every",
    "validate_every",
    "validation_pairs",
    "checkpoint_every",
    "keep_latest",
    "keep_every",
    "workers",
    "wandb_project",
)
