"""Packing: the surroundings of every target, cut once and kept in ArrayRecord shards, for fast training.
A frame becomes up to three pieces around its target (or its middle, where that is absent): for templates, for search
crops, and for those that are zoomed out. Samples differ from the folders' by JPEG and resampling only."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from mixformer_jax.data.pairs import absent_frames, centre_box, usable_frames
from mixformer_jax.datasets.frame_parts import (
    PACKING,
    FrameArea,
    StoredPart,
    encode_annotations,
    encode_fault,
    encode_frame,
    shard_name,
)
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset
from mixformer_jax.files import is_mangled_address, whole_file, write_atomically
from mixformer_jax.media.images import SourceError
from mixformer_jax.typed_settings import Count, CropFactor, NotNegative, Range, TypedSettings
from mixformer_jax.views import shrunk

MARGIN = 2  # pixels more on each side, for rounding
TEMPLATE_SHARE, ZOOMED_OUT_SHARE = 1.2, 0.6  # of `target_side`


@dataclass(frozen=True)
class PackConfig(TypedSettings):
    """What is kept. The defaults serve every experiment of the paper: factors, jitter and zoom are its largest."""

    # Targets are shrunk until sqrt(w * h) is at most this; for templates 1.2 times this, for zoomed-out search crops
    # 0.6 times. The paper's crops show 64 pixels of a target, the large models' 96 and 85.
    target_side: Annotated[float, Range(16, 10_000)] = 80.0
    quality: Annotated[int, Range(1, 100)] = 90  # of the JPEGs
    lossless: bool = False  # PNGs of full resolution instead; several times as large
    template_factor: CropFactor = 2.0  # these four as in `CropConfig`
    search_factor: CropFactor = 5.0
    centre_jitter: NotNegative = 4.5
    max_zoom: Annotated[float, Range(1, 100)] = 2.5
    frames_per_shard: Count = 4096  # a shard ends with the sequence that brings it to so many frames


class PackReport(NamedTuple):
    """What packing has done."""

    frames: int  # packed now
    kept_shards: int  # were there already
    nbytes: int  # written now
    faults: tuple[str, ...]  # sequences and frames that could not be read, with their files


def pack(dataset: Dataset, out: Path, config: PackConfig, workers: int = 1, progress: bool = False) -> PackReport:
    """Packs a data set. Started again on the same folder, it goes on; a shard is there whole or not at all.

    What cannot be read is noted in its place, so that training meets it as it does in the folders. `workers` are
    processes.

    Raises DatasetError: `out` holds another data set, or one packed in another way, or is no folder of this machine.
    """
    if is_mangled_address(out):
        raise DatasetError(
            f"{out}: an address; pack into a folder of this machine and copy that there, see docs/pod.md"
        )
    out.mkdir(parents=True, exist_ok=True)
    shards = _plan(dataset, out, config, progress)
    todo = [number for number in range(len(shards)) if not (out / f"{shard_name(number)}.json").is_file()]
    job = functools.partial(_pack_shard, dataset, out, config)
    ranges = [(number, *shards[number][:2]) for number in todo]
    reports: list[PackReport] = []
    total = sum(shards[number][2] for number in todo)
    with contextlib.ExitStack() as stack:
        bar = tqdm(total=total, unit=" frames", desc="packing", disable=not progress or None, mininterval=1)
        stack.enter_context(bar)
        run: Callable[..., Iterator[PackReport]] = map
        if min(workers, len(todo)) > 1:
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(min(workers, len(todo)), mp_context=context)).map
        for report in run(job, ranges):
            reports.append(report)
            bar.update(report.frames)
    faults = tuple(fault for report in reports for fault in report.faults)
    frames, nbytes = (sum(getattr(report, name) for report in reports) for name in ("frames", "nbytes"))
    return PackReport(frames, len(shards) - len(todo), nbytes, faults)


def _plan(dataset: Dataset, out: Path, config: PackConfig, progress: bool) -> list[tuple[int, int, int]]:
    """First sequence, end and number of frames of every shard; written down, and read back where it already is."""
    path = out / PACKING
    settings = {
        "dataset": dataset.name,
        "root": str(dataset.root.resolve()),
        "sequences": len(dataset),
        "keys_sha256": hashlib.sha256("\n".join(dataset.keys).encode("utf-8")).hexdigest(),
        **dataclasses.asdict(config),
    }
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetError(f"{path}: damaged: {error}; give another folder") from error
        changed = [key for key in settings if there.get(key) != settings[key]]
        different = [f"{key}: {there.get(key)!r} there, {settings[key]!r} now" for key in changed]
        if changed == ["keys_sha256"]:
            different = ["the names of its sequences or their order (another split or list)"]
        if different:
            raise DatasetError(f"{out} holds something else; give another folder, or undo: {'; '.join(different)}")
        return [tuple(shard) for shard in there["shards"]]
    shards, first, frames = [], 0, 0
    keys = tqdm(range(len(dataset)), unit=" sequences", desc="planning", disable=not progress or None, mininterval=1)
    for index in keys:
        with contextlib.suppress(DatasetError, SourceError):  # told when it is packed
            frames += len(dataset[index])
        if frames >= config.frames_per_shard or index == len(dataset) - 1:
            shards.append((first, index + 1, frames))
            first, frames = index + 1, 0
    write_atomically(path, json.dumps({**settings, "shards": shards}, indent=1))
    return shards


def _pack_shard(dataset: Dataset, out: Path, config: PackConfig, shard: tuple[int, int, int]) -> PackReport:
    from array_record.python.array_record_module import ArrayRecordWriter

    cv2.setNumThreads(1)
    number, first, end = shard
    path = out / f"{shard_name(number)}.array_record"
    listing, faults = [], []
    frames = nbytes = records = 0
    with whole_file(path) as unfinished:
        # One record a group: any record is read without its neighbours. Images are compressed already.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1,uncompressed")
        for index in range(first, end):
            listing.append((dataset.keys[index], records))
            for record, fault in _sequence_records(dataset, index, config):
                with _named_errors(path):
                    writer.write(record)
                records += 1
                nbytes += len(record)
                if fault is not None:
                    faults.append(fault)
            frames += records - listing[-1][1] - 1
        with _named_errors(path):
            writer.close()
    write_atomically(out / f"{shard_name(number)}.json", json.dumps(listing))
    return PackReport(frames, 0, nbytes, tuple(faults))


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """ArrayRecord has a RuntimeError for a full disk, which names the unfinished file."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written; is the disk full? {error}") from error


