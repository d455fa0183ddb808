"""The `mixformer` command: each subcommand calls one function of the library and prints what it says.

Imports stay inside the subcommands: `mixformer --help` is quick, and an extra is needed only by who uses it.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import mixformer_jax
from mixformer_jax.cli.compiled import keep_compiled_programs
from mixformer_jax.cli.configs import add_configs_command
from mixformer_jax.cli.console import (
    Commands,
    Parser,
    UsageError,
    complain,
    for_the_user,
    is_for_the_user,
    parse_arguments,
    positive,
    positives,
    print_table,
    silence_decoders,
    tell_stopped,
)
from mixformer_jax.cli.data import add_data_commands
from mixformer_jax.cli.evaluate import add_evaluate_command
from mixformer_jax.cli.loading import add_model_arguments, load_model, random_model
from mixformer_jax.cli.pack import add_pack_command
from mixformer_jax.cli.report import add_report_command
from mixformer_jax.cli.study import add_study_command
from mixformer_jax.cli.track import add_tracking_commands, join_negative_box
from mixformer_jax.cli.train import add_training_commands
from mixformer_jax.extras import EXTRAS, is_not_installed
from mixformer_jax.signals import Stopped, StopSignals

DATA = "Check a data set, pack it for fast training, or look at training samples."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status.

    0; 1 when `doctor` finds something wrong; 2 after a message on stderr; 128 + signal.
    """
    # Before anything imports JAX.
    with StopSignals("mixformer"):
        return _main(sys.argv[1:] if argv is None else argv)


def _main(argv: Sequence[str]) -> int:
    silence_decoders()
    keep_compiled_programs()
    arguments = join_negative_box(argv)
    parser = _parser()
    try:
        args = parse_arguments(parser, arguments)
        return args.run(args)
    except Stopped as stopped:
        return tell_stopped(stopped)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return complain(is_not_installed(package))
    except Exception as error:
        if not is_for_the_user(error):
            raise
        return complain(str(error))


def run_bench(args: argparse.Namespace) -> int:
    """Measures where the time of a frame goes."""
    from mixformer_jax.cli.bench import append_row, measure, table

    size = _checked_size(args.size)
    tracker = load_model(args) if args.model is None else random_model(args)
    timing = measure(tracker, args.frames, size, progress=True)
    markdown = table(timing, datetime.date.today())
    print(f"{timing.device}; warm-up (compilation and first steps): {timing.warm_up_s:.1f} s, not counted below")
    print(markdown, end="")
    if args.append is not None:
        append_row(args.append, markdown)
        print(f"added to {args.append}")
    return 0


def run_profile(args: argparse.Namespace) -> int:
    """Counts what models cost."""
    from mixformer_jax.planning.profile import PAPER, profile_models, tables

    print(tables(profile_models(args.names or PAPER, args.templates, progress=True)), end="")
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Checks numbers, weights and video on this machine; the status is 1 when something is wrong."""
    from mixformer_jax.cli.doctor import environment, examine
    from mixformer_jax.tracking.tracker import find_device

    device = for_the_user(ValueError, find_device, args.device)
    print_table(environment(device, EXTRAS))
    print(f"\n{'':7}{'check':46}{'found':12}expected")
    findings = []
    for finding in examine(device):
        print(finding, flush=True)
        findings.append(finding)
    wrong = sum(not finding.is_right for finding in findings)
    if wrong:
        print(f"\n{wrong} of {len(findings)} checks are WRONG: do not trust what is computed here.")
        return 1
    print(f"\nall {len(findings)} checks are right")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Converts weights between official files and ours."""
    from mixformer_jax.convert.convert import Hints, convert

    hints = Hints(args.num_heads, args.early_heads, args.score_heads, args.search_size, args.template_size, args.name)
    report = convert(args.source, args.target, official=args.official, hints=hints)
    print_table(report.lines())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="mixformer", description="Track objects in video with MixFormer.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mixformer-jax {mixformer_jax.__version__}")
    command = Commands(parser)

    add_tracking_commands(command)
    bench = command(
        "bench",
        run_bench,
        "Measure decoding, cropping, the model and the rest, a frame.",
        "--model mixvit_b --frames 50",
    )
    add_model_arguments(bench).add_argument(
        "--model", metavar="NAME", help="a size (mixvit_tiny, mixvit_b_online, mixcvt, ...) with random weights"
    )
    bench.add_argument("--frames", type=positive, default=100, metavar="N", help="default: %(default)s")
    bench.add_argument("--size", default="640x360", metavar="WxH", help="of the video (default: %(default)s)")
    bench.add_argument("--append", type=Path, metavar="FILE", help="add the row to a Markdown file")

    profile = command("profile", run_profile, "Count parameters and FLOPs, beside the paper's.", "mixvit_b mixcvt")
    profile.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="a size or study model, see docs/models.md (default: all of the paper's Tables 1 to 3)",
    )
    profile.add_argument(
        "--templates",
        type=positive,
        metavar="N",
        help="the initial and online templates (default: 1 for study models, else 2, as in the paper)",
    )

    doctor = command(
        "doctor", run_doctor, "Check numbers, weights and video here; the status is 1 if any is wrong.", "--device cpu"
    )
    doctor.add_argument("--device", choices=("cpu", "gpu"), help="default: the best that JAX finds")

    add_data_commands(command.group("data", DATA))

    convert = command(
        "convert",
        run_convert,
        "Convert weights between official PyTorch files and ours.",
        "mixformer_vit_base.pth.tar mixvit_b.safetensors",
        "runs/mixvit_tiny mine.pth.tar",
    )
    convert.add_argument("source", type=Path, metavar="IN", help="weights, or the folder of a training run")
    convert.add_argument("target", type=Path, metavar="OUT", help="ends in .safetensors, .pth or .pth.tar")
    convert.add_argument("--official", action="store_true", help="official names in a .safetensors OUT too")
    hints = convert.add_argument_group("hints", "what names and shapes in official files do not tell")
    for name in ("--num-heads", "--score-heads", "--search-size", "--template-size"):
        hints.add_argument(name, type=positive, metavar="N")
    hints.add_argument("--early-heads", type=positives, metavar="N,N", help="of the stages before the last (MixCvT)")
    hints.add_argument(
        "--name",
        help="of the model, a table of benchmarks.toml (default: the published model's, with _1k and _got "
        "where the file's name or experiment has these words)",
    )

    add_training_commands(command)
    add_study_command(command)
    add_evaluate_command(command)
    add_report_command(command)
    add_pack_command(command)
    add_configs_command(command)
    return parser


def _checked_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 16):
        raise UsageError(f"--size {text}: expected WIDTHxHEIGHT, such as 640x360, and 16 or more each")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
