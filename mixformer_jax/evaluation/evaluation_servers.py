"""The evaluation servers of GOT-10k and TrackingNet: their measures, which differ from OPE's, and archives for them.

GOT-10k (Huang et al. 2019; got10k toolkit): AO, SR and the success curve, as fractions. The first frame and those of
cover 0 do not count, frames are pooled over sequences and repetitions, and both boxes are first clipped to the image.

TrackingNet (Müller et al. 2018; dev kit metrics.py, which the server runs): areas under three curves, and coverage, in
percent. "Precision" and "Normalized Precision" are areas too, and all boxes are rounded to whole pixels.

Archives hold x,y,w,h in pixels, one line a frame, the first the given box: <sequence>/<sequence>_001.txt and so on, and
<sequence>/<sequence>_time.txt for GOT-10k, <sequence>.txt for TrackingNet.
"""

import configparser
import dataclasses
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from mixformer_jax.boxes import MAX_PIXELS
from mixformer_jax.datasets.groundtruth import DatasetError, read_labels
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import Curves, continuous_overlap, intersection_and_union, stack_curves
from mixformer_jax.evaluation.result_looks import OTHER, look_at
from mixformer_jax.evaluation.results import ResultsError, read_boxes, read_times, rows_of_text
from mixformer_jax.evaluation.scoring import ResultFolder, SequenceNames, runs_of
from mixformer_jax.files import write_atomically

SUCCESS_THRESHOLDS: Float64[np.ndarray, " 101"] = np.linspace(0, 1, 101)
SUCCESS_THRESHOLDS.flags.writeable = False
HIDDEN = "the ground truth is hidden; GOT-10k's test subset is scored by its server (mixformer pack)"


class FrameLabels(NamedTuple):
    """GOT-10k's annotations beside the boxes."""

    cover: Int[np.ndarray, " n"]  # 0..8, eighths of the target in view
    size: tuple[int, int]  # width and height of the frames


@dataclasses.dataclass(frozen=True)
class Got10kScores:
    """One tracker on a subset of GOT-10k."""

    # By sequence, repetitions one after another: IoU of the frames that count; seconds a frame, None where not kept.
    overlaps: tuple[Float64[np.ndarray, " _"], ...]
    times_s: tuple[Float64[np.ndarray, " _"] | None, ...]

    @property
    def headline(self) -> dict[str, float]:
        """AO, SR0.5 and SR0.75 in percent, and FPS, the mean of 1 / t; of the frames of all sequences."""
        known = (times_s for times_s in self.times_s if times_s is not None)
        return _got10k_numbers(np.concatenate(self.overlaps), np.concatenate([np.empty(0), *known]))

    @property
    def by_sequence(self) -> dict[str, Float64[np.ndarray, " s"]]:
        """The same by sequence; NaN without frames or times."""
        parts = zip(self.overlaps, self.times_s, strict=True)
        rows = [_got10k_numbers(overlaps, np.empty(0) if times is None else times) for overlaps, times in parts]
        return {number: np.array([row[number] for row in rows]) for number in rows[0]}

    @property
    def success_curve(self) -> Float64[np.ndarray, " 101"]:
        """Fractions of frames with IoU > t at the SUCCESS_THRESHOLDS."""
        overlaps = np.sort(np.concatenate(self.overlaps))
        if not overlaps.size:
            return np.full(len(SUCCESS_THRESHOLDS), np.nan)
        return 1 - np.searchsorted(overlaps, SUCCESS_THRESHOLDS, side="right") / len(overlaps)

    @property
    def toolkit_fps(self) -> Float64[np.ndarray, " s"]:
        """FPS by sequence as the toolkit reports it: without times, that of the sequence before."""
        speeds = self.by_sequence["FPS"]
        for index in range(1, len(speeds)):
            if self.times_s[index] is None:
                speeds[index] = speeds[index - 1]
        return speeds


