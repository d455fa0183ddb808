"""The rows of the paper's tables (configs/tables): their numbers, their recipes, and two steps of each."""

import ast
import dataclasses
import functools

import jax
import numpy as np
import pytest

from mixformer_jax.config_files import CONFIGS, load_config, load_study, split_row
from mixformer_jax.models.config import ConfigError, MixFormerConfig
from mixformer_jax.reports.studies import SAMPLES
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.program import train_program
from mixformer_jax.training.sharding import make_mesh
from mixformer_jax.training.supervised import tracking_objective

TABLES = {name: load_study(name) for name in ("table3", "table4", "table5", "table6", "table7", "table8", "fig7")}
ROWS = [f"{table}:{row}" for table, study in TABLES.items() for row in study.rows]


@functools.cache
def experiment(name):
    return Experiment.from_mapping(load_config(name).to_dict())


def row_of(name):
    table, row = split_row(name)
    return TABLES[table].rows[row]


def test_the_paper_s_numbers():
    """Typed off the paper once more."""
    expected = {
        "table3": [59.8, 60.5, 66.9, 65.8, 66.2, 67.4, 68.1, 68.4, 66.0],
        "table4": [68.4, 68.1],
        "table5": [56.2, 58.8, 59.0],
        "table6": [68.4, 68.4, 68.5, 69.0],
        "table7": [59.0, 67.2, 68.1, 56.2, 65.1, 66.0, 66.5, 67.7, 68.0, 68.5, None],
        "table8": [66.6, 68.1, 69.2],
    }
    found = {table: [row.auc for row in study.rows.values()] for table, study in TABLES.items()}
    assert {table: found[table] for table in expected} == expected
    known = {name: row.auc for name, row in TABLES["fig7"].rows.items() if row.auc is not None}
    assert known == {"mae8": 65.9, "mae12": 68.5, "deit4": 63.4, "deit12": 67.7} and len(found["fig7"]) == 21


@pytest.mark.parametrize("table", sorted(TABLES))
def test_docstrings_say_what_the_rows_are(table):
    text = ast.get_docstring(ast.parse((CONFIGS / "tables" / f"{table}.py").read_text()))
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    expected = [
        [name, row.title, f"{row.auc or '-'}", f"{row.gflops:.2f}", f"{row.eflops:.1f}"]
        for name, row in TABLES[table].rows.items()
    ]
    assert lines[0] == ["row", "", "AUC", "GFLOP", "EFLOP"] and lines[2:] == expected
    assert TABLES[table].title in text and f"mixformer study run {table} --scale tiny" in text
    command = next(line.split()[-1] for line in text.splitlines() if "mixformer train" in line)
    assert command in ROWS


@pytest.mark.parametrize("name", ROWS)
def test_recipes(name):
    row, found = row_of(name), experiment(name)
    assert found.model.name == row.model
    if row.scores:
        assert (found.train.stage, found.train.init) == ("score", f"runs/table8/{row.weights_of}")
        return
    assert found.train.init == row.init and found.train.steps == SAMPLES // found.train.batch_size
    supervised_cvt = found.model.backbone == "cvt" and row.init is not None
    rate, batch, loss = (1e-4, 64, "giou") if supervised_cvt else (4e-4, 256, "ciou")
    assert (found.train.learning_rate, found.train.batch_size, found.train.iou_loss) == (rate, batch, loss)
    assert found.train.backbone_rate == (1.0 if row.init is None or "IN-1k" in row.init else 0.1)
    # Of the published models without changes: the recipe of configs/mixvit_b.py and mixcvt.py.
    if name in ("table6:pyramid_v3", "table8:online"):
        published = experiment("mixvit_b" if "vit" in row.model else "mixcvt")
        assert found == published


def test_rows_that_start_from_our_own_pretrainings_find_them():
    inits = {row.init for study in TABLES.values() for row in study.rows.values() if row.init}
    own = {init.removeprefix("runs/") for init in inits if init.startswith("runs/")}
    assert own == {"mae_tracking_vit_b", "trackmae_vit_b"}
    for name in own:
        encoder = MixFormerConfig.from_dict(load_config(name).autoencoder.model.to_dict())
        row = next(row for row in TABLES["table7"].rows.values() if row.init == f"runs/{name}")
        kept = ("width", "depth", "num_heads", "positions", "search_size", "template_size")
        assert all(getattr(encoder, key) == getattr(experiment("table7:trackmae").model, key) for key in kept)
        assert row.model == "mixvit_b_corner_v3"


@pytest.mark.parametrize("name", ROWS)
def test_small_rows_keep_what_their_study_is_about(name):
    table, _ = split_row(name)
    row, study = row_of(name), TABLES[table]
    if row.init not in study.stand_ins:
        with pytest.raises(ConfigError, match="cannot be made small: it starts from pretrained/"):
            load_config(f"{name}@tiny")
        return
    full, small = experiment(name).model, experiment(f"{name}@tiny")
    kept = ["backbone", "attention", "head", "cross_attention_blocks", "context_augment_layers", "decoder_blocks"]
    kept += ["mixed_blocks", "early_depths", "projection", *study.keep]
    assert {key: getattr(full, key) for key in kept} == {key: getattr(small.model, key) for key in kept}
    assert small.model.search_size == 128 and small.model.output_width in (96, 192, 512)
    assert (small.train.steps, small.train.batch_size, small.data.datasets) == (200, 16, {})
    assert experiment(f"{name}@small").train.steps == 4000
    stand_in = study.stand_ins[row.init]
    assert small.train.init == (f"runs/{table}/{row.weights_of}" if row.scores else stand_in and f"runs/{stand_in}")


