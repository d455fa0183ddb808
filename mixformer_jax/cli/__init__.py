"""The `mixformer` command. A module here holds a few commands, each with a function `add_COMMAND` that gives a parser
its arguments. It is imported when its command is on the command line, and what the command needs when it runs: `--help`
is quick, and who does not use an extra needs none."""

import functools
import importlib
import os
import re
import sys
from collections.abc import Sequence

import mixformer_jax
from mixformer_jax.cli.compiled import keep_compiled_programs
from mixformer_jax.cli.console import Parser, complain, is_for_the_user, parse_arguments, tell_stopped
from mixformer_jax.extras import EXTRAS, is_not_installed
from mixformer_jax.signals import Stopped, StopSignals

# Module and purpose of each command.
COMMANDS = {
    "track": ("track", "Track targets through a video, a folder of images or a camera."),
    "mot": ("mot", "Track many objects by detections, and score tracks: HOTA, MOTA, IDF1."),
    "serve": ("trials", "Open a page in the browser on which targets are marked and followed live."),
    "attention": ("trials", "Draw what attends to what on one frame (Figs. 8 and 9)."),
    "demo": ("trials", "Render a clip with exact ground truth, track it, and show how well."),
    "failures": ("trials", "Draw where a tracker fails on rendered clips."),
    "bench": ("trials", "Measure decoding, cropping, the model and the rest, a frame."),
    "profile": ("models", "Count parameters and FLOPs, beside the paper's."),
    "doctor": ("trials", "Check numbers, weights and video here; the status is 1 if any is wrong."),
    "data": ("data", "Check a data set, pack it for fast training, or look at training samples."),
    "convert": ("models", "Convert weights between official PyTorch files and ours."),
    "export": ("models", "Write a tracker's network as StableHLO or ONNX, for other programs."),
    "train": ("train", "Train a tracker, or a mask network. Started again on the same folder, it goes on."),
    "finetune": ("train", "Fine-tune a tracker on your own annotated videos."),
    "pretrain": (
        "train",
        "Pre-train the tracker's encoder as a masked autoencoder. Started again on the same folder, it goes on.",
    ),
    "plan": ("models", "Say what a train step needs of TPUs or GPUs that are not here."),
    "study": ("study", "List, plan or run the rows of the paper's studies (Tables 3 to 8, Fig. 7)."),
    "evaluate": ("evaluate", "Run trackers over a benchmark and leave their result files."),
    "toolkit": ("evaluate", "Track for a benchmark's own toolkit, which runs the experiment."),
    "report": ("evaluate", "Score result files and print the tables."),
    "pack": ("evaluate", "Check results on a test set and pack them for the benchmark's server."),
    "configs": ("train", "List the configs that --config knows by name, or print one."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns the exit status.

    0; 1 when `doctor` finds something wrong; 2 after a message on stderr; 128 + signal.
    """
    # Before anything imports JAX.
    with StopSignals("mixformer") as signals:
        # A message of ours says what was wrong with a file; OpenCV's and FFmpeg's own would stand around it.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        keep_compiled_programs()
        try:
            args = parse_arguments(_parser(), join_negative_box(sys.argv[1:] if argv is None else argv))
            if args.advice:
                signals.program, signals.advice = args.program, args.advice
            return args.run(args)
        except Stopped as stopped:
            return tell_stopped(stopped, signals.advice, signals.program)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in EXTRAS:
                raise
            return complain(is_not_installed(package))
        except Exception as error:
            if not is_for_the_user(error):
                raise
            return complain(str(error))


def _parser() -> Parser:
    parser = Parser(prog="mixformer", description="Track objects in video with MixFormer.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mixformer-jax {mixformer_jax.__version__}")
    parser.add_commands(
        {name: (text, functools.partial(_fill, name, module)) for name, (module, text) in COMMANDS.items()}
    )
    return parser


def _fill(name: str, module: str, parser: Parser) -> None:
    getattr(importlib.import_module(f"mixformer_jax.cli.{module}"), f"add_{name}")(parser)


def join_negative_box(argv: Sequence[str]) -> list[str]:
    """`--box -5,3,40,40` -> `--box=-5,3,40,40`, which argparse would take for an option."""
    joined: list[str] = []
    for text in argv:
        if joined and joined[-1] == "--box" and re.match(r"-[\d.]", text):
            joined[-1] = f"--box={text}"
        else:
            joined.append(text)
    return joined
