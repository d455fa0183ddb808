"""Reading what torch.save wrote: training checkpoints, and everything that must be refused without being run."""

import argparse
import io
import os
import pathlib
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.convert.torch_files import read_official, write_official_safetensors, write_torch
from mixformer_jax.convert.weights import WeightsError

STATE = {
    "blocks.0.weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "blocks.0.bias": np.asarray([0.1, -0.0, 1e-42], np.float32),
    "norm.num_batches_tracked": np.asarray(1 << 40, np.int64),
}


class Program:
    """Runs a command when a careless unpickler builds it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def tensors(torch):
    return OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in STATE.items())


def check(found):
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


@pytest.fixture
def trap(tmp_path):
    """A file that comes to be when a pickle with `Program(trap.touch)`, or the like, is run."""
    path = tmp_path / "trap"
    yield path
    assert not path.exists(), "a pickle was executed"


@pytest.mark.parametrize("key", ["net", "model", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("is_zip", [True, False])
def test_where_checkpoints_keep_their_state(torch, tmp_path, key, prefix, is_zip):
    path = tmp_path / "checkpoint.pth.tar"
    state = OrderedDict((prefix + name, value) for name, value in tensors(torch).items())
    state._metadata = {"": {"version": 1}}  # modules write it
    content = state if key is None else {"epoch": 5, key: state, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    found = read_official(path)
    check(found.tensors)
    assert found.left_behind == (() if key is None else ("epoch", "optimizer"))


def test_parameters_and_other_types(torch, tmp_path):
    values = torch.tensor([1.5, -2.0, 3.0])
    state = {
        "half": values.half(),
        "bfloat": values.bfloat16(),
        "double": values.double(),
        "parameter": torch.nn.Parameter(values),
        "strided": torch.stack([values, values + 1], dim=1)[:, 0],
        "count": torch.tensor(3),
    }
    torch.save({"net": state}, tmp_path / "w.pth")
    found = read_official(tmp_path / "w.pth").tensors
    assert found["count"].dtype == np.int64 and found["count"].shape == ()
    for name in state.keys() - {"count"}:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values.numpy())


def test_half_precision_safetensors(torch, tmp_path):
    from safetensors.torch import save_file

    values = torch.tensor([1.5, -2.0, 3.0])
    state = {"module.half": values.half(), "module.bfloat": values.bfloat16(), "module.count": torch.tensor(3)}
    save_file(state, tmp_path / "w.safetensors")
    found = read_official(tmp_path / "w.safetensors").tensors
    assert found["count"].dtype == np.int64 and found["count"].shape == ()
    for name in ("half", "bfloat"):
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values.numpy())


def test_files_without_checksums(torch, tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"net": tensors(torch)}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    check(read_official(tmp_path / "w.pth").tensors)


@pytest.fixture
def trainer_records(monkeypatch):
    """Classes of the official trainer, importable while the file is written and gone when it is read."""
    modules = {"stats": ["AverageMeter", "StatValue"], "settings": ["Settings"], "local": ["EnvironmentSettings"]}
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for package in ("lib", "lib.train", "lib.train.admin"):
            patch.setitem(sys.modules, package, types.ModuleType(package))
        for module, names in modules.items():
            qualified = f"lib.train.admin.{module}"
            patch.setitem(sys.modules, qualified, types.ModuleType(qualified))
            for name in names:
                made[name] = type(name, (), {"__module__": qualified})
                setattr(sys.modules[qualified], name, made[name])
        yield types.SimpleNamespace(**made)


@pytest.fixture
def trainer_checkpoint(torch, tmp_path, trainer_records):
    """A checkpoint as the official trainer's save_checkpoint writes it."""
    meter, settings = trainer_records.AverageMeter(), trainer_records.Settings()
    meter.__dict__ = {"avg": np.float64(0.5), "val": 0.5, "sum": torch.ones(1), "count": 2, "history": [0.5]}
    settings.__dict__ = {
        "env": trainer_records.EnvironmentSettings(),
        "device": torch.device("cuda:0"),
        "save_dir": "/x",
        "config_name": "baseline_got",
    }
    settings.env.__dict__ = {"workspace_dir": "/x", "lasot_dir": ""}
    weights = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(weights.parameters(), lr=1e-4)
    weights(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path = tmp_path / "MixFormer_ep0500.pth.tar"
    content = {
        "epoch": 500,
        "actor_type": "MixFormerActor",
        "net_type": "MixFormer",
        "net": tensors(torch),
        "net_info": None,
        "constructor": None,
        "optimizer": optimizer.state_dict(),
        "stats": OrderedDict(train=OrderedDict({"Loss/total": meter, "lr": trainer_records.StatValue()}), val=None),
        "settings": settings,
    }
    torch.save(content, path)
    return path


def test_checkpoints_of_the_official_trainer(trainer_checkpoint):
    for name in [name for name in sys.modules if name == "lib" or name.startswith("lib.")]:
        del sys.modules[name]  # as on a machine without the official code
    found = read_official(trainer_checkpoint)
    check(found.tensors)
    assert found.experiment == "baseline_got"
    assert set(found.left_behind) == (
        {"epoch", "actor_type", "net_type", "net_info", "constructor", "optimizer", "stats", "settings"}
    )


@pytest.mark.parametrize("state", [None, {}, {"config_name": 3}, {"config_name": ["baseline_got"]}])
def test_settings_that_tell_no_experiment(torch, tmp_path, trainer_records, state):
    settings = trainer_records.Settings()
    if state is not None:
        settings.__dict__ = state
    torch.save({"net": tensors(torch), "settings": settings}, tmp_path / "w.pth")
    assert read_official(tmp_path / "w.pth").experiment is None


def test_files_under_names_of_another_kind(torch, tmp_path):
    torch.save({"net": tensors(torch)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"w\.safetensors: holds a file of PyTorch's; rename it to end in \.pth"):
        read_official(tmp_path / "w.safetensors")


# Python 3.13 has its paths in another module than those before and after it.
@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_checkpoints_of_mae(torch, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, pathlib)
    monkeypatch.setattr(type(pathlib.Path()), "__module__", module)
    arguments = argparse.Namespace(
        output_dir=pathlib.PurePosixPath("x"), lr=np.float32(0.1), data_path=pathlib.Path("y")
    )
    del arguments.output_dir
    torch.save({"model": tensors(torch), "epoch": 1, "scaler": {}, "args": arguments}, tmp_path / "mae.pth")
    check(read_official(tmp_path / "mae.pth").tensors)


@pytest.mark.parametrize("place", ["beside", "inside", "alone", "as a record"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_programs_are_refused(torch, tmp_path, trap, trainer_records, place, is_zip):
    program = Program(exec, f"open({str(trap)!r}, 'w')")
    if place == "as a record":
        # A known record whose attributes hold a program.
        record = trainer_records.AverageMeter()
        record.history = [program]
        content = {"net": tensors(torch), "stats": record}
    else:
        content = {
            "beside": {"net": tensors(torch), "settings": program},
            "inside": {"net": tensors(torch) | {"extra": program}},
            "alone": program,
        }[place]
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=r"refused: beside tensors it holds exec,.*nothing of it was run"):
        read_official(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_bare_pickles_are_refused(torch, tmp_path, trap, protocol):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"net": Program(exec, f"open({str(trap)!r}, 'w')")}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"evil\.pth: "):
        read_official(path)


@pytest.mark.parametrize("function", [os.system, pathlib.Path.touch, print, eval, getattr, __import__])
def test_other_functions_are_refused(torch, tmp_path, trap, function):
    torch.save({"net": tensors(torch), "x": Program(function, trap)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="refused"):
        read_official(tmp_path / "evil.pth")


def test_unknown_classes_are_named(torch, tmp_path):
    torch.save({"net": tensors(torch), "info": types.SimpleNamespace(a=1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"holds types\.SimpleNamespace, .*torch\.save\({'net': torch\.load"):
        read_official(tmp_path / "w.pth")


def test_foreign_files(torch, tmp_path):
    path = tmp_path / "w.pth"

    def refused(match, content=None):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(WeightsError, match=match):
            read_official(path)

    refused(r"w\.pth: no such file")
    refused("an empty file", b"")
    refused("not a file of PyTorch's", b"Not found\n")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(r"a zip archive, but none of PyTorch's \(it holds: readme.txt\)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/constants.pkl", b"")
    refused("a TorchScript program")
    torch.save(tensors(torch), path)
    whole = path.read_bytes()
    refused("truncated or damaged", whole[: len(whole) // 2])
    path.write_bytes(whole)
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    refused("packed again with compression", packed.getvalue())
    write_official_safetensors(path, STATE)
    refused(r"holds \.safetensors data; rename it")
    write_official_safetensors(tmp_path / "w.safetensors", STATE)
    short = tmp_path / "short.safetensors"
    short.write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    with pytest.raises(WeightsError, match=r"not a readable \.safetensors"):
        read_official(short)
    check({name: read_official(tmp_path / "w.safetensors").tensors[name] for name in STATE})


def test_files_without_a_state_dict(torch, tmp_path):
    path = tmp_path / "w.pth"
    for content, match in [
        ([torch.ones(1)], "holds a list; expected a dictionary"),
        ({}, "holds a dict; expected a dictionary with a state dict"),
        (
            {"epoch": 3, "weights": {"a": torch.ones(1)}},
            "no state dict under net or model or state_dict, but epoch, weights",
        ),
        ({"net": {"a": torch.ones(1), "b": "text"}}, "its 'net' holds b; expected tensors"),
        ({"net": {"a": torch.ones(2).to_sparse()}}, "its 'net' holds a; expected tensors"),
        ({"net": {"a": torch.ones(2, dtype=torch.complex64)}}, "its 'net' holds a; expected tensors"),
    ]:
        torch.save(content, path)
        with pytest.raises(WeightsError, match=match):
            read_official(path)


@pytest.fixture(scope="module")
def checkpoints(torch, tmp_path_factory):
    """A checkpoint's bytes in both of PyTorch's formats, each once harmless and once with a program."""
    folder = tmp_path_factory.mktemp("checkpoints")
    trap = folder / "trap"
    program = Program(exec, f"open({str(trap)!r}, 'w')")
    found = []
    for content in ({"net": tensors(torch)}, {"net": tensors(torch), "x": program}):
        for is_zip in (True, False):
            torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=is_zip)
            found.append(((folder / "w.pth").read_bytes(), is_zip and "x" not in content))
    return folder, trap, found


@given(st.integers(0, 3), st.floats(0, 1), st.binary(max_size=12), st.booleans())
def test_damage_is_an_error_and_never_runs(checkpoints, which, where, junk, is_cut):
    folder, trap, found = checkpoints
    whole, has_checksums = found[which]
    at = int(where * len(whole))
    damaged = whole[:at] if is_cut else whole[:at] + junk + whole[at + len(junk) :]
    path = folder / "damaged.pth"
    path.write_bytes(damaged)
    try:
        state = read_official(path).tensors
        values = {name: state[name] for name in state}
    except WeightsError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        if has_checksums:  # the damage hit nothing that matters, or changed nothing
            check(values)
    assert not trap.exists()


def test_written_files_are_plain(torch, tmp_path):
    path = tmp_path / "w.pth"
    write_torch(path, STATE.items())
    assert [file.name for file in tmp_path.iterdir()] == ["w.pth"]
    content = torch.load(path, weights_only=True)
    assert list(content) == ["net"]
    assert all(value.is_contiguous() for value in content["net"].values())
    check({name: value.numpy() for name, value in content["net"].items()})


def test_without_pytorch(torch, tmp_path, monkeypatch):
    torch.save({"net": tensors(torch)}, tmp_path / "w.pth")
    write_official_safetensors(tmp_path / "w.safetensors", STATE)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        read_official(tmp_path / "w.pth")
    assert caught.value.name == "torch"
    with pytest.raises(ModuleNotFoundError):
        write_torch(tmp_path / "out.pth", STATE.items())
    assert set(read_official(tmp_path / "w.safetensors").tensors) == set(STATE)
