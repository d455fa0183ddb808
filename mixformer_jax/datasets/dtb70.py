"""DTB70, Drone Tracking Benchmark (Li and Yeung 2017, https://github.com/flyers/drone-tracking): 70 sequences.

The layout, as published; there are no attribute files:

    Animal1/
        img/00001.jpg ...           frames
        groundtruth_rect.txt        x,y,w,h a line
"""

from pathlib import Path

from mixformer_jax.datasets.groundtruth import DatasetError, read_groundtruth
from mixformer_jax.datasets.layout import check_split, numbered_frames, row_faults, sub_folders
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.video import DEFAULT_FPS

GROUNDTRUTH = "groundtruth_rect.txt"


def read_dtb70(root: Path, split: str | None = None) -> Dataset:
    """Sequences by name: 70 if all are there.

    Raises:
        DatasetError: no sequences. When a sequence is read: files that are missing or whose lengths disagree.
    """
    check_split("dtb70", split, ())
    # Frames alone count: a forgotten ground truth is an error and not a sequence less.
    names = [name for name in sub_folders(root) if any((root / name / part).exists() for part in (GROUNDTRUTH, "img"))]
    if not names:
        raise DatasetError(f"{root}: no DTB70 sequences; expected Animal1/{GROUNDTRUTH}, ...")
    return Dataset("dtb70", root, names, _Reader(root))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> TrackingSequence:
        folder = self.root / name
        groundtruth = folder / GROUNDTRUTH
        boxes_xywh = read_groundtruth(groundtruth, published=True)
        frames = numbered_frames(folder / "img", "%05d.jpg", len(boxes_xywh), groundtruth)
        faults = row_faults("dtb70", name, groundtruth, boxes_xywh)
        return TrackingSequence(name, boxes_xywh, frames, DEFAULT_FPS, folder, faults=faults)