def _got10k_numbers(overlaps: Float64[np.ndarray, " _"], times_s: Float64[np.ndarray, " _"]) -> dict[str, float]:
    rates = {f"SR{threshold}": 100 * _mean(overlaps > threshold) for threshold in (0.5, 0.75)}
    return {"AO": 100 * _mean(overlaps), **rates, "FPS": _mean(1 / times_s[times_s > 0])}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def read_frame_labels(sequence: TrackingSequence) -> FrameLabels:
    """cover.label, and the resolution in meta_info.ini, of a sequence's folder; DatasetError where one is missing, as
    in the test subset, or not as published."""
    if len(sequence) > 1 and np.isnan(sequence.boxes_xywh[1:]).all():
        raise DatasetError(f"{sequence.root}: {HIDDEN}")
    cover = read_labels(sequence.root / "cover.label", expected_length=len(sequence))
    path, meta = sequence.root / "meta_info.ini", configparser.ConfigParser(interpolation=None)
    try:
        meta.read_string(path.read_text(encoding="utf-8"), source=str(path))
        resolution = meta["METAINFO"]["resolution"]
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; it has the frame's size, to which boxes are clipped") from None
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: no `resolution: (width, height)` under [METAINFO]: {error}") from error
    match = re.fullmatch(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)", resolution.strip(), re.ASCII)
    if match is None or min(int(match[1]), int(match[2])) < 1:
        raise DatasetError(f"{path}: resolution is {resolution!r}; expected (width, height)")
    return FrameLabels(cover, (int(match[1]), int(match[2])))


def sequence_overlaps(
    boxes_xywh: Float[np.ndarray, "n 4"], groundtruth_xywh: Float[np.ndarray, "m 4"], labels: FrameLabels
) -> Float64[np.ndarray, " _"]:
    """IoU of the frames that count: all but the first, with cover > 0 (absence.label is ignored); ValueError for
    another number of boxes than of frames, or NaN ground truth where the target is in view."""
    if len(boxes_xywh) != len(groundtruth_xywh):
        raise ValueError(f"{len(boxes_xywh)} predicted boxes for {len(groundtruth_xywh)} frames; every frame needs one")
    counted = labels.cover > 0
    counted[0] = False
    boxes, truth = (clip_to_frame(each[counted], labels.size) for each in (boxes_xywh, groundtruth_xywh))
    if np.isnan(truth).any():
        raise ValueError(HIDDEN)
    return continuous_overlap(boxes, truth)


def clip_to_frame(boxes_xywh: Float[np.ndarray, "n 4"], size: tuple[int, int]) -> Float64[np.ndarray, "n 4"]:
    """Clips to a frame of width x height as the toolkit does: first the corner, then the extent. A corner left of the
    frame moves the box instead of shortening it: x = -10, w = 50 becomes x = 0, w = 50."""
    corner = np.clip(boxes_xywh[:, :2], 0.0, size)
    extent = np.clip(boxes_xywh[:, 2:], 0.0, np.array(size) - corner)
    return np.concatenate([corner, extent], axis=1)


# Of TrackingNet: IoU, pixels, and normalised centre error.
THRESHOLDS = Curves(np.linspace(0, 1, 21), np.linspace(0, 50, 21), np.linspace(0, 0.5, 21))
for _thresholds in THRESHOLDS:
    _thresholds.flags.writeable = False


def _areas(curves: Curves) -> dict[str, Float64[np.ndarray, " *batch"]]:
    """Success, P and P_norm of TrackingNet: percent of a perfect tracker's area, by trapezoids over 20 intervals."""
    found = (np.asarray(100 * (curve[..., :-1] + curve[..., 1:]).sum(-1) / 2 / 20) for curve in curves)
    return dict(zip(("Success", "P", "P_norm"), found, strict=True))


