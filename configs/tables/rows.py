"""How a row of the paper's studies is trained: at the paper's size, or small (`ROW@tiny`, `ROW@small`).

At full size it is the recipe of configs/paper.py. "Without online scheme" in the paper is about deployment: trainings
have an online template as all others, and the tracker that is scored has none.

Small ones are for this project's own pool: widths and crops of configs/mixvit_nano.py, with its recipe. What a study is
about stays as in the row (head, attention, blocks that mix, stages, projections); no ImageNet is at hand, so rows that
start from its weights start from what the table says in their place, or cannot be made small.
"""

import dataclasses
from typing import Any

from ml_collections import ConfigDict
from paper import box_stage, score_stage

from mixformer_jax.config_files import load_config
from mixformer_jax.models.config import ConfigError, MixFormerConfig, size_config
from mixformer_jax.reports.studies import Study, StudyRow

CVT_1K, CVT_22K = "pretrained/CvT-21-384x384-IN-1k.pth", "pretrained/CvT-21-384x384-IN-22k.pth"
MAE_B = "pretrained/mae_pretrain_vit_base.pth"
DEIT3_1K, DEIT3_21K = "pretrained/deit_3_base_224_1k.pth", "pretrained/deit_3_base_224_21k.pth"

SCALES: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 200, "batch_size": 16, "warmup_steps": 20},
    "small": {"steps": 4000, "batch_size": 32, "warmup_steps": 100},
}
SMALL_WIDTH = 96  # of the last stage of a hierarchical backbone
# Settings of a row's model that a small plain one takes over.
ALWAYS_KEPT = ("name", "attention", "mixed_blocks", "layer_scale", "decoder_blocks", "head")


def row_config(study: Study, table: str, name: str) -> ConfigDict:
    """The config of `TABLE:ROW` or `TABLE:ROW@SCALE`.

    Raises:
        ConfigError: no such row or scale, or a row that cannot be made small.
    """
    row_name, _, scale = name.partition("@")
    row = study.rows.get(row_name)
    if row is None:
        raise ConfigError(f"{table}:{row_name}: no such row; there are: {', '.join(study.rows)}")
    full = _full(study, table, row)
    if not scale:
        return full
    if scale not in SCALES:
        raise ConfigError(f"{table}:{name}: no such scale; there are: {', '.join(SCALES)}, and none for the paper's")
    if row.init not in study.stand_ins:
        raise ConfigError(f"{table}:{name}: cannot be made small: it starts from {row.init}, made of ImageNet")
    return _small(full, study, row, scale)


def _full(study: Study, table: str, row: StudyRow) -> ConfigDict:
    is_cvt = size_config(row.model).backbone == "cvt"
    search_factor = 5.0 if is_cvt else 4.5
    if row.scores:
        return score_stage(
            "mixcvt",
            init=f"runs/{table}/{row.weights_of}",
            epochs=30,
            decay_epoch=20,
            search_factor=search_factor,
        )
    recipe: dict[str, Any] = {"batch_size": 256, "learning_rate": 4e-4}
    if is_cvt and row.init is not None:  # from scratch all have one recipe, "for fair comparison" (section 4.2.2)
        recipe = {"batch_size": 64, "learning_rate": 1e-4, "iou_loss": "giou"}
    if row.init in (None, CVT_1K):
        recipe["backbone_rate"] = 1.0  # nothing to keep; 1k: as the official experiment
    return box_stage(row.model, init=row.init, search_factor=search_factor, **recipe)


def _small(full: ConfigDict, study: Study, row: StudyRow, scale: str) -> ConfigDict:
    config = load_config("mixvit_nano")
    model = MixFormerConfig.from_dict(full.model.to_dict())
    config.model = _small_model(model, study).to_dict()
    config.tracker.update_interval = 25  # the clips at hand are short
    train, stand_in = config.train, study.stand_ins[row.init]
    with train.ignore_type():
        train.update(SCALES[scale])
        train.iou_loss = full.train.get("iou_loss", "ciou")
        train.init = full.train.init if row.scores else stand_in and f"runs/{stand_in}"
    if row.scores:
        config.data.positive_share = 0.5
        # Held out, and one scene: it is no negative sample for itself.
        config.data.groups += (("uav123__car16_1", "uav123__car16_2"),)
        train.stage = "score"
    if row.scores or model.head == "query":
        train.corner_weight = 0.0
    train.validate_every = train.checkpoint_every = max(1, train.steps // 4)
    return config


def _small_model(model: MixFormerConfig, study: Study) -> MixFormerConfig:
    nano = size_config("mixvit_nano")
    if model.backbone == "vit":
        kept = {name: getattr(model, name) for name in (*ALWAYS_KEPT, *study.keep)}
        return dataclasses.replace(nano, **kept)
    factor = model.width // SMALL_WIDTH
    sizes: dict[str, Any] = {
        "search_size": nano.search_size,
        "template_size": nano.template_size,
        "head_width": nano.head_width,
    }
    return dataclasses.replace(
        model,
        **sizes,
        early_widths=tuple(width // factor for width in model.early_widths),
        early_heads=tuple(max(1, heads // 2) for heads in model.early_heads),
        width=SMALL_WIDTH,
        num_heads=model.num_heads // 2,
        drop_path=0.0,
        # From scratch, batch norms in the projections fail (the paper, section 4.2.2).
        projection_norm="layer",
        mimetic_init=True,
        score_heads=3 if model.score_heads else 0,
        dtype=nano.dtype,
    )
