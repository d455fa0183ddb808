"""How to install what is missing: a line that works from where the user stands."""

import importlib.metadata
import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from mixformer_jax import extras

ROOT = Path(__file__).resolve().parents[1]


def test_every_extra_is_one_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == extras.DISTRIBUTION
    assert set(extras.EXTRAS.values()) <= set(project["optional-dependencies"])


def test_from_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert extras.install_line("torch") == "pip install -e '.[torch]'"
    monkeypatch.chdir(tmp_path)
    assert extras.install_line("torch") == f"pip install -e '{ROOT}[torch]'"
    assert extras.is_not_installed("optax") == f"optax is not installed: pip install -e '{ROOT}[train]'"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "pip install 'mixformer-jax[torch]'"),
        ({"url": "file:///x/mixformer", "dir_info": {}}, "pip install 'mixformer-jax[torch] @ file:///x/mixformer'"),
        ({"url": "file:///x/m.whl", "archive_info": {}}, "pip install 'mixformer-jax[torch] @ file:///x/m.whl'"),
        (
            {"url": "https://x.org/m.git", "vcs_info": {"vcs": "git", "commit_id": "a1b2"}},
            "pip install 'mixformer-jax[torch] @ git+https://x.org/m.git@a1b2'",
        ),
    ],
)
def test_from_where_pip_got_it(tmp_path, monkeypatch, origin, expected):
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "mixformer_jax" / "extras.py"))
    text = None if origin is None else json.dumps(origin)
    found = SimpleNamespace(read_text={"direct_url.json": text}.get)
    monkeypatch.setattr(importlib.metadata, "distribution", {"mixformer-jax": found}.__getitem__)
    assert extras.install_line("torch") == expected


def test_without_any_record_of_an_installation(tmp_path, monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "mixformer_jax" / "extras.py"))
    monkeypatch.setattr(importlib.metadata, "distribution", unknown)
    assert extras.install_line("torch") == "pip install 'mixformer-jax[torch]'"
