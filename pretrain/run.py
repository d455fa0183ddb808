"""`mixformer pretrain` for the checkout: `python pretrain/run.py --config configs/pretrain/trackmae_vit_b.py`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs one pre-training; returns the exit status."""
    return cli.main(["pretrain", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
