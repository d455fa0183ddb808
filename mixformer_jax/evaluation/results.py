"""Result files, laid out as the toolkits of the benchmarks have them.

    pytracking   <results>/<tracker>/<sequence>.txt        x,y,w,h in pixels, a line a frame; the first is the given box
                 <results>/<tracker>/<sequence>_time.txt   seconds of each frame inside the tracker, without decoding
                 <results>/<tracker>/<sequence>_score.txt  confidence (1 for the given box), where there is one
                 repetition k of several: <results>/<tracker>_<k, 3 digits, from 0>/...
    got10k       <results>/<tracker>/<sequence>/<sequence>_<repetition, 3 digits, from 1>.txt
                 <results>/<tracker>/<sequence>/<sequence>_time.txt, <sequence>_score.txt, a column a repetition
    vot          <results>/<tracker>/baseline/<sequence>/<sequence>_<anchor, 8 digits>.txt, in the order of the run; the
                 first line is 1, the code of an initialisation. <...>_time.value, <...>_confidence.value,
                 whose first line is blank
    votlt        <results>/<tracker>/longterm/<sequence>/<sequence>_001.txt, and so on, likewise

LaSOT, OTB, UAV123, NFS, TNL2K and TrackingNet's server take pytracking's files. `run.json` in a tracker's folder has
the settings (`claim_folder`). Files are written whole, boxes last: where they are, the sequence is finished.
"""

import json
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.boxes import MAX_PIXELS
from mixformer_jax.datasets.groundtruth import parse_numbers, parse_table
from mixformer_jax.datasets.vot import LONG_TERM
from mixformer_jax.files import write_atomically

logger = logging.getLogger(__name__)

SIDE_FILES = ("_time", "_score")
# Keys of run.json in which runs of one folder may differ, see `claim_folder`.
ABOUT = ("model", "benchmark", "table", "changes", "hardware", "versions", "decoder", "resumed_with")

Layout = Literal["pytracking", "got10k", "vot", "votlt", "votrgbd"]
# Of the VOT toolkit's layouts the experiment, as its stacks name them: short term, long term, and RGB-D until 2021.
EXPERIMENTS: Mapping[Layout, str] = {"vot": "baseline", "votlt": "longterm", "votrgbd": "rgbd-unsupervised"}
# By the data set's reader, where the layout is not pytracking's.
LAYOUTS: Mapping[str, Layout] = {
    "got10k": "got10k",
    "vot": "vot",
    "vot_rgbd": "vot",
    "depthtrack": "votrgbd",
    **dict.fromkeys(LONG_TERM, "votlt"),
}


class ResultsError(ValueError):
    """Result files that cannot be read, scored or written; the message names file, line and the mend."""


class SequenceResult(NamedTuple):
    """A tracker's output on one sequence."""

    boxes_xywh: Float64[np.ndarray, "n 4"]
    times_s: Float64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"] | None
    masks: tuple[str, ...] | None = None  # of all frames but the first, as in `datasets.vot`


class ResultPaths(NamedTuple):
    """Files of one run through a sequence."""

    boxes: Path
    times: Path
    scores: Path
    column: int | None = None  # of `times` and `scores`, where repetitions share them
    starts_with_code: bool = False  # the first line is 1 in place of the given box


def printable(text: str) -> str:
    """The text in one line, with control characters, line breaks and lone surrogates as escapes, such as `\\n`."""
    unfit = ("Cc", "Zl", "Zp", "Cs")
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in unfit else c for c in text)


def tracker_folders(layout: Layout, tracker: str, repetitions: int) -> list[str]:
    """The folder of each repetition: in GOT-10k's layout they share one."""
    if layout != "pytracking" or repetitions == 1:
        return [tracker] * repetitions
    return [f"{tracker}_{repetition:03d}" for repetition in range(repetitions)]


def result_paths(layout: Layout, folder: Path, sequence: str, repetition: int = 0, anchor: int = 0) -> ResultPaths:
    """The files of one run through a sequence. `folder` is the tracker's, from `tracker_folders`; `repetition` counts
    from 0, and `anchor` is the frame from which a run of VOT starts."""
    column, ends = None, (".txt", "_time.txt", "_score.txt")
    if layout in EXPERIMENTS:
        run = f"{anchor:08d}" if layout == "vot" else f"{repetition + 1:03d}"
        stem = folder / EXPERIMENTS[layout] / sequence / f"{sequence}_{run}"
        ends = (".txt", "_time.value", "_confidence.value")
    elif layout == "got10k":
        stem, column = folder / sequence / sequence, repetition
        ends = (f"_{repetition + 1:03d}.txt", *ends[1:])
    else:
        stem = folder / sequence
    boxes, times, scores = (stem.with_name(stem.name + end) for end in ends)
    return ResultPaths(boxes, times, scores, column, starts_with_code=layout in EXPERIMENTS)


