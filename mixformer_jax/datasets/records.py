"""An annotated sequence with random access to its frames; data sets that read sequences on demand; known faults."""

import copy
import csv
import functools
import logging
import threading
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from mixformer_jax.datasets.groundtruth import DatasetError, LengthError, has_target
from mixformer_jax.media.images import SourceError, read_depth, read_image
from mixformer_jax.media.video import FrameSource, open_source

logger = logging.getLogger(__name__)

ANY = "*"  # every sequence of a data set
# A warning spells out so many faults of a kind and sequence; `mixformer data check` lists all.
SPELT_OUT = 3
# A data set keeps the annotations of so many sequences: 100 MB at 2,500 frames each (LaSOT).
KEPT_SEQUENCES = 1200


class KnownFault(NamedTuple):
    """A fault of a data set as published, a row of `published/known_faults.tsv`."""

    reader: str
    sequence: str  # its name, or ANY
    kind: str  # of the `Fault` that it explains. `length`: numbers of boxes, frames or result rows that differ
    what: str
    source: str  # where it was reported; `OWNER/REPOSITORY#NUMBER` is an issue on GitHub
    box_xywh: tuple[float, ...] | None = None  # of the row, where the fault is one

    def __str__(self) -> str:
        return f"known: {self.what} ({self.source})"


def _read_table() -> tuple[KnownFault, ...]:
    path = Path(__file__).parent / "published" / "known_faults.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        _, *rows = csv.reader(file, delimiter="\t")
    return tuple(
        KnownFault(reader, sequence, kind, what, source, tuple(map(float, box.split())) or None)
        for reader, sequence, kind, what, source, box in rows
    )


KNOWN_FAULTS = _read_table()


def known_fault(reader: str, sequence: str, kind: str, box_xywh: Sequence[float] | None = None) -> KnownFault | None:
    """The known fault that explains one; None where none does."""
    box = None if box_xywh is None else tuple(box_xywh)
    alike = (known for known in KNOWN_FAULTS if (known.reader, known.kind) == (reader, kind))
    return next((each for each in alike if each.sequence in (sequence, ANY) and each.box_xywh in (None, box)), None)


class Fault(NamedTuple):
    """Something wrong with a data set."""

    kind: str  # such as `annotations`, `image`, `box empty`, `box outside` or `frame size`
    where: str  # file, and line or frame (from 0) where there is one
    what: str
    known: KnownFault | None = None  # where it is published so

    def __str__(self) -> str:
        said = ": ".join(filter(None, (self.kind, self.where, self.what)))
        return f"{said}; {self.known}" if self.known else said


@dataclass(frozen=True)
class MissingFrames:
    """Stands for frames that are not there: annotations alone can only be scored."""

    reason: str  # what was looked for and where

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        raise SourceError(self.reason)


