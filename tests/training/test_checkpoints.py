"""Checkpoints: which are kept, what a damaged one does, other meshes, and folders that cannot be written to."""

import errno
import gc
import logging
import os
import resource
import shutil
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mixformer_jax.data.pipeline import batches
from mixformer_jax.training.checkpoints import CheckpointError, Checkpoints
from mixformer_jax.training.program import TrainState
from mixformer_jax.training.sharding import make_mesh, tree_shardings, with_shardings


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """What earlier tests have left is not searched for cycles each time that a damaged checkpoint is cleared away."""
    gc.freeze()


class Numbers:
    def sample(self, index):
        return {"number": np.asarray(index)}


def state_at(step, mesh=(1, 1, 1), width=64):
    rng = np.random.default_rng(step)
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        key=jnp.arange(2, dtype=jnp.uint32),
        params={"fc1": {"kernel": jnp.asarray(rng.normal(size=(width, width)), jnp.float32)}},
        model_state={},
        opt_state=(),
        ema={},
    )
    return jax.tree.map(jax.device_put, state, tree_shardings(state, make_mesh(mesh)))


def abstract(mesh=(1, 1, 1), width=64):
    shapes = jax.eval_shape(lambda: state_at(0, width=width))
    return with_shardings(shapes, tree_shardings(shapes, make_mesh(mesh)))


def save(checkpoints, step, best=None, **options):
    stream = batches(Numbers(), 2, step, num_threads=0)
    checkpoints.save(state_at(step, **options), stream, {"train": {}}, best)
    checkpoints.wait()


def kernel(state):
    return np.asarray(state.params["fc1"]["kernel"])


def test_newest_best_and_every_so_many_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2, keep_every=4) as checkpoints:
        for step, best in ((1, 0.3), (2, 0.9), (3, 0.5), (4, None), (5, 0.1), (6, None), (7, 0.2)):
            save(checkpoints, step, best)
        assert checkpoints.steps() == [2, 4, 6, 7]
        restored = checkpoints.restore(abstract())
    assert int(restored.state.step) == 7 and restored.data == {"step": 7}
    np.testing.assert_array_equal(kernel(restored.state), kernel(state_at(7)))


def test_a_checkpoint_comes_back_on_another_mesh(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3, mesh=(2, 4, 1))
        state = checkpoints.restore(abstract((2, 2, 2))).state
    assert state.params["fc1"]["kernel"].addressable_shards[0].data.shape == (32, 32)
    np.testing.assert_array_equal(kernel(state), kernel(state_at(3)))


def test_a_checkpoint_is_in_files_that_are_easy_to_move(tmp_path):
    state = state_at(1)
    parts = {str(part): state_at(part, width=1024).params for part in range(10)}  # 40 MiB
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state._replace(params=parts), batches(Numbers(), 2, 1, num_threads=0), {})
        checkpoints.wait()
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(sizes) > 30 * 2**20 and max(sizes) < 16 * 2**20


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the steps 1 and 2, to be copied."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    return folder


def flip_a_bit(folder):
    """In the largest file, where the numbers are; random ones do not compress."""
    largest = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def lose_a_file(folder):
    next(path for path in folder.rglob("manifest.ocdbt")).unlink()