def read_bytes(path: Path, kind: str, expected: str = "") -> bytes:
    """The content of a file; ResultsError names its `kind` and what was expected."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(f"{kind} {path}: no such file{expected and f'; expected {expected}'}") from None
    except OSError as error:
        raise ResultsError(f"{kind} {path}: cannot be read: {error}") from error


def decode_text(path: Path, content: bytes, kind: str, expected: str) -> str:
    """A file's text, stripped at the end; ResultsError where it is not UTF-8, or empty."""
    try:
        # utf-8-sig: tools on Windows put a byte order mark before the first number.
        text = content.decode("utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ResultsError(f"{kind} {path}, line {number}: not text in UTF-8: {error}") from error
    if not text:
        raise ResultsError(f"{kind} {path}: empty; expected {expected}")
    return text


def read_numbers(path: str | Path, columns: str, optional: str = "") -> Float64[np.ndarray, "n k"]:
    """A table of numbers, one row a line, columns separated by commas, or by tabs or spaces.

    Blank lines are allowed at the end only: one in the middle would shift every row after it. `nan` is kept.

    Args:
        columns: their names, separated by commas, such as "x,y,w,h"; with "..." at the end, one or more.
        optional: more columns, in all lines or none.

    Raises ResultsError for a missing, empty or unreadable file, and with the line for another number of columns, or
    something else than finite numbers and nan.
    """
    path = Path(path)
    content = read_bytes(path, "result file", f"lines of {columns}")
    widths: tuple[int, ...] = ()
    if not columns.endswith("..."):
        count = columns.count(",") + 1
        widths = (count, count + optional.count(",") + 1) if optional else (count,)
    numbers = parse_table(content, widths)
    return _parse_lines(path, content, columns, optional, widths) if numbers is None else numbers


def _parse_lines(
    path: Path, content: bytes, columns: str, optional: str, widths: tuple[int, ...]
) -> Float64[np.ndarray, "n k"]:
    text = decode_text(path, content, "result file", f"one line of {columns} for every frame")
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"result file {path}, line {number}"
        if not line.strip():
            raise ResultsError(f"{where}: blank; blank lines are allowed at the end only")
        try:
            row = parse_numbers(line.strip())
        except ValueError:
            raise ResultsError(f"{where}: expected numbers {columns}, found {line.strip()!r}") from None
        if any(map(math.isinf, row)):
            raise ResultsError(f"{where}: infinite value in {line.strip()!r}")
        # The first line decides how many columns there are.
        if not rows and (not widths or len(row) in widths):
            widths = (len(row),)
        if len(row) not in widths:
            word = "column" if widths[0] == 1 else "columns"
            # The optional columns are expected where the first line has them.
            names = f"{columns},{optional}" if optional and widths[0] > columns.count(",") + 1 else columns
            raise ResultsError(f"{where}: expected {widths[0]} {word} {names}, found {len(row)} in {line!r}")
        rows.append(row)
    return np.array(rows, np.float64)


def read_boxes(path: str | Path, unusable_boxes: Literal["error", "keep"] = "error") -> Float64[np.ndarray, "n 4"]:
    """Boxes of a result file, one line a frame: x,y,w,h, or x,y,w,h,score,lost of `mixformer track`.

    NaN and negative sizes are an error, or are kept for rules that say how they count. Raises ResultsError, with the
    line, for what is no such table, infinite, too large for pixels, or unusable.
    """
    rows = read_numbers(path, "x,y,w,h", optional="score,lost")
    boxes_xywh, beside = rows[:, :4], rows[:, 4:]
    if beside.size:
        score, lost = beside.T
        usual = (score >= 0) & (score <= 1) & ((lost == 0) | (lost == 1))
        _check_rows(path, usual, rows, "{} is not x,y,w,h,score,lost, with a score from 0 to 1 and lost 0 or 1")
    pixels = np.abs(boxes_xywh) <= MAX_PIXELS
    if unusable_boxes == "error":
        fine, expected = pixels.all(1) & (boxes_xywh[:, 2:] >= 0).all(1), "finite x,y,w,h with w >= 0 and h >= 0"
    else:
        fine, expected = (pixels | np.isnan(boxes_xywh)).all(1), "x,y,w,h"
    _check_rows(
        path, np.asarray(fine), boxes_xywh, f"{{}} is no box in pixels; expected {expected}, of at most {MAX_PIXELS:g}"
    )
    return boxes_xywh


def _check_rows(path: str | Path, fine: Bool[np.ndarray, " n"], rows: Float64[np.ndarray, "n k"], message: str) -> None:
    if not fine.all():
        row = int(np.argmin(fine))
        raise ResultsError(f"result file {path}, line {row + 1}: {message.format(rows[row].tolist())}")


def read_times(paths: Sequence[Path]) -> Float64[np.ndarray, "n k"] | None:
    """Seconds of each frame, a column a repetition, from one or several files; None where none were kept. ResultsError
    for something else than numbers, a time below zero, or files of different lengths."""
    tables: list[Float64[np.ndarray, "n _"]] = []
    for path in paths:
        times_s = read_numbers(path, "seconds,...")
        _check_rows(path, ~np.asarray((times_s < 0).any(1)), times_s, "a time below zero, {}")
        if tables and len(tables[0]) != len(times_s):
            raise ResultsError(f"result files {paths[0]} and {path}: {len(tables[0])} and {len(times_s)} times")
        tables.append(times_s)
    return np.hstack(tables) if tables else None


def write_result(paths: ResultPaths, result: SequenceResult) -> None:
    """Writes the files of a finished sequence, boxes last, or in their place the masks of a tracker that gives some."""
    paths.boxes.parent.mkdir(parents=True, exist_ok=True)
    for path, values in ((paths.times, result.times_s), (paths.scores, result.scores)):
        if values is not None:
            text = rows_of_text(_beside_other_repetitions(path, values, paths.column), decimals=8)
            is_confidence = paths.starts_with_code and path == paths.scores
            write_atomically(path, "\n" + text.partition("\n")[2] if is_confidence else text)
    if not paths.starts_with_code:
        write_atomically(paths.boxes, rows_of_text(result.boxes_xywh, decimals=4))
    elif result.masks is None:
        write_atomically(paths.boxes, "1\n" + rows_of_text(result.boxes_xywh[1:], decimals=4))
    else:
        write_atomically(paths.boxes, "".join(f"{line}\n" for line in ("1", *result.masks)))


def _beside_other_repetitions(
    path: Path, values: Float64[np.ndarray, " n"], column: int | None
) -> Float64[np.ndarray, "n k"]:
    """A column in the table of all repetitions; NaN, which the toolkit skips, for those still to come."""
    if column is None:
        return values[:, None]
    there = _read_known(path)[: len(values)]
    table = np.full((len(values), max(there.shape[1], column + 1)), np.nan)
    table[: len(there), : there.shape[1]] = there
    table[:, column] = values
    return table


def _read_known(path: Path) -> Float64[np.ndarray, "n k"]:
    """The columns of other repetitions: as much as can be read of a damaged file, none without a file."""
    if not path.exists():
        return np.empty((0, 0))
    try:
        return read_numbers(path, "seconds,...")
    except ResultsError as error:
        logger.warning("%s; what can be read of other repetitions is kept", error)
    rows = [[_number(cell) for cell in line.split(b",")] for line in path.read_bytes().splitlines()]
    width = max((len(row) for row in rows), default=0)
    known = np.array([row + [np.nan] * (width - len(row)) for row in rows]).reshape(len(rows), width)
    return known[:, : np.flatnonzero(~np.isnan(known).all(0)).max(initial=-1) + 1]


def _number(cell: bytes) -> float:
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def claim_folder(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Makes the tracker's folder, or checks that its results were made with the same settings.

    Finished sequences are not run again: without this check a table could mix two trackers. `about` is recorded beside
    the settings; where it differs in a later run (another version of a library), that is added under `resumed_with`.
    Raises ResultsError where the folder holds results of other settings, or of unknown ones.
    """
    record, mend = folder / "run.json", "give another --tracker-name or --out, or delete that folder"
    if not record.exists():
        if any(folder.rglob("*.txt")):
            raise ResultsError(f"{folder} holds results without a run.json, so their origin is unknown; {mend}")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(record, json.dumps({**settings, **about}, indent=2) + "\n")
        return
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{record}: not JSON ({error}); {mend}") from error
    if not isinstance(found, dict):
        raise ResultsError(f"{record}: no JSON object; {mend}")
    # Records from before compute types were recorded: they followed from the device.
    if "device" in found:
        found.setdefault("dtype", "float32" if found["device"] == "cpu" else "bfloat16")
        found.setdefault("matmul_precision", settings.get("matmul_precision"))
    before = {key: value for key, value in found.items() if key not in ABOUT}
    if before != dict(settings):
        keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        theirs, ours = ({key: each[key] for key in keys if key in each} for each in (before, settings))
        raise ResultsError(
            f"{folder} holds results made with {json.dumps(theirs)}, and this run has {json.dumps(ours)}; {mend}"
        )
    changed = {key: value for key, value in about.items() if key not in ABOUT or found.get(key) != value}
    if changed and changed not in found.get("resumed_with", []):
        found["resumed_with"] = [*found.get("resumed_with", []), changed]
        write_atomically(record, json.dumps(found, indent=2) + "\n")


def check_names(sequence_names: Sequence[str], tracker_name: str) -> None:
    """Raises ResultsError for names whose files would overwrite each other or lie outside the results."""
    names = (tracker_name, *sequence_names)
    astray = [repr(name) for name in names if name in ("", ".", "..") or Path(name).name != name]
    if astray:
        raise ResultsError(f"trackers and sequences need plain file names, and these are none: {', '.join(astray)}")
    uses = Counter(name + suffix for name in sequence_names for suffix in ("", *SIDE_FILES))
    clashes = [file for file, count in uses.items() if count > 1]
    if clashes:
        raise ResultsError(f"several sequences would write the same files: {', '.join(clashes)}; rename one")


def rows_of_text(values: Float[np.ndarray, "n k"], decimals: int) -> str:
    """One line a row, with commas."""
    return "".join(",".join(f"{value:.{decimals}f}" for value in row) + "\n" for row in values)
