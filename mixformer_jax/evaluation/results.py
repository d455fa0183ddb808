"""Result files: what a tracker said about a sequence, as the toolkits lay it out.

    <results>/<tracker>/<sequence>.txt        x,y,w,h in pixels, one line a frame; the first is the given box
    <results>/<tracker>/<sequence>_time.txt   seconds of each frame inside the tracker, decoding left out
    <results>/<tracker>/<sequence>_score.txt  the tracker's confidence (1 for the given box), if it has one
    <results>/<tracker>/run.json              what made these files; see `claim_folder`

Every file appears whole or not at all, and the boxes come last: where they are, the sequence is finished.

GOT-10k's layout is read as well, with repetitions of a tracker that is not deterministic:

    <results>/<tracker>/<sequence>/<sequence>_001.txt, _002.txt, ...
    <results>/<tracker>/<sequence>/<sequence>_time.txt    seconds, one column a repetition

Files of others may name a sequence otherwise; `result_names` finds them.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.evaluation.layouts import ResultPaths
from mixformer_jax.evaluation.metrics import MAX_COORDINATE
from mixformer_jax.evaluation.number_files import ResultsError, read_numbers
from mixformer_jax.evaluation.result_names import SIDE_FILES
from mixformer_jax.evaluation.vot.regions import read_regions
from mixformer_jax.files import write_atomically

logger = logging.getLogger(__name__)

# Keys of run.json that make no other results of them, see `claim_folder`.
ABOUT = ("model", "benchmark", "table", "changes", "hardware", "versions", "decoder", "resumed_with")


class SequenceResult(NamedTuple):
    """One tracker on one sequence."""

    boxes_xywh: Float64[np.ndarray, "n 4"]
    times_s: Float64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"] | None


def read_boxes(path: str | Path, unusable_boxes: Literal["error", "keep"] = "error") -> Float64[np.ndarray, "n 4"]:
    """Boxes of a result file, x,y,w,h separated by commas, tabs or spaces, one line a frame.

    The six columns x,y,w,h,score,lost of `mixformer track` are read, too.

    Args:
        path: the text file.
        unusable_boxes: whether NaN and negative sizes are an error, or are kept for rules that say what they count.

    Raises:
        ResultsError: missing, empty or not text; a line that is not four numbers, is infinite or too large for
            pixels, or unusable (the line is named).
    """
    rows = read_numbers(path, "x,y,w,h", optional="score,lost")
    boxes_xywh, beside = rows[:, :4], rows[:, 4:]
    if beside.size and not (usual := _are_scores(beside)).all():
        row = int(np.argmin(usual))
        raise ResultsError(
            f"result file {path}, line {row + 1}: {rows[row].tolist()} is not x,y,w,h,score,lost, with a score from 0 "
            "to 1 and lost 0 or 1"
        )
    pixels = np.abs(boxes_xywh) <= MAX_COORDINATE
    if unusable_boxes == "error":
        if pixels.all() and (boxes_xywh[:, 2:] >= 0).all():
            return boxes_xywh
        fine, expected = pixels.all(1) & (boxes_xywh[:, 2:] >= 0).all(1), "finite x,y,w,h with w >= 0 and h >= 0"
    else:
        fine, expected = (pixels | np.isnan(boxes_xywh)).all(1), "x,y,w,h"
    if not fine.all():
        row = int(np.argmin(fine))
        raise ResultsError(
            f"result file {path}, line {row + 1}: {boxes_xywh[row].tolist()} is no box in pixels; expected {expected}, "
            f"of at most {MAX_COORDINATE:g}"
        )
    return boxes_xywh


def read_times(paths: Sequence[Path]) -> Float64[np.ndarray, "n k"] | None:
    """Seconds of each frame, one column a repetition; None where no times were kept.

    Args:
        paths: one file with a column a repetition, or one a repetition; see `result_names.ResultFolder.times`.

    Raises:
        ResultsError: not a table of numbers, a time below zero (file and line are named), or files of other lengths.
    """
    tables: list[Float64[np.ndarray, "n _"]] = []
    for path in paths:
        times_s = read_numbers(path, "seconds,...")
        wrong = np.flatnonzero((times_s < 0).any(1))
        if wrong.size:
            row = times_s[wrong[0]].tolist()
            raise ResultsError(f"result file {path}, line {wrong[0] + 1}: a time below zero, {row}")
        if tables and len(tables[0]) != len(times_s):
            raise ResultsError(f"result files {paths[0]} and {path}: {len(tables[0])} and {len(times_s)} times")
        tables.append(times_s)
    return np.hstack(tables) if tables else None


def _are_scores(beside: Float64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    score, lost = beside.T
    return (score >= 0) & (score <= 1) & ((lost == 0) | (lost == 1))


def write_result(paths: ResultPaths, result: SequenceResult) -> None:
    """Writes a finished sequence into a tracker's folder, boxes last."""
    paths.boxes.parent.mkdir(parents=True, exist_ok=True)
    for path, values in ((paths.times, result.times_s), (paths.scores, result.scores)):
        if values is not None:
            write_atomically(path, _rows(_beside_other_repetitions(path, values, paths.column), decimals=8))
    if paths.starts_with_code:
        write_atomically(paths.boxes, "1\n" + _rows(result.boxes_xywh[1:], decimals=4))
    else:
        write_atomically(paths.boxes, _rows(result.boxes_xywh, decimals=4))


