"""Annotated sequences by data set: the TrackingSequence record and the registry of readers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from mixformer_jax.datasets.coco import read_coco
from mixformer_jax.datasets.dtb70 import read_dtb70
from mixformer_jax.datasets.folder import read_folder
from mixformer_jax.datasets.got10k import read_got10k
from mixformer_jax.datasets.groundtruth import DatasetError, read_groundtruth, read_labels
from mixformer_jax.datasets.lasot import read_lasot, read_lasot_ext
from mixformer_jax.datasets.layout import choose
from mixformer_jax.datasets.nfs import read_nfs
from mixformer_jax.datasets.otb import read_otb100
from mixformer_jax.datasets.packed import read_packed
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.datasets.tfds import read_tfds
from mixformer_jax.datasets.tnl2k import read_tnl2k
from mixformer_jax.datasets.trackingnet import read_trackingnet
from mixformer_jax.datasets.uav123 import read_uav20l, read_uav123, read_uav123_10fps
from mixformer_jax.datasets.vot import read_vot

__all__ = [
    "READERS",
    "TRAINING_READERS",
    "Dataset",
    "DatasetError",
    "TrackingSequence",
    "open_dataset",
    "read_groundtruth",
    "read_labels",
]

Reader = Callable[[Path, str | None], Dataset]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "dtb70": read_dtb70,
        "folder": read_folder,
        "got10k": read_got10k,
        "lasot": read_lasot,
        "lasot_ext": read_lasot_ext,
        "nfs": read_nfs,
        "otb100": read_otb100,
        "tnl2k": read_tnl2k,
        "trackingnet": read_trackingnet,
        "uav123": read_uav123,
        "uav123_10fps": read_uav123_10fps,
        "uav20l": read_uav20l,
        "vot": read_vot,
    }
)
"""Videos: a tracker can run over them."""

TRAINING_READERS: Mapping[str, Reader] = MappingProxyType(
    {**READERS, "coco": read_coco, "packed": read_packed, "tfds": read_tfds}
)
"""And what one can train on only: stills, and crops cut from videos."""


def open_dataset(name: str, root: str | Path, split: str | None = None, list_file: str | Path | None = None) -> Dataset:
    """Sequences of the data set `name` under `root`, in its own order. Sequences and frames are read on demand.

    Args:
        name: of a reader, see TRAINING_READERS.
        root: its folder.
        split: a published part of the data set; each reader says which ones there are. None: its default.
        list_file: a text file of the sequences to take, one a line: names, or positions counted from 0.

    Raises:
        DatasetError: unknown name (the known ones are listed), no such folder, or what the reader objects to.
    """
    reader = TRAINING_READERS.get(name)
    if reader is None:
        raise DatasetError(f"unknown data set {name!r}; known are: {', '.join(sorted(TRAINING_READERS))}")
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected the root of a {name} data set")
    dataset = reader(root, split)
    return dataset if list_file is None else choose(dataset, Path(list_file))
