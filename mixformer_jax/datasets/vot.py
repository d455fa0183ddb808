"""VOT challenges (https://www.votchallenge.net), short term and long term, as in workspaces of the VOT toolkit."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from mixformer_jax.boxes import MAX_PIXELS
from mixformer_jax.datasets.groundtruth import (
    DatasetError,
    parse_numbers,
    read_labels,
    read_lines,
    read_names,
    read_text,
    shortened,
)
from mixformer_jax.datasets.layout import SequenceFiles, check_listed, find_frames, row_faults, sub_folders
from mixformer_jax.datasets.records import (
    Dataset,
    Frames,
    ImageFrames,
    MissingFrames,
    TrackingSequence,
    two_streams,
)
from mixformer_jax.masks import mask_box_xywh, run_lengths
from mixformer_jax.media.sources import DEFAULT_FPS

DEFAULT_CHANNEL, DEFAULT_DEPTH = "color/%08d.jpg", "depth/%08d.png"
# No frame is larger; beyond it a mask window is a typing error, which would allocate too much.
MAX_MASK_PIXELS = 2**26
# The object of VOTS whose masks are left out of scores.
IGNORED = "_ignore"
UNKNOWN, INITIALIZATION, FAILURE = 0, 1, 2
# Readers of the long-term challenges: a workspace of one's own, that of 2019 to 2021, and that of 2022.
LONG_TERM = ("votlt", "votlt2019", "votlt2022")


@dataclasses.dataclass(frozen=True)
class Special:
    """A code in place of a region."""

    code: int


@dataclasses.dataclass(frozen=True, eq=False)
class Rectangle:
    box_xywh: Float[np.ndarray, " 4"]


@dataclasses.dataclass(frozen=True, eq=False)
class Polygon:
    points_xy: Float[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Pixels of a window with its upper left pixel at `offset_xy` in the frame."""

    pixels: Bool[np.ndarray, "h w"]
    offset_xy: tuple[int, int]


Region = Special | Rectangle | Polygon | Mask


class Metadata(NamedTuple):
    """The description of a VOT sequence; None where its folder does not tell."""

    groundtruth: Path
    frames: str  # pattern of the images in the folder, numbered from 1, such as color/%08d.jpg
    fps: float
    length: int | None
    width: int | None
    height: int | None
    second: str  # pattern of the images of a second stream
    second_is_depth: bool  # or thermal


def read_vot(root: Path, split: str | None = None, name: str = "vot") -> Dataset:
    """A workspace, or its folder `sequences`.

        list.txt                    names of the sequences in order
        agility/sequence            channels.color=color/%08d.jpg, fps=30, length=100, ...; none until VOT2016
        agility/color/00000001.jpg  frames; until VOT2016 beside the ground truth
        agility/groundtruth.txt     a region a line, see `parse_region`: masks in VOT2020 and VOT2022, polygons or
                                    rectangles before, rectangles and rows of nan in the long-term challenges
        agility/*.tag, *.label      0 or 1 a line for the challenges camera_motion, occlusion, ...

    `boxes_xywh` are the boxes around masks or polygons, NaN where there is none; `attributes` the tags that any frame
    has. `name` is the reader's: the frames of vot_rgbd, for VOT-RGBD2022 and VOT-D2022, have the second stream behind
    RGB, or alone where there is no colour (`two_streams`): channels.depth=depth/%08d.png, or channels.ir.

    DatasetError for VOTS, with several objects in a sequence, or masks of what is to be ignored.
    """
    folder = root / "sequences" if (root / "sequences").is_dir() else root
    listing = folder / "list.txt"
    if listing.is_file():
        names = read_names(listing)
        check_listed(names, sub_folders(folder), f"{listing}: {{}} listed sequences have no folder")
    else:
        names = [each for each in sub_folders(folder) if any((folder / each).glob("groundtruth*.txt"))]
    return Dataset(name, root, names, functools.partial(_read_sequence, folder, name))