@dataclass(frozen=True, eq=False)
class TrackingSequence:
    """A video with one target. `len()` is its number of frames; it pickles wherever `frame` does.

    Published boxes of zero or negative size are left as they are; see `has_target`.
    """

    name: str  # unique within its data set
    boxes_xywh: Float64[np.ndarray, "n 4"]  # pixels, 0-based; NaN where no box is known (target absent, or hidden)
    # Index to RGB. Packed frames also have `frame.open(index)`, see `frame_parts`.
    frame: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    fps: float
    root: Path  # folder of the sequence
    visible: Bool[np.ndarray, " n"] | None = None  # False where the target is marked as absent; None without marks
    attributes: tuple[str, ...] | None = None  # challenges by short names (`FM`: fast motion); None without files
    is_still: bool = False  # one image, the same in every frame, whose targets are the rows of `boxes_xywh`
    faults: tuple[Fault, ...] = ()  # of its annotations, which can be used all the same; `Dataset` warns of them
    video: str | None = None  # the same for targets of one video; None: it is the only one
    thermal_xywh: Float64[np.ndarray, "n 4"] | None = None  # as `boxes_xywh`, of RGBT234's thermal images

    def __len__(self) -> int:
        return len(self.boxes_xywh)

    @property
    def has_target(self) -> Bool[np.ndarray, " n"]:
        """Frames whose box has w > 0 and h > 0; `visible` tells whether the target can be seen."""
        return has_target(self.boxes_xywh)

    @property
    def has_frames(self) -> bool:
        """False where only annotations are there."""
        return not isinstance(self.frame, MissingFrames)

    def require_frames(self) -> None:
        """Raises SourceError if there are none."""
        if isinstance(self.frame, MissingFrames):
            raise SourceError(self.frame.reason)

    def frames(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """All frames in order; a video is decoded once."""
        # A copy has its own decoder, which other calls of `frame` do not reset.
        frame = copy.copy(self.frame)
        for index in range(len(self)):
            yield frame(index)


class Dataset(abc.Sequence):  # of TrackingSequence; as a type parameter, a run-time check would read a sequence
    """The sequences of a data set, in its order, each read on demand; the last ones are kept.

    A slice is a data set. Safe to use from several threads; a pickled copy starts with nothing kept. Faults of a
    sequence are logged when it is first read, but not by pickled copies, of which there may be many. `name` is the
    reader's, `root` the folder, and `keys` are unique and mostly the names of the sequences.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        keys: abc.Sequence[str],
        read: Callable[[str], TrackingSequence],
        kept: int = KEPT_SEQUENCES,
    ) -> None:
        self.name, self.root, self.keys = name, root, keys
        self._read, self._max_kept = read, kept
        self._logged: dict[str, object] | None = {}  # keys whose faults are logged; None in copies
        self._kept = functools.lru_cache(kept)(self._read_and_warn)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> TrackingSequence: ...

    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...

    def __getitem__(self, index: int | slice) -> "TrackingSequence | Dataset":
        """A sequence, or the data set of a slice; errors as `read`."""
        return self.subset(self.keys[index]) if isinstance(index, slice) else self._kept(self.keys[index])

    def __iter__(self) -> Iterator[TrackingSequence]:
        return (self[index] for index in range(len(self)))

    def read(self, key: str) -> TrackingSequence:
        """Reads a sequence without keeping it or logging its faults.

        Raises DatasetError or SourceError for files that are not what the reader expects.
        """
        try:
            return self._read(key)
        except OSError as error:
            raise DatasetError(f"{self.root}, {key}: cannot be read: {error}") from error
        except LengthError as error:
            known = known_fault(self.name, key.rpartition("/")[2], "length")
            if known is None:
                raise
            raise LengthError(f"{error}; {known}") from error

    def _read_and_warn(self, key: str) -> TrackingSequence:
        sequence = self.read(key)
        faults = sequence.faults
        # Of several threads that read it at once, the one that sets the default warns.
        if faults and self._logged is not None and self._logged.setdefault(key, faults) is faults:
            for kind in dict.fromkeys(fault.kind for fault in faults):
                first, *more = (fault for fault in faults if fault.kind == kind)
                if len(more) >= SPELT_OUT:
                    logger.warning("%s; and %d more rows like it", first, len(more))
                    continue
                for fault in (first, *more):
                    logger.warning("%s", fault)
        return sequence

    def read_all(self) -> tuple[list[TrackingSequence], dict[str, str]]:
        """Every sequence that can be read, and by key why others cannot."""
        sequences, unreadable = [], {}
        for index, key in enumerate(self.keys):
            try:
                sequences.append(self[index])
            except (DatasetError, SourceError) as error:
                unreadable[key] = str(error)
        return sequences, unreadable

    def subset(self, keys: abc.Sequence[str]) -> "Dataset":
        """The data set of some of its keys."""
        return Dataset(self.name, self.root, keys, self._read, self._max_kept)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_kept", "_logged")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _logged=None, _kept=functools.lru_cache(state["_max_kept"])(self._read_and_warn))


@dataclass(frozen=True)
class ImageFrames:
    """Frames in image files: `frames(i)` reads file i of `names` in `folder`."""

    folder: Path
    names: abc.Sequence[str]

    def path(self, index: int) -> Path:
        return self.folder / self.names[index]

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        if not 0 <= index < len(self.names):
            raise IndexError(f"{self.folder}: frame {index} of {len(self.names)}")
        return read_image(self.path(index))


@dataclass(frozen=True)
class DepthFrames(ImageFrames):
    """Frames of depth alone, three channels."""

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        return read_depth(self.path(index))


@dataclass(frozen=True)
class TwoStreamFrames:
    """Colour frames, and those of the second stream behind them: three more channels."""

    colour: ImageFrames
    second: ImageFrames  # DepthFrames, or thermal images, which are images as any other

    def path(self, index: int) -> Path:
        return self.colour.path(index)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 6"]:
        return in_one_frame({frames.path(index): frames(index) for frames in (self.colour, self.second)})


def in_one_frame(images: Mapping[Path, UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h w channels"]:
    """Images of the streams of a frame, by their files, behind each other; SourceError where their sizes differ."""
    sizes = {path: f"{image.shape[1]} x {image.shape[0]}" for path, image in images.items()}
    first, *others = sizes
    for path in others:
        if sizes[path] != sizes[first]:
            raise SourceError(f"{path}: {sizes[path]} pixels; {first} has {sizes[first]}")
    return np.concatenate(list(images.values()), axis=2)


Frames = ImageFrames | TwoStreamFrames | MissingFrames


def two_streams(colour: ImageFrames | MissingFrames, second: ImageFrames | MissingFrames, is_depth: bool) -> Frames:
    """Frames of both streams; of the second one alone without colour, and MissingFrames without the second one."""
    if isinstance(second, MissingFrames):
        return colour if isinstance(colour, MissingFrames) else second
    if is_depth:
        second = DepthFrames(second.folder, second.names)
    return second if isinstance(colour, MissingFrames) else TwoStreamFrames(colour, second)


@dataclass(frozen=True)
class NumberedNames(abc.Sequence):
    """Names of numbered files, `pattern % (first + i)`, without listing the folder."""

    pattern: str  # such as %08d.jpg
    length: int
    first: int = 1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return self.pattern % (self.first + index)


class VideoFrames:
    """Frames of a video file by index; it is opened at the first call.

    Seeking in compressed video is slow, and inexact in some containers, so frames are counted: an index ahead reads on,
    one behind reopens the file. Safe to call from several threads; a pickled copy opens the file for itself.
    """

    def __init__(self, path: Path, first: int = 0) -> None:
        """The frames of `path` from number `first` on, which has index 0."""
        self.path, self.first = path, first
        self._lock = threading.Lock()
        self._source: FrameSource | None = None
        self._decoded: Iterator[np.ndarray] | None = None
        self._position, self._current = -1, np.empty(0)

    def __reduce__(self) -> tuple[type["VideoFrames"], tuple[Path, int]]:
        return VideoFrames, (self.path, self.first)

    def __call__(self, index: int) -> UInt8[np.ndarray, "h w 3"]:
        if index < 0:
            raise IndexError(f"{self.path}: frame {index}; indices start at 0")
        with self._lock:
            try:
                return self._read(self.first + index).copy()
            except BaseException:
                # The position is unknown now; the next call reopens the file.
                self._source = self._decoded = None
                raise

    def _read(self, index: int) -> np.ndarray:
        if self._source is None:
            self._source = open_source(self.path)
        if self._decoded is None or index < self._position:
            self._decoded, self._position = iter(self._source), -1
        while self._position < index:
            current = next(self._decoded, None)
            if current is None:
                raise IndexError(f"{self.path}: frame {index}, but the video ends after {self._position + 1} frames")
            self._current, self._position = current, self._position + 1
        return self._current
