"""`mixformer pretrain` for the checkout: `python pretrain/run.py --config configs/pretrain/trackmae_vit_b.py`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
