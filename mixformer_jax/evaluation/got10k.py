"""GOT-10k's own numbers: AO, SR and the success curve over pooled frames (Huang et al. 2019; got10k toolkit).

They are not OPE numbers. The first frame does not count, frames are pooled over all sequences (and repetitions) instead
of sequences being averaged, frames with cover 0 are left out, and both boxes are first clipped to the image. Fractions.
"""

import configparser
import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from mixformer_jax.datasets.groundtruth import DatasetError, read_labels
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import continuous_overlap

SUCCESS_THRESHOLDS: Float64[np.ndarray, " 101"] = np.linspace(0, 1, 101)
SUCCESS_THRESHOLDS.flags.writeable = False
HIDDEN = "the ground truth is hidden; GOT-10k's test subset is scored by its server (mixformer pack)"


class FrameLabels(NamedTuple):
    """What GOT-10k's scoring needs of a sequence besides its boxes."""

    cover: Int[np.ndarray, " n"]  # 0..8, eighths of the target in view
    size: tuple[int, int]  # width and height of the frames


@dataclasses.dataclass(frozen=True)
class Got10kScores:
    """One tracker on a subset of GOT-10k."""

    sequences: tuple[str, ...]
    overlaps: tuple[
        Float64[np.ndarray, " _"], ...
    ]  # of the frames that count, by sequence, repetitions one after another
    times_s: tuple[Float64[np.ndarray, " _"] | None, ...]  # seconds a frame; None where no times were kept

    @property
    def ao(self) -> float:
        """Average overlap: the mean over all frames of all sequences and repetitions."""
        return _mean(np.concatenate(self.overlaps))

    @property
    def ao_by_sequence(self) -> Float64[np.ndarray, " s"]:
        return np.array([_mean(overlaps) for overlaps in self.overlaps])

    @property
    def mean_ao(self) -> float:
        """AO with equal weight for each sequence, which the toolkit does not report."""
        return _mean(self.ao_by_sequence)

    def sr(self, threshold: float) -> float:
        """Success rate: the share of frames with IoU > threshold. The server reports 0.5 and 0.75."""
        return _mean(np.concatenate(self.overlaps) > threshold)

    def sr_by_sequence(self, threshold: float) -> Float64[np.ndarray, " s"]:
        return np.array([_mean(overlaps > threshold) for overlaps in self.overlaps])

    @property
    def success_curve(self) -> Float64[np.ndarray, " 101"]:
        """`sr` at the SUCCESS_THRESHOLDS."""
        overlaps = np.sort(np.concatenate(self.overlaps))
        if not overlaps.size:
            return np.full(len(SUCCESS_THRESHOLDS), np.nan)
        return 1 - np.searchsorted(overlaps, SUCCESS_THRESHOLDS, side="right") / len(overlaps)

    @property
    def speed_fps(self) -> float:
        """Mean of 1 / t over all frames with t > 0; NaN without times."""
        known = [times for times in self.times_s if times is not None]
        return _speed(np.concatenate(known)) if known else float("nan")

    @property
    def speed_by_sequence(self) -> Float64[np.ndarray, " s"]:
        """Frames a second; NaN where no times were kept."""
        return np.array([float("nan") if times is None else _speed(times) for times in self.times_s])

    @property
    def toolkit_speed_by_sequence(self) -> Float64[np.ndarray, " s"]:
        """As the toolkit shows it: a sequence without times has the speed of the one before it."""
        speeds = self.speed_by_sequence
        for index in range(1, len(speeds)):
            if self.times_s[index] is None:
                speeds[index] = speeds[index - 1]
        return speeds


def read_frame_labels(sequence: TrackingSequence) -> FrameLabels:
    """cover.label and the resolution in meta_info.ini of a sequence's folder.

    Raises:
        DatasetError: one of them is missing or is not what GOT-10k publishes, as for the test subset.
    """
    if len(sequence) > 1 and np.isnan(sequence.boxes_xywh[1:]).all():
        raise DatasetError(f"{sequence.root}: {HIDDEN}")
    cover = read_labels(sequence.root / "cover.label", expected_length=len(sequence))
    return FrameLabels(cover, _read_resolution(sequence.root / "meta_info.ini"))


def sequence_overlaps(
    boxes_xywh: Float[np.ndarray, "n 4"], groundtruth_xywh: Float[np.ndarray, "m 4"], labels: FrameLabels
) -> Float64[np.ndarray, " _"]:
    """IoU of the frames that count: all but the first, with cover > 0 (absence.label has no say).

    Raises:
        ValueError: another number of boxes than of frames; a ground truth that is NaN where the target is in view.
    """
    if len(boxes_xywh) != len(groundtruth_xywh):
        raise ValueError(f"{len(boxes_xywh)} predicted boxes for {len(groundtruth_xywh)} frames; every frame needs one")
    counted = labels.cover > 0
    counted[0] = False
    if np.isnan(groundtruth_xywh[counted]).any():
        raise ValueError(HIDDEN)
    return continuous_overlap(
        clip_to_frame(boxes_xywh[counted], labels.size), clip_to_frame(groundtruth_xywh[counted], labels.size)
    )


def clip_to_frame(boxes_xywh: Float[np.ndarray, "n 4"], size: tuple[int, int]) -> Float64[np.ndarray, "n 4"]:
    """The toolkit's clipping to a frame of width x height: first the corner, then the extent.

    A corner left of the frame moves the box instead of shortening it: x = -10, w = 50 becomes x = 0, w = 50.
    """
    corner = np.clip(boxes_xywh[:, :2], 0.0, size)
    extent = np.clip(boxes_xywh[:, 2:], 0.0, np.array(size) - corner)
    return np.concatenate([corner, extent], axis=1)


def _read_resolution(path: Path) -> tuple[int, int]:
    meta = configparser.ConfigParser(interpolation=None)
    try:
        meta.read_string(path.read_text(encoding="utf-8"), source=str(path))
        resolution = meta["METAINFO"]["resolution"]
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; GOT-10k is scored inside the frame, whose size it tells") from None
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: no `resolution: (width, height)` under [METAINFO]: {error}") from error
    match = re.fullmatch(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", resolution.strip(), re.ASCII)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise DatasetError(f"{path}: resolution is {resolution!r}; expected (width, height)")
    return int(match[1]), int(match[2])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _speed(times_s: Float64[np.ndarray, " _"]) -> float:
    return _mean(1 / times_s[times_s > 0])
