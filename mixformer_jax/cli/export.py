"""`mixformer export`: a tracker's network as StableHLO or ONNX, for programs without this package."""

import argparse
from pathlib import Path

from mixformer_jax.cli.console import WEIGHTS, Parser, UsageError, load_model, positive, print_table, timed
from mixformer_jax.config_files import TRACKER_PREFIX

DTYPE = "in which the functions compute; bfloat16 with stablehlo alone (default: float32)"
PLATFORMS = "of stablehlo: what the functions can run on, of cpu, cuda, rocm and tpu (default: cpu,cuda,tpu)"


def add_export(parser: Parser) -> None:
    """The arguments of `mixformer export`."""
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
    """Writes the files."""
    from mixformer_jax.export.export import PLATFORMS, check_format, export

    if args.platforms is not None and args.format == "onnx":
        raise UsageError("--platforms goes with --format stablehlo; an ONNX file runs wherever its runtime does")
    platforms = PLATFORMS if args.platforms is None else tuple(args.platforms.split(","))
    check_format(args.format, args.dtype, platforms)
    tracker = load_model(args)
    with timed(f"exporting {tracker.config.name}"):
        files = export(tracker, args.out.expanduser(), args.format, args.targets, platforms, args.overwrite)
    sizes = [("model", tracker.config.name), ("targets", str(args.targets))]
    print_table([*sizes, *(("file", f"{path} ({path.stat().st_size / 1e6:,.1f} MB)") for path in files)])
    return 0
