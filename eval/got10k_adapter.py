"""`mixformer toolkit got10k` for the checkout: `python eval/got10k_adapter.py --root GOT-10k --subset val`."""

import sys

from mixformer_jax import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs an experiment of the got10k toolkit; returns the exit status."""
    return cli.main(["toolkit", "got10k", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    sys.exit(main())
