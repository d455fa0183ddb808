"""`mixformer pack` for the checkout: `python eval/pack.py --dataset got10k --root R --results DIR --out Z.zip`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["pack", *sys.argv[1:]]))