def _sequence_records(dataset: Dataset, index: int, config: PackConfig) -> Iterator[tuple[bytes, str | None]]:
    """Annotations, then frames; each with what was wrong, if anything was."""
    try:
        sequence = dataset[index]
        sequence.require_frames()
    except (DatasetError, SourceError) as error:
        yield encode_fault(str(error)), str(error)
        return
    yield encode_annotations(sequence), None
    known = usable_frames(sequence, hidden_too=True)
    absent = frozenset(absent_frames(sequence).tolist())
    shown: tuple[int, np.ndarray] | None = None
    for number in range(len(sequence)):
        try:
            if not (sequence.is_still and shown):
                shown = number, sequence.frame(number)
        except SourceError as error:
            yield encode_fault(str(error)), str(error)
            continue
        pixels = shown[1]
        # A target that is hidden may have a box: templates are cut around it, and negative samples around the middle.
        # A published row without area that nothing marks is neither, is never drawn, and needs a record all the same.
        boxes_xywh = [sequence.boxes_xywh[number]] if known[number] else []
        if number in absent or not known[number]:
            boxes_xywh.append(centre_box(pixels.shape[:2]))
        yield pack_frame(pixels, np.stack(boxes_xywh), config), None


def pack_frame(pixels: UInt8[np.ndarray, "h w c"], boxes_xywh: Float[np.ndarray, "*n 4"], config: PackConfig) -> bytes:
    """The record of one frame: its pieces around a box, or around each of several.
    Raises DatasetError: a frame with a second stream."""
    if pixels.shape[2] != 3:
        raise DatasetError("frames with a second stream are not packed: train on the data set as it is published")
    parts = [part for box_xywh in boxes_xywh.reshape(-1, 4) for part in _pieces(pixels, box_xywh, config)]
    return encode_frame((pixels.shape[0], pixels.shape[1]), parts)


def _pieces(
    pixels: UInt8[np.ndarray, "h w 3"], box_xywh: Float[np.ndarray, "4"], config: PackConfig
) -> list[StoredPart]:
    height, width = pixels.shape[:2]
    x, y, w, h = box_xywh.tolist()
    side = math.sqrt(w * h)
    reach = config.search_factor + config.centre_jitter
    zoomed_out = reach * config.max_zoom
    parts: list[StoredPart] = []
    for context, share in ((config.template_factor, TEMPLATE_SHARE), (reach, 1.0), (zoomed_out, ZOOMED_OUT_SHARE)):
        half = context * side / 2 + MARGIN
        left, top = max(0, math.floor(x + w / 2 - half)), max(0, math.floor(y + h / 2 - half))
        right, bottom = min(width, math.ceil(x + w / 2 + half)), min(height, math.ceil(y + h / 2 + half))
        covers = FrameArea(left, top, right - left, bottom - top)
        if min(covers.width, covers.height) <= 0 or (parts and parts[-1].covers == covers):
            continue
        piece = pixels[top:bottom, left:right]
        if config.lossless:
            suffix, options = ".png", [cv2.IMWRITE_PNG_COMPRESSION, 1]
        else:
            piece = shrunk(piece, config.target_side * share / side)
            suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, config.quality]
        encoded = cv2.imencode(suffix, cv2.cvtColor(piece, cv2.COLOR_RGB2BGR), options)[1]
        parts.append(StoredPart(covers, encoded.tobytes()))
    return parts
