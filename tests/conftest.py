"""What every test needs: a CPU that counts as eight devices, checked shapes, golden numbers, real videos."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Before anything imports jax: tests run on the CPU unless the caller chose a platform.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

_NUM_DEVICES_FLAG = "--xla_force_host_platform_device_count"
if "JAX_NUM_CPU_DEVICES" not in os.environ and _NUM_DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", 8)

# Before anything imports mixformer_jax: every annotated shape and dtype is checked at run time.
install_import_hook("mixformer_jax", "beartype.beartype")

# What a script starts in the background ignores Ctrl-C, and so would the programs that tests press it for.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("local", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

_REPOSITORY = Path(__file__).resolve().parents[1]
_GOLDEN = _REPOSITORY / "tests" / "data" / "golden"


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests that run one program twice (a killed and a resumed training, say) compile it once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


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
def shared_data() -> Path:
    """Folder of the real videos, which are not ours to commit: beside the repository, or the test skips."""
    folder = _REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"the real videos are not at {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}, and under CI=true a test may not go without them")
        pytest.skip(message)
    return folder
