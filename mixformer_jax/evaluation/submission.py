"""Packing results for the evaluation servers of GOT-10k and TrackingNet, which keep their ground truth to themselves.

    GOT-10k      <sequence>/<sequence>_001.txt ... (at most three repetitions), <sequence>/<sequence>_time.txt
    TrackingNet  <sequence>.txt

Boxes are x,y,w,h in pixels, one line a frame, the first the given box. Everything is checked before anything is
written.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.result_looks import OTHER, look_at
from mixformer_jax.evaluation.results import ResultsError, read_boxes, read_times, rows_of_text
from mixformer_jax.evaluation.scoring import ResultFolder, SequenceNames, runs_of
from mixformer_jax.files import write_atomically

MAX_REPETITIONS = 3
# Sequences of the servers' test sets.
TEST_SEQUENCES: Mapping[str, int] = MappingProxyType({"got10k": 180, "trackingnet": 511})
# Trackers that write whole pixels move the given box by less than this.
FIRST_BOX_TOLERANCE = 1.0
# Beyond so many, a message lists no further problems.
SHOWN_PROBLEMS = 20


class Pack(NamedTuple):
    """What a written archive holds."""

    path: Path
    sequences: int
    frames: int
    repetitions: int  # the most that a sequence has


class _Result(NamedTuple):
    boxes_xywh: list[Float64[np.ndarray, "n 4"]]  # by repetition
    times_s: Float64[np.ndarray, "n k"] | None = None


def pack_results(benchmark: str, folder: str | Path, sequences: Iterable[TrackingSequence], out: str | Path) -> Pack:
    """Writes the archive (.zip) of one tracker that a server takes.

    Args:
        benchmark: one of TEST_SEQUENCES.
        folder: the tracker's results, in our layout or in GOT-10k's. Where there is none of that name, but `<name>_000`
            and so on, each is a repetition.
        sequences: of the test set, with the first box of each; the frames are not read.

    Raises:
        ResultsError: anything that the server would refuse or take wrongly: sequences that are missing, of another
            length than the video, from another first box, with unusable boxes or times. All are named.
        ValueError: an unknown benchmark, or an archive of another kind.
    """
    if benchmark not in TEST_SEQUENCES:
        raise ValueError(f"no server for {benchmark!r} is known; known: {', '.join(TEST_SEQUENCES)}")
    folder, out = Path(folder), Path(out)
    if out.suffix != ".zip":
        raise ValueError(f"{out}: the servers take .zip archives")
    sequences = list(sequences)
    names = SequenceNames((sequence.name for sequence in sequences), benchmark)
    runs = [folder] if folder.is_dir() else [folder.with_name(run) for run in runs_of(folder.parent, folder.name)]
    if not runs:
        raise ResultsError(f"{folder}: no such folder; expected the results of one tracker")
    folders = [ResultFolder(run, names) for run in runs]
    results: dict[str, _Result] = {}
    problems = []
    for sequence in sequences:
        if sequence.name in results:
            raise ResultsError(f"two sequences are named {sequence.name}; their files would overwrite each other")
        try:
            results[sequence.name] = _check(benchmark, folders, sequence)
        except ResultsError as error:
            problems.append(str(error))
    if problems:
        shown = "\n  ".join(problems[:SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ResultsError(f"{len(problems)} sequences cannot be submitted; nothing was written:\n  {shown}{more}")
    if not results:
        raise ResultsError("the data set has no sequences; nothing was written")

    out.parent.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, result in results.items():
            for member, text in _members(name, result):
                # A fixed date: the same results give the same bytes.
                file.writestr(zipfile.ZipInfo(member), text, zipfile.ZIP_DEFLATED)
    write_atomically(out, archive.getvalue())
    frames = sum(len(result.boxes_xywh[0]) for result in results.values())
    return Pack(out, len(results), frames, max(len(result.boxes_xywh) for result in results.values()))


def _check(benchmark: str, folders: list[ResultFolder], sequence: TrackingSequence) -> _Result:
    """What the server is to have of a sequence."""
    by_folder = [folder.boxes(sequence.name) for folder in folders]
    lacking = [folder.path for folder, found in zip(folders, by_folder, strict=True) if not found]
    if lacking:
        raise ResultsError(f"{lacking[0] / sequence.name}.txt: no such file; run the tracker on this sequence")
    paths, where = [path for found in by_folder for path in found], folders[0].path / sequence.name
    if benchmark == "trackingnet":
        if len(paths) > 1:
            raise ResultsError(f"{where}: {len(paths)} repetitions; TrackingNet's server takes one")
        return _Result(_read_repetitions(paths, sequence))
    if len(paths) > MAX_REPETITIONS:
        raise ResultsError(f"{where}: {len(paths)} repetitions; the server takes {MAX_REPETITIONS}")
    boxes_xywh = _read_repetitions(paths, sequence)
    times_s = read_times([path for folder in folders for path in folder.times(sequence.name)])
    if times_s is None:
        raise ResultsError(f"{where}_time.txt: no such file; the server wants the seconds of every frame")
    if times_s.shape != (len(sequence), len(paths)):
        found, wanted = " x ".join(map(str, times_s.shape)), f"{len(sequence)} x {len(paths)}"
        raise ResultsError(
            f"{where}_time.txt: {found} times; expected {wanted}, a line a frame and a column a repetition"
        )
    if not np.isfinite(times_s).all():
        raise ResultsError(f"{where}_time.txt: NaN among the times")
    return _Result(boxes_xywh, times_s)


def _read_repetitions(paths: list[Path], sequence: TrackingSequence) -> list[Float64[np.ndarray, "n 4"]]:
    if len(sequence) == 1 and not sequence.has_frames:
        raise ResultsError(
            f"{sequence.root}: no frames, and of a test set the first box alone is published, so that only they tell "
            f"the length of {sequence.name}"
        )
    repetitions = []
    for path in paths:
        boxes_xywh = read_boxes(path)
        if len(boxes_xywh) != len(sequence):
            raise ResultsError(f"result file {path}: {len(boxes_xywh)} boxes for {len(sequence)} frames")
        first_xywh = sequence.boxes_xywh[0]
        if not (np.abs(boxes_xywh[0] - first_xywh) <= FIRST_BOX_TOLERANCE).all():
            look = look_at(boxes_xywh[:1], sequence.boxes_xywh[:1]).format
            hint = "" if look in (None, OTHER) else f"; it looks like {look}"
            raise ResultsError(
                f"result file {path}, line 1: {boxes_xywh[0].tolist()} is not the given box {first_xywh.tolist()}{hint}"
            )
        repetitions.append(boxes_xywh)
    return repetitions


def _members(name: str, result: _Result) -> Iterator[tuple[str, str]]:
    """A sequence's part of the archive: TrackingNet's server wants no times, GOT-10k's those of every frame."""
    if result.times_s is None:
        yield f"{name}.txt", rows_of_text(result.boxes_xywh[0], decimals=2)
        return
    for number, boxes_xywh in enumerate(result.boxes_xywh, start=1):
        yield f"{name}/{name}_{number:03d}.txt", rows_of_text(boxes_xywh, decimals=3)
    yield f"{name}/{name}_time.txt", rows_of_text(result.times_s, decimals=8)
