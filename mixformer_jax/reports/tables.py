"""Tables of numbers as text, Markdown, LaTeX, CSV and HTML; and the paper's own rows, Tables 9 to 11.

The rows are data, `published/table9.csv` and so on, as printed: fractions for VOT, percent elsewhere. (SiamMask's SR0.5
and SR0.75 on GOT-10k are in the paper's order.)
"""

import csv
import dataclasses
import html
import io
import math
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Literal, NamedTuple

from mixformer_jax.evaluation.results import printable

_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    character: f"\\{character}" for character in "&%$#_{}"
}


Place = Literal["main", "more", "detail"]


@dataclasses.dataclass(frozen=True)
class Row:
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
        return (row.label, *(_number(value, self.decimals) for value in row.values))

    def ranks(self) -> dict[int, tuple[str | None, str | None]]:
        """By column of values, the best and the second best number as they are printed; ties share a place."""
        if not self.ranked:
            return {}
        ranks = {}
        for column in range(len(self.header) - 1):
            known = {_number(row.values[column], self.decimals) for row in self.rows} - {"-"}
            best = sorted(known, key=float, reverse=True)
            ranks[column] = (best[0] if len(best) > 1 else None, best[1] if len(best) > 2 else None)
        return ranks


def to_text(table: Table) -> str:
    cells = [tuple(map(printable, row)) for row in (table.header, *map(table.cells, table.rows))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.header))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([printable(table.title), *lines]) + "\n"


def to_markdown(table: Table) -> str:
    ranks = table.ranks()
    lines = [
        f"| {' | '.join(map(_markdown, table.header))} |",
        "|---" + "|--:" * (len(table.header) - 1) + "|",
        *(
            f"| {' | '.join([_markdown(row.label), *_ranked(table, row, ranks, '**', '**', '', '')])} |"
            for row in table.rows
        ),
    ]
    return "\n".join([f"### {printable(table.title)}", "", *lines]) + "\n"


def to_latex(table: Table) -> str:
    """A tabular for booktabs; the best number of a column in bold, the second underlined."""
    ranks = table.ranks()
    lines = [
        f"% {printable(table.title)}",
        r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex, table.header)) + r" \\",
        r"\midrule",
        *(
            " & ".join([_latex(row.label), *_ranked(table, row, ranks, r"\textbf{", "}", r"\underline{", "}")]) + r" \\"
            for row in table.rows
        ),
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


def to_html(table: Table) -> str:
    ranks = table.ranks()
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    lines = []
    for row in table.rows:
        cells = _ranked(table, row, ranks, "<b>", "</b>", "<u>", "</u>")
        lines.append(f"<tr><th>{html.escape(row.label)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "\n".join(["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>", *lines, "</tbody>", "</table>"]) + "\n"


def _ranked(
    table: Table,
    row: Row,
    ranks: dict[int, tuple[str | None, str | None]],
    *marks: str,
) -> list[str]:
    """The values of a row as text, the best and the second of their column between marks."""
    cells = []
    for column, cell in enumerate(table.cells(row)[1:]):
        best, second = ranks.get(column, (None, None))
        if cell == best:
            cell = f"{marks[0]}{cell}{marks[1]}"
        elif cell == second:
            cell = f"{marks[2]}{cell}{marks[3]}"
        cells.append(cell)
    return cells


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None, decimals: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.{decimals}f}"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))


def _markdown(text: str) -> str:
    return printable(text).replace("\\", r"\\").replace("|", r"\|")


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
