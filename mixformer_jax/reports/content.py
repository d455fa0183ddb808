"""What a report holds, whatever the benchmark, and the frames of the worst sequences; `tables` and `write` show it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.media.drawing import GROUND_TRUTH, TARGET, draw_box, draw_caption
from mixformer_jax.reports.tables import Table

# Of a strip: frames, and pixels across each.
FRAMES = 4
WIDTH = 320


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """One tracker in a panel. `tracker` decides its colour, `label` is its entry in the legend."""

    tracker: str
    label: str
    y: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    title: str
    x_label: str
    y_label: str
    x: Float[np.ndarray, " n"]
    lines: tuple[Line, ...]  # the best first


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
    """One picture file of one panel or more."""

    name: str  # of its file
    title: str
    panels: tuple[Panel, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Strip:
    """Frames of a sequence on which a tracker did badly, with the boxes drawn."""

    title: str
    frames: tuple[UInt8[np.ndarray, "h w 3"], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Attributes:
    title: benchmark and number of sequences.
    notes: the rules and choices under which the numbers were made.
    tables: the main one first.
    figures: plots.
    strips: the worst sequences of each tracker.
    numbers: everything at full precision, for JSON.
    """

    title: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    strips: tuple[Strip, ...]
    numbers: Mapping[str, Any]


def worst_strips(
    scores: Mapping[str, Float[np.ndarray, " s"]],
    number: str,
    sequences: Sequence[TrackingSequence],
    boxes_of: Callable[[str, int], Float[np.ndarray, "n 4"]],
    count: int,
) -> tuple[Strip, ...]:
    """The `count` worst sequences of every tracker, the worst first.

    Args:
        scores: by tracker and sequence; higher is better, and NaN is left out.
        number: the scores' name, such as AUC.
        sequences: in the same order; the frames of the chosen ones are read. One without frames has an empty strip.
        boxes_of: from a tracker and the position of a sequence to its boxes, xywh in pixels, one a frame.
        count: 0 for none.

    Raises:
        SourceError: a frame cannot be read.
    """
    strips = []
    for tracker, values in scores.items():
        known = np.flatnonzero(~np.isnan(values))
        for position in known[np.argsort(values[known], kind="stable")][:count]:
            sequence = sequences[int(position)]
            title = f"{tracker} on {sequence.name}: {number} {values[position]:.1f}"
            if sequence.has_frames:
                strips.append(Strip(title, _draw(sequence, boxes_of(tracker, int(position)))))
            else:
                strips.append(Strip(f"{title}; its frames are not there to be shown", ()))
    return tuple(strips)


def _draw(sequence: TrackingSequence, boxes_xywh: Float[np.ndarray, "n 4"]) -> tuple[UInt8[np.ndarray, "h w 3"], ...]:
    """Frames spread evenly over the sequence, its end included; the ground truth is dashed."""
    count = min(len(sequence), len(boxes_xywh))
    chosen = np.unique(np.linspace(0, count - 1, FRAMES + 1).round().astype(int)[1:])
    frames = []
    for index in chosen:
        frame = sequence.frame(int(index))
        scale = WIDTH / frame.shape[1]
        picture = cv2.resize(frame, (WIDTH, max(1, round(scale * frame.shape[0]))), interpolation=cv2.INTER_AREA)
        if sequence.has_target[index]:
            picture = draw_box(picture, scale * sequence.boxes_xywh[index], GROUND_TRUTH, thickness=2, dashed=True)
        picture = draw_box(picture, scale * np.asarray(boxes_xywh[index]), TARGET, thickness=2)
        frames.append(draw_caption(picture, f"frame {index + 1} of {len(sequence)}"))
    return tuple(frames)
