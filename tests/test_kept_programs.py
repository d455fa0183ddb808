"""Programs that are loaded in place of being traced."""

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from mixformer_jax import kept_programs

# Says what was traced, and what came out.
PROGRAM = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from mixformer_jax.kept_programs import KeptJit, kept
from mixformer_jax.models.config import TrackerConfig

traced = []

def scaled(settings, tree, y):
    traced.append("scaled")
    return {"sum": tree["x"] * settings.search_factor + y, "none": None}

def taken(x):
    traced.append("taken")
    return x + 1

def listed():
    def taken(x):
        traced.append("taken")
        return [x + 1]
    return KeptJit(taken, identity="listed", donate_argnums=0)

def doubled(tree):
    traced.append("doubled")
    return tree["x"] * 2

def singular(x):
    traced.append("singular")
    return jnp.linalg.svd(x, compute_uv=False)

def foreign(settings, x):
    traced.append("foreign")
    return x * settings

def made():
    traced.append("made")
    return {"shape": (3, 4)}

scaled, foreign = KeptJit(scaled, static=1), KeptJit(foreign, static=1)
again = KeptJit(taken, identity="another trace, the same program", donate_argnums=0)
taken, singular, doubled = KeptJit(taken, donate_argnums=0), KeptJit(singular), KeptJit(doubled)
unknown = KeptJit(lambda x: traced.append("unknown") or x * 2, identity=None)
near, far = TrackerConfig(search_factor=3.0), TrackerConfig(search_factor=4.0)
x, y = jnp.arange(3.0), np.ones(3, np.float32)
given = jnp.zeros(4)
results = [
    *(scaled(near, {"x": x}, y)["sum"], scaled(far, {"x": x}, y)["sum"], scaled(near, {"x": x}, y)["sum"]),
    *(scaled(near, {"x": x[:2]}, y[:2])["sum"], scaled(near, {"x": x}, 1.0)["sum"], scaled(near, {"x": x}, 1)["sum"]),
    *(taken(given), again(jnp.ones(4)), *listed()(jnp.ones(4)), singular(jnp.diag(x)), foreign(2, x), unknown(x)),
    *(doubled({"x": x, "unused": None}), doubled({"x": x, "unused": y}), kept("made", "1", made)["shape"]),
]
alone = list(traced)
mapped = jax.vmap(lambda x: scaled(near, {"x": x}, x)["sum"])(jnp.arange(4.0))
print(json.dumps({
    "traced": alone,
    "results": [np.asarray(each).tolist() for each in [*results, mapped]],
    "given_up": given.is_deleted(),
}))
"""
ALWAYS = ["singular", "singular", "foreign", "unknown"]


def _run(folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, kept_programs.FOLDER_VARIABLE: str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def test_a_second_process_traces_nothing_and_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / kept_programs.ACCEPTED).touch()
    first = _run(tmp_path)
    # By types and settings: twice two sizes, and numbers of Python that are no arrays.
    assert first["traced"].count("scaled") == 5 and {"taken", "made", *ALWAYS} <= set(first["traced"])
    assert first["results"][:3] == [[1, 4, 7], [1, 5, 9], [1, 4, 7]] and first["given_up"]
    second = _run(tmp_path)
    assert second["traced"] == ALWAYS, "calls of LAPACK, settings of others' classes, closures that nobody describes"
    assert second["results"] == first["results"] and second["given_up"]

    # One program that two traces name, and one of another tree. Half a file, and one of something else, are made anew.
    named = Counter(path.read_bytes()[32:] for path in tmp_path.glob("taken-*.program") if path.stat().st_size < 200)
    assert sorted(named.values()) == [1, 2]
    program = tmp_path / named.most_common()[0][0].decode()
    whole = program.read_bytes()
    for content in (whole[:-1], hashlib.sha256(b"else").digest() + b"else"):
        program.write_bytes(content)
        third = _run(tmp_path)
        assert third["traced"] == ["taken", "taken", *ALWAYS] and third["results"] == first["results"]
    assert _run(tmp_path)["traced"] == ALWAYS

    # A folder may be one where XLA has not shown yet that it loads what it saves.
    (tmp_path / kept_programs.ACCEPTED).unlink()
    assert _run(tmp_path)["traced"] == first["traced"]


def test_a_change_of_source_flags_or_cores_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    block = tmp_path / "models" / "block.py"
    monkeypatch.setattr(kept_programs, "__file__", str(tmp_path / "kept_programs.py"))
    keys = []
    for source in ("x = 1", "x = 2", "x = 1"):
        block.write_text(source)
        kept_programs._surroundings.cache_clear()
        keys.append(kept_programs._key(kept_programs._surroundings()))
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    keys.append(kept_programs._key(kept_programs._surroundings()))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    keys.append(kept_programs._key(kept_programs._surroundings()))
    assert keys[0] == keys[2] and len(set(keys)) == 4
    kept_programs._surroundings.cache_clear()


def test_the_folder_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / kept_programs.ACCEPTED).touch()
    monkeypatch.setattr(kept_programs, "MAX_BYTES", 250)
    for time, name in enumerate("abc"):
        kept_programs._write(tmp_path / f"{name}.program", b"12345678" * 8)  # 96 bytes with the digest
        os.utime(tmp_path / f"{name}.program", (time, time))
        assert kept_programs._read(tmp_path / "a.program") is not None, "the one that is used"
    assert sorted(path.stem for path in tmp_path.glob("*.program")) == ["a", "c"]


def test_programs_of_another_version_go_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / kept_programs.ACCEPTED).touch()
    module, path = ModuleType("mixformer_jax.gone"), tmp_path / "a.program"
    module.State = type("State", (), {"__module__": module.__name__})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = pickle.dumps(module.State)
    monkeypatch.delitem(sys.modules, module.__name__)
    for written, told in ((content, 0), (b"something else", 1)):
        kept_programs._write(path, written)
        assert kept_programs._loaded(path) is None and not path.exists()
        assert sum(record.levelno >= logging.WARNING for record in caplog.records) == told
