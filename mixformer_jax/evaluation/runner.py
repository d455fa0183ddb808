"""Runs a tracker over a data set and writes its result files; nothing is scored here."""

import dataclasses
import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from tqdm import tqdm

from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.evaluation import results
from mixformer_jax.evaluation.lane_loop import Clock, Job, explain
from mixformer_jax.evaluation.results import ResultPaths, ResultsError, printable
from mixformer_jax.evaluation.vot import read_anchors
from mixformer_jax.evaluation.vot_regions import read_regions
from mixformer_jax.evaluation.workers import Crew
from mixformer_jax.files import write_atomically
from mixformer_jax.media.images import SourceError
from mixformer_jax.media.video import Frame

logger = logging.getLogger(__name__)

FAILURES_LOG = "failures.log"


class Pass(NamedTuple):
    """A run through a sequence, from its first frame or from an anchor of VOT."""

    label: str  # for messages
    sequence: TrackingSequence  # frames in tracking order
    anchor: int = 0  # number of the first frame


def passes(dataset: str, sequence: TrackingSequence) -> list[Pass]:
    """The passes that a data set asks for: VOT's go from every anchor to an end of the video, forward or backward.
    DatasetError for a sequence of VOT without anchors, ResultsError for an `anchor.value` that is no list of
    numbers."""
    if results.LAYOUTS.get(dataset) != "vot":
        return [Pass(sequence.name, sequence)]
    anchors = read_anchors(sequence.root, len(sequence))
    if not anchors:
        raise DatasetError(
            f"{sequence.root / 'anchor.value'}: no anchors; VOT's runs start from the frames that this file marks. "
            "Earlier years restarted trackers after failures instead, which is not supported: use vot-toolkit"
        )
    runs = []
    for anchor, backward in sorted(anchors):
        indices = range(anchor, -1, -1) if backward else range(anchor, len(sequence))
        boxes_xywh, frame = sequence.boxes_xywh[list(indices)], functools.partial(_frame_of, sequence.frame, indices)
        run = dataclasses.replace(sequence, boxes_xywh=boxes_xywh, frame=frame, visible=None)
        runs.append(Pass(f"{sequence.name}, {'backward' if backward else 'forward'} from frame {anchor}", run, anchor))
    return runs


def _frame_of(frame: Callable[[int], Frame], indices: range, index: int) -> Frame:
    return frame(indices[index])


class Failure(NamedTuple):
    sequence: str
    reason: str


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """What a run did. Each repetition, and each of VOT's runs, counts as a sequence."""

    folders: tuple[Path, ...]  # of the results, one a repetition; in GOT-10k's layout they share one
    finished: tuple[str, ...]  # tracked in this run
    skipped: tuple[str, ...]  # finished before
    failures: tuple[Failure, ...]
    clock: Clock  # summed over workers
    seconds: float  # from the first job to the last result
    step_times_s: Float64[np.ndarray, " n"]  # of the sequences finished in this run
    num_workers: int
    equal_repetitions: int | None  # number of sequences with equal boxes in all repetitions; None for a single one


def is_finished(paths: ResultPaths, first_box_xywh: Float[np.ndarray, " 4"], length: int) -> bool:
    """Whether the file can be read and holds a box for each frame, starting with the given one."""
    if not paths.boxes.exists():
        return False
    try:
        if paths.starts_with_code:
            return len(read_regions(paths.boxes)) == length
        boxes_xywh = results.read_boxes(paths.boxes)
    except ResultsError:
        return False
    return len(boxes_xywh) == length and np.allclose(boxes_xywh[0], first_box_xywh, rtol=0, atol=1e-4)


