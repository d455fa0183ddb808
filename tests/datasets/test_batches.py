"""Batches from threads, worker processes and several processes: the same ones, from any step on."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import grain
import numpy as np
import pytest
from absl import flags

from mixformer_jax.data import pipeline
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, DatasetConfig, Mix, held_out
from mixformer_jax.data.pipeline import BadDataError, batches
from mixformer_jax.data.samples import HostSamples, Material, Rendered, TrackingSamples
from mixformer_jax.datasets.sequences import DatasetError
from mixformer_jax.views import CropConfig

REPOSITORY = Path(__file__).resolve().parents[2]
CROPS = CropConfig(template_size=16, search_size=32, search_factor=4.5, centre_jitter=4.5)


class Numbers(HostSamples):
    """Samples that tell their index, and what kind of process made them."""

    def render(self, index):
        from jax._src import xla_bridge

        sample = {
            "index": np.array(index),
            "pid": np.array(os.getpid()),
            "has_devices": np.array(xla_bridge.backends_are_initialized()),
        }
        return Rendered("numbers", sample, ())


def write_sequences(root, count=2, length=22):
    for number in range(count):
        folder = root / f"sequence{number}"
        folder.mkdir(parents=True)
        for frame in range(length):
            pixels = np.full((48, 64, 3), 40 * number + frame, np.uint8)
            cv2.imwrite(str(folder / f"{frame + 1:08d}.png"), pixels)
        (folder / "groundtruth.txt").write_text("\n".join(f"{10 + frame},12,12,10" for frame in range(length)))
    return root


def tracking_samples(root, **changes):
    datasets = {"made": DatasetConfig(str(root), reader="folder")}
    config = DataConfig(datasets=datasets, crops=CROPS, augment=AugmentConfig.official(), **changes)
    return TrackingSamples(Material.load(config), config, seed=5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_sequences(tmp_path_factory.mktemp("folder"))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_processes_share_every_batch(root, process_count=4):
    samples = tracking_samples(root)
    whole = take(batches(samples, 8, start_step=2, num_threads=0), 2)
    parts = [
        take(batches(samples, 8, 2, workers=index % 2, process_index=index, process_count=process_count), 2)
        for index in range(process_count)
    ]
    for step, batch in enumerate(whole):
        together = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        assert_equal(together, batch)
    with pytest.raises(ValueError, match="process 1 of 3 cannot have an equal part of a batch of 8"):
        batches(samples, 8, process_index=1, process_count=3)


def test_worker_processes_give_the_same_batches(root, monkeypatch):
    monkeypatch.setitem(vars(flags.FLAGS), "__flags_parsed", False)
    threads = cv2.getNumThreads()
    samples = tracking_samples(root)
    expected = take(batches(samples, 2, num_threads=0), 7)
    stream = batches(samples, 2, workers=2)
    for batch in expected[:3]:
        assert_equal(next(stream), batch)
    state = stream.get_state()
    assert state == {"step": 3}
    assert_equal(next(stream), expected[3])
    stream.close()
    assert not flags.FLAGS.is_parsed() and cv2.getNumThreads() == threads, "nothing of this process has changed"
    # Another number of workers, even none, goes on at the same place.
    other = batches(samples, 2, workers=0)
    other.set_state(state)
    for batch in expected[3:]:
        assert_equal(next(other), batch)
    other.set_state({"step": 1})
    assert_equal(next(other), expected[1])
    assert isinstance(other, grain.DatasetIterator)


def test_opencv_has_its_threads_back():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    with pytest.raises(ZeroDivisionError), pipeline.one_opencv_thread():
        assert cv2.getNumThreads() == 1
        raise ZeroDivisionError
    assert cv2.getNumThreads() == 3
    cv2.setNumThreads(before)


def test_workers_are_processes_without_devices():
    stream = batches(Numbers(), 3, start_step=1, workers=2)
    drawn = take(stream, 4)
    stream.close()
    np.testing.assert_array_equal([batch["index"] for batch in drawn], np.arange(3, 15).reshape(4, 3))
    pids = {int(pid) for batch in drawn for pid in batch["pid"]}
    assert len(pids) == 2 and os.getpid() not in pids
    assert not any(batch["has_devices"].any() for batch in drawn)


def test_a_worker_that_is_killed_is_named():
    stream = batches(Numbers(), 1, workers=1)
    os.kill(int(next(stream)["pid"][0]), signal.SIGKILL)
    with pytest.raises(DatasetError, match=r"exit code -9\); .*lower train.workers"):
        while True:
            next(stream)
    stream.close()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from mixformer_jax.data.pipeline import batches
from tests.datasets.test_batches import Numbers

if __name__ == "__main__":
    stream = batches(Numbers(), 1, workers=1)
    while True:
        print(int(next(stream)["pid"][0]), flush=True)
"""


