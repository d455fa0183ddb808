"""The text files that a recording leaves: a line a frame, a file a target.

A line is `x,y,w,h` in pixels; where the tracker gives scores, `x,y,w,h,score,lost`, with lost 0 or 1. The first line is
what was given: its score is 1.
"""

import contextlib
import os
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Bool, Float

from mixformer_jax.files import Part, named_errors, write_atomically
from mixformer_jax.media.video import prepare_output


def numbered_paths(path: Path, count: int) -> tuple[Path, ...]:
    """`boxes.txt` for one target; `boxes_1.txt`, `boxes_2.txt`, ... for several."""
    if count == 1:
        return (path,)
    return tuple(path.with_name(f"{path.stem}_{number}{path.suffix}") for number in range(1, count + 1))


def format_box(box_xywh: Float[np.ndarray, "4"]) -> str:
    """`x,y,w,h` to a thousandth of a pixel, without superfluous zeros."""
    return ",".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in box_xywh)


def write_boxes(path: str | Path, boxes_xywh: Float[np.ndarray, "frames 4"]) -> None:
    """Writes one `x,y,w,h` line a frame, at once: the file appears whole or not at all."""
    write_atomically(prepare_output(path), "".join(format_box(box) + "\n" for box in boxes_xywh))


class ResultFiles:
    """Open text files, one a target. A context manager.

    They are written as `boxes.txt.part`, a line at a time: whoever kills the run, or watches it, finds every line
    written so far. When the context ends, for whatever reason, they get their names.

    Args:
        path: see `numbered_paths`.
        num_targets: how many files.
        overwrite: whether files that are there may be replaced.

    Raises:
        NameTakenError: on entering: a file is there, or another run is writing it. Then none is made.
    """

    def __init__(self, path: Path, num_targets: int, overwrite: bool = False) -> None:
        self.paths = numbered_paths(path, num_targets)
        self._overwrite = overwrite
        self._parts: list[Part] = []
        self._files: list[IO[str]] = []
        self._sizes = [0] * num_targets

    def __enter__(self) -> "ResultFiles":
        try:
            for path in self.paths:
                self._parts.append(Part(path, self._overwrite))
        except BaseException:
            self.__exit__()
            raise
        self._files = [part.path.open("w", encoding="ascii") for part in self._parts]
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.ExitStack() as stack:  # one that cannot be closed or named leaves none open
            for part in self._parts:
                stack.callback(part.finish)
            for path, file in zip(self.paths, self._files, strict=False):
                stack.enter_context(named_errors(path))
                stack.callback(file.close)

    def write(
        self,
        boxes_xywh: Float[np.ndarray, "n 4"],
        scores: Float[np.ndarray, " n"] | None,
        lost: Bool[np.ndarray, " n"] | None,
    ) -> None:
        """A line in each file, on disk when this returns.

        Raises:
            OSError: a full disk; it names the file, which keeps its whole lines.
        """
        for target, file in enumerate(self._files):
            line = format_box(boxes_xywh[target])
            if scores is not None and lost is not None:
                line += f",{scores[target]:.4f},{int(lost[target])}"
            try:
                with named_errors(self.paths[target]):
                    print(line, file=file, flush=True)
            except OSError:
                # Half a line could pass for a box.
                with contextlib.suppress(OSError):
                    file.close()
                os.truncate(self._parts[target].path, self._sizes[target])
                raise
            self._sizes[target] += len(line) + 1
