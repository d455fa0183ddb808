"""`mixformer plan` and `profile`: what models and train steps cost."""

import argparse
import json
import os
import sys
from pathlib import Path

from mixformer_jax.cli.console import SAYS_NO, Parser, add_config_argument, positive, positives, print_table, timed
from mixformer_jax.config_files import CONFIG_PREFIX, default_settings, load_config
from mixformer_jax.files import write_atomically


def add_plan(parser: Parser) -> None:
    example = "--config mixvit_b --topology v5e:4x4 --global-batch 256"
    parser.describe(run_plan, example, overrides=CONFIG_PREFIX)
    add_config_argument(parser)
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
        return SAYS_NO
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
