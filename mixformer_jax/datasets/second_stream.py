"""Benchmarks with a second stream of images beside colour: DepthTrack (depth), LasHeR and RGBT234 (thermal).

Their frames have six channels: RGB, then depth as `media.images.read_depth` gives it, or a thermal image. Who reads
colour alone takes the first three.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mixformer_jax.datasets import layout
from mixformer_jax.datasets.groundtruth import LengthError, read_groundtruth
from mixformer_jax.datasets.layout import SequenceFiles
from mixformer_jax.datasets.records import Dataset, Fault, ImageFrames, MissingFrames, NumberedNames, TrackingSequence
from mixformer_jax.media.images import SourceError, read_depth

# Of thermal sequences, of which LasHeR's `init.txt` is what trackers are started and scored by.
THERMAL_TRUTHS = {"lasher": ("init.txt", "visible.txt"), "rgbt234": ("visible.txt", "init.txt")}


@dataclass(frozen=True)
class DepthFrames(ImageFrames):
    """Frames of depth alone, three channels."""

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_depth(self.path(index))


@dataclass(frozen=True)
class TwoStreamFrames:
    """Colour frames, and those of the second stream behind them."""

    colour: ImageFrames
    second: ImageFrames  # DepthFrames, or thermal images, which are images as any other

    def path(self, index: int) -> Path:
        return self.colour.path(index)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 6"]:
        return in_one_frame({frames.path(index): frames(index) for frames in (self.colour, self.second)})


def in_one_frame(images: Mapping[Path, UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h w channels"]:
    """Images of the streams of a frame, by their files, behind each other; SourceError where their sizes differ."""
    sizes = {path: f"{image.shape[1]} x {image.shape[0]}" for path, image in images.items()}
    first, *others = sizes
    for path in others:
        if sizes[path] != sizes[first]:
            raise SourceError(f"{path}: {sizes[path]} pixels; {first} has {sizes[first]}")
    return np.concatenate(list(images.values()), axis=2)


Frames = ImageFrames | TwoStreamFrames | MissingFrames


def two_streams(colour: ImageFrames | MissingFrames, second: ImageFrames | MissingFrames, is_depth: bool) -> Frames:
    """Frames of both streams; of the second one alone without colour, and MissingFrames without the second one."""
    if isinstance(second, MissingFrames):
        return colour if isinstance(colour, MissingFrames) else second
    if is_depth:
        second = DepthFrames(second.folder, second.names)
    return second if isinstance(colour, MissingFrames) else TwoStreamFrames(colour, second)


def read_depthtrack(root: Path, split: str | None = None) -> Dataset:
    """DepthTrack (Yan et al. 2021, https://github.com/xiaozai/DeT), its training or its test set.

    adapter01_indoor/color/00000001.jpg ...     frames
    adapter01_indoor/depth/00000001.png ...     millimetres, 16 bits
    adapter01_indoor/groundtruth.txt            x,y,w,h a line; nan,nan,nan,nan where the target is absent
    """
    folder = root / "sequences" if (root / "sequences").is_dir() else root  # of a workspace of the VOT toolkit
    names = [name for name in layout.sub_folders(folder) if _has_any(folder / name, ("groundtruth.txt", "color"))]
    return Dataset("depthtrack", root, names, functools.partial(_read_depthtrack_sequence, folder))


def _read_depthtrack_sequence(root: Path, name: str) -> TrackingSequence:
    folder = root / name
    files = SequenceFiles(folder, folder / "groundtruth.txt", folder / "color", "%08d.jpg")
    return _read_pair("depthtrack", name, files, folder / "depth", "%08d.png")


def read_thermal(dataset: str, root: Path, split: str | None = None) -> Dataset:
    """LasHeR (Li et al. 2022, https://github.com/BUGPLEASEOUT/LasHeR; the folder of its training or test set is a
    root) and RGBT234 (Li et al. 2019): colour and thermal images that lie over each other.

        2girl/visible/v000000.jpg ...       frames, taken in the natural order of their names
        2girl/infrared/i000000.jpg ...      as many
        2girl/init.txt, visible.txt, infrared.txt   x,y,w,h a line

    The boxes are LasHeR's of init.txt; RGBT234's of visible.txt, and `thermal_xywh` those of infrared.txt, where that
    is there.
    """
    parts = (*THERMAL_TRUTHS[dataset], "visible")
    names = [name for name in layout.sub_folders(root) if _has_any(root / name, parts)]
    return Dataset(dataset, root, names, functools.partial(_read_thermal_sequence, dataset, root))


def _read_thermal_sequence(dataset: str, root: Path, name: str) -> TrackingSequence:
    folder, truths = root / name, THERMAL_TRUTHS[dataset]
    truth = next((folder / file for file in truths if (folder / file).is_file()), folder / truths[0])
    files = SequenceFiles(folder, truth, folder / "visible", "%06d.jpg", is_listed=True)
    sequence, thermal = _read_pair(dataset, name, files, folder / "infrared", files.pattern), folder / "infrared.txt"
    if dataset != "rgbt234" or not thermal.is_file():
        return sequence
    return replace(sequence, thermal_xywh=read_groundtruth(thermal, len(sequence), published=True))


def _has_any(folder: Path, parts: Sequence[str]) -> bool:
    return any((folder / part).exists() for part in parts)


def _read_pair(dataset: str, name: str, files: SequenceFiles, second: Path, pattern: str) -> TrackingSequence:
    sequence = layout.read_sequence(dataset, name, files)
    if not isinstance(sequence.frame, ImageFrames):
        return sequence
    try:
        beside = layout.find_frames(replace(files, frames=second, pattern=pattern), len(sequence))
    except LengthError as error:
        found = len(layout.image_names(second))
        raise LengthError(
            f"{second}: {found} images; expected {len(sequence)}, one for every frame in {files.frames}"
        ) from error
    faults = sequence.faults + (() if isinstance(beside, MissingFrames) else _misnumbered(sequence.frame, beside))
    frame = two_streams(sequence.frame, beside, is_depth=dataset == "depthtrack")
    return replace(sequence, frame=frame, faults=faults)


def _misnumbered(colour: ImageFrames, second: ImageFrames) -> tuple[Fault, ...]:
    """Where frames that are paired in their order do not have the same numbers: one of them may be missing."""
    if isinstance(colour.names, NumberedNames):
        return ()
    ours, theirs = (
        np.array([int(re.sub(r"\D", "", name) or 0) for name in frames.names]) for frames in (colour, second)
    )
    shifts = ours - theirs
    if (shifts == shifts[0]).all():
        return ()
    index = int(np.flatnonzero(shifts != shifts[0])[0])
    what = f"{second.names[index]} is paired with {colour.names[index]}: frames are missing, or not numbered alike"
    return (Fault("frame numbers", str(second.folder), what),)