@dataclasses.dataclass(frozen=True)
class TrackingNetScores:
    """One tracker on TrackingNet."""

    curves: Curves  # first axis: sequences; rates of frames with IoU >= t
    covered: tuple[Bool[np.ndarray, " _"], ...]  # by sequence: frames for which the tracker gave a box

    @property
    def headline(self) -> dict[str, float]:
        """Success, P, P_norm and Coverage in percent."""
        means = {name: float(area) for name, area in _areas(self.curves.mean()).items()}
        return {**means, "Coverage": 100 * float(np.concatenate(self.covered).mean())}

    @property
    def by_sequence(self) -> dict[str, Float64[np.ndarray, " s"]]:
        """Success, P and P_norm in percent."""
        return _areas(self.curves)


def score_sequences(
    boxes_xywh: Mapping[str, Float[np.ndarray, "_ 4"] | None], groundtruth_xywh: Mapping[str, Float[np.ndarray, "_ 4"]]
) -> TrackingNetScores:
    """Scores one tracker on every sequence of the ground truth, by name; a missing result counts as 0,0,0,0 in all
    frames but the first. ValueError names a sequence of more boxes than frames or a ground truth that is not finite,
    and is raised for no sequences."""
    if not groundtruth_xywh:
        raise ValueError("the ground truth has no sequences")
    scored = []
    for name, truth in groundtruth_xywh.items():
        boxes = boxes_xywh.get(name)
        boxes = np.zeros_like(truth) if boxes is None else boxes
        if len(boxes) > len(truth):
            raise ValueError(f"{name}: {len(boxes)} predicted boxes for {len(truth)} frames")
        if not (np.abs(truth) <= MAX_PIXELS).all():
            raise ValueError(f"{name}: the ground truth is not finite; TrackingNet's test set is scored by its server")
        scored.append(score_sequence(boxes, truth))
    curves, covered = zip(*scored, strict=True)
    return TrackingNetScores(stack_curves(curves), covered)


