"""Tables of text: aligned for a terminal, and in Markdown."""

from collections.abc import Sequence
from pathlib import Path

from mixformer_jax.files import write_atomically


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Columns two spaces apart: those of `left` aligned to the left, the others, which hold numbers, to the right."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if index in left else cell.rjust(width) for cell in column])
    return "".join("  ".join(cells).rstrip() + "\n" for cells in zip(*columns, strict=True))


def markdown(rows: Sequence[Sequence[str]], rule: str = "---") -> str:
    """The first row as the header; `rule` stands below each column but the first."""
    header, *others = rows
    rules = ("---", *[rule] * (len(header) - 1))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rules, *others))


def append_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Adds rows below the table of the same header in a Markdown file; without one, a table at its end."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ["# Benchmarks"]
    table = markdown([header, *rows]).splitlines()
    if table[0] in lines:
        end = lines.index(table[0]) + 1
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        lines[end:end] = table[2:]
    else:
        lines += ["", *table]
    write_atomically(path, "\n".join(lines) + "\n")
