"""`mixformer failures` for the checkout: `python eval/failures.py --out failures.png`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["failures", *sys.argv[1:]]))
