"""GOT-10k (Huang et al. 2019, http://got-10k.aitestunion.com), one subset a root: GOT-10k/train, val or test.

The layout, as published:

    list.txt                        names of the sequences in order; without it: every folder with boxes
    GOT-10k_Val_000001/
        00000001.jpg ...            frames
        groundtruth.txt             x,y,w,h a line; in the test subset the first frame only
        absence.label               1 where the target is absent
        cover.label                 0..8, eighths of the target in view; not read here
        meta_info.ini               anno_fps, resolution, object_class, ...
"""

import configparser
import re
from pathlib import Path

import numpy as np

from mixformer_jax.data.groundtruth import DatasetError, check_length, read_groundtruth, read_labels
from mixformer_jax.data.records import ImageFrames, Sequence

# Annotations, and so the published frames, are at 10 Hz throughout the data set.
DEFAULT_FPS = 10.0


def read_got10k(root: Path) -> list[Sequence]:
    """Sequences of one subset, in the order of list.txt.

    `visible` is absence.label == 0, or None without that file. The boxes that the test subset keeps hidden
    are rows of NaN.

    Raises:
        DatasetError: no sequences, a listed sequence that is not there, or files whose lengths disagree.
    """
    return [_read_sequence(root / name) for name in _list_sequences(root)]


def _list_sequences(root: Path) -> list[str]:
    listing = root / "list.txt"
    if listing.is_file():
        names = listing.read_text(encoding="utf-8").split()
        missing = [name for name in names if not (root / name).is_dir()]
        if missing:
            raise DatasetError(
                f"{listing}: {len(missing)} of {len(names)} listed sequences have no folder, the first is {missing[0]}"
            )
    else:
        names = sorted(path.parent.name for path in root.glob("*/groundtruth.txt"))
    if not names:
        subsets = [str(root / subset) for subset in ("train", "val", "test") if (root / subset).is_dir()]
        mend = f"give one subset as the root: {' or '.join(subsets)}" if subsets else "expected list.txt"
        raise DatasetError(f"{root}: no GOT-10k sequences; {mend}")
    return names


def _read_sequence(folder: Path) -> Sequence:
    names = tuple(sorted(path.name for path in folder.glob("*.jpg")))
    if not names:
        raise DatasetError(f"{folder}: no frames; expected 00000001.jpg, ...")
    groundtruth = folder / "groundtruth.txt"
    boxes_xywh = read_groundtruth(groundtruth)
    absence = folder / "absence.label"
    visible = None
    if absence.is_file():
        visible = read_labels(absence, expected_length=len(names)) == 0
    elif len(boxes_xywh) == 1:
        # The test subset: everything after the first box is kept by the evaluation server.
        boxes_xywh = np.concatenate([boxes_xywh, np.full((len(names) - 1, 4), np.nan)])
    check_length(groundtruth, len(boxes_xywh), len(names))
    fps = _read_fps(folder / "meta_info.ini")
    return Sequence(folder.name, boxes_xywh, ImageFrames(folder, names), fps, folder, visible)


def _read_fps(path: Path) -> float:
    if not path.is_file():
        return DEFAULT_FPS
    meta = configparser.ConfigParser(interpolation=None)
    try:
        meta.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a meta_info.ini: {error}") from error
    rate = meta.get("METAINFO", "anno_fps", fallback=f"{DEFAULT_FPS}Hz")
    match = re.fullmatch(r"([0-9.]+)\s*Hz", rate.strip(), re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise DatasetError(f"{path}: anno_fps is {rate!r}; expected a rate as 10Hz")
    return float(match[1])
