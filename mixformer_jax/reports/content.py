"""What a report holds, whatever the benchmark; how it looks is up to `tables`, `plots` and `page`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mixformer_jax.reports.tables import Table


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
