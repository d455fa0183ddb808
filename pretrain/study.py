"""`mixformer study` for the checkout: `python pretrain/study.py run table7 --scale tiny --out runs/studies`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["study", *sys.argv[1:]]))
