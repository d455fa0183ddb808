"""Files that appear whole or not at all, and files that grow under another name until they are finished."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

# An encoder goes by the suffix.
_SUFFIXES_KEPT = (".mp4", ".avi")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Puts a file in place in one step, so that a reader or a restart never sees half of it; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path, tag: str = "") -> Iterator[Path]:
    """A hidden place beside `path` to write to; it takes that name at the end, or goes where the writing fails.

    `tag` tells writers apart where several may write the same file at once. Raises OSError that names `path`.
    """
    # A fixed name: what a killed run left behind is overwritten by the next one.
    temporary = path.with_name(f".{path.name}{tag}.part")
    try:
        with named_errors(path, temporary):
            yield temporary
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named_errors(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Gives errors of the system the name of the file that is being written; a full disk tells none by itself.

    `temporary` is its name until it is complete, of which nobody else knows.
    """
    try:
        yield
    except OSError as error:
        hidden = temporary is not None and str(error.filename) == str(temporary)
        if error.errno is None or not (error.filename is None or hidden):
            raise  # it tells by itself
        raise OSError(error.errno, error.strerror, str(path)) from error


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
    """The part of a file that is being written, this run's alone; made empty. NameTakenError where the file is there,
    or another run's part of it, and neither may be overwritten."""

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
        self._file.close()
        self.path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Gives the file its name; one that is empty is removed.

        Raises FileExistsError where the name is taken by now (nothing is lost: the message says where it is), and
        FileNotFoundError where the part is no longer this run's.
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


def is_mangled_address(path: Path) -> bool:
    """Whether this was an address, such as gs://bucket, before it became a path, which has one slash for two."""
    return re.match(r"\w{2,}:/", str(path)) is not None


def user_cache() -> Path:
    """The folder for what can be made anew: mixformer_jax in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixformer_jax"
