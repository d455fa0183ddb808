"""`mixformer pack` for the checkout: `python eval/pack.py --dataset got10k --root R --results DIR --out Z.zip`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Packs results for a benchmark's server; returns the exit status."""
    return cli.main(["pack", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
