"""`mixformer toolkit got10k` for the checkout: `python eval/got10k_adapter.py --root GOT-10k --subset val`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["toolkit", "got10k", *sys.argv[1:]]))
