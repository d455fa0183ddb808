"""The published recipes: what the official experiments say is what the configs say."""

import math
import re
from pathlib import Path

import pytest

from mixformer_jax.config_files import load_config
from mixformer_jax.models.config import SIZES
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.program import learning_rate_schedule
from mixformer_jax.training.supervised import tracking_objective

CONFIGS = Path(__file__).parents[2] / "configs"
STAGE_ONE = sorted(path.stem for path in CONFIGS.glob("mix*.py") if (CONFIGS / f"{path.stem}_score.py").is_file())


def experiment(name):
    return Experiment.from_mapping(load_config(CONFIGS / f"{name}.py").to_dict())


def test_every_published_model_has_both_stages():
    published = {name for name in SIZES if not name.endswith("_online") and name not in ("mixvit_tiny", "mixvit_nano")}
    assert published <= set(STAGE_ONE)
    assert {"mixcvt_1k", "mixcvt_got", "mixcvt_1k_got", "mixvit_b_got", "mixvit_l_got"} <= set(STAGE_ONE)


@pytest.mark.parametrize("name", STAGE_ONE)
def test_stage_two_goes_on_from_stage_one(name):
    one, two = experiment(name), experiment(f"{name}_score")
    assert two.train.init == f"runs/{name}"
    for key in ("backbone", "width", "depth", "patch_embed", "search_size", "template_size", "head", "head_width"):
        assert getattr(one.model, key) == getattr(two.model, key)
    assert one.tracker == two.tracker and one.data.datasets == two.data.datasets
    assert (one.data.positive_share, two.data.positive_share) == (None, 0.5)
    # Schemes of the data sets; a pool has its own.
    assert not one.data.datasets or (one.data.frames, two.data.frames) == ("causal", "trident_pro")
    groups = {tracking_objective(two).group((part, "kernel")) for part in ("backbone", "head")}
    assert groups == {"frozen"} and tracking_objective(two).group(("score", "fc0", "kernel")) == "rest"
    # The files name the exact command.
    assert re.search(rf"--config {name}\s", (CONFIGS / f"{name}.py").read_text())
    assert f"--config.train.init=runs/{name}\n" in (CONFIGS / f"{name}_score.py").read_text()


@pytest.mark.parametrize(
    ("name", "batch_size", "rate", "backbone_rate", "factor"),
    [
        # experiments/*/*.yaml: BATCH_SIZE on each of 8 GPUs, LR, BACKBONE_MULTIPLIER, SEARCH.FACTOR
        ("mixcvt", 8 * 8, 1e-4, 0.1, 5.0),
        ("mixcvt_1k", 8 * 8, 1e-4, 1.0, 5.0),
        ("mixcvt_got", 32 * 8, 1e-4, 0.1, 5.0),
        ("mixcvt_l", 16 * 8, 1e-4, 0.1, 5.0),
        ("mixvit_b", 32 * 8, 4e-4, 0.1, 4.5),
        ("mixvit_l", 12 * 8 * 3, 4e-4, 0.1, 4.5),
        ("mixvit_l_convmae", 12 * 8 * 3, 4e-4, 0.1, 4.5),
    ],
)
def test_recipe_of_the_official_experiments(name, batch_size, rate, backbone_rate, factor):
    found = experiment(name)
    train = found.train
    assert (train.batch_size, train.learning_rate, train.backbone_rate) == (batch_size, rate, backbone_rate)
    assert (train.weight_decay, train.clip_norm, found.tracker.search_factor) == (1e-4, 0.1, factor)
    assert (found.data.crops.centre_jitter, found.data.crops.scale_jitter, found.data.max_interval) == (4.5, 0.5, 200)
    assert train.steps == 500 * 60_000 // batch_size and train.iou_loss == ("giou" if "cvt" in name else "ciou")
    schedule = learning_rate_schedule(train)
    drop = math.floor(0.8 * train.steps)
    assert [float(schedule(step)) for step in (0, drop - 1, drop)] == pytest.approx([rate, rate, rate / 10])


def test_what_the_large_models_freeze():
    vit, cvt = tracking_objective(experiment("mixvit_l")), tracking_objective(experiment("mixcvt_l"))
    for path, group in (
        ("patch_embed/proj", "frozen"),
        ("blocks_5/mlp/fc1", "frozen"),
        ("blocks_6/mlp/fc1", "backbone"),
    ):
        assert vit.group(("backbone", *path.split("/"), "kernel")) == group
    for path, group in (("embed_0/proj", "frozen"), ("blocks_1/mlp/fc1", "frozen"), ("blocks_10/mlp/fc1", "backbone")):
        assert cvt.group(("backbone", *path.split("/"), "kernel")) == group