def run_dataset(
    crew: Crew,
    sequences: Dataset | Sequence[TrackingSequence],
    out_dir: str | Path,
    tracker_name: str,
    settings: Mapping[str, Any],
    dataset: str = "folder",
    repetitions: int = 1,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> RunSummary:
    """Tracks every sequence that has no finished result yet.

    May be killed and called again: a sequence's files appear whole or not at all. A sequence that cannot be read or
    tracked leaves no result, and the others go on; tracebacks of unexpected errors are in `failures.log` in the (first)
    tracker's folder.

    Args:
        out_dir: holds the tracker's folders, named after `tracker_name`.
        settings: what decides the results (weights, data set); results of other settings in the same folder are
            refused, see `claim_folder`.
        dataset: name of the reader, which decides the layout.
        about: recorded beside the settings, see `claim_folder`.

    Raises:
        ResultsError: names that cannot be files or folders, or a folder that belongs to other settings.
        ValueError: fewer than one repetition.
    """
    if repetitions < 1:
        raise ValueError(f"{repetitions} repetitions; expected at least 1")
    layout = results.LAYOUTS.get(dataset, "pytracking")
    if layout in results.EXPERIMENTS and repetitions > 1:
        raise ValueError(f"{repetitions} repetitions; VOT runs from every anchor once, and long videos once through")
    folders = [Path(out_dir) / folder for folder in results.tracker_folders(layout, tracker_name, repetitions)]
    readable, failures = _read(dataset, sequences)
    results.check_names([ways[0].sequence.name for ways in readable], tracker_name)
    for folder in dict.fromkeys(folders):
        results.claim_folder(folder, settings, about)
    log, traces = folders[0] / FAILURES_LOG, ""
    log.unlink(missing_ok=True)
    planned = [
        (
            way.label if repetitions == 1 else f"{way.label}, repetition {repetition + 1}",
            way.sequence,
            results.result_paths(layout, folder, way.sequence.name, repetition, way.anchor),
        )
        for repetition, folder in enumerate(folders)
        for ways in readable
        for way in ways
    ]
    jobs = [
        Job(number, sequence)
        for number, (_, sequence, paths) in enumerate(planned)
        if not is_finished(paths, sequence.boxes_xywh[0], len(sequence))
    ]

    clock, began = Clock(), time.perf_counter()
    times_s: dict[int, Float64[np.ndarray, " n"]] = {}
    todo, num_frames = {job.number for job in jobs}, sum(len(job.sequence) for job in jobs)
    with tqdm(total=num_frames, unit="frame", desc=tracker_name, disable=None if jobs else True) as progress:
        for outcome in crew.track(jobs, clock, progress.update):
            label, _, paths = planned[outcome.number]
            if outcome.result is None:
                reason = outcome.reason
                with progress.external_write_mode():
                    logger.error("%s failed: %s", printable(label), printable(reason))
                if outcome.trace:
                    traces += f"{printable(label)}\n{outcome.trace}\n"
                    write_atomically(log, traces)
                    reason += f" (traceback in {log})"
                failures.append(Failure(label, reason))
            else:
                results.write_result(paths, outcome.result)
                times_s[outcome.number] = outcome.result.times_s[1:]
            progress.set_postfix_str(f"{len(times_s)} of {len(jobs)} sequences")
    seconds = time.perf_counter() - began
    contents: dict[str, set[bytes | None]] = defaultdict(set)  # by sequence, of its repetitions
    for _, sequence, paths in planned if repetitions > 1 else ():
        contents[sequence.name].add(paths.boxes.read_bytes() if paths.boxes.is_file() else None)
    num_equal = sum(len(each) == 1 and None not in each for each in contents.values())
    return RunSummary(
        folders=tuple(dict.fromkeys(folders)),
        finished=tuple(planned[number][0] for number in sorted(times_s)),
        skipped=tuple(label for number, (label, _, _) in enumerate(planned) if number not in todo),
        failures=tuple(failures),
        clock=clock,
        seconds=seconds,
        step_times_s=np.concatenate([np.empty(0), *times_s.values()]),
        num_workers=crew.num_workers,
        equal_repetitions=None if repetitions == 1 else num_equal,
    )


def describe(summary: RunSummary) -> str:
    """A run in words: counts, speed, where the time went, where the files are, and every failure."""
    what = "sequences" if summary.equal_repetitions is None else "repetitions of sequences"
    lines = [
        f"{len(summary.finished)} {what} tracked, {len(summary.skipped)} were finished before, "
        f"{len(summary.failures)} failed; results in {', '.join(map(str, summary.folders))}"
    ]
    clock = summary.clock
    if summary.finished:
        processes = "" if summary.num_workers == 1 else f" in {summary.num_workers} processes"
        fps = clock.frames / summary.seconds
        lines.append(f"{clock.frames} frames in {summary.seconds:.1f} s: {fps:.1f} frames/s{processes}")
        tracker, wait, rest = (s / clock.total_s for s in (clock.tracker_s, clock.wait_s, clock.rest_s))
        lines.append(f"time: {tracker:.1%} in the tracker, {wait:.1%} waiting for frames, {rest:.1%} rest")
    if summary.step_times_s.size:
        lines.append(f"{1 / np.median(summary.step_times_s):.1f} frames/s in the tracker (median step, no decoding)")
    if summary.equal_repetitions is not None:
        lines.append(f"{summary.equal_repetitions} sequences have the same boxes in all repetitions")
    lines += [f"FAILED {printable(failure.sequence)}: {printable(failure.reason)}" for failure in summary.failures]
    return "\n".join(lines)


def _read(dataset: str, sequences: Dataset | Sequence[TrackingSequence]) -> tuple[list[list[Pass]], list[Failure]]:
    """The passes of each sequence, and the sequences whose annotations cannot be read or that have no frames."""
    found, failures = [], []
    for index in range(len(sequences)):
        try:
            sequence = sequences[index]
            sequence.require_frames()
            found.append(passes(dataset, sequence))
        except (DatasetError, ResultsError, SourceError) as error:
            name = sequences.keys[index] if isinstance(sequences, Dataset) else f"number {index}"
            failures.append(Failure(name, explain(error)[0]))
    return found, failures
