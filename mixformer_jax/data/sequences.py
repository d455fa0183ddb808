"""Annotated sequences by data set: the Sequence record and the registry of readers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from mixformer_jax.data.groundtruth import DatasetError, read_groundtruth, read_labels
from mixformer_jax.data.readers.folder import read_folder
from mixformer_jax.data.readers.got10k import read_got10k
from mixformer_jax.data.records import Sequence

__all__ = ["READERS", "DatasetError", "Sequence", "open_dataset", "read_groundtruth", "read_labels"]

READERS: Mapping[str, Callable[[Path], list[Sequence]]] = MappingProxyType(
    {
        "folder": read_folder,
        "got10k": read_got10k,
    }
)


def open_dataset(name: str, root: str | Path) -> list[Sequence]:
    """Sequences of the data set `name` under `root`, in its own order. Frames are read on demand.

    Raises:
        DatasetError: unknown name (the known ones are listed), no such folder, or what the reader objects to.
    """
    reader = READERS.get(name)
    if reader is None:
        raise DatasetError(f"unknown data set {name!r}; known are: {', '.join(sorted(READERS))}")
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected the root of a {name} data set")
    return reader(root)
