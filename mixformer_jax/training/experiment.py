"""An experiment: everything that `configs/*.py` says, as frozen records.

The ConfigDict stays at the border. Facts have one home: crop sizes come from the model, crop factors and template
slots from the tracker, and the data section adds the jitters.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from mixformer_jax.data.config import DataConfig
from mixformer_jax.models.config import ConfigError, MixFormerConfig, TrackerConfig, dataclass_from_mapping
from mixformer_jax.training.losses import IouKind
from mixformer_jax.training.settings import RunConfig
from mixformer_jax.typed_settings import NotNegative


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

        Raises:
            ConfigError: an unknown section or key (the closest known one is named), or a value that cannot work.
        """
        sections = {"model", "tracker", "data", "train"}
        if set(config) != sections:
            raise ConfigError(f"a config has the sections {sorted(sections)}; this one has {sorted(config)}")
        model = MixFormerConfig.from_dict(config["model"])
        tracker = TrackerConfig.from_dict(config["tracker"])
        derived = {
            "template_size": model.template_size,
            "search_size": model.search_size,
            "template_factor": tracker.template_factor,
            "search_factor": tracker.search_factor,
            "num_online_templates": tracker.num_online_templates,
        }
        data = data_section(config["data"], derived, "the model and tracker sections do")
        train = dataclass_from_mapping(TrainConfig, config["train"], "train")
        if train.corner_weight and model.head == "query":
            raise ConfigError("train.corner_weight weighs the corners' maps, which the head 'query' does not have")
        if train.stage == "box" and model.score_heads:
            raise ConfigError(
                f"model.score_heads is {model.score_heads}: the box loss would leave the score module as it was "
                "initialised; train with 0, then with train.stage 'score'"
            )
        if (train.stage == "score") != (data.positive_share is not None):
            raise ConfigError(
                f"train.stage is {train.stage!r} and data.positive_share {data.positive_share}: the score stage needs "
                "labelled samples, a share such as 0.5 of them positive, and the box stage has no use for labels"
            )
        if train.stage == "score":
            if not model.score_heads:
                raise ConfigError("train.stage is 'score', and the model has no score module: set model.score_heads")
            if model.head_norm != "frozen":
                raise ConfigError("train.stage 'score' leaves the box head as it is: set model.head_norm to 'frozen'")
            if not (train.init or train.resume):
                raise ConfigError(
                    "train.stage 'score' trains the score module alone: train.init must name stage 1's run"
                )
        return cls(model=model, tracker=tracker, data=data, train=train)


def data_section(values: Any, derived: Mapping[str, Any], who: str) -> DataConfig:
    """Reads the section `data`; `derived` settings of `crops` come from elsewhere, `who` says from where.

    Raises:
        ConfigError: an unknown key, or a value that cannot work.
    """
    crops = values.get("crops", {}) if isinstance(values, Mapping) else None
    if not isinstance(crops, Mapping):
        return dataclass_from_mapping(DataConfig, values, "data")  # it says what is wrong
    clash = sorted(set(crops) & set(derived))
    if clash:
        raise ConfigError(f"data.crops may not set {', '.join(clash)}: {who}")
    return dataclass_from_mapping(DataConfig, {**values, "crops": {**crops, **derived}}, "data")
