"""Planning: topologies, bounds against numbers worked out by hand, refusals, and one step that is really compiled."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixformer_jax.cli import main
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.tpu_attention import attend_on_tpu
from mixformer_jax.planning.hardware import PlanError, parse_topology
from mixformer_jax.planning.hlo import Collective, Traffic
from mixformer_jax.planning.plan import network_seconds, plan, propose_mesh
from mixformer_jax.planning.profile import count_kernel_macs, count_macs, count_product_bytes, module_of
from mixformer_jax.planning.record import Memory, Plan, movers, plan_lines

SMALL = {
    "model": {
        "name": "small",
        "search_size": 64,
        "template_size": 32,
        "width": 48,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2,
        "head": "corner",
        "head_width": 16,
        "drop_path": 0.0,
        "dtype": "bfloat16",
    },
    "tracker": {"search_factor": 4.0, "num_online_templates": 1},
    "data": {"root": "nowhere"},
    "train": {"batch_size": 8},
}


SETTINGS = {
    "dtype": "bfloat16",
    "residual_dtype": "float32",
    "remat": False,
    "remat_policy": "nothing_saveable",
    "accumulate": 1,
    "quick": False,
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({SMALL!r})\n")
    return path


@pytest.mark.parametrize(
    ("topology", "chips", "gigabytes_per_s"),
    [
        # 50 GB/s a link: a corner chip of 4x4 has two, every chip of 16x16 four, the edge of 8x16 three.
        ("v5e:1x1", 1, 50),
        ("v5e:2x2", 4, 100),
        ("v5e:4x4", 16, 100),
        ("v5e:8x16", 128, 150),
        ("v5e:16x16", 256, 200),
        # 100 GB/s a link: cubes wrap around in all three axes.
        ("v5p:2x2x1", 4, 200),
        ("v5p:2x4x4", 32, 300),
        ("v5p:4x4x4", 64, 600),
        ("h100:8", 8, 450),
    ],
)
def test_links_of_the_chip_with_the_fewest(topology, chips, gigabytes_per_s):
    place = parse_topology(topology)
    assert place.name == topology
    assert place.size == chips
    assert place.bandwidth() == gigabytes_per_s * 1e9


def test_a_group_has_the_links_along_its_own_axes():
    pod = parse_topology("v5e:16x16")
    assert pod.bandwidth({0: 16}) == 100e9
    assert pod.bandwidth({0: 4, 1: 4}) == 100e9  # a part of a ring is a line


@pytest.mark.parametrize("topology", ["v5e", "v5e:3x3", "v5p:4x4", "h100:16", "h100:0", "tpu:4x4", ""])
def test_an_unknown_topology_is_refused_with_the_known_ones(topology):
    with pytest.raises(PlanError, match=r"v5e:\{1x1, 2x2, .*16x16\}") as refused:
        parse_topology(topology)
    assert "h100:{1 to 8" in str(refused.value)


def of(topology="v5e:4x4", **changes):
    given = {
        "model": "m",
        "topology": parse_topology(topology),
        "mesh": {"data": 16, "fsdp": 1, "tensor": 1},
        "global_batch": 512,
        "settings": SETTINGS,
        "on_paper": False,
        "memory": Memory(100, 200, 30, 4, 5000, 60, parse_topology(topology).chip.hbm_bytes),
        "flops": 19.7e12,
        "model_flops": 9.85e12,
        "hbm_bytes": 40.95e9,
        "accessed_bytes": 80e9,
        "collectives": {"all-reduce": (2, 1e9, 1.875e9)},
        "network_s": 0.01,
        "estimate_s": None,
        "seconds": {"trace": 1.0},
    }
    return Plan(**{**given, **changes})


def test_bounds_by_hand():
    made = of()
    # 19.7 TFLOP at 197 TFLOP/s; 40.95 GB at 819 GB/s.
    assert made.bounds_s == pytest.approx({"compute": 0.1, "memory": 0.05, "network": 0.01})
    assert made.limited_by == "compute"
    assert made.step_s == pytest.approx(0.1)
    assert made.mfu(made.step_s) == pytest.approx(0.5)
    assert made.expected_s == pytest.approx(0.16)
    assert of(estimate_s=0.2).expected_s == pytest.approx(0.21)
    assert of(estimate_s=0.01).expected_s == pytest.approx(0.1)  # never below the bound
    assert of(hbm_bytes=819e9).limited_by == "memory"
    assert of(network_s=3.0).limited_by == "network"
    record = json.loads(json.dumps(made.to_dict()))
    assert record["samples_per_s_at_most"] == pytest.approx(5120)
    assert record["memory"]["total"] == 5394
    assert record["fits"] is True


def test_the_report_names_the_limit_and_the_ceiling():
    text = "\n".join(f"{name} {value}" for name, value in plan_lines(of(notes=("a note",))))
    for part in ("compute at 197 TFLOP/s  <- limits", "5,120 samples/s, MFU 50.0%", "2 all-reduce", "a note"):
        assert part in text


def test_what_moves_most_bytes_comes_first_whatever_the_block():
    mlp = "jit(step)/jvp(MixFormer)/backbone.joint/blocks_{}.joint/mlp/fc1/dot_general"
    found = movers(
        [
            Traffic("fusion.1", mlp.format(0), 10**9, 1),
            Traffic("copy.7", "", 10**9, 2),
            Traffic("fusion.2", mlp.format(1), 3 * 10**9, 1),
        ]
    )
    assert found == (
        ("forward mlp", "dot_general", "fusion.2", 2, 4 * 10**9),
        ("not named", "", "copy.7", 2, 2 * 10**9),
    )
    text = "\n".join(value for _name, value in plan_lines(of(hbm_bytes=8e9, movers=found)))
    assert "4.00 GB  50%  forward mlp: dot_general (2 x, fusion.2)" in text
    assert "2.00 GB  25%  not named: put in by XLA (2 x, copy.7)" in text


@pytest.mark.parametrize(
    ("scope", "module"),
    [
        ("jit(step)/transpose(jvp(MixFormer))/backbone.joint/blocks_3.joint/mlp/fc1/dot_general", "backward mlp"),
        ("jit(step)/jvp(MixFormer)/backbone.joint/blocks_0.joint/attention.joint/qkv/add", "forward attention qkv"),
        ("jit(step)/mul", "update"),
        ("", "not named"),
    ],
)
def test_modules_of_scopes(scope, module):
    assert module_of(scope) == module


def test_a_step_that_is_too_big_is_told_by_how_much_and_what_helps():
    limit = parse_topology("v5e:4x4").chip.hbm_bytes
    made = of(memory=Memory(0, 0, 0, 0, int(limit) + 1000, 0, limit))
    assert made.refusal is not None
    assert "1,000 bytes too many" in made.refusal
    for help_ in ("remat=true", "--mesh 1,16,1", "accumulate=2", "smaller --global-batch"):
        assert help_ in made.refusal
    done = of(memory=made.memory, settings={**SETTINGS, "remat": True, "accumulate": 2})
    assert done.refusal is not None
    assert "remat" not in done.refusal
    partly = of(memory=made.memory, settings={**SETTINGS, "remat": True, "remat_policy": "dots_saveable"})
    assert partly.refusal is not None and "remat_policy=nothing_saveable" in partly.refusal
    assert "accumulate=4" in done.refusal
    assert of().refusal is None


def test_network_time_of_rings_by_hand():
    place = parse_topology("v5e:16x16")
    coordinates = [(x, y, 0) for x in range(16) for y in range(16)]
    whole = Collective("all-reduce", 10**9, 1, np.arange(256).reshape(1, 256))
    along_y = Collective("all-gather", 10**9, 2, np.arange(256).reshape(16, 16))
    hop = Collective("collective-permute", 10**9, 1, np.array([[0, 1]]))
    assert network_seconds([whole], place, coordinates) == pytest.approx(2e9 * 255 / 256 / 200e9)
    assert network_seconds([along_y], place, coordinates) == pytest.approx(2 * 1e9 * 15 / 16 / 100e9)
    assert network_seconds([whole, hop], place, coordinates) == pytest.approx(2e9 * 255 / 256 / 200e9 + 1e9 / 50e9)


def test_the_proposed_mesh_splits_a_state_that_is_large():
    place = parse_topology("v5e:4x4")
    assert propose_mesh(place, 10**9) == (16, 1, 1)
    assert propose_mesh(place, 10 * 10**9) == (4, 4, 1)
    assert propose_mesh(place, 10**12) == (1, 16, 1)


@pytest.mark.parametrize(
    ("batch", "mesh", "message"),
    [
        (12, None, "try 8 or 16"),
        (4, None, "try 8, or"),
        (8, (2, 2, 1), "8 chips of h100:8"),
        (8, (4, 2), "three counts"),
        (8, (4, 1, 2), "no tensor axis"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(batch, mesh, message):
    with pytest.raises(PlanError, match=message):
        plan(SMALL, "h100:8", batch, mesh)


@pytest.fixture(scope="module")
def on_paper():
    return plan(SMALL, "h100:8", 32)


def test_gpus_on_paper(on_paper):
    made, split = on_paper, plan(SMALL, "h100:8", 64, (2, 4, 1))
    assert made.on_paper
    assert any("on paper" in note for note in made.notes)
    assert made.flops == made.model_flops > 0
    assert split.flops == 2 * made.flops  # twice the batch
    assert split.memory.batch == 2 * made.memory.batch
    # One all-reduce of float32 parameters; the moments of AdamW are twice as much.
    count, size, sent = made.collectives["all-reduce"]
    assert (count, size) == (1, made.memory.parameters)
    assert sent == pytest.approx(2 * size * 7 / 8)
    assert made.network_s == pytest.approx(sent / 450e9)
    assert made.memory.optimizer == pytest.approx(2 * made.memory.parameters, rel=0.01)
    assert set(split.collectives) == {"all-gather", "reduce-scatter", "all-reduce"}
    assert split.memory.parameters < made.memory.parameters / 2
    assert made.hbm_bytes < made.accessed_bytes


def test_recomputing_costs_operations_and_saves_memory(on_paper):
    def planned(policy):
        return plan({**SMALL, "train": {"remat": True, "remat_policy": policy}}, "h100:1", 4)

    dense = "dots_with_no_batch_dims_saveable"
    again, but_dense, kept = planned("nothing_saveable"), planned(dense), on_paper
    assert again.flops > but_dense.flops > but_dense.model_flops == again.model_flops == kept.model_flops
    assert again.memory.temporaries < but_dense.memory.temporaries < kept.memory.temporaries
    assert again.collectives == {}
    assert f"recomputed ({dense})" in dict(plan_lines(but_dense))["model"]


def test_a_narrow_stream_leaves_less_for_the_gradient(on_paper):
    narrow = plan({**SMALL, "train": {"residual_dtype": "bfloat16"}}, "h100:8", 32)
    assert narrow.memory.temporaries < on_paper.memory.temporaries and narrow.flops == on_paper.flops
    with pytest.raises(ConfigError, match="no narrower than what computes on it"):
        plan(
            {**SMALL, "model": {**SMALL["model"], "dtype": "float32"}, "train": {"residual_dtype": "bfloat16"}},
            "h100:1",
            4,
        )
    with pytest.raises(ConfigError, match="a config of masks: plan weighs trainings of trackers"):
        plan({"alpha_refine": {}, "data": {"root": "nowhere"}, "train": {}}, "h100:1", 4)
    with pytest.raises(ConfigError, match=r"nothing is recomputed: set train\.remat"):
        plan({**SMALL, "train": {"remat_policy": "dots_saveable"}}, "h100:1", 4)


def test_pretrainings_are_planned_by_what_their_masks_leave():
    small = {"model": SMALL["model"], "num_templates": 1, "decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2}

    def planned(mask_ratio):
        autoencoder = {**small, "mask_ratio": mask_ratio}
        return plan({"autoencoder": autoencoder, "data": {"root": "nowhere"}, "train": {}}, "h100:2", 8)

    few, many = planned(0.75), planned(0.25)
    assert few.model == "small" and few.global_batch == 8 and set(few.collectives) == {"all-reduce"}
    assert 0 < few.flops < many.flops and few.memory.parameters == many.memory.parameters


def test_bytes_of_products_count_loops():
    def product(carry, _):
        return carry @ carry, None

    def looped(x):
        return jax.lax.scan(product, x, None, length=5)[0]

    program = jax.make_jaxpr(looped)(np.zeros((4, 4), np.float32))
    assert count_product_bytes(program) == 5 * 3 * 4 * 4 * 4
    assert sum(count_macs(program).values()) == 5 * 4**3


def test_products_inside_of_kernels_count():
    program = jax.make_jaxpr(lambda qkv: attend_on_tpu(qkv, 4, 16, 0.2, interpret=True))(jnp.zeros((3, 48, 3 * 256)))
    # All 128 lanes, of which each head fills a half: the search's 32 queries see 48 keys, the templates' 16 see 16.
    expected = 3 * 4 * 2 * 128 * (32 * 48 + 16 * 16)
    assert count_kernel_macs(program) == expected == sum(count_macs(program).values())
    assert count_kernel_macs(jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 2)), jnp.ones((2, 2)))) == 0


def test_the_gradient_of_a_strided_convolution_costs_what_the_convolution_does():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = np.zeros((1, 8, 8, 3), np.float32), np.zeros((2, 2, 3, 5), np.float32)
    forward = sum(count_macs(jax.make_jaxpr(convolve)(x, kernel)).values())
    gradient = jax.make_jaxpr(jax.grad(lambda x, kernel: convolve(x, kernel).sum(), (0, 1)))(x, kernel)
    assert sum(count_macs(gradient).values()) == pytest.approx(3 * forward, rel=0.35)


def test_the_command_says_no_with_status_1(config_file, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", "--config", str(config_file), "--json", str(out)]
    assert main([*arguments, "--topology", "v100:1", "--global-batch", "1000000"]) == 1
    printed = capsys.readouterr()
    assert "on paper" in printed.out
    assert "bytes too many" in printed.err
    record = json.loads(out.read_text())
    assert record["fits"] is False
    assert "bytes too many" in record["refusal"]

    assert main([*arguments, "--topology", "v5x:4x4", "--global-batch", "8"]) == 1
    assert "the known ones" in capsys.readouterr().err
    assert json.loads(out.read_text())["fits"] is False

    assert main([*arguments, "--topology", "v100:2", "--global-batch", "8", "--config.train.stepz=1"]) == 2


@pytest.fixture
def tpu_compiler(monkeypatch):
    """The package `libtpu`, from this environment or from where `make test` lays it."""
    if importlib.util.find_spec("libtpu") is None:
        folder = Path(sys.prefix) / "tpu-compiler"
        if not folder.is_dir():
            message = f"the TPU compiler is neither installed (pip install -e '.[plan]') nor in {folder}"
            if os.environ.get("CI") == "true":
                pytest.fail(f"{message}, and under CI=true a test may not go without it")
            pytest.skip(message)
        monkeypatch.syspath_prepend(folder)


def test_a_real_step_compiled_for_chips_that_are_not_here(tpu_compiler, config_file, tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", "--config", str(config_file), "--json", str(out), "--topology", "v5e:2x2", "--quick"]
    # Heads that fill the lanes: with the attention kernel.
    arguments += ["--config.model.width=128", "--config.model.num_heads=2"]
    assert main([*arguments, "--global-batch", "16", "--mesh", "2,2,1"]) == 0
    made = json.loads(out.read_text())
    assert made["fits"] is True
    assert made["on_paper"] is False
    assert made["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert "attention kernels" in " ".join(made["notes"])
    assert 0 < made["memory"]["total"] < made["memory"]["limit"]
    assert 0 < made["memory"]["parameters"] < made["memory"]["optimizer"]
    # XLA leaves out the padding of convolutions and counts what is not a product.
    assert 0.3 * made["model_flops"] < made["flops"] < 3 * made["model_flops"]
    assert made["collectives"]["all-reduce"]["count"] > 0
    assert made["collectives"]["all-gather"]["bytes"] > 0  # parameters split by fsdp
    assert made["step_s_at_least"] == max(made["bounds_s"].values()) > 0
    assert sum(mover["bytes"] for mover in made["movers"]) == made["hbm_bytes"]
    assert {"forward mlp", "backward mlp", "update"} <= {mover["module"] for mover in made["movers"]}
    printed = capsys.readouterr()
    assert "<- limits" in printed.out
    assert "no ceiling" in printed.out
    assert "compile it for 4 x v5e" in printed.err
