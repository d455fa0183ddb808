"""What every test needs: eight CPU devices, quick compilation, checked shapes, golden numbers, real videos."""

import ast
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.compilation import FLAGS

# Before anything imports jax: tests run on the CPU unless the caller chose a platform.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Threads of numpy, PyTorch and OpenCV wait for work at full speed, and the cores are taken by the workers of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

# `make test XLA_FLAGS=` compiles as users do.
os.environ.setdefault("XLA_FLAGS", FLAGS)

import hypothesis
import jax
import numpy as np
import pytest

from tests.shape_checks import check_parameters_once, check_shapes

_NUM_DEVICES_FLAG = "--xla_force_host_platform_device_count"
if "JAX_NUM_CPU_DEVICES" not in os.environ and _NUM_DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)

# One folder of compiled programs for this run of the tests: for its workers, which inherit the environment, and for
# what tests start. A later run, perhaps on another CPU, never reads it.
_COMPILED = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.mkdtemp(prefix="mixformer_jax_compiled_")
    for _name, _value in {
        "jax_compilation_cache_dir": _COMPILED,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }.items():
        os.environ[_name.upper()] = str(_value)
        jax.config.update(_name, _value)
    # Programs of one device are kept whole (mixformer_jax/kept_programs.py); here are eight.
    os.environ["MIXFORMER_PROGRAMS"] = _COMPILED
    (Path(_COMPILED) / "accepted").touch()

# Before anything imports mixformer_jax: every annotated shape and dtype is checked at run time.
check_shapes("mixformer_jax")
check_parameters_once()

# Tracing makes many objects that stay: looking through all of them for cycles as often as usual costs 7% of it.
gc.set_threshold(100_000, 20, 100)

# What a script starts in the background ignores Ctrl-C, and so would the programs that tests press it for.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("local", deadline=None, max_examples=30)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

_REPOSITORY = Path(__file__).resolve().parents[1]
_GOLDEN = _REPOSITORY / "tests" / "data" / "golden"
_PYAV = Path(sys.prefix) / "pyav"
# Tests go without PyAV, wherever it is installed, unless they ask for it (`pyav`).
_NO_MODULE: Any = None
sys.modules["av"] = _NO_MODULE

# The files that take long, the longest first. Their tests are marked `slow`.
_SLOW_FILES = (
    "evaluation/test_vot_toolkit.py",
    "training/test_survival.py",
    "datasets/test_rendering.py",
    "training/test_tables.py",
    "training/test_sharding.py",
    "tracking/test_tracker.py",
    "models/test_parity.py",
    "training/test_masks.py",
    "export/test_export.py",
    "training/test_device_rendering.py",
    "test_doctor.py",
    "tracking/test_parity.py",
    "planning/test_plan.py",
    "tracking/test_coming_and_going.py",
    "planning/test_profile.py",
    "tracking/test_redetection.py",
    "training/test_pretraining.py",
    "models/test_alpha_refine.py",
    "models/test_variants.py",
    "training/test_loop.py",
    "test_wheel.py",
    "models/test_autoencoder.py",
    "convert/test_names.py",
    "evaluation/test_bench_train.py",
    "tracking/test_compute_type.py",
    "training/test_finetuning.py",
    "models/test_config.py",
    "training/test_second_stream.py",
    "tracking/test_targets.py",
    "test_endings.py",
    "training/test_start.py",
    "datasets/test_batches.py",
    "tracking/test_attention_maps.py",
    "models/test_training_mode.py",
    "training/test_mined_scores.py",
    "serving/test_page.py",
    "evaluation/test_vot_longterm.py",
    "evaluation/test_workers.py",
    "tracking/test_mot.py",
    "models/test_modules.py",
    "datasets/test_scenes.py",
    "models/test_fused_attention.py",
    "evaluation/test_speed.py",
    "tracking/test_masks.py",
    "evaluation/test_without_frames.py",
    "programs/test_study.py",
    "datasets/test_pipeline.py",
    "training/test_losses.py",
    "convert/test_autoencoders.py",
    "evaluation/test_vot.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what is slow, and starts it first: no worker is left with a long file when the others are done."""
    ranks = {_REPOSITORY / "tests" / name: rank for rank, name in enumerate(_SLOW_FILES)}
    gone = [str(path) for path in ranks if not path.is_file()]
    if gone:
        raise pytest.UsageError(f"tests/conftest.py lists files as slow that are gone: {', '.join(gone)}")
    for item in items:
        if item.path in ranks:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))
    # What has been imported stays: whoever looks for cycles need not look there.
    gc.freeze()


def pytest_unconfigure() -> None:
    """The process that made the folder of compiled programs removes it."""
    if _COMPILED is not None:
        shutil.rmtree(_COMPILED, ignore_errors=True)


@pytest.fixture(scope="session")
def golden() -> Iterator[Callable[[str], np.lib.npyio.NpzFile]]:
    """`golden("heads/corner__bn.npz")`: arrays measured on the official implementation, by name."""
    opened: dict[str, np.lib.npyio.NpzFile] = {}

    def load(name: str) -> np.lib.npyio.NpzFile:
        if name not in opened:
            opened[name] = np.load(_GOLDEN / name, allow_pickle=False)
        return opened[name]

    yield load
    for arrays in opened.values():
        arrays.close()


@pytest.fixture(scope="session")
def alpha_refine_layouts() -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes of the official mask network, `real` and `tiny`, in the order of its state dict."""
    layouts: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for line in (_GOLDEN / "alpha_refine" / "layout.txt").read_text().splitlines():
        if line.startswith("["):
            entries = layouts.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            name, shape, _dtype, _kind = line.split("\t")
            entries.append((name, ast.literal_eval(shape)))
    return layouts


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real videos, which are not ours to commit: beside the repository, or the test skips."""
    folder = _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"the real videos are not at {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}, and under CI=true a test may not go without them")
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def av_module():
    """PyAV, which the tests see only where they ask for it."""
    del sys.modules["av"]
    sys.path.insert(0, str(_PYAV))
    try:
        import av
    except ModuleNotFoundError:
        message = f"no PyAV, and no {_PYAV}: make test lays it there"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    finally:
        sys.path.remove(str(_PYAV))
        sys.modules["av"] = _NO_MODULE
    return av


@pytest.fixture
def pyav(av_module, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", av_module)
    return av_module


@pytest.fixture
def without_pyav(pyav, monkeypatch):
    """Takes PyAV away once the clip is written."""
    return lambda: monkeypatch.setitem(sys.modules, "av", None)


@pytest.fixture(params=["PyAV", "OpenCV"])
def each_library(request, without_pyav):
    """Runs a test with either library of videos; its name."""
    if request.param == "OpenCV":
        without_pyav()
    return request.param
