"""Alpha-Refine's mask network against the official code: every stage, sizes that do not divide, and a train step."""

import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict

from mixformer_jax.boxes import xywh_to_xyxy
from mixformer_jax.convert.alpha_refine import from_official, infer_alpha_refine, shapes_of_alpha_refine, to_official
from mixformer_jax.convert.torch_files import OfficialState
from mixformer_jax.models.masks import AlphaRefine, AlphaRefineConfig
from mixformer_jax.models.mixformer import init_variables
from mixformer_jax.pixels import normalise
from mixformer_jax.training.masks import mask_losses


def weights_of(state):
    return from_official("golden", OfficialState(state, ()))


@pytest.fixture(scope="module")
def tiny(golden):
    arrays = golden("alpha_refine/tiny_model.npz")
    return weights_of({name[6:]: arrays[name] for name in arrays.files if name.startswith("state/")})


def run(weights, arrays):
    """Logits, and every stage by the golden file's name, NCHW."""
    model = AlphaRefine(weights.config)
    boxes_xyxy = xywh_to_xyxy(arrays["in/template_boxes_xywh"][0])

    @jax.jit
    def apply(variables, template, boxes_xyxy, search):
        call = {"capture_intermediates": True, "mutable": ["intermediates"]}
        kernel, coded = model.apply(variables, template, boxes_xyxy, method="encode_template", **call)
        logits, seen = model.apply(variables, kernel, search, method="segment", **call)
        return kernel, coded["intermediates"], logits, seen["intermediates"]

    images = (normalise(arrays["in/template_uint8"]), boxes_xyxy, normalise(arrays["in/search_uint8"]))
    kernel, coded, logits, seen = apply(weights.variables, *images)
    seen = {name: value[0] for name, value in flatten_dict(seen, sep="/").items()}
    stages = {"ref/layer4": coded["backbone"]["__call__"][0][2], "ref/kernel": kernel}
    stages |= {"search/layer1": seen["backbone/stem/__call__"]}
    stages |= {f"search/layer{i}": maps for i, maps in enumerate(seen["backbone/__call__"], start=2)}
    blocks = [name for name in seen if name.startswith("backbone/layer") and name.count("/") == 2]
    for name in blocks:
        stages[f"blocks/{name.split('/')[1].replace('_', '.')}"] = seen[name]
    neck = {"corr": "correlated", "se_gate": "gate", "after_se": "gated", "nl_branch": "branch", "after_nl": "__call__"}
    stages |= {f"neck/{theirs}": seen[f"correlation/{ours}"] for theirs, ours in neck.items()}
    level = {"tse_reduce": "reduced", "tse_in": "joined", "tse_out": "mixed", "rrb1": "refine1/__call__"}
    level |= {"cab_logits": "gate_logits", "cab": "gated", "rrb2": "__call__"}
    for i in range(2, 6):
        for theirs, ours in level.items():
            stages[f"head/layer{i}/{theirs}"] = seen[f"head/stride{2**i}/{ours}"]
    project = {"up1": "doubled", "conv1": "projected", "up2": "doubled_again", "resized": "resized"}
    stages |= {f"project/{theirs}": seen[f"head/{ours}"] for theirs, ours in project.items()}
    stages = {name: np.asarray(rearrange(maps, "b h w c -> b c h w")) for name, maps in stages.items()}
    logits = np.asarray(logits)[:, None]
    return stages | {"logits": logits, "mask": 1 / (1 + np.exp(-logits)), "neck/nl_map": seen["correlation/attention"]}


def deviation(found, expected):
    """The measure of the golden files: the largest difference over max(1, largest magnitude)."""
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ["tiny_model", "tiny_odd_sizes"])
def test_every_stage(golden, tiny, name):
    arrays = golden(f"alpha_refine/{name}.npz")
    found, checked = run(tiny, arrays), set()
    for stage in (stage[4:] for stage in arrays.files if stage.startswith("out/")):
        expected = arrays[f"out/{stage}"]
        assert deviation(found[stage][: len(expected)], expected) < 1e-4, stage
        checked.add(stage)
    assert len(checked) == {"tiny_model": 51, "tiny_odd_sizes": 16}[name]


def formula(name, shape, names):
    """The weights of full_model_formula.npz, see its README."""
    owner, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf == "weight" and f"{owner}.running_mean" in names:
        value = rng.uniform(0.8, 1.2, shape) * (0.3 if owner.endswith("bn3") else 1.0)
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    factor, offset = {
        "neck.channel_attention.fc1.weight": (1e-4, 0),
        "neck.channel_attention.fc2.weight": (0.4, 0),
        "neck.channel_attention.fc2.bias": (1, -9),
        "neck.spatial_attention.theta.weight": (0.25, 0),
        "neck.spatial_attention.phi.0.weight": (0.25, 0),
        "refiner.project.conv2.weight": (1.5, 0),
        "refiner.project.conv2.bias": (1, -4),
    }.get(name, (1, 0))
    if ".bblock.3." in name or ".convreluconv.2.weight" in name or (".RRB" in name and "conv1x1.weight" in name):
        factor = 0.5
    return (value * factor + offset).astype(np.float16).astype(np.float32)


