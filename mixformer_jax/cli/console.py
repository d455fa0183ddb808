"""What the commands share: exit statuses, tables and messages, numbers on the command line."""

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence

SAYS_NO = 1
USER_ERROR = 2


def silence_decoders() -> None:
    """A message of ours says what was wrong with a file; FFmpeg's and OpenCV's own would stand around it."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


def print_table(lines: Sequence[tuple[str, str]]) -> None:
    """Names and what belongs to them, a line each."""
    for name, value in lines:
        print(f"{name:<13}{value}")


def complain(message: str) -> int:
    """An error for the user, on stderr; returns the exit status."""
    print(f"mixformer: error: {message}", file=sys.stderr)
    return USER_ERROR


def positive(text: str) -> int:
    """A whole number from 1 on; a type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def positives(text: str) -> tuple[int, ...]:
    """Such numbers, separated by commas."""
    return tuple(positive(number) for number in text.split(","))


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Says on stderr what is being done; on a terminal with the time it has taken so far."""
    from tqdm import tqdm

    if not sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)
        yield
        return
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=True) as bar:

        def tick() -> None:
            while not done.wait(1.0):
                bar.refresh()

        ticking = threading.Thread(target=tick, daemon=True)
        ticking.start()
        try:
            yield
        finally:
            done.set()
            ticking.join()
