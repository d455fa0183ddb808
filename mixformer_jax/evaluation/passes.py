"""What is tracked of a sequence: all of it from its first frame, or, in VOT, a run from each anchor."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.number_files import read_numbers


class Pass(NamedTuple):
    """A way through a sequence.

    Attributes:
        label: for messages.
        sequence: its frames in the order in which they are tracked.
        anchor: the frame with which it begins.
    """

    label: str
    sequence: TrackingSequence
    anchor: int = 0


@dataclasses.dataclass(frozen=True)
class Reordered:
    """Some frames of a video, in another order."""

    frame: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    indices: range

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return self.frame(self.indices[index])


def passes(dataset: str, sequence: TrackingSequence) -> list[Pass]:
    """The passes that a data set, by its reader's name, asks for.

    VOT's anchors (Kristan et al. 2020) are in `anchor.value`, a number a frame: from a frame with a number above zero a
    run goes forward to the end, from one below zero backward to the start.

    Raises:
        DatasetError: a sequence of VOT without anchors.
        ResultsError: `anchor.value` is no list of numbers.
    """
    if dataset != "vot":
        return [Pass(sequence.name, sequence)]
    path = sequence.root / "anchor.value"
    anchors = read_numbers(path, "anchor")[:, 0] if path.is_file() else np.zeros(0)
    if not anchors[: len(sequence)].any():
        raise DatasetError(
            f"{path}: no anchors; VOT's runs start from the frames that this file marks. Before VOT2020 there were "
            "none, and trackers were restarted after failures, which is not supported: vot-toolkit does it"
        )
    return [_run_from(sequence, int(anchor), bool(anchors[anchor] < 0)) for anchor in np.flatnonzero(anchors)]


def _run_from(sequence: TrackingSequence, anchor: int, backward: bool) -> Pass:
    indices = range(anchor, -1, -1) if backward else range(anchor, len(sequence))
    run = dataclasses.replace(
        sequence,
        boxes_xywh=sequence.boxes_xywh[list(indices)],
        frame=Reordered(sequence.frame, indices),
        visible=None,
    )
    return Pass(f"{sequence.name}, {'backward' if backward else 'forward'} from frame {anchor}", run, anchor)
