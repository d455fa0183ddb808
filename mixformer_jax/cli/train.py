"""`mixformer train`, `pretrain` and `plan`: what they take on the command line, and what they print.

Imports stay inside the commands, as in `cli`.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from mixformer_jax.cli.console import CONFIG_PREFIX, SAYS_NO, Commands, positive, positives, print_table, timed

PRETRAIN = """The folder holds what a training's folder holds, with pictures of masked images and their reconstructions.
A training starts from it: mixformer train --config mixvit_b --config.train.init=runs/trackmae_vit_b"""


def add_training_commands(command: Commands) -> None:
    """Gives `mixformer` its commands for training."""
    train = command(
        "train",
        run_train,
        "Train a tracker. Started again on the same folder, it goes on.",
        "--config mixvit_tiny --out runs/mine --config.train.steps=100",
        overrides=CONFIG_PREFIX,
    )
    _add_config(train)
    train.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME, after the config")

    pretrain = command(
        "pretrain",
        run_pretrain,
        "Pre-train the tracker's encoder as a masked autoencoder. Started again on the same folder, it goes on.",
        "--config trackmae_vit_b --out runs/trackmae_vit_b",
        overrides=CONFIG_PREFIX,
        about=PRETRAIN,
    )
    _add_config(pretrain)
    pretrain.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME, after the config")

    plan = command(
        "plan",
        run_plan,
        "Say what a train step needs of TPUs or GPUs that are not here.",
        "--config mixvit_b --topology v5e:4x4 --global-batch 256",
        overrides=CONFIG_PREFIX,
    )
    _add_config(plan)
    plan.add_argument("--topology", required=True, metavar="T", help="such as v5e:16x16, v5p:4x4x4, h100:8")
    plan.add_argument("--global-batch", type=positive, required=True, metavar="N", help="samples a step, all chips")
    plan.add_argument(
        "--mesh", type=positives, metavar="D,F,T", help="chips along data, fsdp, tensor (default: one is proposed)"
    )
    plan.add_argument("--quick", action="store_true", help="let XLA optimise less: a quarter of the time, see docs")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write all numbers for programs")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="NAME", help="see mixformer configs; or a file")


def run_train(args: argparse.Namespace) -> int:
    """Trains one experiment."""
    from mixformer_jax.config_files import default_settings, load_config
    from mixformer_jax.training.experiment import Experiment
    from mixformer_jax.training.loop import train

    config = load_config(args.config, args.overrides, default_settings(Experiment))
    weights = train(config.to_dict(), args.out or Path("runs") / args.config.stem)
    print(f"weights  {weights}")
    return 0


def run_pretrain(args: argparse.Namespace) -> int:
    """Pre-trains one autoencoder."""
    from mixformer_jax.config_files import default_settings, load_config
    from mixformer_jax.training.pretraining import PretrainExperiment, pretrain

    config = load_config(args.config, args.overrides, default_settings(PretrainExperiment))
    weights = pretrain(config.to_dict(), args.out or Path("runs") / args.config.stem)
    print(f"weights  {weights}")
    return 0


def run_plan(args: argparse.Namespace) -> int:
    """Says what a train step needs of a topology; status 1 where it cannot run there."""
    # The compiler is for chips that are elsewhere; whatever is here is left alone.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from mixformer_jax.config_files import default_settings, load_config
    from mixformer_jax.files import write_atomically
    from mixformer_jax.planning.hardware import PlanError
    from mixformer_jax.planning.plan import plan
    from mixformer_jax.planning.report import plan_lines
    from mixformer_jax.training.experiment import Experiment
    from mixformer_jax.training.pretraining import PretrainExperiment

    kind = PretrainExperiment if "autoencoder" in load_config(args.config) else Experiment
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