def _read_sequence(root: Path, dataset: str, name: str) -> TrackingSequence:
    folder = root / name
    metadata = read_metadata(folder)
    lines = read_lines(metadata.groundtruth, "ground truth")
    boxes_xywh = np.empty((len(lines), 4))
    for row, line in enumerate(lines):
        try:
            boxes_xywh[row] = region_box(parse_region(line))
        except ValueError as error:
            raise DatasetError(f"{metadata.groundtruth}, line {row + 1}: {error}") from None

    def find(frames: str) -> ImageFrames | MissingFrames:
        images, _, pattern = frames.rpartition("/")
        return find_frames(SequenceFiles(folder, metadata.groundtruth, folder / images, pattern), len(lines))

    colour = find(metadata.frames)
    frames: Frames = colour
    if dataset == "vot_rgbd":
        frames = two_streams(colour, find(metadata.second), metadata.second_is_depth)
    tags = sorted([*folder.glob("*.tag"), *folder.glob("*.label")])
    # Some published tags end before the last frame.
    attributes = tuple(path.stem for path in tags if read_labels(path)[: len(lines)].any()) if tags else None
    faults = row_faults(dataset, name, metadata.groundtruth, boxes_xywh)
    return TrackingSequence(name, boxes_xywh, frames, metadata.fps, folder, attributes=attributes, faults=faults)


def read_metadata(folder: Path) -> Metadata:
    """Reads the file `sequence`, lines of key=value, which is missing until VOT2016.

    Raises DatasetError for a wrong file or value, or objects as in VOTS.
    """
    path = folder / "sequence"
    lines = read_text(path, "description of the sequence").splitlines() if path.exists() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    settings = {key.strip(): value.strip() for key, _, value in pairs}
    for key in ("length", "width", "height"):
        text = settings.get(key, "1")
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise DatasetError(f"{path}: {key}={text}; expected a whole number from 1 on")
    try:
        fps = float(settings.get("fps", DEFAULT_FPS))
    except ValueError:
        raise DatasetError(f"{path}: fps={settings['fps']}; expected a number") from None
    length, width, height = (int(settings[key]) if key in settings else None for key in ("length", "width", "height"))
    groundtruth = _find_groundtruth(folder, settings.get("groundtruth", "groundtruth.txt"))
    if (colour := settings.get("channels.color", settings.get("channels.default"))) is None:
        beside = next((end for end in (".jpg", ".png") if (folder / f"00000001{end}").is_file()), None)
        colour = DEFAULT_CHANNEL if beside is None or (folder / "color").is_dir() else f"%08d{beside}"
    else:
        colour = _checked_pattern(folder, colour)
    second = _checked_pattern(folder, settings.get("channels.depth", settings.get("channels.ir", DEFAULT_DEPTH)))
    is_depth = "channels.depth" in settings or "channels.ir" not in settings
    return Metadata(groundtruth, colour, fps, length, width, height, second, is_depth)


def _find_groundtruth(folder: Path, named: str) -> Path:
    """The file that `sequence` names, or a single groundtruth_ID.txt, which the toolkit prefers."""
    files = sorted(folder.glob("groundtruth_*.txt"))
    objects = [file.stem.removeprefix("groundtruth_") for file in files]
    if IGNORED in objects:
        raise DatasetError(
            f"{folder / f'groundtruth_{IGNORED}.txt'}: masks of what is to be ignored, as in VOTS, are not supported; "
            "vot-toolkit scores such sequences"
        )
    if len(objects) > 1:
        raise DatasetError(
            f"{folder}: several objects in a sequence, as in VOTS, are not supported; here are {', '.join(objects)} "
            f"({files[0].name}, ...). Sequences with one object are read"
        )
    return files[0] if files else folder / named


def _checked_pattern(folder: Path, channel: str) -> str:
    """The pattern that `sequence` gives; of a folder alone, %08d.jpg in it."""
    channel = channel.replace("\\", "/")  # as the toolkit writes it on Windows
    if not PurePosixPath(channel).suffix:
        channel = f"{channel.rstrip('/')}/%08d.jpg"
    if not re.fullmatch(r"[^%]*%0?\d*d[^%/]*", channel, re.ASCII):
        raise DatasetError(
            f"{folder / 'sequence'}: a channel is {channel!r}; expected a pattern such as {DEFAULT_CHANNEL}"
        )
    return channel


