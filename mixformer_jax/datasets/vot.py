"""VOT short-term challenges (https://www.votchallenge.net), as the VOT toolkit's workspaces hold them.

The layout, as the toolkit downloads it (VOT2020 and VOT2022 have masks, earlier years polygons or rectangles):

    sequences/                      or this folder itself
        list.txt                    names of the sequences in order
        agility/
            sequence                channels.color=color/%08d.jpg, fps=30, length=100, ...
            color/00000001.jpg ...
            groundtruth.txt         a rectangle, polygon or mask a line
            *.tag, *.label          0 or 1 a line for the challenges camera_motion, occlusion, ...

and as VOT2013 to VOT2016 were published, without the file `sequence`, with the frames beside the ground truth:

    list.txt
    bag/00000001.jpg ..., groundtruth.txt, camera_motion.label, ...

Sequences with several objects, and masks of what is to be ignored, both of VOTS, are refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float64

from mixformer_jax.datasets.groundtruth import DatasetError, read_labels, read_names
from mixformer_jax.datasets.layout import check_split, numbered_frames, row_faults, sub_folders
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.media.video import DEFAULT_FPS

DEFAULT_CHANNEL = "color/%08d.jpg"
# No frame is larger; a mask window beyond it is a typing error, and one of the given size would be allocated.
MAX_MASK_PIXELS = 2**26
# The object of VOTS whose masks do not count in scores.
IGNORED = "_ignore"


def read_vot(root: Path, split: str | None = None) -> Dataset:
    """Sequences in the order of list.txt. `boxes_xywh` bound the masks or polygons; rows of NaN where there is none.

    `attributes` are the tags that some frame carries.

    Raises:
        DatasetError: no sequences, or a listed one that is not there. When a sequence is read: files that are missing,
            whose lengths disagree, a region that is none (file and line are named), or objects as in VOTS.
    """
    check_split("vot", split, ())
    folder = root / "sequences" if (root / "sequences").is_dir() else root
    if (folder / "list.txt").is_file():
        names = read_names(folder / "list.txt")
        missing = [name for name in names if not (folder / name).is_dir()]
        if missing:
            raise DatasetError(f"{folder / 'list.txt'}: {missing[0]} has no folder")
    else:
        names = [name for name in sub_folders(folder) if any((folder / name).glob("groundtruth*.txt"))]
    if not names:
        raise DatasetError(f"{root}: no VOT sequences; expected sequences/list.txt and a folder for each name")
    return Dataset("vot", root, names, _Reader(folder))


class _Reader:
    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> TrackingSequence:
        folder = self.root / name
        settings = read_settings(folder / "sequence")
        groundtruth = find_groundtruth(folder, settings)
        try:
            lines = groundtruth.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except FileNotFoundError:
            raise DatasetError(f"{groundtruth}: no such file; the ground truth is missing") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{groundtruth}: cannot read the ground truth as text: {error}") from error
        boxes_xywh = np.array(
            [region_box(line.strip(), f"{groundtruth}, line {number}") for number, line in enumerate(lines, start=1)],
            np.float64,
        ).reshape(-1, 4)
        if not len(boxes_xywh):
            raise DatasetError(f"{groundtruth}: the ground truth is empty; expected one region for every frame")
        images, _, pattern = frame_pattern(folder, settings).rpartition("/")
        frames = numbered_frames(folder / images, pattern, len(boxes_xywh), groundtruth)
        fps = float(settings.get("fps", DEFAULT_FPS))
        attributes = _read_tags(folder, len(boxes_xywh))
        faults = row_faults("vot", name, groundtruth, boxes_xywh)
        return TrackingSequence(name, boxes_xywh, frames, fps, folder, attributes=attributes, faults=faults)


def read_settings(path: Path) -> dict[str, str]:
    """The lines key=value of a file `sequence`; nothing where there is no such file, as until VOT2016.

    Raises:
        DatasetError: not text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as text: {error}") from error
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def find_groundtruth(folder: Path, settings: Mapping[str, str]) -> Path:
    """The ground truth of a sequence: groundtruth.txt, or the file that `sequence` names.

    A single groundtruth_ID.txt goes before it, as in the toolkit.

    Raises:
        DatasetError: several of them, or one with masks of what is to be ignored: the objects of VOTS.
    """
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
    return files[0] if files else folder / settings.get("groundtruth", "groundtruth.txt")


