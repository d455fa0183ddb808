"""Weights of Alpha-Refine's mask network: official checkpoints, as its trainer writes them, there and back."""

import sys
import types

import numpy as np
import pytest

from mixformer_jax import cli
from mixformer_jax.convert.alpha_refine import (
    ALPHA_REFINE_FORMAT,
    alpha_refine_table,
    init_resnet,
    load_alpha_refine,
    read_alpha_refine,
    save_alpha_refine,
    shapes_of_alpha_refine,
)
from mixformer_jax.convert.convert import convert
from mixformer_jax.convert.names import Entry, official_shape
from mixformer_jax.convert.torch_files import read_official, safetensors_format, write_official_safetensors
from mixformer_jax.convert.weights import WeightsError
from mixformer_jax.models.masks import AlphaRefineConfig

TINY = AlphaRefineConfig(pool_size=4, depths=(2, 2, 3, 2), stem_width=8, head_width=12)


@pytest.fixture(scope="module")
def state(alpha_refine_layouts):
    """Random weights of the tiny layout, with tiny numbers and negative zeros among them; counters count."""
    rng, made = np.random.default_rng(0), {}
    for name, shape in alpha_refine_layouts["tiny"]:
        if name.endswith("num_batches_tracked"):
            made[name] = np.asarray(rng.integers(1, 1 << 40), np.int64)
            continue
        values = rng.standard_normal(shape).astype(np.float32)
        values[rng.random(shape) < 0.02] = -0.0
        values[rng.random(shape) < 0.02] *= 1e-40
        made[name] = values
    return made


@pytest.mark.parametrize("kind", ["real", "tiny"])
def test_the_table_lists_the_official_layout(alpha_refine_layouts, kind):
    config = {"real": AlphaRefineConfig(), "tiny": TINY}[kind]
    shapes = shapes_of_alpha_refine(config)
    found = [
        (entry.official, official_shape(entry, shapes[entry.name]) if isinstance(entry, Entry) else entry.shape)
        for entry in alpha_refine_table(config)
    ]
    free = ("feature_extractor.fc.weight", "feature_extractor.fc.bias")  # ten classes in the tiny one
    expected = alpha_refine_layouts[kind]
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [pair for pair in found if pair[0] not in free] == [pair for pair in expected if pair[0] not in free]


