"""`mixformer study` for the checkout: `python pretrain/study.py --study pretraining --out runs/studies`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs one study; returns the exit status."""
    return cli.main(["study", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