def parse_region(text: str) -> Region:
    """The region on one line of a file; a line with nan is code 0. ValueError says what was expected.

    0                       special code: 0 unknown, 1 initialisation, 2 failure
    x,y,w,h                 rectangle, pixels
    x1,y1,x2,y2,x3,y3,...   polygon of three points or more
    mX,Y,W,H,r0,r1,...      mask: run lengths over the window of W x H pixels at X,Y, row by row, starting with zeros;
                            empty where the window has no pixels, whatever the runs
    """
    text = text.strip()
    if text.startswith("m"):
        if re.fullmatch(r"m-?\d+,-?\d+,\d+(,\d+)+", text, re.ASCII) is None:
            raise ValueError(f"expected a mask mX,Y,W,H,runs of whole numbers, found {shortened(text)!r}")
        x, y, width, height, *runs = (int(cell) for cell in text[1:].split(","))
        return mask_region(x, y, width, height, runs)
    try:
        numbers = parse_numbers(text, ",")
    except ValueError:
        raise ValueError(f"expected numbers separated by commas, found {shortened(text)!r}") from None
    if len(numbers) == 1 and not math.isnan(numbers[0]):
        if numbers[0] not in (UNKNOWN, INITIALIZATION, FAILURE):
            raise ValueError(f"special code {text!r}; expected 0 unknown, 1 initialisation or 2 failure")
        return Special(int(numbers[0]))
    if len(numbers) > 1 and (len(numbers) < 4 or len(numbers) % 2):
        raise ValueError(
            f"{len(numbers)} numbers; expected a code, a rectangle x,y,w,h, a polygon of three points or more, "
            "or a mask mX,Y,W,H,runs"
        )
    return Special(UNKNOWN) if any(map(math.isnan, numbers)) else shape_region(numbers)


def shape_region(numbers: Sequence[float]) -> Rectangle | Polygon:
    """A rectangle of four numbers, or a polygon; ValueError where one is infinite or too large."""
    values = np.array(numbers, np.float64)
    if not (np.abs(values) <= MAX_PIXELS).all():
        raise ValueError(f"{list(numbers)} is infinite or too large for pixels")
    return Rectangle(values) if len(values) == 4 else Polygon(values.reshape(-1, 2))


def mask_region(x: int, y: int, width: int, height: int, runs: Sequence[int]) -> Mask:
    """A mask of run lengths, beginning with zeros, in its window; ValueError where they do not fit."""
    if width * height > MAX_MASK_PIXELS:
        raise ValueError(f"a mask of {width} x {height} pixels; at most {MAX_MASK_PIXELS} are read")
    pixels = np.zeros(width * height, bool)
    # Windows without pixels are published with a run: m0,0,0,0,0,1 (votchallenge/toolkit#7).
    if width * height:
        if sum(runs) > width * height:
            raise ValueError(f"the runs of a mask cover {sum(runs)} pixels, and its window has {width} x {height}")
        covered = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        pixels[: len(covered)] = covered
    if max(abs(x), abs(y)) > MAX_PIXELS:
        raise ValueError(f"a mask at {x},{y}: too far away for pixels")
    return Mask(pixels.reshape(height, width), (x, y))


def mask_text(mask: Bool[np.ndarray, "h w"]) -> str:
    """The line for a mask of a whole frame, in its tightest window; `m0,0,0,0,0` for an empty one."""
    if not mask.any():
        return "m0,0,0,0,0"
    x, y, w, h = mask_box_xywh(mask).astype(int).tolist()
    runs = run_lengths(mask[y : y + h, x : x + w].ravel())
    return f"m{x},{y},{w},{h},{','.join(map(str, runs.tolist()))}"


def region_box(region: Region) -> Float64[np.ndarray, "4"]:
    """The box around a region, xywh; NaN for a special code or an empty mask."""
    match region:
        case Rectangle(box_xywh):
            return box_xywh
        case Polygon(points_xy):
            return np.concatenate([points_xy.min(axis=0), np.ptp(points_xy, axis=0)])
        case Mask(pixels, (left, top)) if pixels.any():
            rows, columns = np.nonzero(pixels)
            corner = (left + columns.min(), top + rows.min())
            return np.array([*corner, np.ptp(columns) + 1, np.ptp(rows) + 1], np.float64)
    return np.full(4, np.nan)
