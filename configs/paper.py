"""What the paper's trainings share (sections 3.5 and 4.1), in one place; the files beside this one say what differs.

The paper counts in epochs of 60,000 samples; here a run counts in steps. Batch sizes are those of the official
experiments over the paper's 8 GPUs. Where paper and official experiments differ, the experiments decide, for the
published weights come from them; the IoU loss of MixCvT is the paper's (GIoU).

Data sets are expected in data/got10k, data/lasot, data/trackingnet and data/coco, in their published layouts: link the
folders there, or say --config.data.datasets.lasot.root=/elsewhere. Pre-trained backbones are expected in pretrained/.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.models.config import size_config, with_score

SAMPLES_PER_EPOCH = 60_000
DATASETS = {
    "got10k": {"root": "data/got10k", "split": "vottrain"},
    "lasot": {"root": "data/lasot", "split": "train"},
    "coco": {"root": "data/coco", "split": "train2017"},
    "trackingnet": {"root": "data/trackingnet", "split": "train"},
}


def box_stage(
    size: str,
    *,
    name: str | None = None,
    init: str | None,
    batch_size: int,
    learning_rate: float,
    search_factor: float = 4.5,
    iou_loss: str = "ciou",
    got10k_alone: bool = False,
    samples_per_epoch: int = SAMPLES_PER_EPOCH,
    **train: Any,
) -> ConfigDict:
    """Stage 1: 500 epochs, the rate divided by ten after 400.

    Args:
        size: of the model, see `mixformer_jax.models.config`.
        name: of the model, where it is not the size's.
        init: pre-trained backbone; None: from scratch.
        batch_size, learning_rate, iou_loss: see `TrainConfig`.
        search_factor: of training crops; benchmarks have their own, see benchmarks.toml.
        got10k_alone: GOT-10k's protocol, whose training set is all that may be seen.
        samples_per_epoch: what is called an epoch.
        **train: further settings of `TrainConfig`.
    """
    model = dataclasses.replace(size_config(size), name=name or size)
    recipe = {
        "learning_rate": learning_rate,
        "backbone_rate": 0.1,
        "iou_loss": iou_loss,
        "init": init,
        **_epochs(500, 400, batch_size, samples_per_epoch),
        **train,
    }
    return _config(model.to_dict(), search_factor, _data(got10k_alone), recipe)


def score_stage(
    size: str,
    *,
    init: str,
    name: str | None = None,
    epochs: int = 50,
    decay_epoch: int = 40,
    batch_size: int = 256,
    search_factor: float = 4.5,
    got10k_alone: bool = False,
) -> ConfigDict:
    """Stage 2: the score module alone, on samples half of which do not show the target.

    Args:
        size: of the model of stage 1.
        init: the run of stage 1.
        name: of the model, where it is not the size's with `_online`.
        epochs, decay_epoch: length in epochs, and after how many of them the rate is divided by ten.
        batch_size, search_factor, got10k_alone: as in stage 1.
    """
    model = with_score(size_config(size))
    data = _data(got10k_alone) | {"frames": "trident_pro", "positive_share": 0.5}
    recipe = {
        "stage": "score",
        "learning_rate": 1e-4,
        "init": init,
        **_epochs(epochs, decay_epoch, batch_size, SAMPLES_PER_EPOCH),
    }
    return _config(dataclasses.replace(model, name=name or model.name).to_dict(), search_factor, data, recipe)


def _epochs(epochs: int, decay_epoch: int, batch_size: int, samples_per_epoch: int) -> dict[str, Any]:
    """Epochs as steps. Validation every 5 epochs as in the official experiments, a checkpoint at every one of them."""
    steps = epochs * samples_per_epoch // batch_size
    return {
        "steps": steps,
        "batch_size": batch_size,
        "decay_at": decay_epoch / epochs,
        "validate_every": max(1, 5 * steps // epochs),
        "checkpoint_every": max(1, 5 * steps // epochs),
        "validation_pairs": 2048,
    }


def _data(got10k_alone: bool) -> dict[str, Any]:
    datasets = {"got10k": {"root": "data/got10k"}} if got10k_alone else DATASETS
    return {
        "datasets": datasets,
        "validation": {"got10k": {"root": "data/got10k", "split": "votval"}},
        "max_interval": 200,
        "crops": {"scale_jitter": 0.5, "centre_jitter": 4.5},
        "augment": dataclasses.asdict(AugmentConfig.official()),
    }


def _config(model: dict[str, Any], search_factor: float, data: dict[str, Any], recipe: dict[str, Any]) -> ConfigDict:
    config = ConfigDict()
    config.model = model | {"dtype": "bfloat16"}
    config.tracker = {"template_factor": 2.0, "search_factor": search_factor, "num_online_templates": 1}
    config.data = data
    config.train = {"weight_decay": 1e-4, "clip_norm": 0.1, "log_every": 50, "workers": 16, **recipe}
    return config
