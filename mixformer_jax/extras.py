"""Parts of the installation that may be left out: which extra brings a package, and how to install it from here."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

DISTRIBUTION = "mixformer-jax"
# By the name under which the package is imported.
EXTRAS: Mapping[str, str] = MappingProxyType(
    {
        "array_record": "train",
        "av": "video",
        "cloudpickle": "train",
        "fsspec": "train",
        "got10k": "got10k",
        "grain": "train",
        "jinja2": "eval",
        "libtpu": "plan",
        "matplotlib": "eval",
        "onnx": "export",
        "onnxruntime": "export",
        "optax": "train",
        "orbax": "train",
        "skimage": "demo",
        "starlette": "serve",
        "tensorflow_datasets": "train",
        "torch": "torch",
        "trax": "vot",
        "uvicorn": "serve",
        "websockets": "serve",
    }
)


def install_line(extra: str) -> str:
    """The command that adds an extra to this installation: from the checkout, or from where pip got it."""
    root = Path(__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return f"pip install -e '{'.' if root == Path.cwd() else root}[{extra}]'"
    origin = _origin()
    return f"pip install '{DISTRIBUTION}[{extra}]{'' if origin is None else f' @ {origin}'}'"


def is_not_installed(package: str) -> str:
    """What to tell who lacks a package of `EXTRAS`."""
    return f"{package} is not installed: {install_line(EXTRAS[package])}"


def _origin() -> str | None:
    """The folder, archive or repository that this was installed from (PEP 610); None for a package index."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    if text is None:
        return None
    origin = json.loads(text)
    url, repository = str(origin["url"]), origin.get("vcs_info")
    return url if repository is None else f"{repository['vcs']}+{url}@{repository['commit_id']}"
