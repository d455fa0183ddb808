"""`python -m mixformer_jax` is `mixformer`."""

import sys

from mixformer_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
