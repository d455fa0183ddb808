"""Annotated sequences by data set: the registry of readers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from mixformer_jax.datasets.groundtruth import DatasetError, read_names
from mixformer_jax.datasets.large_scale import read_got10k, read_lasot, read_lasot_ext, read_tnl2k, read_trackingnet
from mixformer_jax.datasets.layout import check_listed, read_folder
from mixformer_jax.datasets.packed import read_packed
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.datasets.small_scale import (
    read_dtb70,
    read_nfs,
    read_otb100,
    read_uav20l,
    read_uav123,
    read_uav123_10fps,
)
from mixformer_jax.datasets.stills import read_coco, read_tfds
from mixformer_jax.datasets.vot import read_vot

__all__ = ["READERS", "TRAINING_READERS", "Dataset", "DatasetError", "TrackingSequence", "open_dataset"]

# Of a root and a split. Refuses, with DatasetError, a root without sequences and a split that is not known or not all
# there; and when a sequence is read, files that are missing, are not what they should be, or whose lengths disagree.
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
    return dataset if list_file is None else _choose(dataset, Path(list_file))


def _choose(dataset: Dataset, list_file: Path) -> Dataset:
    """The sequences that a text file lists, in its order; numbers are positions, unless all of them are names."""
    lines = read_names(list_file)
    by_name = {key.rpartition("/")[2]: key for key in dataset.keys} | {key: key for key in dataset.keys}
    if all(line.isdecimal() for line in lines) and not all(line in by_name for line in lines):
        positions = [int(line) for line in lines]
        if max(positions) >= len(dataset):
            raise DatasetError(
                f"{list_file}: position {max(positions)}, but {dataset.root} has {len(dataset)} sequences"
            )
        return dataset.subset([dataset.keys[position] for position in positions])
    check_listed(lines, by_name, f"{list_file}: {{}} listed sequences are not in {dataset.root}")
    return dataset.subset([by_name[line] for line in lines])
