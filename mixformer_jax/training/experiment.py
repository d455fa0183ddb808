"""An experiment: everything that `configs/*.py` says, as frozen records.

The ConfigDict stays at the border. Facts have one home: crop sizes come from the model, crop factors and template
slots from the tracker, and the data section adds the jitters.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.pipeline import DataConfig, Mix
from mixformer_jax.data.synthetic import SyntheticConfig
from mixformer_jax.data.views import CropConfig
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig, dataclass_from_mapping
from mixformer_jax.training.losses import IouKind


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Schedule, losses and housekeeping of a run.

    Attributes:
        steps: optimizer steps of the whole run.
        batch_size: samples a step.
        seed: of initialisation, samples and stochastic depth.
        learning_rate: peak rate of the head.
        backbone_rate: the backbone's rate over the head's (the paper: 0.1, pre-trained; 1 from scratch).
        weight_decay: of kernels; biases, norms and positions have none.
        schedule: `step` divides the rate by ten after `decay_at` of the run (the paper); `cosine` to zero.
        decay_at: share of the run after which `step` decays.
        warmup_steps: linear warm-up.
        clip_norm: global norm to which gradients are clipped.
        ema_decay: decay of the exponential moving average of the weights that are validated and exported; 0: none.
        iou_loss: `ciou` for MixViT, `giou` for MixCvT (section 3.5).
        iou_weight, l1_weight: 2 and 5 in the paper.
        corner_weight: weight of the corner maps' cross entropy, an addition of ours for training from scratch.
        log_every: steps between lines of metrics.
        validate_every: steps between validations on held-out sequences.
        checkpoint_every: steps between checkpoints.
        validation_pairs: frame pairs of held-out sequences in a validation.
        num_threads: threads that render samples.
        init: weights file to start from instead of fresh weights.
    """

    steps: int = 1000
    batch_size: int = 32
    seed: int = 0
    learning_rate: float = 4e-4
    backbone_rate: float = 0.1
    weight_decay: float = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    decay_at: float = 0.8
    warmup_steps: int = 0
    clip_norm: float = 0.1
    ema_decay: float = 0.0
    iou_loss: IouKind = "ciou"
    iou_weight: float = 2.0
    l1_weight: float = 5.0
    corner_weight: float = 0.0
    log_every: int = 50
    validate_every: int = 1000
    checkpoint_every: int = 1000
    validation_pairs: int = 256
    num_threads: int = 2
    init: str | None = None

    def __post_init__(self) -> None:
        for key in (
            "steps",
            "batch_size",
            "log_every",
            "validate_every",
            "checkpoint_every",
            "validation_pairs",
        ):
            if getattr(self, key) < 1:
                raise ConfigError(f"train.{key} is {getattr(self, key)}; expected at least 1")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay is {self.ema_decay}; expected a share in [0, 1)")
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(f"train.warmup_steps is {self.warmup_steps}; expected less than steps ({self.steps})")


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

        Raises:
            ConfigError: an unknown section or key (the closest known one is named), or a value that cannot work.
        """
        sections = {"model", "tracker", "data", "train"}
        if set(config) != sections:
            raise ConfigError(f"a config has the sections {sorted(sections)}; this one has {sorted(config)}")
        model = MixFormerConfig.from_dict(config["model"])
        tracker = TrackerConfig.from_dict(config["tracker"])
        data = dict(config["data"])
        crops = dict(data.pop("crops", {}))
        derived = {
            "template_size": model.template_size,
            "search_size": model.search_size,
            "template_factor": tracker.template_factor,
            "search_factor": tracker.search_factor,
            "num_online_templates": tracker.num_online_templates,
        }
        clash = sorted(set(crops) & set(derived))
        if clash:
            raise ConfigError(f"data.crops may not set {', '.join(clash)}: the model and tracker sections do")
        nested = {"mix": Mix, "augment": AugmentConfig, "synthetic": SyntheticConfig}
        data |= {key: dataclass_from_mapping(kind, data[key]) for key, kind in nested.items() if key in data}
        data["crops"] = dataclass_from_mapping(CropConfig, crops | derived)
        train = dataclass_from_mapping(TrainConfig, config["train"])
        if train.corner_weight and model.head == "query":
            raise ConfigError("train.corner_weight weighs the corners' maps, which the head 'query' does not have")
        if model.score_heads:
            raise ConfigError(
                f"model.score_heads is {model.score_heads}: the box loss would leave the score module as it was "
                "initialised; train with 0"
            )
        return cls(model=model, tracker=tracker, data=dataclass_from_mapping(DataConfig, data), train=train)
