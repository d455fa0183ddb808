"""Files that appear whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """Puts a file in place in one step, so that a reader or a restart never sees half of it.

    Raises:
        OSError: a full disk, a read-only folder, ...; it names `path`, and nothing is left beside it.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path, tag: str = "") -> Iterator[Path]:
    """A hidden place beside `path` to write to; it takes that name at the end, or goes where the writing fails.

    Args:
        path: the file to be.
        tag: tells writers apart where several may write the same file at once.

    Raises:
        OSError: what the writing meets; it names `path`.
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

    Args:
        path: the file.
        temporary: its name until it is complete, of which nobody else knows.
    """
    try:
        yield
    except OSError as error:
        hidden = temporary is not None and str(error.filename) == str(temporary)
        if error.errno is None or not (error.filename is None or hidden):
            raise  # it tells by itself
        raise OSError(error.errno, error.strerror, str(path)) from error
