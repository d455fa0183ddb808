"""`mixformer toolkit vot` for the checkout, as `trackers.ini` of earlier versions names it."""

import sys

from mixformer_jax import cli


def main(*arguments: str) -> None:
    """Serves the VOT toolkit, by the command line or by `arguments`."""
    sys.exit(cli.main(["toolkit", "vot", *(arguments or sys.argv[1:])]))


if __name__ == "__main__":
    main()
