"""The table of readers: opens a data set by name; and which reader a folder of annotated videos needs."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from mixformer_jax.datasets import large_scale, small_scale
from mixformer_jax.datasets.cvat import cvat_files, read_cvat
from mixformer_jax.datasets.frame_parts import is_remote, read_packed
from mixformer_jax.datasets.groundtruth import DatasetError, read_names
from mixformer_jax.datasets.json_exports import (
    is_coco,
    is_label_studio,
    json_files,
    read_coco_video,
    read_label_studio,
)
from mixformer_jax.datasets.layout import GROUNDTRUTH, check_listed, read_folder
from mixformer_jax.datasets.mot import mot_folders, read_mot
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.datasets.stills import COCO_SPLITS, read_coco, read_tfds
from mixformer_jax.datasets.vot import LONG_TERM, read_vot

__all__ = ["READERS", "TRAINING_READERS", "Dataset", "DatasetError", "TrackingSequence", "open_dataset"]


class Reader(NamedTuple):
    """How a data set is opened; its files are checked when a sequence is read."""

    read: Callable[[Path, str | None], Dataset]  # of root and split; raises DatasetError
    title: str
    expected: str  # files below the root
    splits: tuple[str, ...] | None = ()  # published parts; None: the data set's own files tell


# Videos, over which a tracker can run.
READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "coco_video": Reader(read_coco_video, "COCO with tracks", "annotations/NAME.json"),
        "cvat": Reader(read_cvat, "CVAT", "annotations.xml"),
        "depthtrack": Reader(large_scale.read_depthtrack, "DepthTrack", "NAME/color, NAME/depth, ..."),
        "dtb70": Reader(small_scale.read_dtb70, "DTB70", "Animal1/groundtruth_rect.txt, ..."),
        "folder": Reader(read_folder, "plain", "SEQUENCE/groundtruth.txt, ..."),
        "got10k": Reader(large_scale.read_got10k, "GOT-10k", "list.txt", ("vottrain", "votval")),
        "label_studio": Reader(read_label_studio, "Label Studio", "NAME.json"),
        **{
            name: Reader(partial(large_scale.read_thermal, name), title, "NAME/visible, NAME/infrared, ...")
            for name, title in {"lasher": "LasHeR", "rgbt234": "RGBT234"}.items()
        },
        "lasot": Reader(large_scale.read_lasot, "LaSOT", "airplane/airplane-1/groundtruth.txt, ...", ("train", "test")),
        "lasot_ext": Reader(large_scale.read_lasot_ext, "LaSOT-ext", "atv/atv-1/groundtruth.txt, ..."),
        "mot": Reader(read_mot, "MOT", "gt/gt.txt, or NAME/gt/gt.txt, ..."),
        "nfs": Reader(small_scale.read_nfs, "NfS", "NAME/30/NAME.txt, ... or sequences/NAME and anno"),
        "otb100": Reader(small_scale.read_otb100, "OTB", "Basketball/groundtruth_rect.txt, ..."),
        "tnl2k": Reader(
            *(large_scale.read_tnl2k, "TNL2K", "TNL2K_test_subset/NAME/groundtruth.txt, ..."),
            splits=tuple(large_scale.TNL2K_SIZES),
        ),
        "trackingnet": Reader(
            *(large_scale.read_trackingnet, "TrackingNet", "TRAIN_0/anno/NAME.txt, ... or TEST/anno/NAME.txt"),
            splits=large_scale.TRACKINGNET_SPLITS,
        ),
        **{
            name: Reader(partial(small_scale.read_uav, name), title, f"anno/{title.replace('@', '_')}/bike1.txt, ...")
            for name, title in {"uav123": "UAV123", "uav123_10fps": "UAV123@10fps", "uav20l": "UAV20L"}.items()
        },
        **{
            name: Reader(partial(read_vot, name=name), title, "sequences/list.txt and a folder for each name")
            for name, title in {"vot": "VOT", "vot_rgbd": "VOT-RGBD", **dict.fromkeys(LONG_TERM, "VOT-LT")}.items()
        },
    }
)

# And what can only be trained on: stills, and crops of videos.
TRAINING_READERS: Mapping[str, Reader] = MappingProxyType(
    {
        **READERS,
        "coco": Reader(read_coco, "COCO", "annotations/instances_train2017.json", COCO_SPLITS),
        "packed": Reader(read_packed, "packed", "packing.json"),
        "tfds": Reader(read_tfds, "TFDS", "dataset_info.json", None),
    }
)


def open_dataset(name: str, root: str | Path, split: str | None = None, list_file: str | Path | None = None) -> Dataset:
    """The data set `name` under `root`, in its own order; sequences and frames are read on demand.

    Args:
        name: of a reader, see TRAINING_READERS.
        split: a published part, see `Reader.splits`. None: the reader's default.
        root: a folder; of `packed` an address such as gs://bucket/folder, too.
        list_file: a text file of the sequences to take, one a line: names, or positions counted from 0.

    Raises DatasetError for an unknown name (the known ones are listed), no such folder, or what the reader refuses.
    """
    reader = TRAINING_READERS.get(name)
    if reader is None:
        raise DatasetError(f"unknown data set {name!r}; known are: {', '.join(sorted(TRAINING_READERS))}")
    if not is_remote(root):
        _require_folder(Path(root), f"; expected the root of a {name} data set")
        if split is not None and reader.splits is not None and split not in reader.splits:
            if not reader.splits:
                raise DatasetError(f"{name} has no splits, but split {split!r} is asked for")
            raise DatasetError(f"{name} has no split {split!r}; known are: {', '.join(reader.splits)}")
        dataset = reader.read(Path(root), split)
    elif name == "packed":
        dataset = read_packed(root)
    else:
        raise DatasetError(
            f"{root}: {name} is read from folders of this machine; pack it (mixformer data pack), copy that "
            "there, and read it with reader 'packed'"
        )
    if not dataset.keys:
        raise DatasetError(f"{root}: no {reader.title} sequences; expected {reader.expected}")
    return dataset if list_file is None else _choose(dataset, Path(list_file))


def _require_folder(root: Path, expected: str) -> None:
    if not root.is_dir():
        what = "is a file; unpack it and give the folder" if root.is_file() else "no such folder"
        raise DatasetError(f"{root}: {what}{expected}")


def _choose(dataset: Dataset, list_file: Path) -> Dataset:
    """The sequences of a list, in its order; numbers are positions, unless all of them are names."""
    lines = read_names(list_file)
    by_name = {key.rpartition("/")[2]: key for key in dataset.keys} | {key: key for key in dataset.keys}
    if all(line.isdecimal() for line in lines) and not all(line in by_name for line in lines):
        positions = [int(line) for line in lines]
        if (last := max(positions)) >= len(dataset):
            raise DatasetError(f"{list_file}: position {last}, but {dataset.root} has {len(dataset)} sequences")
        return dataset.subset([dataset.keys[position] for position in positions])
    check_listed(lines, by_name, f"{list_file}: {{}} listed sequences are not in {dataset.root}")
    return dataset.subset([by_name[line] for line in lines])


KINDS = ("folder", "cvat", "mot", "coco_video", "label_studio")
EXPECTED = (
    f"SEQUENCE/{GROUNDTRUTH} beside images or video.mp4; annotations.xml (CVAT for video 1.1); gt/gt.txt (MOT 1.1); a "
    "JSON file of COCO with track ids; or one of Label Studio"
)


def annotation_kind(root: str | Path) -> str:
    """The reader of one's own annotated videos: one of KINDS.

    Raises DatasetError: no such folder, none of the kinds, or several.
    """
    root = Path(root)
    _require_folder(root, f", with the videos in it; expected {EXPECTED}")
    found: dict[str, Path] = {}
    for kind, paths in (
        ("folder", [*root.glob(GROUNDTRUTH), *sorted(root.glob(f"*/{GROUNDTRUTH}"))]),
        ("cvat", cvat_files(root)),
        ("mot", mot_folders(root)),
        *((kind, [path]) for path in json_files(root) if (kind := _kind_of_json(path)) is not None),
    ):
        if paths:
            found.setdefault(kind, paths[0])
    if not found:
        archive = next(iter(sorted(root.glob("*.zip"))), None)
        hint = f" (unpack {archive.name})" if archive else ""
        raise DatasetError(f"{root}: no annotations found{hint}; expected {EXPECTED}")
    if len(found) > 1:
        listed = ", ".join(f"{kind} ({path})" for kind, path in found.items())
        raise DatasetError(f"{root}: annotations of several kinds: {listed}; say which: --dataset {' or '.join(found)}")
    return next(iter(found))


def _kind_of_json(path: Path) -> str | None:
    """None for JSON of another kind; what is no JSON at all is taken to be meant."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: no JSON ({error}); export anew, or move it away") from error
    return "coco_video" if is_coco(content) else "label_studio" if is_label_studio(content) else None
