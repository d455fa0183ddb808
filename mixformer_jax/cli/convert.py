"""`mixformer convert`: weights between official PyTorch files and ours; `mixformer export`: a tracker's network as
StableHLO or ONNX, for programs without this package."""

import argparse
from pathlib import Path

from mixformer_jax.cli.console import WEIGHTS, Parser, UsageError, load_model, positive, positives, print_table, timed
from mixformer_jax.config_files import TRACKER_PREFIX


def add_convert(parser: Parser) -> None:
    parser.describe(run_convert, "mixformer_vit_base.pth.tar mixvit_b.safetensors", "runs/mixvit_tiny mine.pth.tar")
    parser.add_argument("source", type=Path, metavar="IN", help="weights, or the folder of a training run")
    parser.add_argument("target", type=Path, metavar="OUT", help="ends in .safetensors, .pth or .pth.tar")
    parser.add_argument("--official", action="store_true", help="official names in a .safetensors OUT too")
    hints = parser.add_argument_group("hints", "what names and shapes in official files do not tell")
    for name in ("--num-heads", "--score-heads", "--search-size", "--template-size"):
        hints.add_argument(name, type=positive, metavar="N")
    hints.add_argument("--early-heads", type=positives, metavar="N,N", help="of the stages before the last (MixCvT)")
    name_help = (
        "of the model, as mixformer configs show benchmarks.toml lists them (default: the published model's, with _1k "
        "and _got where the file's name or experiment has these words)"
    )
    hints.add_argument("--name", help=name_help)


def run_convert(args: argparse.Namespace) -> int:
    from mixformer_jax.convert.convert import Hints, convert

    hints = Hints(args.num_heads, args.early_heads, args.score_heads, args.search_size, args.template_size, args.name)
    print_table(convert(args.source, args.target, official=args.official, hints=hints).lines())
    return 0


DTYPE = "in which the functions compute; bfloat16 with stablehlo alone (default: float32)"
PLATFORMS = "of stablehlo: what the functions can run on, of cpu, cuda, rocm and tpu (default: cpu,cuda,tpu)"


def add_export(parser: Parser) -> None:
    example = "--format onnx --out exported"
    parser.describe(
        run_export, example, f"{example} --weights mixvit_b.safetensors --targets 4", overrides=TRACKER_PREFIX
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that gets the files")
    parser.add_argument("--format", choices=("stablehlo", "onnx"), required=True, help="see docs/export.md")
    parser.add_argument("--weights", metavar="W", help=WEIGHTS)
    parser.add_argument("--targets", type=positive, default=1, metavar="N", help="rows of every input (default: 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=DTYPE)
    parser.add_argument("--platforms", metavar="P,P", help=PLATFORMS)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.set_defaults(device="cpu")


def run_export(args: argparse.Namespace) -> int:
    from mixformer_jax.export.export import PLATFORMS, check_format, export

    if args.platforms is not None and args.format == "onnx":
        raise UsageError("--platforms goes with --format stablehlo; an ONNX file runs wherever its runtime does")
    platforms = PLATFORMS if args.platforms is None else tuple(args.platforms.split(","))
    check_format(args.format, args.dtype, platforms)
    tracker = load_model(args, colour_alone=False)
    with timed(f"exporting {tracker.config.name}"):
        files = export(tracker, args.out.expanduser(), args.format, args.targets, platforms, args.overwrite)
    sizes = [("model", tracker.config.name), ("targets", str(args.targets))]
    print_table([*sizes, *(("file", f"{path} ({path.stat().st_size / 1e6:,.1f} MB)") for path in files)])
    return 0
