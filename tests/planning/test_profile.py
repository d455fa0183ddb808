"""Counts are the textbook's formulas, and those of the published models are the paper's."""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mixformer_jax import cli
from mixformer_jax.config_files import load_config, load_study
from mixformer_jax.models.attention import attend, query_chunks
from mixformer_jax.models.config import ConfigError, MixFormerConfig, size_config
from mixformer_jax.models.cvt import DepthwiseProjection
from mixformer_jax.models.layers import DepthwiseConv
from mixformer_jax.models.mixformer import build_model, variable_shapes
from mixformer_jax.planning.profile import PAPER, Cost, Profile, count_macs, profile_model, profile_models, tables
from mixformer_jax.reports.studies import OPERATIONS_PER_MAC
from mixformer_jax.training.experiment import Experiment

WIDTH, SEARCH_TOKENS, TEMPLATE_TOKENS = 48, 16, 4
VIT = MixFormerConfig(
    name="vit",
    patch_size=8,
    search_size=32,
    template_size=16,
    width=WIDTH,
    depth=3,
    num_heads=3,
    head="corner",
    head_width=16,
    score_heads=3,
)
CVT = MixFormerConfig(
    name="cvt",
    backbone="cvt",
    patch_size=4,
    search_size=16,
    template_size=8,
    width=WIDTH,
    depth=2,
    num_heads=3,
    projection="depthwise",
    head="query",
)
BLOCK = 12 * WIDTH**2  # weights of a transformer block, each used once a token


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def macs(function, *arguments) -> int:
    return sum(count_macs(jax.make_jaxpr(function)(*arguments)).values())


def macs_of_module(module, *arguments, **keywords) -> int:
    variables = jax.eval_shape(lambda *images: module.init(jax.random.key(0), *images, **keywords), *arguments)
    return macs(lambda variables, *images: module.apply(variables, *images, **keywords), variables, *arguments)


