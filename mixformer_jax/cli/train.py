"""`mixformer train` and `pretrain`, and `mixformer configs`, which lists what they can train."""

import argparse
import ast
from pathlib import Path

from mixformer_jax.cli.console import Parser, UsageError, add_config_argument
from mixformer_jax.config_files import (
    BENCHMARK_SETTINGS,
    CONFIG_PREFIX,
    CONFIGS,
    default_settings,
    find_config,
    load_config,
    project_configs,
    split_row,
)
from mixformer_jax.files import is_mangled_address

PRETRAIN = """The folder holds what a training's folder holds, with pictures of masked images and their reconstructions.
A training starts from it: mixformer train --config mixvit_b --config.train.init=runs/trackmae_vit_b"""
COPY = "`mixformer configs show NAME > mine.py` gives a copy to start from; --config mine.py uses it."


def add_train(parser: Parser) -> None:
    """The arguments of `mixformer train`."""
    example = "--config mixvit_tiny --out runs/mine --config.train.steps=100"
    parser.describe(run_train, example, overrides=CONFIG_PREFIX)
    _add_run(parser)


def add_pretrain(parser: Parser) -> None:
    """The arguments of `mixformer pretrain`."""
    example = "--config trackmae_vit_b --out runs/trackmae_vit_b"
    parser.describe(run_pretrain, example, overrides=CONFIG_PREFIX, about=PRETRAIN)
    _add_run(parser)


def _add_run(parser: Parser) -> None:
    add_config_argument(parser)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME, after the config")


def _folder(config: Path, out: Path | None) -> Path:
    """--out; without it runs/NAME, or runs/NAME/ROW."""
    if out is not None:
        if is_mangled_address(out):
            raise UsageError(f"--out {out}: an address; a run needs a folder that all its hosts see, see docs/pod.md")
        return out
    file, row = split_row(config)
    return Path("runs", Path(file).stem, row or "")


def run_train(args: argparse.Namespace) -> int:
    """Trains a tracker, or a mask network, as the config's sections say."""
    out = _folder(args.config, args.out)
    from mixformer_jax.training.experiment import Experiment
    from mixformer_jax.training.loop import train
    from mixformer_jax.training.masks import NETWORKS, MaskExperiment, train_masks

    is_masks = not NETWORKS.keys().isdisjoint(load_config(args.config))
    config = load_config(args.config, args.overrides, default_settings(MaskExperiment if is_masks else Experiment))
    weights = (train_masks if is_masks else train)(config.to_dict(), out)
    print(f"weights  {weights}")
    return 0


def run_pretrain(args: argparse.Namespace) -> int:
    """Pre-trains one autoencoder."""
    out = _folder(args.config, args.out)
    from mixformer_jax.training.pretraining import PretrainExperiment, pretrain

    config = load_config(args.config, args.overrides, default_settings(PretrainExperiment))
    print(f"weights  {pretrain(config.to_dict(), out)}")
    return 0


def add_configs(parser: Parser) -> None:
    """The arguments of `mixformer configs`."""
    parser.describe(run_configs, "", "show mixvit_b", about=COPY)
    parser.add_argument("action", nargs="?", choices=("show",), help="print the file of one config")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which, for show")


def run_configs(args: argparse.Namespace) -> int:
    """Lists the configs, or prints one."""
    if args.action is not None:
        if args.name is None:
            raise UsageError("show needs the NAME of a config; see mixformer configs")
        path = BENCHMARK_SETTINGS if args.name == BENCHMARK_SETTINGS.name else find_config(split_row(args.name)[0])
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    configs = project_configs()
    width = max(map(len, configs))
    folders = {"train --config NAME": CONFIGS, "pretrain --config NAME": CONFIGS / "pretrain"}
    folders["train --config NAME, masks"] = CONFIGS / "masks"
    folders["train --config NAME:ROW, see mixformer study list"] = CONFIGS / "tables"
    for command, folder in folders.items():
        print(f"mixformer {command}")
        for name, path in configs.items():
            if path.parent == folder:
                first_line = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
                print(f"  {name:<{width}}  {first_line}")
    print("mixformer evaluate, for the models of the paper")
    print(f"  {BENCHMARK_SETTINGS.name:<{width}}  Settings of the tracker on each benchmark.")
    return 0