def cut_files_off(folder):
    for path in (path for path in folder.rglob("*") if path.is_file()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_the_numbers(folder):
    max((path for path in folder.rglob("d/*")), key=lambda path: path.stat().st_size).unlink()


def empty_the_manifest(folder):
    (folder / "state" / "manifest.ocdbt").write_bytes(b"")


def change(file, text, other):
    def damage(folder):
        path = folder / "state" / file
        assert text in path.read_text()
        path.write_text(path.read_text().replace(text, other))

    return damage


def lose_the_step(folder):
    (folder / "data" / "process_0-of-1.json").write_text('{"step": 3}')


def lose(name):
    return lambda folder: shutil.rmtree(folder / name)


@pytest.mark.parametrize(
    "damage",
    [
        *(flip_a_bit, lose_a_file, cut_files_off, lose_the_numbers, empty_the_manifest, lose_the_step),
        *map(lose, ("metrics", "state", "about")),
        change("_METADATA", "kernel", "kernfl"),
        change("array_metadatas/process_0", "param_name", "param_nbme"),
        change("_METADATA", "jax.Array", "jax.Arrqy"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(saved, tmp_path, damage, monkeypatch):
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: heard.append(str(fault.exc_value)))
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "2")
    there = everything(tmp_path)
    with (
        pytest.warns(UserWarning, match=f"{tmp_path}/2: a damaged checkpoint is passed over"),
        Checkpoints(tmp_path, read_only=True) as others,
    ):
        np.testing.assert_array_equal(kernel(others.restore(abstract()).state), kernel(state_at(1)))
    assert everything(tmp_path) == there, "another run's folder"
    gc.collect()
    assert not heard, "one warning, and nothing from Orbax's threads"
    with pytest.warns(UserWarning, match=f"{tmp_path}/2: a damaged checkpoint is passed over"):
        checkpoints = Checkpoints(tmp_path)
        state = checkpoints.restore(abstract()).state
    with checkpoints:
        np.testing.assert_array_equal(kernel(state), kernel(state_at(1)))
        # It is put aside, and its step can be saved again.
        assert (tmp_path / "2.damaged").is_dir()
        save(checkpoints, 2)
        assert checkpoints.steps() == [1, 2]
        np.testing.assert_array_equal(kernel(checkpoints.restore(abstract()).state), kernel(state_at(2)))


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_when_all_are_damaged_nothing_begins_anew(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    flip_a_bit(tmp_path / "1")
    shutil.rmtree(tmp_path / "2" / "metrics")
    there = everything(tmp_path)
    for _ in range(2):
        with (
            pytest.raises(CheckpointError, match=r"all checkpoints are damaged, and nothing .*\n  2: .*\n  1: not"),
            Checkpoints(tmp_path) as checkpoints,
        ):
            checkpoints.restore(abstract())
        assert everything(tmp_path) == there


def test_an_older_checkpoint_without_metrics_is_put_aside(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "1" / "metrics")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.warns(UserWarning, match=f"{tmp_path}/1: a damaged checkpoint"):
            assert int(checkpoints.restore(abstract()).state.step) == 2
        save(checkpoints, 3)
        assert checkpoints.steps() == [2, 3] and (tmp_path / "1.damaged").is_dir()


def wrapped(error):
    """As Orbax passes errors of reading on."""
    outer = Exception("Encountered error while reading array index: ...")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte."), "RESOURCE_EXHAUSTED"),
        (jax.errors.JaxRuntimeError("INTERNAL: no more streams"), "INTERNAL: no more streams"),
        (wrapped(ValueError("UNAVAILABLE: the server does not answer")), "UNAVAILABLE"),
        (wrapped(ValueError("PERMISSION_DENIED: Error opening")), "PERMISSION_DENIED"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "Stale file handle"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        (MemoryError(), "MemoryError"),
        (ValueError("cannot be laid out on this mesh"), "cannot be laid out"),
    ],
)
def test_what_is_no_damage_changes_nothing(saved, tmp_path, monkeypatch, error, reason):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    there = everything(tmp_path)

    def restore(*_args, **_settings):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", restore)
        with (
            pytest.raises(CheckpointError, match=f"{tmp_path}/2: cannot be restored: .*{reason}.*Nothing was changed"),
            Checkpoints(tmp_path) as checkpoints,
        ):
            checkpoints.restore(abstract())
    assert everything(tmp_path) == there
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(abstract()).state.step) == 2


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (
            lambda: abstract()._replace(ema=abstract().params),
            r"another experiment: 1 arrays differ, ema/fc1/kernel: none there, \(64, 64\) here",
        ),
        (
            lambda: abstract()._replace(params={}),
            r"another experiment: .* params/fc1/kernel: \(64, 64\) there, none here",
        ),
        (
            lambda: abstract(width=32),
            r"another experiment: .* params/fc1/kernel: \(64, 64\) there, \(32, 32\) here",
        ),
    ],
)
def test_a_checkpoint_of_another_experiment_is_no_damaged_one(tmp_path, like, reason):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    there = everything(tmp_path)
    for read_only in (True, False):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with pytest.raises(CheckpointError, match=reason), Checkpoints(tmp_path, read_only=read_only) as found:
                found.restore(like())
        assert everything(tmp_path) == there and not any("damaged" in str(each.message) for each in told)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", half)
    with pytest.warns(UserWarning, match=f"{half}: a checkpoint that was never finished is passed over"):
        checkpoints = Checkpoints(tmp_path)
    with checkpoints:
        assert checkpoints.steps() == [1]


def test_a_full_disk_loses_no_checkpoint(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        # No file may grow beyond this: writing fails as it does on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        try:
            with pytest.raises(CheckpointError, match=f"could not be written .*the last whole one is {tmp_path}/1"):
                save(checkpoints, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.glob("*tmp*")) == []
        assert not logging.getLogger("asyncio").isEnabledFor(logging.ERROR), "what failed is said once"
        save(checkpoints, 3)
        assert checkpoints.steps() == [1, 3]
        np.testing.assert_array_equal(kernel(checkpoints.restore(abstract()).state), kernel(state_at(3)))
    assert all(logging.getLogger(name).isEnabledFor(logging.ERROR) for name in ("asyncio", "absl"))
