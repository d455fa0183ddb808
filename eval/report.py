"""`mixformer report` for the checkout: `python eval/report.py --dataset lasot --root LaSOT --results DIR`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
