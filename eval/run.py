"""`mixformer evaluate` for the checkout: `python eval/run.py --dataset lasot --root LaSOT --out results/`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs trackers over a benchmark; returns the exit status."""
    return cli.main(["evaluate", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