def test_matrix_products():
    assert macs_of_module(nn.Dense(5), abstract(2, 3, 4)) == 2 * 3 * 4 * 5
    assert macs(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), abstract(7, 2, 3), abstract(7, 3, 5)) == 7 * 2 * 3 * 5


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 3)])
def test_convolutions(stride, groups):
    conv = nn.Conv(9, (5, 3), strides=stride, padding="SAME", feature_group_count=groups)
    assert macs_of_module(conv, abstract(2, 8, 8, 6)) == 2 * (8 // stride) ** 2 * 9 * (5 * 3 * 6 // groups)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolutions(stride):
    projection = DepthwiseProjection(stride, "frozen", jnp.dtype("float32"))
    assert macs_of_module(Named(projection), abstract(2, 8, 8, 6)) == 2 * (8 // stride) ** 2 * 9 * 6
    assert macs_of_module(Named(DepthwiseConv(5, jnp.dtype("float32"))), abstract(1, 4, 4, 6)) == 4 * 4 * 25 * 6


class Named(nn.Module):
    """Holds a depth-wise convolution under such a name as the backbones give it."""

    convolution: nn.Module

    @nn.compact
    def __call__(self, images):
        depthwise_q = self.convolution.clone(name="depthwise_q", parent=self)
        return depthwise_q(images, train=False) if isinstance(depthwise_q, DepthwiseProjection) else depthwise_q(images)


@pytest.mark.parametrize("tokens", [10, 1000])
def test_attention(tokens):
    queries, keys = abstract(1, 2, tokens, 8), abstract(1, 2, 3 * tokens, 8)
    assert (query_chunks(queries.shape, 3 * tokens) > 1) == (tokens == 1000), "both ways must be counted"
    counted = macs(lambda q, k, v: attend(q, k, v, None, 1.0), queries, keys, keys)
    assert counted == 2 * 2 * tokens * 3 * tokens * 8


def test_loops():
    def product(carry, _):
        return carry @ carry, None

    assert macs(lambda x: jax.lax.scan(product, x, length=7), abstract(3, 3)) == 7 * 27
    with pytest.raises(NotImplementedError, match="unknown length"):
        macs(lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ y, x), abstract(3, 3))


@pytest.mark.parametrize("templates", [1, 3])
def test_plain_backbone_with_corner_head_and_score_module(templates):
    found = profile_model(VIT, templates)
    seen = templates * TEMPLATE_TOKENS
    patch = 8 * 8 * 3 * WIDTH
    assert found.backbone == Cost(
        parameters=patch + WIDTH + 3 * (BLOCK + 13 * WIDTH),
        encoding=seen * (patch + 3 * (BLOCK + 2 * WIDTH * seen)),
        frame=SEARCH_TOKENS * (patch + 3 * (BLOCK + 2 * WIDTH * (seen + SEARCH_TOKENS))),
    )

    channels = (WIDTH, 16, 8, 4, 2)
    kernels = 9 * sum(a * b for a, b in itertools.pairwise(channels)) + 2
    # Beside weights: biases, batch norm's scale and bias, the last bias. Means over the map are no products.
    assert found.head == Cost(2 * (kernels + 3 * sum(channels[1:]) + 1), 0, 2 * kernels * SEARCH_TOKENS)

    pooling = 2 * 4 * 4 * 4 * WIDTH
    attention = sum(2 * WIDTH**2 + 2 * tokens * (WIDTH**2 + WIDTH) for tokens in (4 * 4, TEMPLATE_TOKENS))
    perceptron = 2 * WIDTH**2 + WIDTH
    parameters = WIDTH + 3 * 2 * WIDTH + 8 * (WIDTH**2 + WIDTH) + perceptron + 2 * WIDTH + 1
    assert found.score == Cost(parameters, 0, pooling + attention + perceptron)

    assert found.whole.flops == found.backbone.flops + found.head.frame + found.score.frame
    assert found.whole.parameters == sum(map(math.prod, shapes(VIT)))


def test_convolutional_backbone_with_query_head():
    """W-MAM: three depth-wise convolutions, keys and values of a quarter of the images' tokens."""
    found = profile_model(CVT, templates=2)
    images, templates = 4 * 4, 2 * 2 * 2

    def block(tokens, extra, seen):
        """`extra` tokens (the regression token) pass convolutions by, and are keys too."""
        keys = tokens // 4 + extra
        local = 9 * WIDTH * (tokens + 2 * tokens // 4)
        dense = WIDTH**2 * (10 * (tokens + extra) + 2 * keys)
        return local + dense + 2 * WIDTH * (tokens + extra) * (keys + seen)

    embed = 7 * 7 * 3 * WIDTH
    assert found.backbone == Cost(
        parameters=embed + 3 * WIDTH + 2 * (BLOCK + 13 * WIDTH + 3 * 9 * WIDTH) + WIDTH,
        encoding=embed * templates + 2 * block(templates, 0, 0),
        frame=embed * images + 2 * block(images, 1, templates // 4),
    )
    perceptron = 2 * WIDTH**2 + 4 * WIDTH
    assert found.head == Cost(perceptron + 2 * WIDTH + 4, 0, perceptron)
    assert found.score == Cost(0, 0, 0)


def test_symmetric_attention_has_nothing_to_encode_once():
    found = profile_model(dataclasses.replace(VIT, attention="symmetric"), templates=1)
    tokens = TEMPLATE_TOKENS + SEARCH_TOKENS
    assert found.backbone.encoding == 0
    assert found.backbone.frame == tokens * (8 * 8 * 3 * WIDTH + 3 * (BLOCK + 2 * WIDTH * tokens))


def shapes(config):
    return [leaf.shape for leaf in jax.tree.leaves(variable_shapes(build_model(config))["params"])]


def test_separate_integration_counted_twice_is_the_papers():
    """Table 3, row 3: its FLOPs are ours if multiplications and additions of the ECA and CFA layers count apart."""
    config = size_config("sam21_transt4")
    templates, search = (abstract(1, 1, 128, 128, 3), abstract(1, 320, 320, 3))
    model = build_model(config)
    counts = count_macs(jax.make_jaxpr(model.apply)(variable_shapes(model), templates, search))
    integration = sum(count for scope, count in counts.items() if "context_augment" in scope)
    assert (sum(counts.values()) + integration) / 1e9 == pytest.approx(PAPER[config.name].flops, rel=0.002)


def test_refusals():
    with pytest.raises(ValueError, match="templates is 0; expected at least 1"):
        profile_model(VIT, templates=0)
    with pytest.raises(ConfigError, match="unknown model 'mixvit_xl'; known: mixvit_b, "):
        profile_models(["mixvit_b", "mixvit_xl"])


# The others are between these, or have parameters alone (tests/models/test_config.py).
COUNTED = ("mixcvt", "sam21_cam3", "sam21_transt4", "sam10_mam11", "mixcvt_symmetric_query")


@pytest.fixture(scope="module")
def profiles():
    return profile_models(COUNTED)


def test_the_papers_tables(profiles):
    """Differences from the paper, as the command shows them."""
    parameters, flops = tables(profiles).split("\nFLOPs")
    starred = []
    for text, bound in ((parameters, 0.5), (flops, 1.5)):
        rows = [line for line in text.splitlines() if "Table" in line]
        assert len(rows) == len(COUNTED)
        for name, row in zip(COUNTED, rows, strict=True):
            difference, star, table = re.search(r"([+-]\d+\.\d\d)%(\*?) +(Table \d.*)", row).groups()
            assert row.startswith(f"{name} ") and table == PAPER[name].row
            if star:
                starred.append((name, difference))
            else:
                assert abs(float(difference)) < bound, row
    assert starred == [("sam21_transt4", "-14.10")]
    assert "docs/models.md" in flops


def test_flops_of_the_rows_of_studies(profiles):
    """What configs/tables say is what is counted: whole models with one template, trainings with two."""
    studies = {name: load_study(name).rows for name in ("table3", "table4", "table6", "table7", "table8", "fig7")}
    rows = {(table, name): row for table, found in studies.items() for name, row in found.items()}
    counted = {profile.config.name: profile.whole.flops / 1e9 for profile in profiles}
    assert rows["table8", "online"].gflops == pytest.approx(counted["mixcvt"], abs=0.005)
    for row in rows.values():
        if row.model in counted:
            assert (row.train_gflops if row.model == "mixcvt" else row.gflops) == pytest.approx(
                counted[row.model], abs=0.005
            )
    # Blocks of one shape cost the same: of layers the ends are counted, and of mixing ones row 6.
    for name, templates in (("gflops", 1), ("train_gflops", 2)):
        for depth in (4, 12):
            found = profile_model(size_config(f"mixvit_b_depth{depth}"), templates).whole.flops / 1e9
            assert getattr(rows["fig7", f"mae{depth}"], name) == pytest.approx(found, abs=0.005)
        for kind in ("mae", "deit"):
            costs = [getattr(rows["fig7", f"{kind}{depth}"], name) for depth in range(4, 13)]
            assert np.diff(costs) == pytest.approx((costs[-1] - costs[0]) / 8, abs=0.011)
        mixing = [getattr(rows["table3", row], name) for row in "4567"]
        assert np.diff(mixing) == pytest.approx((mixing[-1] - mixing[0]) / 3, abs=0.011)
        borrowed = [getattr(rows["fig7", f"mae12_d{n}"], name) for n in (1, 2, 4)]
        assert borrowed[2] - borrowed[1] == pytest.approx(2 * (borrowed[1] - borrowed[0]), abs=0.021)
    # One model, one cost, in whatever table.
    by_model = {}
    for row in rows.values():
        by_model.setdefault((row.model, row.online), set()).add((row.gflops, row.train_gflops))
    assert all(len(costs) == 1 for costs in by_model.values())
    assert rows["table7", "mae"].gflops == rows["fig7", "mae12"].gflops


def test_operations_of_a_training_are_six_a_multiply_accumulate():
    from mixformer_jax.planning.record import count_model_flops

    experiment = Experiment.from_mapping(load_config("table7:vit_scratch@tiny").to_dict())
    whole = profile_model(experiment.model, templates=2).whole.flops
    a_sample = count_model_flops(experiment) / experiment.train.batch_size
    assert a_sample == pytest.approx(OPERATIONS_PER_MAC * whole, rel=0.03)  # images need no gradient


def test_columns():
    cost = Cost(2_000_000, 1_000_000_000, 3_000_000_000)
    profile = Profile(size_config("mixcvt"), 2, cost, cost, Cost(0, 0, 0), 35_000_000)
    plain, more = tables([profile]), tables([profile._replace(templates=3)])
    header, row = plain.splitlines()[1:3]
    assert header.split() == ["backbone", "head", "score", "whole", "official", "paper", "difference"]
    assert row.split() == ["mixcvt", "2.00", "2.00", "-", "4.00", "35.00", "35.61", "-88.77%*", "Table", "1"]
    header, row = plain.splitlines()[6:8]
    assert header.split()[:8] == ["templates", "encoding", "search", "backbone", "head", "score", "frame", "whole"]
    assert row.split()[:9] == ["mixcvt", "2", "1.00", "3.00", "4.00", "4.00", "-", "6.00", "8.00"]
    assert row.split()[9:] == ["23.04", "-65.28%*", "Table", "1"]
    # With other templates than the paper's, its FLOPs are no comparison.
    assert more.splitlines()[7].split()[9:] == ["-", "-"]


def test_command(capsys, monkeypatch):
    assert cli.main(["profile", "mixvit_tiny_online", "--templates", "1"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall("^mixvit_tiny_online ", out, re.MULTILINE)) == 2 and "docs/models.md" not in out
    assert cli.main(["profile", "mixvit_xl"]) == 2
    assert "unknown model 'mixvit_xl'; known: mixvit_b" in capsys.readouterr().err
    assert cli.main(["profile", "--templates", "0"]) == 2
    assert "--templates: expected a whole number from 1 on, got '0'" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(
        "mixformer_jax.planning.profile.profile_models", lambda names, *_, **__: asked.extend(names) or []
    )
    assert cli.main(["profile"]) == 0
    assert asked == list(PAPER)