def test_workers_leave_signals_to_their_parent(tmp_path):
    """Ctrl-C and `timeout` reach the whole group, and a run that is told to stop still wants its batch."""
    (tmp_path / "run.py").write_text(SCRIPT)  # its first process of all is the worker
    command = [sys.executable, str(tmp_path / "run.py"), str(REPOSITORY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
        drawn = [parent.stdout.readline() for _ in range(50)]
        parent.kill()
    assert drawn == [f"{worker}\n"] * 50


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "run.py"), str(REPOSITORY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        # Where nobody reaps orphans, the dead one stays as a zombie.
        if Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on without its parent")


def damage(root):
    for frame in range(1, 12):
        (root / "sequence0" / f"{frame:08d}.png").write_bytes(b"no image")
    return root


def test_bad_samples_are_replaced_counted_and_named(tmp_path, caplog):
    samples = tracking_samples(damage(write_sequences(tmp_path)), max_bad_share=1.0)
    stream = batches(samples, 8, num_threads=0)
    with caplog.at_level(logging.WARNING):
        drawn = take(stream, 4)
    assert all("made" in samples.describe(index) for index in range(32))
    assert (stream.drawn, stream.replaced > 5) == (32, True)
    assert set(drawn[0]) == {"templates", "search", "box_cxcywh"}
    assert "replaced a sample: " in caplog.text and "sequence0/00000001.png" in caplog.text
    again = take(batches(samples, 8, workers=1), 4)
    for a, b in zip(drawn, again, strict=True):
        assert_equal(a, b)


def test_training_stops_when_too_much_is_bad(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "MIN_JUDGED", 20)
    samples = tracking_samples(damage(write_sequences(tmp_path)), max_bad_share=0.1)
    with pytest.raises(BadDataError, match=r"samples had to be replaced, more than data\.max_bad_share = 0\.1"):
        take(batches(samples, 8, num_threads=0), 8)
    for path in (tmp_path / "sequence0").glob("*.png"):
        path.unlink()
    for path in (tmp_path / "sequence1").glob("*.png"):
        path.unlink()
    with pytest.raises(DatasetError, match="sample 0 of seed 5: 50 of 50 draws met files that cannot be read"):
        samples.sample(0)


def test_configs_that_cannot_work(root):
    plain = AugmentConfig.official()
    with pytest.raises(ValueError, match="nothing to train on"):
        DataConfig()
    with pytest.raises(ValueError, match="occluder_probability needs the pool"):
        DataConfig(datasets={"made": DatasetConfig(str(root))})
    with pytest.raises(ValueError, match=r"positive_share is 1\.0"):
        DataConfig(root="somewhere", positive_share=1.0, augment=plain)
    with pytest.raises(ValueError, match=r"ratio is 0\.0"):
        DatasetConfig(str(root), ratio=0.0)
    config = DataConfig(datasets={"made": DatasetConfig(str(root), reader="folder")}, augment=plain)
    with pytest.raises(ValueError, match="names the data sets made, which are not opened"):
        TrackingSamples(Material(), config, seed=0)


def test_what_is_held_out(root):
    mine = {"made": DatasetConfig(str(root), reader="folder")}
    config = DataConfig(datasets={"lasot": DatasetConfig("x")}, augment=AugmentConfig.official(), crops=CROPS)
    assert held_out(config) is None
    validation = held_out(DataConfig(**{**vars(config), "validation": mine}))
    assert validation is not None and validation.datasets == mine and validation.validation == {}
    assert set(vars(validation.augment).values()) == {0.0}
    batch = next(batches(TrackingSamples(Material.load(validation), validation, 0), 2, num_threads=0))
    assert batch["search"].shape == (2, 32, 32, 3)
    pool = held_out(DataConfig(root="pool", exclude=("a",)))
    assert pool is not None and pool.include == ("a",) and pool.mix.video == 1.0


def test_a_pool_and_data_sets_mix(root, tmp_path):
    for number in range(2):
        (tmp_path / "videos" / f"v{number}").mkdir(parents=True)
    write_sequences(tmp_path / "videos", 2)
    for number in range(2):
        (tmp_path / "videos" / f"v{number}").rmdir()
    mix = Mix(video=1.0, still=0.0, pasted=0.0, region=0.0)
    datasets = {"made": DatasetConfig(str(root), ratio=3.0, reader="folder")}
    config = DataConfig(root=str(tmp_path), datasets=datasets, mix=mix, crops=CROPS)
    samples = TrackingSamples(Material.load(config), config, seed=0)
    sources = [samples.render(index).source for index in range(200)]
    assert set(sources) == {"video", "made"} and abs(sources.count("made") - 150) < 30
