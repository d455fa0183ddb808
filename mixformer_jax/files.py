"""Files that appear whole or not at all, and files that grow under another name until they are finished."""

import os
from pathlib import Path

# An encoder goes by the suffix.
_SUFFIXES_KEPT = (".mp4", ".avi")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Puts a file in place in one step, so that a reader or a restart never sees half of it."""
    # A fixed name: what a killed run left behind is overwritten by the next one.
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)


def part_path(path: Path) -> Path:
    """Where a file grows until it is finished: `boxes.txt.part`, `tracked.part.mp4`."""
    if path.suffix.lower() in _SUFFIXES_KEPT:
        return path.with_name(f"{path.stem}.part{path.suffix}")
    return path.with_name(f"{path.name}.part")


def is_taken(path: Path) -> bool:
    """Whether a file is there, or its part: somebody writes it, or was killed while doing so."""
    return path.exists() or part_path(path).exists()


class NameTakenError(FileExistsError):
    """A file that is there, or that somebody is writing, under the name that was wanted."""


class Part:
    """The part of a file that is being written, this run's alone; made empty. `finish` gives the file its name.

    Raises:
        NameTakenError: the file is there, or another run's part of it, and neither may be overwritten.
    """

    def __init__(self, path: Path, overwrite: bool) -> None:
        self.final, self.path, self._overwrite = path, part_path(path), overwrite
        if overwrite:
            self.path.unlink(missing_ok=True)
        elif path.exists():
            raise NameTakenError(f"{path}: is there already; name another file, or replace it with --overwrite")
        try:
            # Held open until the end: a file system may give the number of a removed file to the next one.
            self._file = self.path.open("x")
        except FileExistsError:
            raise NameTakenError(
                f"{self.path}: is there already: another run is writing {path.name}, or was killed while it did; "
                "name another file, or move this one away"
            ) from None

    def discard(self) -> None:
        """Leaves nothing."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the file its name; one that is empty is removed.

        Raises:
            FileExistsError: the name is taken by now. Nothing is lost: the message says where it is.
            FileNotFoundError: the part is no longer this run's.
        """
        identity = os.fstat(self._file.fileno())
        is_ours = self.path.exists() and os.path.samestat(self.path.stat(), identity)
        self._file.close()
        if not is_ours:
            raise FileNotFoundError(f"{self.path}: was removed or replaced while it was written")
        if self.path.stat().st_size == 0:
            self.path.unlink()
            return
        if self.final.exists() and not self._overwrite:
            raise FileExistsError(f"{self.final}: was made by somebody else meanwhile; this run's is {self.path}")
        self.path.replace(self.final)
