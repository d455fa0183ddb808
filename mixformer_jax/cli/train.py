"""`mixformer train`, `pretrain` and `finetune`, and `mixformer configs`, which lists what they can train."""

import argparse
import ast
import functools
import logging
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mixformer_jax.cli.console import ADVICE, Parser, UsageError, add_model_arguments, for_the_user, positive
from mixformer_jax.config_files import (
    BENCHMARK_SETTINGS,
    CONFIG_PREFIX,
    CONFIGS,
    change_config,
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
    example = "--config mixvit_tiny --out runs/mine --config.train.steps=100"
    parser.describe(run_train, example, overrides=CONFIG_PREFIX)
    parser.add_config()
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME, after the config")


def add_pretrain(parser: Parser) -> None:
    add_train(parser)
    run = functools.partial(run_train, is_pretraining=True)
    parser.describe(run, "--config trackmae_vit_b --out runs/trackmae_vit_b", overrides=CONFIG_PREFIX, about=PRETRAIN)


def run_train(args: argparse.Namespace, is_pretraining: bool = False) -> int:
    """Trains a tracker, or a mask network, as the config's sections say; or pre-trains."""
    file, row = split_row(args.config)
    out = args.out or Path("runs", Path(file).stem, row or "")
    if is_mangled_address(out):
        raise UsageError(f"--out {out}: an address; a run needs a folder that all its hosts see, see docs/pod.md")
    from mixformer_jax.training.loop import Experiment, PretrainExperiment, experiment_type, objective_of, run

    kind = experiment_type(load_config(args.config))
    if is_pretraining != (kind is PretrainExperiment):  # the other command's, which its own sections refuse
        kind = PretrainExperiment if is_pretraining else Experiment
    config = load_config(args.config, args.overrides, default_settings(kind))
    print(f"weights  {run(objective_of(kind.from_mapping(config.to_dict())), out)}")
    return 0


def add_configs(parser: Parser) -> None:
    parser.describe(run_configs, "", "show mixvit_b", about=COPY)
    parser.add_argument("action", nargs="?", choices=("show",), help="print the file of one config")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which, for show")


def run_configs(args: argparse.Namespace) -> int:
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


NO_POOL = "none"
TUNING = """VIDEOS holds annotated videos: folders with groundtruth.txt, or an export of CVAT, MOT, COCO with track ids
or Label Studio (docs/finetune.md). A fifth of the videos is held out; the tracker runs over those before and after,
and the best weights on them are kept. mixformer track --weights RUN takes the result. The same command goes on where
it was stopped."""


def add_finetune(parser: Parser) -> None:
    examples = ("my_videos --out runs/mine", "cvat_export --weights mixvit_b.pth.tar --out runs/mine --held-out walk2")
    parser.describe(run_finetune, *examples, overrides=CONFIG_PREFIX, about=TUNING, advice=ADVICE)
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder of the annotated videos")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--dataset", metavar="D", help="how to read VIDEOS (default: told by what it holds)")
    held_help = "sequences or videos to hold out (default: a fifth of the videos)"
    parser.add_argument("--held-out", nargs="+", metavar="NAME", help=held_help)
    pool_help = (
        "videos/ and images/ that stay in the mix, so that other scenes do not get worse; none (default: the config's)"
    )
    steps_help = "of training (default: by the number of frames, 200 to 3,000)"
    parser.add_argument("--steps", type=positive, metavar="N", help=steps_help)
    parser.add_argument("--pool", type=Path, metavar="DIR", help=pool_help)
    parser.add_argument("--config", type=Path, metavar="NAME", help="whose recipe is taken (default: the weights')")
    add_model_arguments(parser)


def run_finetune(args: argparse.Namespace) -> int:
    from mixformer_jax.datasets.sequences import annotation_kind, open_dataset
    from mixformer_jax.text_tables import aligned
    from mixformer_jax.tracking.tracker import find_device
    from mixformer_jax.training.experiment import Experiment
    from mixformer_jax.training.finetuning import FineTuning, default_steps, finetune_config, noticed, record_scores

    logging.basicConfig(format="%(message)s")
    with for_the_user(ValueError):
        device = None if args.device is None else find_device(args.device)
    dataset = open_dataset(args.dataset or annotation_kind(args.videos), args.videos)
    tuning = FineTuning(dataset, args.weights, args.out, args.held_out, device, args.dtype)
    recipe = load_config(args.config or recipe_of(tuning.start.model.name, tuning.start.model.backbone))
    pool = _pool(args, recipe)

    def configure(steps: int) -> dict[str, Any]:
        config = finetune_config(recipe.to_dict(), tuning.start, args.out, tuning.split, steps, pool, tuning.dtype)
        return change_config(ConfigDict(config), args.overrides, default_settings(Experiment)).to_dict()

    steps = args.steps or default_steps(tuning.frames)
    changed = configure(steps)
    if changed["train"]["steps"] > 0:  # --config.train.steps is --steps: warm-up and validations are shares of it
        changed = configure(changed["train"]["steps"])
    print(f"train    {len(tuning.split.train)} sequences, {tuning.frames:,} frames; {changed['train']['steps']} steps")
    print(f"held out {', '.join(tuning.split.held_out) or 'nothing: there is one video'}")
    no_pool = "none: what is not in your videos may be followed worse afterwards (--pool)"
    print(f"pool     {pool or no_pool}", flush=True)
    scores = tuning.run(changed)
    record_scores(args.out / "scores.json", scores, tuning.minutes)
    shown = "held out" if tuning.split.held_out else "trained on"
    rows = [[shown, "AUC before", "after", "OP75 before", "after"]]
    columns = [each.by_sequence[metric] for metric in ("AUC", "OP75") for each in (scores.before, scores.after)]
    for name, *values in zip(scores.sequences, *columns, strict=True):
        rows.append([name, *(f"{value:.1f}" for value in values)])
    rows.append(["mean", *(f"{sum(values) / len(values):.1f}" for values in columns)])
    print(aligned(rows), end="")
    print(noticed(args.out, bool(tuning.split.held_out)))
    if scores.after.headline["AUC"] < scores.before.headline["AUC"]:
        print("it has become no better: stay with the weights as they were, or annotate more videos")
    print("minutes  " + ", ".join(f"{name} {value:.1f}" for name, value in tuning.minutes.items()))
    print(f"weights  {args.out}")
    return 0


def recipe_of(model: str, backbone: str) -> str:
    """The config whose recipe trained a model of this name, or one of its kind."""
    known = project_configs()
    for name in (model, model.removesuffix("_online"), model.replace("_online", "")):
        if name in known:
            return name
    return "mixcvt" if backbone == "cvt" else "mixvit_b"


def _pool(args: argparse.Namespace, recipe: Any) -> Path | None:
    """The pool that stays in the mix: the one that is asked for, else the recipe's, where it is there."""
    if str(args.pool) == NO_POOL:
        return None
    if args.pool is not None:
        if not args.pool.is_dir():
            expected = "expected videos/ and images/, or what data pool wrote"
            raise UsageError(f"--pool {args.pool}: no such folder; {expected}")
        return args.pool
    own = recipe.data.get("root")
    return Path(own) if own is not None and Path(own).is_dir() else None