def test_wrong_names():
    with pytest.raises(ConfigError, match=r"table5\.py: has rows; name one, table5:ROW, of: plain, stages"):
        load_config("table5")
    with pytest.raises(ConfigError, match=r"table5:plan: no such row; there are: plain"):
        load_config("table5:plan")
    with pytest.raises(ConfigError, match=r"no such scale; there are: tiny, small"):
        load_config("table5:plain@huge")
    with pytest.raises(ConfigError, match=r"get_config\(\) takes no row, and :big asks for one"):
        load_config("mixvit_b:big")
    with pytest.raises(ConfigError, match=r"table9: no such table .* there are: fig7, table3"):
        load_study("table9")
    assert split_row("configs/mine.py") == ("configs/mine.py", None)
    assert split_row("configs/mine.py:a_1@tiny") == ("configs/mine.py", "a_1@tiny")


def reduced(model: MixFormerConfig) -> MixFormerConfig:
    """One block a stage; one early stage where stages are what the row is about, two blocks where some alone mix."""
    small = {"search_size": 32, "template_size": 16, "head_width": 8, "drop_path": 0.0, "dtype": "float32"}
    small |= {"width": 16, "num_heads": 2, "depth": 1}
    if model.backbone == "cvt":
        early = int(model.projection_norm == "layer")  # Table 5
        small |= {name: getattr(model, name)[:early] for name in ("early_widths", "early_depths", "early_heads")}
        small |= {"early_widths": (8,) * early, "patch_size": 4 * 2**early}
    elif model.patch_embed == "convmae":  # its own stages take longest to compile; test_sharding.py has them
        small |= {"patch_embed": "linear", "early_widths": (), "early_depths": (), "drop_path": 0.0}
    is_about_blocks = model.attention == "symmetric" or model.projection_norm == "layer"
    if model.backbone == "cvt" and is_about_blocks and not model.context_augment_layers:
        small |= {"head": "query"}  # corner heads take longer; rows that are about other things have them
    if model.mixed_blocks is not None or model.head == "query":
        small |= {"projection": "linear"}  # depth-wise ones take longest to compile; other rows have them
    if model.mixed_blocks:
        small |= {"depth": 2, "mixed_blocks": 1}
    parts = ("cross_attention_blocks", "context_augment_layers", "decoder_blocks", "score_heads")
    small |= {name: min(1, getattr(model, name)) for name in parts}
    return dataclasses.replace(model, name="reduced", **small)


@functools.cache
def two_steps(model: MixFormerConfig, stage: str) -> tuple[list[float], set[str]]:
    """Losses of two steps, and the groups of parameters that moved. Rows that differ in rates, batches, data or weights
    to start from share a program."""
    whole = experiment("table8:online_score" if stage == "score" else "table8:online")
    settings = {"batch_size": 2, "steps": 9, "learning_rate": 1e-3, "backbone_rate": 1.0}
    small = dataclasses.replace(whole, model=model, train=dataclasses.replace(whole.train, **settings))
    objective = tracking_objective(small)
    program = train_program(objective, small.train, make_mesh((1, 1, 1), jax.devices()[:1]))
    rng = np.random.default_rng(0)

    def fill(shape):
        if np.issubdtype(shape.dtype, np.integer):
            return rng.integers(0, 2, shape.shape).astype(shape.dtype)
        return rng.uniform(0.01, 0.1, shape.shape).astype(shape.dtype)

    state = jax.tree.map(fill, program.state)
    state = state._replace(step=np.zeros((), np.int32), opt_state=jax.tree.map(np.zeros_like, state.opt_state))
    batch = {name: fill(shape) for name, shape in program.batch.items()}
    batch["search"] = rng.integers(0, 256, batch["search"].shape).astype(np.uint8)
    batch["box_cxcywh"] = np.array([[0.5, 0.5, 0.2, 0.3]] * small.train.batch_size, np.float32)
    step = program.step.lower(program.state, program.batch).compile()
    first = jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.state))
    losses = []
    current = first
    for _ in range(2):
        current, report = step(current, jax.device_put(batch, jax.tree.map(lambda x: x.sharding, program.batch)))
        losses.append(float(report.metrics["loss"]))
    moved = {
        objective.group(tuple(part.key for part in path))
        for (path, after), before in zip(
            jax.tree_util.tree_leaves_with_path(current.params), jax.tree.leaves(state.params), strict=True
        )
        if not np.array_equal(after, before)
    }
    return losses, moved


@pytest.mark.parametrize("name", ROWS)
def test_every_row_takes_two_steps(name):
    found = experiment(name)
    losses, moved = two_steps(reduced(found.model), found.train.stage)
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert moved == ({"rest"} if found.train.stage == "score" else {"backbone", "rest"})