@pytest.fixture(scope="module")
def checkpoints(torch, state, tmp_path_factory):
    """What the official trainer saves, as PyTorch 1.2 wrote files and as today's does."""
    records = {
        "ltr.admin.settings": ("Settings",),
        "ltr.admin.local": ("EnvironmentSettings",),
        "ltr.admin.stats": ("AverageMeter", "StatValue"),
        "ltr.admin.model_constructor": ("NetConstructor",),
    }
    paths = {}
    with pytest.MonkeyPatch.context() as patch:
        made = {}
        for package in ("ltr", "ltr.admin", *records):
            patch.setitem(sys.modules, package, types.ModuleType(package))
        for module, names in records.items():
            for name in names:
                made[name] = type(name, (), {"__module__": module})
                setattr(sys.modules[module], name, made[name])

        def record(name, **values):
            made_one = made[name]()
            made_one.__dict__ = values
            return made_one

        meter = record("AverageMeter", avg=0.5, sum=torch.ones(1), count=2, history=[0.5])
        weights = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(weights.parameters(), lr=1e-3)
        weights(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        content = {
            "epoch": 40,
            "actor_type": "SEcm_Actor",
            "net_type": "ARnet_seg_mask",
            "net": {name: torch.from_numpy(np.array(value)) for name, value in state.items()},
            "net_info": {},
            "constructor": record(
                "NetConstructor",
                fun_name="ARnet_seg_mask_resnet50",
                fun_module="ltr.models.AR_seg_mask.AR_seg_mask",
                args=(),
                kwds={"backbone_pretrained": True, "pool_size": 4},
            ),
            "optimizer": optimizer.state_dict(),
            "stats": {"train": {"Loss/total": meter, "LearningRate/group0": record("StatValue", val=1e-3, history=[])}},
            "settings": record("Settings", env=record("EnvironmentSettings", workspace_dir="/x"), batch_size=32),
        }
        for name, is_zip in (("old", False), ("zip", True)):
            paths[name] = tmp_path_factory.mktemp(name) / "ARnet_seg_mask_ep0040.pth.tar"
            torch.save(content, paths[name], _use_new_zipfile_serialization=is_zip)
    assert not any(name.startswith("ltr") for name in sys.modules)
    return paths


def check(found, state):
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("kind", ["old", "zip"])
def test_there_and_back(checkpoints, state, tmp_path, kind, capsys):
    ours, back, names = tmp_path / "ours.safetensors", tmp_path / "back.pth.tar", tmp_path / "names.safetensors"
    assert cli.main(["convert", str(checkpoints[kind]), str(ours)]) == 0
    shown = capsys.readouterr().out
    assert "mask network of 4 x 4 bins, ResNet of 2, 2, 3, 2 bottlenecks" in shown and "343,459" in shown
    assert "left out" in shown and "constructor" in shown and "batch counters" in shown
    assert safetensors_format(ours) == ALPHA_REFINE_FORMAT
    assert load_alpha_refine(ours).config == TINY
    convert(ours, back)
    check(read_official(back).tensors, state)
    convert(back, names, official=True)
    check({name: read_official(names).tensors[name] for name in state}, state)
    convert(names, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == ours.read_bytes()


def test_an_official_file_is_read_as_it_is(checkpoints, tmp_path):
    ours = tmp_path / "ours.safetensors"
    convert(checkpoints["old"], ours)
    one, other = read_alpha_refine(checkpoints["old"]), read_alpha_refine(ours)
    assert one.config == other.config
    for part in ("params", "batch_stats"):
        np.testing.assert_equal(one.variables[part], other.variables[part])


def test_what_does_not_fit_is_told(state, tmp_path):
    broken = {name: value for name, value in state.items() if name != "refiner.CAB.layer3.convreluconv.2.bias"}
    broken["neck.channel_attention.fc1.bias"] = np.zeros(3, np.float32)
    broken["refiner.more"] = np.zeros(1, np.float32)
    path = tmp_path / "broken.safetensors"
    write_official_safetensors(path, broken)
    with pytest.raises(WeightsError) as told:
        convert(path, tmp_path / "ours.safetensors")
    for line in ("missing refiner.CAB.layer3", "misshapen neck.channel_attention.fc1.bias", "unexpected refiner.more"):
        assert line in str(told.value)
    write_official_safetensors(
        path, {**state, "neck.channel_attention.fc1.weight": np.zeros((4, 15, 1, 1), np.float32)}
    )
    with pytest.raises(WeightsError, match="takes 15 maps, which are no square of bins"):
        convert(path, tmp_path / "ours.safetensors")
    with pytest.raises(WeightsError, match="expected weights of Alpha-Refine's mask network"):
        read_alpha_refine(tmp_path / "none.safetensors")


def test_a_resnet_of_imagenet_starts_the_backbone(state, tmp_path):
    prefix = "feature_extractor."
    resnet = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    write_official_safetensors(tmp_path / "resnet50.safetensors", resnet)
    start = init_resnet(tmp_path / "resnet50.safetensors", TINY)
    assert all("/backbone/" in name for name in start.taken) and all("/backbone/" not in name for name in start.fresh)
    kernel = start.variables["params"]["backbone"]["layer3_0"]["shortcut"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0].T, resnet["layer3.0.downsample.0.weight"][..., 0, 0])
    assert "fc.weight" in start.ignored
    with pytest.raises(WeightsError, match="does not fit the ResNet"):
        init_resnet(tmp_path / "resnet50.safetensors", AlphaRefineConfig())


def test_files_of_other_kinds_are_no_mask_network(state, tmp_path):
    save_alpha_refine(tmp_path / "masks.safetensors", {"params": {}}, TINY)
    with pytest.raises(WeightsError, match="weights do not belong to the model"):
        load_alpha_refine(tmp_path / "masks.safetensors")
