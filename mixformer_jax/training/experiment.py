"""An experiment: all that `configs/*.py` says, as frozen records; and `RunConfig`, which pre-training shares. Facts
have one home: crop sizes come from the model, crop factors and template slots from the tracker."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from mixformer_jax.data.config import DataConfig
from mixformer_jax.models.config import (
    ComputeDtype,
    MixFormerConfig,
    RematPolicy,
    TrackerConfig,
    dataclass_from_mapping,
)
from mixformer_jax.typed_settings import (
    ConfigError,
    Count,
    NaturalNumber,
    NotNegative,
    Positive,
    Range,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    TypedSettings,
    refuse,
)

IouKind = Literal["ciou", "giou"]


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
        schedule: `step` divides the rate by ten after `decay_at` of the run (the paper); `cosine` brings it to zero;
            `halving` divides it by two again and again.
        decay_at: share of the run after which `step` decays.
        halve_every: share of the run after which `halving` halves.
        warmup_steps: linear warm-up.
        clip_norm: global norm to which gradients are clipped.
        accumulate: the parts in which a batch goes through the model, one after the other, for want of memory.
        remat: keep only what goes from block to block, and compute the rest again for the gradient.
        remat_policy: what to keep all the same: `dots_with_no_batch_dims_saveable` the results of dense layers,
            `dots_saveable` those of attention's products too (see `jax.checkpoint_policies`).
        residual_dtype: of the stream of tokens between blocks while training; `bfloat16` halves its bytes and rounds at
            every block. Validation and trackers have it in float32.
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
        export: the weights of the run's file: of the `last` checkpoint, or of the one that was `best` in validation.
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
    schedule: Literal["step", "cosine", "halving"] = "step"
    decay_at: Share = 0.8
    halve_every: ShareAboveZero = 0.2
    warmup_steps: NaturalNumber = 0
    clip_norm: Positive = 0.1
    accumulate: Count = 1
    remat: bool = False
    remat_policy: RematPolicy = "nothing_saveable"
    residual_dtype: ComputeDtype = "float32"
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
    export: Literal["last", "best"] = "last"
    workers: Annotated[int, Range(0, 1024)] = 2
    init: str | None = None
    resume: str | None = None
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        long, kept = self.warmup_steps >= self.steps, self.remat_policy != "nothing_saveable" and not self.remat
        both = "train.init and train.resume exclude each other: new weights, or another run's whole state"
        refuse(
            {
                f"train.warmup_steps is {self.warmup_steps}; expected less than steps ({self.steps})": long,
                both: self.init and self.resume,
                f"train.remat_policy is {self.remat_policy!r}, and nothing is recomputed: set train.remat": kept,
            }
        )

    def check_model(self, model: MixFormerConfig) -> None:
        """Raises ConfigError for a stream in a narrower type than the model computes in."""
        if self.residual_dtype != "float32" and model.dtype == "float32":
            raise ConfigError(
                f"train.residual_dtype is {self.residual_dtype!r} and model.dtype 'float32'; expected a stream that is "
                "no narrower than what computes on it: set model.dtype to 'bfloat16' too"
            )

    @property
    def recomputed(self) -> RematPolicy | None:
        """The policy of recomputing, or None for none."""
        return self.remat_policy if self.remat else None


# What may change between two parts of one run: its devices and its housekeeping change no sample and no update.
FREE_SETTINGS = (
    *("mesh", "distributed", "peer_timeout_s", "remat", "remat_policy", "log_every", "validate_every"),
    *("validation_pairs", "checkpoint_every", "keep_latest", "keep_every", "export", "workers", "wandb_project"),
)


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A run that trains a tracker.

    Attributes:
        stage: `box` trains backbone and box head; `score` the score module alone (section 3.5).
        iou_loss: `ciou` for MixViT, `giou` for MixCvT (section 3.5).
        iou_weight, l1_weight: 2 and 5 in the paper.
        corner_weight: weight of the corner maps' cross entropy, an addition of ours for training from scratch.
        freeze: patterns of names (`backbone/blocks_0/`), matched from the start, of parameters that stage `box` leaves
            as they are.
    """

    stage: Literal["box", "score"] = "box"
    iou_loss: IouKind = "ciou"
    iou_weight: NotNegative = 2.0
    l1_weight: NotNegative = 5.0
    corner_weight: NotNegative = 0.0
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage == "box" and not (self.iou_weight or self.l1_weight or self.corner_weight):
            raise ConfigError("train.iou_weight, l1_weight and corner_weight are all 0: nothing would be learned")
        for pattern in self.freeze:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"train.freeze: {pattern!r} is no regular expression: {error}") from error


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A model, how it tracks, what it trains on, and how."""

    model: MixFormerConfig
    tracker: TrackerConfig
    data: DataConfig
    train: TrainConfig

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "Experiment":
        """Reads the sections `model`, `tracker`, `data` and `train`.

        Raises ConfigError: an unknown section or key (the closest known one is named), or a value that cannot work.
        """
        sections = {"model", "tracker", "data", "train"}
        if set(config) != sections:
            raise ConfigError(f"a config has the sections {sorted(sections)}; this one has {sorted(config)}")
        model = MixFormerConfig.from_dict(config["model"])
        tracker = TrackerConfig.from_dict(config["tracker"])
        data = data_section(config["data"], crop_settings(model, tracker), "the model and tracker sections do")
        train = dataclass_from_mapping(TrainConfig, config["train"], "train")
        train.check_model(model)
        scores = train.stage == "score"
        refuse(
            {
                "train.corner_weight weighs the corners' maps, which the head 'query' does not have": (
                    train.corner_weight and model.head == "query"
                ),
                f"model.second_stream is {model.second_stream!r}, and the pool under data.root has colour alone: leave "
                "it out, and train on data.datasets with a second stream, such as depthtrack": (
                    data.root is not None and model.streams != "colour"
                ),
                f"model.score_heads is {model.score_heads}: the box loss would leave the score module as it was "
                "initialised; train with 0, then with train.stage 'score'": not scores and model.score_heads,
                f"train.stage is {train.stage!r} and data.positive_share {data.positive_share}: the score stage needs "
                "labelled samples, a share such as 0.5 of them positive, and the box stage has no use for labels": (
                    scores != (data.positive_share is not None)
                ),
                "train.stage is 'score', and the model has no score module: set model.score_heads": (
                    scores and not model.score_heads
                ),
                "train.stage 'score' leaves the box head as it is: set model.head_norm to 'frozen'": (
                    scores and model.head_norm != "frozen"
                ),
                "train.stage 'score' trains the score module alone: train.init must name stage 1's run": (
                    scores and not (train.init or train.resume)
                ),
            }
        )
        return cls(model=model, tracker=tracker, data=data, train=train)


def crop_settings(model: MixFormerConfig, tracker: TrackerConfig) -> dict[str, Any]:
    """What the crops of samples take over from a model and its tracker."""
    return {
        "template_size": model.template_size,
        "search_size": model.search_size,
        "template_factor": tracker.template_factor,
        "search_factor": tracker.search_factor,
        "num_online_templates": tracker.num_online_templates,
        "streams": model.streams,
    }


def data_section(values: Any, derived: Mapping[str, Any], who: str) -> DataConfig:
    """Reads the section `data`; `derived` settings of `crops` come from elsewhere, `who` says from where.

    Raises ConfigError for an unknown key, or a value that cannot work.
    """
    crops = values.get("crops", {}) if isinstance(values, Mapping) else None
    if not isinstance(crops, Mapping):
        return dataclass_from_mapping(DataConfig, values, "data")  # it says what is wrong
    clash = sorted(set(crops) & set(derived))
    if clash:
        raise ConfigError(f"data.crops may not set {', '.join(clash)}: {who}")
    return dataclass_from_mapping(DataConfig, {**values, "crops": {**crops, **derived}}, "data")
