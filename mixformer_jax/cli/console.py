"""What the commands share: parsers of arguments, the choice of a model, exit statuses, tables and messages."""

import argparse
import contextlib
import math
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import mixformer_jax
from mixformer_jax.config_files import CONFIG_PREFIX, TRACKER_PREFIX, parse_overrides
from mixformer_jax.signals import Stopped

USER_ERROR = 2
ADVICE = "the same command goes on where this one was"  # after a signal
WEIGHTS = "name, run folder, .safetensors file or official checkpoint (default: the embedded tracker)"
OVERRIDES = {
    CONFIG_PREFIX: "--config.SECTION.SETTING=VALUE changes a setting of the config.",
    TRACKER_PREFIX: "--tracker.SETTING=VALUE changes a setting of the tracker.",
}


class UsageError(ValueError):
    """A command line that makes no sense; the message says how to write it."""


class Parser(argparse.ArgumentParser):
    """Complains by `UsageError`. `fill` adds the arguments when the command line is parsed: what they need is imported
    only for the command in use."""

    fill: Callable[["Parser"], None] | None = None

    def describe(
        self,
        run: Callable[[argparse.Namespace], int],
        *examples: str,
        overrides: str | None = None,
        about: str | None = None,
        advice: str = "",
    ) -> None:
        """Makes this the parser of a command; `run` does it, and returns the exit status.

        `examples` are arguments, as they stand behind the name of the command; `overrides` is CONFIG_PREFIX or
        TRACKER_PREFIX, where settings can be changed by dotted name; `about` is more for the help; `advice` belongs to
        the last words where a signal ends the command.
        """
        shown = "".join(f"\n  {self.prog} {example}".rstrip() for example in examples)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.description = "\n\n".join(filter(None, (self.description, about)))
        self.epilog = "\n\n".join(filter(None, (OVERRIDES.get(overrides or ""), f"examples:{shown}")))
        self.set_defaults(run=run, override_prefix=overrides, advice=advice, program=" ".join(self.prog.split()[:2]))

    def add_commands(self, commands: Mapping[str, tuple[str, Callable[["Parser"], None]]]) -> None:
        """Adds commands: by name, a sentence for the list and what fills the command's own parser."""
        added = self.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)
        for name, (text, fill) in commands.items():
            added.add_parser(name, help=text, description=text, allow_abbrev=False).fill = fill

    def add_config(self) -> None:
        self.add_argument("--config", type=Path, required=True, metavar="NAME", help="see mixformer configs; or a file")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, once all arguments are there."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    device_help = "cpu, gpu, tpu, or one of several: cuda:1 (default: the best that JAX finds)"
    parser.add_argument("--device", type=_device, metavar="DEVICE", help=device_help)


def add_model_arguments(parser: argparse.ArgumentParser, with_sizes: bool = False) -> None:
    """Adds --device, --dtype and --weights; beside these --model, where random weights of a size will do."""
    add_device_argument(parser)
    dtype_help = "in which the model computes (default: float32 on a CPU, bfloat16 elsewhere)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=dtype_help)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--weights", metavar="W", help=WEIGHTS)
    if with_sizes:
        sizes_help = "a size (mixvit_tiny, mixvit_b_online, mixcvt, ...) with random weights"
        group.add_argument("--model", metavar="NAME", help=sizes_help)


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses a command line on which settings may be changed by dotted name: `overrides` of the result lists the
    changes as they were typed. The parser's default of `override_prefix` says how they begin; None: there can be
    none."""
    args, rest = parser.parse_known_args(arguments)
    prefix = args.override_prefix
    args.overrides = [text for text in rest if prefix is not None and text.startswith(prefix)]
    if unknown := [text for text in rest if text not in args.overrides]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return args


def positive(text: str) -> int:
    """A whole number from 1 on; a type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def positives(text: str) -> tuple[int, ...]:
    """Such numbers, separated by commas."""
    return tuple(positive(number) for number in text.split(","))


def number(text: str, kind: str = "a number", above: float = -math.inf, below: float = math.inf) -> float:
    """A number within these ends, described by `kind`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value < below:
        raise argparse.ArgumentTypeError(f"expected {kind}, got {text!r}")
    return value


def _device(text: str) -> str:
    if re.fullmatch(r"(cpu|gpu|cuda|rocm|tpu)(:\d+)?", text) is None:
        raise argparse.ArgumentTypeError(f"expected cpu, gpu, cuda, rocm or tpu, and perhaps :NUMBER, got {text!r}")
    return text


def load_model(args: argparse.Namespace, colour_alone: bool = True) -> Any:
    """The tracker that the arguments of `add_model_arguments` name, with the settings that the user changes; UsageError
    for a model of two streams where frames have colour alone."""
    model = getattr(args, "model", None)
    with for_the_user(ValueError):
        if model is None:
            tracker = mixformer_jax.load(args.weights, device=args.device, dtype=args.dtype)
        else:
            from mixformer_jax.tracking.tracker import Tracker

            tracker = Tracker.random(model, args.device, dtype=args.dtype)
    if colour_alone and tracker.config.streams == "both":
        raise UsageError(
            f"{model or args.weights}: a model of two streams, RGB and a second one, and here frames have RGB alone; "
            "mixformer track --second takes both, mixformer evaluate data sets of both, Tracker.step frames of six "
            "channels"
        )
    if not args.overrides:
        return tracker
    return tracker.with_settings(**parse_overrides(args.overrides, tracker.settings.to_dict(), TRACKER_PREFIX))


def read_box(text: str, size: tuple[int, int]) -> Any:
    """The box that --box marks in a frame of (height, width)."""
    from mixformer_jax.boxes import check_box_xywh

    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise UsageError(f"--box {text}: expected four numbers X,Y,W,H in pixels") from None
    with for_the_user(ValueError):
        return check_box_xywh(numbers, size)


def read_size(text: str, least: int = 1) -> tuple[int, int]:
    """(height, width) of --size WIDTHxHEIGHT."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= least):
        raise UsageError(f"--size {text}: expected WIDTHxHEIGHT, such as 640x360, and {least} or more each")
    return int(height), int(width)


def print_table(lines: Sequence[tuple[str, str]]) -> None:
    """Names and what belongs to them, a line each."""
    for name, value in lines:
        print(f"{name:<13}{value}")


def complain(message: str) -> int:
    """An error for the user, on stderr; returns the exit status."""
    print(f"mixformer: error: {message}", file=sys.stderr)
    return USER_ERROR


def tell_stopped(stopped: Stopped, kept: str = "", program: str | None = "mixformer") -> int:
    """Says that a signal ended the command, and what is kept; returns the exit status."""
    print(f"{program}: {stopped.word}" + (f"; {kept}" if kept else ""), file=sys.stderr)
    return stopped.status


def tell_end(reason: BaseException | None, kept: str) -> int:
    """Says what ended a recording early, if anything, and what is kept; returns the exit status."""
    if isinstance(reason, Stopped):
        return tell_stopped(reason, kept)
    return 0 if reason is None else complain(f"{reason}; {kept}")


def is_for_the_user(error: Exception) -> bool:
    """Errors of our own classes and of the file system are messages; others are bugs, with a traceback."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] == mixformer_jax.__name__


@contextlib.contextmanager
def for_the_user(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these builtin kinds are about what the user typed; a context, or a decorator."""
    try:
        yield
    except kinds as error:
        if is_for_the_user(error):
            raise
        raise UsageError(str(error)) from error


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
