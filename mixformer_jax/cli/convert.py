"""`mixformer convert`: weights between official PyTorch files and ours."""

import argparse
from pathlib import Path

from mixformer_jax.cli.console import Parser, positive, positives, print_table


def add_convert(parser: Parser) -> None:
    """The arguments of `mixformer convert`."""
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
    """Converts one file."""
    from mixformer_jax.convert.convert import Hints, convert

    hints = Hints(args.num_heads, args.early_heads, args.score_heads, args.search_size, args.template_size, args.name)
    print_table(convert(args.source, args.target, official=args.official, hints=hints).lines())
    return 0
