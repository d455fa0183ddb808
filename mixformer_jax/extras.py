"""Parts of the installation that may be left out: which extra brings a package, and how to install it from here."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

DISTRIBUTION = "mixformer-jax"
# What an extra brings, by the names under which packages are imported.
_PACKAGES = {
    "train": ("array_record", "cloudpickle", "fsspec", "grain", "optax", "orbax", "tensorflow_datasets"),
    "video": ("av",),
    "got10k": ("got10k",),
    "eval": ("jinja2", "matplotlib"),
    "plan": ("libtpu",),
    "export": ("onnx", "onnxruntime"),
    "demo": ("skimage",),
    "serve": ("starlette", "uvicorn", "websockets"),
    "torch": ("torch",),
    "vot": ("trax",),
}
EXTRAS: Mapping[str, str] = MappingProxyType({name: extra for extra, names in _PACKAGES.items() for name in names})


def install_line(extra: str) -> str:
    """The command that adds an extra to this installation: from the checkout, or from where pip got it."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return f"pip install -e '{'.' if root == Path.cwd() else root}[{extra}]'"
    return f"pip install '{DISTRIBUTION}[{extra}]{_origin()}'"


def is_not_installed(package: str) -> str:
    """What to tell who lacks a package of `EXTRAS`."""
    return f"{package} is not installed: {install_line(EXTRAS[package])}"


def _origin() -> str:
    """` @ ` and the folder, archive or repository that this was installed from (PEP 610); nothing for an index."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        text = None
    if text is None:
        return ""
    origin = json.loads(text)
    url, repository = origin["url"], origin.get("vcs_info")
    return f" @ {url}" if repository is None else f" @ {repository['vcs']}+{url}@{repository['commit_id']}"
