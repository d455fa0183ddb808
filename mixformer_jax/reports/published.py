"""The paper's comparison with other trackers, Tables 9 to 11, as data: `published/table9.csv` and so on.

As printed: fractions for VOT, percent elsewhere. (SiamMask's SR0.5 and SR0.75 on GOT-10k are in the paper's order.)
"""

import csv
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

from mixformer_jax.reports.tables import Row, Table


class Source(NamedTuple):
    """Where a benchmark's published numbers are, and what they are of."""

    table: str  # of the paper; also the file's name
    benchmark: str  # in that file
    conditions: str  # what must be so for a measured number to compare
    decimals: int = 1


SOURCES: Mapping[str, tuple[Source, ...]] = MappingProxyType(
    {
        "got10k": (Source("table10", "got10k", "the test subset's server; * trained on GOT-10k alone"),),
        "lasot": (Source("table10", "lasot", "the 280 test sequences, boxes cut to whole pixels, mixformer rules"),),
        "trackingnet": (Source("table10", "trackingnet", "the test set's server"),),
        "uav123": (Source("table10", "uav123", "all 123 sequences, boxes cut to whole pixels, mixformer rules"),),
        "vot": (
            Source("table9", "vot2020", "VOT2020's masks; ours with Alpha-Refine", 3),
            Source("table11", "vot2022", "VOT2022's boxes (STb), public challenge", 3),
        ),
    }
)


def published_rows(source: Source) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    """Names of the numbers, and the rows that have any of them."""
    file = resources.files(__package__) / "published" / f"{source.table}.csv"
    header, *lines = csv.reader(file.read_text(encoding="utf-8").splitlines())
    columns = [i for i, name in enumerate(header) if name.startswith(f"{source.benchmark}/")]
    rows = [Row(line[0], tuple(float(line[i]) if line[i] else None for i in columns)) for line in lines]
    known = tuple(row for row in rows if any(value is not None for value in row.values))
    return tuple(header[i].partition("/")[2] for i in columns), known


def compare(benchmark: str, measured: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """Measured numbers above the published ones; no table for a benchmark that the paper has none of.

    Args:
        benchmark: name of the data set.
        measured: by tracker, numbers by name.
    """
    tables = []
    for source in SOURCES.get(benchmark, ()):
        names, rows = published_rows(source)
        ours = tuple(
            Row(f"{tracker} (measured)", tuple(numbers.get(name) for name in names))
            for tracker, numbers in measured.items()
        )
        number = source.table.removeprefix("table")
        title = f"The paper's Table {number}, {source.benchmark}; comparable under: {source.conditions}"
        header = ("tracker", *names)
        tables.append(
            Table(f"published_{source.benchmark}", title, header, (*ours, *rows), source.decimals, True, "more")
        )
    return tables
