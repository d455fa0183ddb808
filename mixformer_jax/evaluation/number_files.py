"""Result files as tables of numbers: read fast where they are well formed, and line by line where they are not."""

import io
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64

# What a well-formed file may hold. Others (nan, a byte order mark, typing errors) take the slow way.
_PLAIN = b"0123456789.,-+eE \t\n"


class ResultsError(ValueError):
    """Result files that cannot be read, scored or written; the message names file, line and the mend."""


def read_numbers(path: str | Path, columns: str, optional: str = "") -> Float64[np.ndarray, "n k"]:
    """A table of numbers, one row a line, its columns separated by commas, or by tabs or spaces.

    Blank lines are allowed at the end only: one in the middle would shift every row after it. `nan` is read
    as it is.

    Args:
        path: the text file.
        columns: their names, separated by commas, such as "x,y,w,h"; with "..." at the end, one or more.
        optional: more columns, which all lines have or none.

    Raises:
        ResultsError: a missing, empty or unreadable file; a line with another number of columns, or with
            something else than finite numbers and nan (file and line are named).
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"result file {path}: no such file; expected lines of {columns}") from None
    except OSError as error:
        raise ResultsError(f"result file {path}: cannot be read: {error}") from error
    widths: tuple[int, ...] = ()
    if not columns.endswith("..."):
        count = columns.count(",") + 1
        widths = (count, count + optional.count(",") + 1) if optional else (count,)
    numbers = _parse_plain(content, widths)
    return _parse_lines(path, content, columns, optional, widths) if numbers is None else numbers


def _parse_plain(content: bytes, widths: tuple[int, ...]) -> Float64[np.ndarray, "n k"] | None:
    """All lines at once; None where that is not certain to be what `_parse_lines` gives."""
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n")
    content = content.rstrip()
    if not content or content.translate(None, _PLAIN):
        return None
    delimiter = "," if b"," in content else None
    try:
        numbers = np.loadtxt(io.BytesIO(content), delimiter=delimiter, comments=None, ndmin=2)
    except ValueError:
        return None
    # loadtxt passes over blank lines.
    exact = len(numbers) == content.count(b"\n") + 1 and (not widths or numbers.shape[1] in widths)
    return numbers if exact and np.isfinite(numbers).all() else None


def _parse_lines(
    path: Path, content: bytes, columns: str, optional: str, widths: tuple[int, ...]
) -> Float64[np.ndarray, "n k"]:
    try:
        # utf-8-sig: tools on Windows put a byte order mark before the first number.
        lines = content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ResultsError(f"result file {path}, line {number}: not text in UTF-8: {error}") from error
    if not lines:
        raise ResultsError(f"result file {path}: empty; expected one line of {columns} for every frame")
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        row = _parse_line(line.strip(), columns, f"result file {path}, line {number}")
        # Of the numbers that may be, or of all, the first line says how many columns there are.
        if not rows and (not widths or len(row) in widths):
            widths = (len(row),)
        if len(row) not in widths:
            word = "column" if widths[0] == 1 else "columns"
            # The optional columns are expected where the lines before have them.
            names = f"{columns},{optional}" if optional and widths[0] > columns.count(",") + 1 else columns
            raise ResultsError(
                f"result file {path}, line {number}: expected {widths[0]} {word} {names}, found {len(row)} in {line!r}"
            )
        rows.append(row)
    return np.array(rows, np.float64)


def _parse_line(line: str, columns: str, where: str) -> list[float]:
    if not line:
        raise ResultsError(f"{where}: blank; blank lines are allowed at the end only")
    # Splitting at commas alone keeps "1,,3,4" an error instead of three numbers.
    cells = line.split(",") if "," in line else line.split()
    try:
        # float() would read 1_0 as 10, and digits of other scripts.
        if "_" in line or not line.isascii():
            raise ValueError(line)
        numbers = [float(cell) for cell in cells]
    except ValueError:
        raise ResultsError(f"{where}: expected numbers {columns}, found {line!r}") from None
    if any(map(math.isinf, numbers)):
        raise ResultsError(f"{where}: infinite value in {line!r}")
    return numbers
