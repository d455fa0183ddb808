"""`mixformer evaluate` for the checkout: `python eval/run.py --dataset lasot --root LaSOT --out results/`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