def test_the_published_configuration(golden, alpha_refine_layouts):
    layout = alpha_refine_layouts["real"]
    arrays, names = golden("alpha_refine/full_model_formula.npz"), {name for name, _ in layout}
    state = {name: formula(name, shape, names) for name, shape in layout}
    sums = dict(zip(arrays["weights/names"].tolist(), arrays["weights/crc32"].tolist(), strict=True))
    assert all(zlib.crc32(state[name].tobytes()) == crc for name, crc in sums.items())
    weights = weights_of(state)
    assert weights.config == AlphaRefineConfig()
    found = run(weights, arrays)
    for stage, (channels, pixels) in json.loads(str(arrays["meta"]))["channel_and_pixel_stride"].items():
        part = found[stage][:, ::channels, ::pixels, ::pixels]
        assert deviation(part, arrays[f"out/{stage}"]) < 1e-4, stage
    for stage in (name[5:] for name in arrays.files if name.startswith("sums/") and name[5:] in found):
        _sum, magnitudes, largest = arrays[f"sums/{stage}"]
        assert np.abs(found[stage]).max() == pytest.approx(largest, rel=1e-4), stage
        assert np.abs(np.asarray(found[stage], np.float64)).sum() == pytest.approx(magnitudes, rel=1e-4), stage


def test_a_train_step(golden, tiny):
    inputs, arrays = golden("alpha_refine/tiny_model.npz"), golden("alpha_refine/train_step.npz")
    model = AlphaRefine(tiny.config)
    boxes_xyxy = xywh_to_xyxy(inputs["in/template_boxes_xywh"][0])
    images = (normalise(inputs["in/template_uint8"]), boxes_xyxy, normalise(inputs["in/search_uint8"]))
    target = jnp.asarray(arrays["gt_mask"][:, 0])

    @jax.jit
    def gradients(variables, *images):
        def loss(params):
            return mask_losses(model.apply({**variables, "params": params}, *images), target).mean()

        return jax.value_and_grad(loss)(variables["params"])

    loss, found = gradients(tiny.variables, *images)
    assert float(loss) == pytest.approx(float(arrays["eval/loss_bce"]), rel=1e-5)
    statistics = {"batch_stats": tiny.variables["batch_stats"]}
    official = to_official(tiny._replace(variables={"params": found, **statistics}))
    norms = dict(zip(arrays["eval/grad_norm_names"].tolist(), arrays["eval/grad_norm"].tolist(), strict=True))
    # What float32 does in the official code, to each tensor, is in the file; behind ReLU kinks it may do as much here.
    rooms = json.loads(str(arrays["meta"]))["float32_dev"]["eval_grad"]
    for name, norm in norms.items():
        room = 1e-4 + 3 * rooms.get(name, 0.0)  # the softmax does not see the bias of `phi`: its gradient is zero
        assert np.linalg.norm(official[name]) == pytest.approx(norm, rel=room, abs=1e-5), name
    for name in (name[10:] for name in arrays.files if name.startswith("eval/grad/")):
        expected = arrays[f"eval/grad/{name}"]
        room = 1e-4 + 3 * rooms[name]
        assert np.abs(official[name] - expected).max() <= room * np.abs(expected).max(), name

    trained = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, updates = trained(tiny.variables, *images)
    assert float(mask_losses(logits, target).mean()) == pytest.approx(float(arrays["train/loss_bce"]), rel=1e-4)
    assert np.abs(jax.nn.sigmoid(logits) - arrays["train/mask"][:, 0]).max() < 5e-4
    after = to_official(tiny._replace(variables={"params": tiny.variables["params"], **updates}))
    tracked = [name for name in arrays.files if name.startswith("train/after/") and "num_batches" not in name]
    assert len(tracked) > 60
    for name in tracked:
        assert deviation(after[name.removeprefix("train/after/")], arrays[name]) < 1e-4, name


def test_sizes_are_read_off_a_state_dict(tiny):
    assert infer_alpha_refine(to_official(tiny)) == tiny.config
    assert (tiny.config.pool_size, tiny.config.depths, tiny.config.crop_size) == (4, (2, 2, 3, 2), 128)


def test_fresh_weights(tiny):
    model = AlphaRefine(tiny.config)
    values = flatten_dict(init_variables(model, jax.random.key(0)), sep="/")
    assert {name: value.shape for name, value in values.items()} == shapes_of_alpha_refine(tiny.config)
    kernel = values["params/backbone/layer3_0/conv2/kernel"]  # 3 x 3, 32 -> 32
    assert float(kernel.std()) == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    kernel = values["params/head/stride4/mix1/kernel"]  # 3 x 3, 28 -> 28
    reach = (9 * 28) ** -0.5
    assert 0.95 * reach < float(jnp.abs(kernel).max()) <= reach
    assert 0 < float(jnp.abs(values["params/head/stride4/mix1/bias"]).max()) <= reach
    assert not values["params/correlation/expand_norm/scale"].any(), "the non-local block starts as the identity"
    assert (values["params/backbone/stem/norm/scale"] == 1).all()
    assert (values["batch_stats/backbone/stem/norm/var"] == 1).all()
