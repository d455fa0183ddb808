"""Boxes on disk while a video is tracked: a text file a target with a line `x,y,w,h` a frame, in pixels, or
`x,y,w,h,score,lost` where there are scores; or one file of records (RECORD_FIELDS) by its suffix `.csv`, `.json` or
`.jsonl`, in JSON with `mask`, run lengths, where there are masks.
"""

import contextlib
import json
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float

from mixformer_jax.files import NameTakenError, Part, named_errors, write_atomically
from mixformer_jax.media.images import is_labels, write_labels
from mixformer_jax.media.video import OutputError, prepare_output
from mixformer_jax.tracking.tracker import RECORD_FIELDS, Tracked

RECORD_SUFFIXES = (".csv", ".json", ".jsonl")
# Thousandths of a pixel, and of a second's thousandth.
_DIGITS = {"time": 6, "score": 4, **dict.fromkeys("xywh", 3)}


def numbered_paths(path: Path, count: int) -> tuple[Path, ...]:
    """`boxes.txt` for one target; `boxes_1.txt`, `boxes_2.txt`, ... for several, which records need not."""
    if count == 1 or path.suffix.lower() in RECORD_SUFFIXES:
        return (path,)
    return tuple(path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1))


def format_box(box_xywh: Float[np.ndarray, "4"]) -> str:
    """`x,y,w,h` to a thousandth of a pixel, without superfluous zeros."""
    return ",".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in box_xywh)


def write_boxes(path: str | Path, boxes_xywh: Float[np.ndarray, "frames 4"]) -> None:
    """Writes one `x,y,w,h` line a frame, at once: the file appears whole or not at all."""
    write_atomically(prepare_output(path), "".join(format_box(box) + "\n" for box in boxes_xywh))


class ResultFiles:
    """Open files of boxes (`numbered_paths`). A context manager.

    They are written as `boxes.txt.part`, a line at a time; when the context ends, for whatever reason, they get their
    names.

    Raises NameTakenError: on entering: a file is there and not to be overwritten, or another run is writing it; none is
    made.
    """

    def __init__(self, path: Path, num_targets: int, overwrite: bool = False) -> None:
        self.paths = numbered_paths(path, num_targets)
        suffix = path.suffix.lower()
        self._format = suffix if suffix in RECORD_SUFFIXES else ".txt"
        self._overwrite = overwrite
        self._parts: list[Part] = []
        self._files: list[IO[str]] = []
        self._sizes = [0] * len(self.paths)

    def __enter__(self) -> "ResultFiles":
        try:
            for path in self.paths:
                self._parts.append(Part(path, self._overwrite))
            for part in self._parts:
                self._files.append(part.path.open("w", encoding="ascii", newline="\n"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.ExitStack() as stack:  # one that cannot be closed or named leaves none open
            for part in self._parts:
                stack.callback(part.finish)
            for path, file in zip(self.paths, self._files, strict=False):
                stack.enter_context(named_errors(path))
                stack.callback(file.close)
            if self._format == ".json" and self._files and self._sizes[0] and not self._files[0].closed:
                self._append(0, "\n]\n")

    def write(self, found: Tracked) -> None:
        """The targets on one frame, on disk when this returns.

        Raises OSError: a full disk; it names the file, which keeps its whole lines.
        """
        if self._format == ".txt":
            for target in range(len(self._files)):
                line = format_box(found.boxes_xywh[target])
                if found.scores is not None and found.lost is not None:
                    line += f",{found.scores[target]:.4f},{int(found.lost[target])}"
                self._append(target, line + "\n")
            return
        records = [rounded(record) for record in found.records()]
        is_first = self._sizes[0] == 0
        if self._format == ".csv":
            lines = [",".join(RECORD_FIELDS)] if is_first else []
            lines += map(csv_line, records)
            self._append(0, "".join(line + "\n" for line in lines))
        elif self._format == ".jsonl":
            self._append(0, "".join(json.dumps(record) + "\n" for record in records))
        else:
            self._append(0, ("[\n" if is_first else ",\n") + ",\n".join(map(json.dumps, records)))

    def _append(self, index: int, text: str) -> None:
        file = self._files[index]
        try:
            with named_errors(self.paths[index]):
                file.write(text)
                file.flush()
        except OSError:
            # Half a line could pass for a box.
            with contextlib.suppress(OSError):
                file.close()
            os.truncate(self._parts[index].path, self._sizes[index])
            raise
        self._sizes[index] += len(text)


class MotResultFile(ResultFiles):
    """Rows of MOTChallenge: frame,id,x,y,w,h,score,-1,-1,-1; ids count from 1, and pixels from `origin`."""

    def __init__(self, path: Path, origin: float = 0.0, overwrite: bool = False) -> None:
        super().__init__(path, 1, overwrite)
        self._corner = np.array([origin, origin, 0, 0])

    def write(self, found: Tracked) -> None:
        assert found.numbers is not None and found.scores is not None
        rows = zip(found.numbers, found.boxes_xywh + self._corner, found.scores, strict=True)
        lines = (f"{found.frame},{number + 1},{format_box(box)},{score:.4f},-1,-1,-1\n" for number, box, score in rows)
        self._append(0, "".join(lines))


class MaskFolder:
    """Masks as images while a video is tracked: a grey PNG a frame, named by the frame's number (`00000012.png`).

    0 is the background, n target n; where masks overlap the later target's counts. A context manager; a folder in which
    nothing was written goes at the end.

    Raises:
        OutputError: it is to be overwritten, and holds frames, or other numbered images that are no masks.
        NameTakenError: on entering: it is there and not to be overwritten.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path, self._overwrite = path, overwrite
        strangers = sorted(image.name for image in self._numbered() if not is_labels(image)) if overwrite else []
        if strangers:
            raise OutputError(f"{path}: holds {strangers[0]}, which is no mask of an earlier run; name another folder")

    def __enter__(self) -> "MaskFolder":
        try:
            self.path.mkdir(exist_ok=self._overwrite)
        except FileExistsError:
            raise NameTakenError(f"{self.path}: is there already; name another folder, or --overwrite") from None
        for image in self._numbered():  # of an earlier run, which may have been longer
            image.unlink()
        return self

    def _numbered(self) -> list[Path]:
        return [image for image in self.path.glob("[0-9]*.png") if re.fullmatch(r"\d{8,}\.png", image.name)]

    def __exit__(self, *exception: object) -> None:
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def write(self, found: Tracked) -> None:
        """The masks of the targets on one frame, on disk when this returns."""
        if found.masks is None or found.frame is None:
            raise ValueError("masks on no frame of a source, or no masks")
        count = len(found.masks)
        labels = np.zeros(found.masks.shape[1:], np.uint8 if count < 256 else np.uint16)
        for number, mask in enumerate(found.masks, 1):
            labels[mask] = number
        write_labels(self.path / f"{found.frame:08d}.png", labels)


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """A record with as many digits as are written."""
    return {
        name: round(value, _DIGITS[name]) if name in _DIGITS and value is not None else value
        for name, value in record.items()
    }


def csv_line(record: dict[str, Any]) -> str:
    """A record's fields as a line, without its end; what is not known is an empty cell."""
    values = (record[name] for name in RECORD_FIELDS)
    return ",".join("" if value is None else str(+value) for value in values)
