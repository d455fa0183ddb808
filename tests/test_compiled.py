"""Compiled programs in the user's cache folder."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from mixformer_jax.cli import compiled
from mixformer_jax.kept_programs import FOLDER_VARIABLE

# Compiles one program as a command does, and tells how many programs came out of the cache.
PROGRAM = """
from mixformer_jax.cli.compiled import keep_compiled_programs
keep_compiled_programs()
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
jax.jit(lambda x: x * 2 + 1)(3.0)
print(len(hits))
"""


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process without JAX whose user has an empty cache; the folder of the cache."""
    monkeypatch.delitem(sys.modules, "jax")
    for name in ("DIR", "MAX_SIZE"):
        monkeypatch.setenv(f"JAX_COMPILATION_CACHE_{name}", "")  # so that what the call sets is undone
        monkeypatch.delenv(f"JAX_COMPILATION_CACHE_{name}")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "")
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled.atexit, "register", lambda *_: None)
    return tmp_path / "mixformer_jax" / "compiled"


def _run(cache: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_second_process_finds_the_programs_of_the_first(tmp_path: Path) -> None:
    assert _run(tmp_path) == "0"
    (folder,) = (tmp_path / "mixformer_jax" / "compiled").iterdir()
    assert (folder / "accepted").exists(), "the first process tries whether programs can be loaded"
    assert int(_run(tmp_path)) >= 1


def test_the_folder_is_bounded_and_named_after_the_machine(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiled.keep_compiled_programs()
    assert folder is not None and folder.parent == fresh
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == os.environ[FOLDER_VARIABLE] == str(folder)
    assert int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]) == compiled.MAX_BYTES
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(compiled, "_cpu", lambda: "another processor")
    other = compiled.keep_compiled_programs()
    assert other is not None and other.parent == fresh and other != folder


@pytest.mark.parametrize(
    ("variable", "value"), [("JAX_ENABLE_COMPILATION_CACHE", "false"), ("JAX_COMPILATION_CACHE_DIR", "/elsewhere")]
)
def test_variables_of_jax_go_first(fresh: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    assert compiled.keep_compiled_programs() is None
    assert not fresh.exists()


def test_no_cache_where_programs_are_rejected(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = compiled.keep_compiled_programs()
    assert folder is not None
    monkeypatch.setitem(sys.modules, "jax", jax)
    said = b"E0000 cpu_aot_loader.cc:195] ... compilation doesn't match the machine type for execution."
    monkeypatch.setattr(compiled, "_compile_twice", lambda _: os.write(2, said))
    compiled._try_loading(folder)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delitem(sys.modules, "jax")
    assert compiled.keep_compiled_programs() is None


def test_no_cache_where_the_folder_cannot_be_made(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.parent.write_text("a file where a folder should be")
    assert compiled.keep_compiled_programs() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_no_cache_where_nothing_can_be_written(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder of another time that is read-only now; as root, who may write everywhere, a full disk."""
    folder = compiled.keep_compiled_programs()
    assert folder is not None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")

    def touch(path: Path, *_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "touch", touch)
    assert compiled.keep_compiled_programs() is None
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
    monkeypatch.setattr(compiled, "_compile_twice", lambda _: None)
    monkeypatch.setitem(sys.modules, "jax", jax)
    compiled._try_loading(folder)
    assert not (folder / "accepted").exists()


def test_an_entry_that_was_never_finished_is_deleted(fresh: Path) -> None:
    folder = compiled.keep_compiled_programs()
    assert folder is not None
    del os.environ["JAX_COMPILATION_CACHE_DIR"]
    for name in ("whole", "killed", "being-written"):
        (folder / f"{name}-cache").write_bytes(b"program")
    (folder / "whole-atime").write_bytes(b"")
    for name in ("whole", "killed"):
        os.utime(folder / f"{name}-cache", (1, 1))
    for name, seconds in ((".killed.program.7.part", 1), (".written.program.8.part", time.time())):
        (folder / name).write_bytes(b"program")
        os.utime(folder / name, (seconds, seconds))
    compiled.keep_compiled_programs()
    assert [path.name for path in folder.glob(".*.part")] == [".written.program.8.part"]
    assert sorted(path.stem for path in folder.glob("*-cache")) == ["being-written-cache", "whole-cache"]
