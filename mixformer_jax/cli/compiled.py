"""Compiled programs that outlive the process: JAX's persistent compilation cache, and `kept_programs`."""

import atexit
import contextlib
import hashlib
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from mixformer_jax.files import user_cache

MAX_BYTES = 2 * 2**30
_SECONDS_TO_WRITE = 60
# What XLA writes to stderr where it refuses a program that it compiled on the same CPU (jax issue 38445).
_REJECTED = b"doesn't match the machine type"

logger = logging.getLogger(__name__)


def keep_compiled_programs() -> Path | None:
    """Lets JAX keep compiled programs and a GPU's autotuning in the user's cache folder; returns the folder.

    Does nothing where JAX's own variables are set (JAX_COMPILATION_CACHE_DIR, JAX_ENABLE_COMPILATION_CACHE=false), on
    macOS, where loaded CPU programs crash, and where XLA refuses to load what it saved. To be called before JAX is
    imported: worker processes inherit the setting.
    """
    if "jax" in sys.modules or "JAX_COMPILATION_CACHE_DIR" in os.environ or sys.platform == "darwin":
        return None
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "no", "off"):
        return None
    # Programs for another CPU crash, and XLA does not always tell: a home folder may be shared by many machines.
    machine = f"{metadata.version('jaxlib')}-{hashlib.sha256(_cpu().encode()).hexdigest()[:12]}"
    folder = user_cache() / "compiled" / machine
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "rejected").exists():
            return None
        (folder / ".writable").touch()  # a home folder may be read-only, or full
        _drop_unfinished(folder)
    except OSError as error:
        logger.info("compiled programs are not kept: %s", error)
        return None
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=str(folder),
        JAX_COMPILATION_CACHE_MAX_SIZE=str(MAX_BYTES),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1",
        MIXFORMER_PROGRAMS=str(folder),
    )
    if not (folder / "accepted").exists():
        atexit.register(_try_loading, folder)
    return folder


def _cpu() -> str:
    """What decides which instructions XLA uses; without /proc, as much as Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.partition(":")[0].strip() in kept}))


def _drop_unfinished(folder: Path) -> None:
    """Deletes what a process was writing when it was killed (JAX: NAME-cache, then NAME-atime; `kept_programs`:
    .NAME.part): JAX never replaces it, and warns of it at every start."""
    for entry in (*folder.glob("*-cache"), *folder.glob(".*.part")):
        with contextlib.suppress(FileNotFoundError):  # another process may delete it first
            is_old = time.time() - entry.stat().st_mtime > _SECONDS_TO_WRITE
            if is_old and not entry.with_name(entry.name.removesuffix("cache") + "atime").exists():
                entry.unlink()


def _try_loading(folder: Path) -> None:
    """Loads one program back, once a folder, and leaves the outcome there."""
    if "jax" not in sys.modules:
        return
    import jax

    if jax.default_backend() == "cpu":
        with contextlib.suppress(OSError):  # without the outcome the next process tries again
            said = _stderr_of(lambda: _compile_twice(jax))
            (folder / ("rejected" if _REJECTED in said else "accepted")).touch()


def _compile_twice(jax: Any) -> None:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    for _ in range(2):
        jax.clear_caches()
        jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()


def _stderr_of(call: Callable[[], None]) -> bytes:
    """What a call writes to file descriptor 2, C++ included."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read()
