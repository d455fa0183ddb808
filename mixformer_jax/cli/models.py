"""Models without videos: `mixformer convert` and `export`, their weights and networks in other formats; `mixformer
profile` and `plan`, what they and their train steps cost."""

import argparse
import json
import os
import sys
from pathlib import Path

from mixformer_jax.cli.console import WEIGHTS, Parser, UsageError, load_model, positive, positives, print_table, timed
from mixformer_jax.config_files import CONFIG_PREFIX, TRACKER_PREFIX, default_settings, load_config
from mixformer_jax.files import write_atomically


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


def add_plan(parser: Parser) -> None:
    example = "--config mixvit_b --topology v5e:4x4 --global-batch 256"
    parser.describe(run_plan, example, overrides=CONFIG_PREFIX)
    parser.add_config()
    parser.add_argument("--topology", required=True, metavar="T", help="such as v5e:16x16, v5p:4x4x4, h100:8")
    parser.add_argument("--global-batch", type=positive, required=True, metavar="N", help="samples a step, all chips")
    mesh_help = "chips along data, fsdp, tensor (default: one is proposed)"
    parser.add_argument("--mesh", type=positives, metavar="D,F,T", help=mesh_help)
    parser.add_argument("--quick", action="store_true", help="let XLA optimise less: a quarter of the time, see docs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers for programs")


def run_plan(args: argparse.Namespace) -> int:
    """Says what a train step needs of a topology; status 1 where it cannot run there."""
    # The compiler is for chips that are elsewhere; whatever is here is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from mixformer_jax.planning.hardware import PlanError
    from mixformer_jax.planning.plan import plan
    from mixformer_jax.planning.record import plan_lines, planned_type

    kind = planned_type(load_config(args.config))
    config = load_config(args.config, args.overrides, default_settings(kind))
    try:
        planned = plan(config.to_dict(), args.topology, args.global_batch, args.mesh, args.quick, timed)
        record = planned.to_dict()
        print_table(plan_lines(planned))
        refusal = planned.refusal
    except PlanError as error:
        refusal = str(error)
        record = {"fits": False, "topology": args.topology, "global_batch": args.global_batch}
    if args.json is not None:
        write_atomically(args.json, json.dumps({**record, "refusal": refusal}, indent=1) + "\n")
    if refusal is not None:
        print(f"mixformer: no: {refusal}", file=sys.stderr)
        return 1
    return 0


def add_profile(parser: Parser) -> None:
    parser.describe(run_profile, "mixvit_b mixcvt")
    names_help = "a size or study model, see docs/models.md (default: all of the paper's Tables 1 to 3)"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names_help)
    templates_help = "the initial and online templates (default: 1 for study models, else 2, as in the paper)"
    parser.add_argument("--templates", type=positive, metavar="N", help=templates_help)


def run_profile(args: argparse.Namespace) -> int:
    from mixformer_jax.planning.profile import PAPER, profile_models, tables

    print(tables(profile_models(args.names or PAPER, args.templates, progress=True)), end="")
    return 0
