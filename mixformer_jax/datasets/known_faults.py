"""Faults of published data sets that everybody has, with their sources; readers, reports and `data check` name them.

A fault that is not in `published/known_faults.tsv` may lie in the copy of the data set at hand: an unpacking that broke
off, say.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ANY = "*"  # every sequence of a data set


class KnownFault(NamedTuple):
    """Something wrong with a data set as it is published."""

    reader: str  # of the data set, by name
    sequence: str  # its name, or ANY
    kind: str  # of the `records.Fault` that it explains. `length`: numbers of boxes, frames or result rows that differ
    what: str
    source: str  # where it was reported; `OWNER/REPOSITORY#NUMBER` is an issue on GitHub
    box_xywh: tuple[float, ...] | None = None  # the row, where the fault is one

    def __str__(self) -> str:
        return f"known: {self.what} ({self.source})"


def _read_table() -> tuple[KnownFault, ...]:
    path = Path(__file__).parent / "published" / "known_faults.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file, delimiter="\t")
    return tuple(
        KnownFault(reader, sequence, kind, what, source, tuple(map(float, box.split())) or None)
        for reader, sequence, kind, what, source, box in rows
    )


KNOWN_FAULTS = _read_table()


def known_fault(reader: str, sequence: str, kind: str, box_xywh: Sequence[float] | None = None) -> KnownFault | None:
    """The entry of the table that explains a fault; None where none does."""
    box = None if box_xywh is None else tuple(map(float, box_xywh))
    for known in KNOWN_FAULTS:
        is_kind = (known.reader, known.kind) == (reader, kind)
        if is_kind and known.sequence in (sequence, ANY) and known.box_xywh in (None, box):
            return known
    return None
