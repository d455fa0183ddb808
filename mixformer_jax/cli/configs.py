"""`mixformer configs`: the configs that come with the project.

Imports stay inside the command, as in `cli`.
"""

import argparse
import ast
from pathlib import Path

from mixformer_jax.cli.console import Commands, UsageError

ABOUT = "`mixformer configs show NAME > mine.py` gives a copy to start from; --config mine.py uses it."


def add_configs_command(command: Commands) -> None:
    """Gives `mixformer` its command that lists configs."""
    configs = command(
        "configs",
        run_configs,
        "List the configs that --config knows by name, or print one.",
        "",
        "show mixvit_b",
        about=ABOUT,
    )
    configs.add_argument("action", nargs="?", choices=("show",), help="print the file of one config")
    configs.add_argument("name", nargs="?", metavar="NAME", help="which, for show")


def run_configs(args: argparse.Namespace) -> int:
    """Lists the configs, or prints one."""
    from mixformer_jax.config_files import BENCHMARK_SETTINGS, CONFIGS, find_config, project_configs

    if args.action is not None:
        if args.name is None:
            raise UsageError("show needs the NAME of a config; see mixformer configs")
        path = BENCHMARK_SETTINGS if args.name == BENCHMARK_SETTINGS.name else find_config(args.name)
        print(path.read_text(encoding="utf-8"), end="")
        return 0
    configs = project_configs()
    width = max(map(len, configs))
    for command, folder in (("train", CONFIGS), ("pretrain", CONFIGS / "pretrain")):
        print(f"mixformer {command} --config NAME")
        for name, path in configs.items():
            if path.parent == folder:
                print(f"  {name:<{width}}  {_first_line(path)}")
    print("mixformer evaluate, for the models of the paper")
    print(f"  {BENCHMARK_SETTINGS.name:<{width}}  Settings of the tracker on each benchmark.")
    return 0


def _first_line(path: Path) -> str:
    """Of a config's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (text or "").partition("\n")[0]
