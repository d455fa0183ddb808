"""`mixformer failures` for the checkout: `python eval/failures.py --out failures.png`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Draws where a tracker fails; returns the exit status."""
    return cli.main(["failures", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
