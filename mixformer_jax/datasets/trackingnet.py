"""TrackingNet (Mueller et al. 2018, https://tracking-net.org): twelve chunks to train on, and the test set.

The layout, as its development kit leaves it:

    TRAIN_0/ ... TRAIN_11/, TEST/
        anno/NAME.txt               x,y,w,h a line; in TEST the first frame only
        frames/NAME/0.jpg ...       frames, numbered from 0 without leading zeros
"""

from pathlib import Path

import numpy as np

from mixformer_jax.datasets.groundtruth import DatasetError, read_groundtruth
from mixformer_jax.datasets.layout import check_split, numbered_frames, row_faults
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.images import list_images
from mixformer_jax.media.video import DEFAULT_FPS

TRAIN_CHUNKS = tuple(f"TRAIN_{number}" for number in range(12))
TEST = "TEST"


def read_trackingnet(root: Path, split: str | None = None) -> Dataset:
    """Sequences by chunk and name. The hidden boxes of the test set are rows of NaN.

    Args:
        root: holds the chunks.
        split: `train` for the chunks TRAIN_0 to TRAIN_11 that are there (the paper's 30,132 sequences with all
            twelve), `test`, or the name of one chunk. None: `train` if there is a chunk of it, else `test`.

    Raises:
        DatasetError: a chunk without anno folder, or no sequences. When a sequence is read: files that are missing or
            whose lengths disagree.
    """
    check_split("trackingnet", split, ("train", "test", *TRAIN_CHUNKS))
    present = [chunk for chunk in TRAIN_CHUNKS if (root / chunk).is_dir()]
    if split in TRAIN_CHUNKS:
        chunks = [split]
    elif split == "test" or (split is None and not present):
        chunks = [TEST]
    else:
        chunks = present
    keys = [f"{chunk}/{name}" for chunk in chunks for name in _names(root / chunk / "anno")]
    if not keys:
        raise DatasetError(
            f"{root}: no TrackingNet sequences; expected TRAIN_0/anno/NAME.txt, ... or TEST/anno/NAME.txt"
        )
    return Dataset("trackingnet", root, keys, _Reader(root))


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; expected the boxes of the chunk, NAME.txt")
    return sorted(path.stem for path in folder.iterdir() if path.suffix == ".txt" and not path.name.startswith("."))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, key: str) -> TrackingSequence:
        chunk, _, name = key.partition("/")
        groundtruth = self.root / chunk / "anno" / f"{name}.txt"
        folder = self.root / chunk / "frames" / name
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        if chunk == TEST and len(boxes_xywh) == 1 and folder.is_dir():
            boxes_xywh = np.concatenate([boxes_xywh, np.full((max(len(list_images(folder)), 1) - 1, 4), np.nan)])
        frames = numbered_frames(folder, "%d.jpg", len(boxes_xywh), groundtruth, first=0)
        faults = row_faults("trackingnet", name, groundtruth, boxes_xywh)
        return TrackingSequence(name, boxes_xywh, frames, DEFAULT_FPS, folder, faults=faults)
