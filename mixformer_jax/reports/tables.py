"""Tables of numbers as text, Markdown, LaTeX and CSV; and the paper's own rows, Tables 9 to 11.

The rows are data, `published/table9.csv` and so on, as printed: fractions for VOT, percent elsewhere. (SiamMask's SR0.5
and SR0.75 on GOT-10k are in the paper's order.)
"""

import csv
import dataclasses
import functools
import io
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from mixformer_jax.evaluation.results import printable
from mixformer_jax.text_tables import aligned, markdown

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}
Place = Literal["main", "more", "detail"]


class Row(NamedTuple):
    label: str
    values: tuple[float | None, ...]  # None and NaN: not known


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of numbers; higher is better where `ranked`.

    Attributes:
        name: of its file, such as `overall`.
        title: what the numbers are, with their unit.
        header: names of the label's column and of the others.
        decimals: after the point; CSV has all digits.
        ranked: the best number of a column is marked, and the second, where the form can.
        place: "main" tables are printed, "more" are in the documents, "detail" in CSV and on the page alone.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    decimals: int = 1
    ranked: bool = False
    place: Place = "main"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.header) - 1:
                raise ValueError(f"table {self.name}: row {row.label} has {len(row.values)} values for {self.header}")

    def cells(self, row: Row) -> tuple[str, ...]:
        """The row as text."""
        return (row.label, *("-" if _unknown(value) else f"{value:.{self.decimals}f}" for value in row.values))

    @functools.cached_property
    def ranks(self) -> list[tuple[str | None, str | None]]:
        """The best and the second best number of every column as they are printed; ties share a place."""
        columns = zip(*(self.cells(row)[1:] for row in self.rows), strict=True) if self.ranked else ()
        best = [sorted({*column} - {"-"}, key=float, reverse=True) for column in columns]
        return [(cells[0] if len(cells) > 1 else None, cells[1] if len(cells) > 2 else None) for cells in best]

    def marked(self, row: Row) -> list[tuple[str, str]]:
        """The row's numbers as text, and "best" or "second" beside those that are in their column."""
        cells = self.cells(row)[1:]
        ranks = self.ranks or [(None, None)] * len(cells)
        return [
            (cell, "best" if cell == best else "second" if cell == second else "")
            for cell, (best, second) in zip(cells, ranks, strict=True)
        ]


def to_text(table: Table) -> str:
    cells = [tuple(map(printable, row)) for row in (table.header, *map(table.cells, table.rows))]
    return f"{printable(table.title)}\n{aligned(cells)}"


def to_markdown(table: Table) -> str:
    forms = {"best": "**{}**", "second": "{}", "": "{}"}
    rows = [[_markdown(row.label), *_formatted(table, row, forms)] for row in table.rows]
    return f"### {printable(table.title)}\n\n{markdown([list(map(_markdown, table.header)), *rows], '--:')}"


def to_latex(table: Table) -> str:
    """A tabular for booktabs; the best number of a column in bold, the second underlined."""
    forms = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", "": "{}"}
    rows = [[_latex(row.label), *_formatted(table, row, forms)] for row in table.rows]
    lines = [
        f"% {printable(table.title)}",
        r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex, table.header)) + r" \\",
        r"\midrule",
        *(" & ".join(cells) + r" \\" for cells in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """All digits; an unknown number is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(table.header)
    for row in table.rows:
        writer.writerow([row.label, *("" if _unknown(value) else repr(value) for value in row.values)])
    return out.getvalue()


def _formatted(table: Table, row: Row, forms: Mapping[str, str]) -> list[str]:
    return [forms[mark].format(text) for text, mark in table.marked(row)]


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))


def _markdown(text: str) -> str:
    return printable(text).replace("\\", r"\\").replace("|", r"\|")


def overall_table(title: str, headlines: Mapping[str, Mapping[str, float]], decimals: int = 1) -> Table:
    """The numbers that papers print, by tracker."""
    rows = tuple(Row(name, tuple(numbers.values())) for name, numbers in headlines.items())
    return Table("overall", title, ("tracker", *next(iter(headlines.values()))), rows, decimals, ranked=True)


def sequence_table(
    number: str,
    unit: str,
    sequences: Sequence[str],
    columns: Mapping[str, Float[np.ndarray, " s"]],
    place: Place,
    decimals: int = 1,
    file: str | None = None,
) -> Table:
    """One number by sequence and tracker; `file` takes the number's place in the name."""
    rows = tuple(Row(name, tuple(float(each[i]) for each in columns.values())) for i, name in enumerate(sequences))
    title, header = f"{number} by sequence, {unit}", ("sequence", *columns)
    return Table(f"sequences_{file or number}", title, header, rows, decimals, place=place)


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
    """Measured numbers, by tracker and name, above the published ones; no table where the paper has none."""
    tables = []
    for source in SOURCES.get(benchmark, ()):
        names, rows = published_rows(source)
        ours = (Row(f"{name} (measured)", tuple(map(numbers.get, names))) for name, numbers in measured.items())
        number = source.table.removeprefix("table")
        title = f"The paper's Table {number}, {source.benchmark}; comparable under: {source.conditions}"
        name, header = f"published_{source.benchmark}", ("tracker", *names)
        tables.append(Table(name, title, header, (*ours, *rows), source.decimals, True, "more"))
    return tables