def _beside_other_repetitions(
    path: Path, values: Float64[np.ndarray, " n"], column: int | None
) -> Float64[np.ndarray, "n k"]:
    """What the file of times or scores will hold: NaN, which the toolkit passes over, for repetitions still to come."""
    if column is None:
        return values[:, None]
    there = _read_known(path)[: len(values)]
    table = np.full((len(values), max(there.shape[1], column + 1)), np.nan)
    table[: len(there), : there.shape[1]] = there
    table[:, column] = values
    return table


def _read_known(path: Path) -> Float64[np.ndarray, "n k"]:
    """The numbers of other repetitions: all of a good file, what can be read of a damaged one, none without a file."""
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


def is_finished(paths: ResultPaths, first_box_xywh: Float[np.ndarray, " 4"], length: int) -> bool:
    """Whether the file holds a sequence's boxes: one for each frame, from the same first box.

    A file that cannot be read counts as unfinished.
    """
    if not paths.boxes.exists():
        return False
    try:
        if paths.starts_with_code:
            return len(read_regions(paths.boxes)) == length
        boxes_xywh = read_boxes(paths.boxes)
    except ResultsError:
        return False
    return len(boxes_xywh) == length and np.allclose(boxes_xywh[0], first_box_xywh, rtol=0, atol=1e-4)


def claim_folder(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Makes the tracker's folder, or makes sure that what it holds was made with the same settings.

    Finished sequences are not run again, so without this check a table could mix two trackers, or show
    yesterday's weights under today's name.

    Args:
        folder: of the tracker.
        settings: what results depend on.
        about: what to keep beside them: who made the first of these results. Where a later run has something else
            there, such as another version of a library, that is added under `resumed_with`.

    Raises:
        ResultsError: the folder holds results of other settings, or of unknown ones.
    """
    record = folder / "run.json"
    mend = "give another --tracker-name or --out, or delete that folder"
    if record.exists():
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ResultsError(f"{record}: not JSON ({error}); {mend}") from error
        if not isinstance(found, dict):
            raise ResultsError(f"{record}: no JSON object; {mend}")
        # A record from before compute types were recorded: they followed from the device.
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
        kept = {key: value for key, value in found.items() if key in ABOUT}
        changed = {key: value for key, value in about.items() if kept.get(key) != value}
        if changed and changed not in found.get("resumed_with", []):
            found["resumed_with"] = [*found.get("resumed_with", []), changed]
            write_atomically(record, json.dumps(found, indent=2) + "\n")
        return
    if any(folder.rglob("*.txt")):
        raise ResultsError(f"{folder} holds results without a run.json, so their origin is unknown; {mend}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps({**settings, **about}, indent=2) + "\n")


def check_names(sequence_names: Sequence[str], tracker_name: str) -> None:
    """Refuses names whose files would overwrite each other or lie outside the results.

    Raises:
        ResultsError: naming them.
    """
    names = (tracker_name, *sequence_names)
    astray = [repr(name) for name in names if name in ("", ".", "..") or Path(name).name != name]
    if astray:
        raise ResultsError(f"trackers and sequences need plain file names, and these are none: {', '.join(astray)}")
    uses = Counter(name + suffix for name in sequence_names for suffix in ("", *SIDE_FILES))
    clashes = [file for file, count in uses.items() if count > 1]
    if clashes:
        raise ResultsError(f"several sequences would write the same files: {', '.join(clashes)}; rename one")


def _rows(values: Float64[np.ndarray, "n k"], decimals: int) -> str:
    return "".join(",".join(f"{value:.{decimals}f}" for value in row) + "\n" for row in values)