def score_sequence(
    boxes_xywh: Float[np.ndarray, "m 4"], groundtruth_xywh: Float[np.ndarray, "n 4"]
) -> tuple[Curves, Bool[np.ndarray, " n"]]:
    """The three curves of one sequence, and which frames have a box (x + y + w + h > 0). All boxes are rounded to whole
    pixels (half to even); the first is the ground truth's. Missing rows at the end fail at every threshold, 0
    included."""
    truth = np.round(groundtruth_xywh.astype(np.float64))
    boxes = np.full_like(truth, np.nan)
    boxes[: len(boxes_xywh)] = np.round(boxes_xywh)
    boxes[0] = truth[0]
    # A true box without area gives NaN or infinity, which no threshold reaches.
    with np.errstate(divide="ignore", invalid="ignore"):
        # A missing row is NaN, and so is its overlap.
        intersection, union = intersection_and_union(boxes, truth)
        offset = (boxes[:, :2] + boxes[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)
        distance = np.sqrt((offset**2).sum(1))
        norm_distance = np.sqrt(((offset / truth[:, 2:]) ** 2).sum(1))
        curves = Curves(
            ((intersection / union)[:, None] >= THRESHOLDS.success).mean(0),
            (distance[:, None] <= THRESHOLDS.precision).mean(0),
            (norm_distance[:, None] <= THRESHOLDS.norm_precision).mean(0),
        )
        return curves, boxes.sum(1) > 0


MAX_REPETITIONS = 3  # that GOT-10k's server takes
# Numbers of sequences of the servers' test sets.
TEST_SEQUENCES: Mapping[str, int] = {"got10k": 180, "trackingnet": 511}
# Whole pixels move the given box by less than this.
FIRST_BOX_TOLERANCE = 1.0
SHOWN_PROBLEMS = 20  # in one message


class Pack(NamedTuple):
    path: Path
    sequences: int
    frames: int
    repetitions: int  # the most that a sequence has


def pack_results(benchmark: str, folder: str | Path, sequences: Iterable[TrackingSequence], out: str | Path) -> Pack:
    """Writes the archive (.zip) of one tracker for a server. Everything is checked before anything is written.

    Args:
        benchmark: one of TEST_SEQUENCES.
        folder: the tracker's results, in our layout or in GOT-10k's. Where there is none of that name, each of
            `<name>_000` and so on is a repetition.
        sequences: of the test set, with the first box of each; no frames are read.

    Raises:
        ResultsError: what the server would refuse or misread: sequences that are missing, of another length than the
            video, from another first box, with unusable boxes or times. All are named.
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
    results: dict[str, tuple[list[Float64[np.ndarray, "n 4"]], Float64[np.ndarray, "n k"] | None]] = {}
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
        for name, (repetitions, times_s) in results.items():
            if times_s is None:
                members = {f"{name}.txt": rows_of_text(repetitions[0], decimals=2)}
            else:
                texts = [rows_of_text(boxes_xywh, decimals=3) for boxes_xywh in repetitions]
                members = {f"{name}/{name}_{number:03d}.txt": text for number, text in enumerate(texts, start=1)}
                members[f"{name}/{name}_time.txt"] = rows_of_text(times_s, decimals=8)
            for member, text in members.items():
                # `ZipInfo` has a fixed date: the same results give the same bytes.
                file.writestr(zipfile.ZipInfo(member), text, zipfile.ZIP_DEFLATED)
    write_atomically(out, archive.getvalue())
    lengths = [(len(repetitions[0]), len(repetitions)) for repetitions, _ in results.values()]
    return Pack(out, len(results), sum(frames for frames, _ in lengths), max(count for _, count in lengths))


def _check(
    benchmark: str, folders: list[ResultFolder], sequence: TrackingSequence
) -> tuple[list[Float64[np.ndarray, "n 4"]], Float64[np.ndarray, "n k"] | None]:
    """The boxes of each repetition and, for GOT-10k's server, their times, if the server would take them."""
    by_folder = [folder.boxes(sequence.name) for folder in folders]
    lacking = [folder.path for folder, found in zip(folders, by_folder, strict=True) if not found]
    if lacking:
        raise ResultsError(f"{lacking[0] / sequence.name}.txt: no such file; run the tracker on this sequence")
    paths, where = [path for found in by_folder for path in found], folders[0].path / sequence.name
    if benchmark == "trackingnet" and len(paths) > 1:
        raise ResultsError(f"{where}: {len(paths)} repetitions; TrackingNet's server takes one")
    if len(paths) > MAX_REPETITIONS:
        raise ResultsError(f"{where}: {len(paths)} repetitions; the server takes {MAX_REPETITIONS}")
    if len(sequence) == 1 and not sequence.has_frames:
        raise ResultsError(
            f"{sequence.root}: no frames, from which alone the length of {sequence.name} is known: of a test set only "
            "the first box is published"
        )
    repetitions = [_read_repetition(path, sequence) for path in paths]
    if benchmark == "trackingnet":
        return repetitions, None
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
    return repetitions, times_s


def _read_repetition(path: Path, sequence: TrackingSequence) -> Float64[np.ndarray, "n 4"]:
    boxes_xywh, first_xywh = read_boxes(path), sequence.boxes_xywh[0]
    if len(boxes_xywh) != len(sequence):
        raise ResultsError(f"result file {path}: {len(boxes_xywh)} boxes for {len(sequence)} frames")
    if not (np.abs(boxes_xywh[0] - first_xywh) <= FIRST_BOX_TOLERANCE).all():
        look = look_at(boxes_xywh[:1], sequence.boxes_xywh[:1]).format
        hint = "" if look in (None, OTHER) else f"; it looks like {look}"
        raise ResultsError(
            f"result file {path}, line 1: {boxes_xywh[0].tolist()} is not the given box {first_xywh.tolist()}{hint}"
        )
    return boxes_xywh
