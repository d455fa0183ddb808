"""`mixformer report` for the checkout: `python eval/report.py --dataset lasot --root LaSOT --results DIR`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Scores result files; returns the exit status."""
    return cli.main(["report", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
