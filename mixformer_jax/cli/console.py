"""What the commands share: parsers of arguments and their help, exit statuses, tables and messages."""

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import mixformer_jax
from mixformer_jax.signals import Stopped

SAYS_NO = 1
USER_ERROR = 2
CONFIG_PREFIX = "--config."
TRACKER_PREFIX = "--tracker."
OVERRIDES = {
    CONFIG_PREFIX: "--config.SECTION.SETTING=VALUE changes a setting of the config.",
    TRACKER_PREFIX: "--tracker.SETTING=VALUE changes a setting of the tracker.",
}


class UsageError(ValueError):
    """A command line that makes no sense; the message says how to write it."""


class Parser(argparse.ArgumentParser):
    """Complains by `UsageError`.

    Attributes:
        fill: adds the arguments when the command line is parsed, so that what they need is imported only by those who
            use the command. None: they are there.
    """

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, once all arguments are there."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises `UsageError`."""
        raise UsageError(f"{message}; see {self.prog} --help")


class Commands:
    """The commands of a parser, each with help that shows examples."""

    def __init__(self, parser: Parser) -> None:
        self._prog = parser.prog
        self._added = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    def __call__(
        self,
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        *examples: str,
        overrides: str | None = None,
        about: str = "",
    ) -> Parser:
        """Adds one.

        Args:
            name: of the command.
            run: what it does; returns the exit status.
            text: a sentence for the list of commands.
            examples: arguments, as they stand behind the name of the command.
            overrides: CONFIG_PREFIX or TRACKER_PREFIX, where settings can be changed by dotted name.
            about: more for the command's help.
        """
        shown = "".join(f"\n  {self._prog} {name} {example}".rstrip() for example in examples)
        added = self._added.add_parser(
            name,
            help=text,
            description="\n\n".join(filter(None, (text, about))),
            epilog="\n\n".join(filter(None, (OVERRIDES.get(overrides or ""), f"examples:{shown}"))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        added.set_defaults(run=run, override_prefix=overrides)
        return added

    def group(self, name: str, text: str) -> Parser:
        """Adds one that has commands of its own."""
        return self._added.add_parser(name, help=text, description=text, allow_abbrev=False)


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line on which settings may be changed by dotted name, such as `--config.train.steps=100`.

    Args:
        parser: its default of `override_prefix` says how the changes begin; None: there can be none.
        arguments: None: those of the process.

    Returns:
        The arguments; `overrides` lists the changes as they were typed. Unknown arguments are the parser's error.
    """
    args, rest = parser.parse_known_args(arguments)
    prefix = args.override_prefix
    args.overrides = [text for text in rest if prefix is not None and text.startswith(prefix)]
    if unknown := [text for text in rest if text not in args.overrides]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return args


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


def tell_stopped(stopped: Stopped, kept: str | None = None) -> int:
    """Says that a signal ended the command, and what is kept; returns the exit status."""
    print(f"mixformer: {stopped.word}" + (f"; {kept}" if kept else ""), file=sys.stderr)
    return stopped.status


def is_for_the_user(error: Exception) -> bool:
    """Errors of our own classes and of the file system are messages; others are bugs, with a traceback."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == mixformer_jax.__name__


def for_the_user(kind: type[Exception], function: Callable, *args: Any, **kwargs: Any) -> Any:
    """Calls a function whose errors of this builtin kind are about what the user typed."""
    try:
        return function(*args, **kwargs)
    except kind as error:
        raise error if is_for_the_user(error) else UsageError(str(error)) from error