def frame_pattern(folder: Path, settings: Mapping[str, str]) -> str:
    """Where the frames of a sequence are, such as `color/%08d.jpg`; numbered from 1, relative to its folder.

    The file `sequence` names a pattern, or a folder of %08d.jpg. Without it, frames lie in color/, or until VOT2016
    beside the ground truth.

    Raises:
        DatasetError: what `sequence` names is neither.
    """
    channel = settings.get("channels.color", settings.get("channels.default"))
    if channel is None:
        beside = [suffix for suffix in (".jpg", ".png") if (folder / f"00000001{suffix}").is_file()]
        return f"%08d{beside[0]}" if beside and not (folder / "color").is_dir() else DEFAULT_CHANNEL
    channel = channel.replace("\\", "/")  # as the toolkit writes it on Windows
    if not PurePosixPath(channel).suffix:
        channel = f"{channel.rstrip('/')}/%08d.jpg"
    if not re.fullmatch(r"[^%]*%0?\d*d[^%/]*", channel, re.ASCII):
        raise DatasetError(
            f"{folder / 'sequence'}: channels.color is {channel!r}; expected a pattern such as {DEFAULT_CHANNEL}"
        )
    return channel


def region_box(text: str, where: str) -> Float64[np.ndarray, "4"]:
    """The box around a region in the notation of the VOT toolkit, xywh; NaN for a special code or an empty mask.

    Args:
        text: `x,y,w,h`; `x1,y1,x2,y2,x3,y3,...`; `mX,Y,W,H,r0,r1,...` with row-major run lengths inside the window
            W x H at X, Y that begin with zeros; or one number, a special code. Whatever runs a window without pixels
            has, it is an empty mask: `m0,0,0,0,0,1` is published.
        where: file and line, for messages.

    Raises:
        DatasetError: anything else.
    """
    is_mask = text.startswith("m")
    try:
        numbers = [float(word) for word in text.removeprefix("m").split(",")]
    except ValueError:
        raise DatasetError(f"{where}: expected a rectangle, polygon or mask, found {text[:60]!r}") from None
    if is_mask:
        return _mask_box(numbers, where)
    if len(numbers) == 1 or not np.isfinite(numbers).all():
        return np.full(4, np.nan)
    if len(numbers) == 4:
        return np.array(numbers)
    if len(numbers) < 6 or len(numbers) % 2:
        raise DatasetError(f"{where}: {len(numbers)} numbers are neither a rectangle nor a polygon: {text[:60]!r}")
    points = np.array(numbers).reshape(-1, 2)
    return np.concatenate([points.min(axis=0), np.ptp(points, axis=0)])


def _mask_box(numbers: list[float], where: str) -> np.ndarray:
    values = np.array(numbers)
    if len(values) < 4 or (values != np.floor(values)).any() or (values[2:] < 0).any():
        raise DatasetError(f"{where}: a mask needs whole numbers mX,Y,W,H,r0,r1,...")
    left, top, width, height = (int(value) for value in values[:4])
    if not width * height:
        return np.full(4, np.nan)
    if width * height > MAX_MASK_PIXELS:
        raise DatasetError(f"{where}: a mask of {width} x {height} pixels; at most {MAX_MASK_PIXELS} are read")
    runs = values[4:].astype(np.int64)
    if runs.sum() > width * height:
        raise DatasetError(f"{where}: run lengths add up to {runs.sum()}, the mask has {width} x {height} pixels")
    inside = np.zeros(width * height, bool)
    inside[: runs.sum()] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    if not inside.any():
        return np.full(4, np.nan)
    rows, columns = np.nonzero(inside.reshape(height, width))
    x, y = int(columns.min()), int(rows.min())
    return np.array([left + x, top + y, int(columns.max()) - x + 1, int(rows.max()) - y + 1], np.float64)


def _read_tags(folder: Path, count: int) -> tuple[str, ...] | None:
    paths = sorted([*folder.glob("*.tag"), *folder.glob("*.label")])
    if not paths:
        return None
    # Some published tags end before the last frame.
    return tuple(path.stem for path in paths if read_labels(path)[:count].any())
