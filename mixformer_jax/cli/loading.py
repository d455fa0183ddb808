"""Which model a command runs: the arguments that say so, and the tracker that they name."""

import argparse
from typing import Any

import mixformer_jax
from mixformer_jax.cli.console import for_the_user


def add_model_arguments(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Adds --device, --dtype and --weights; returns the group of what names the model."""
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: the best that JAX finds")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="in which the model computes (default: float32 on a CPU, bfloat16 elsewhere)",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--weights",
        metavar="W",
        help="name, run folder, .safetensors file or official checkpoint (default: the embedded tracker)",
    )
    return group


def load_model(args: argparse.Namespace) -> Any:
    """The tracker that the arguments name."""
    return for_the_user(ValueError, mixformer_jax.load, args.weights, device=args.device, dtype=args.dtype)


def random_model(args: argparse.Namespace) -> Any:
    """A tracker of the size --model with random weights."""
    from mixformer_jax.tracking.tracker import Tracker

    return for_the_user(ValueError, Tracker.random, args.model, args.device, dtype=args.dtype)
