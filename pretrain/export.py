"""Write a pre-trained autoencoder as a checkpoint of facebookresearch/mae.

    python pretrain/export.py runs/mae_imagenet_vit_b mae_vit_b.pth

The source is the folder of a run, or its model.safetensors; the target a .pth (PyTorch must be installed) or a
.safetensors with MAE's names. MAE has no templates, but a class token: autoencoder.class_token must be set.
"""

import argparse
import sys
from pathlib import Path

from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.pretrained import export_to_mae
from mixformer_jax.convert.weights import WeightsError


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("source", type=Path, metavar="RUN")
    parser.add_argument("target", type=Path, metavar="FILE")
    args = parser.parse_args(arguments)
    try:
        config = export_to_mae(find_weights(args.source), args.target)
    except (WeightsError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: MAE around {config.model.name}, {config.model.depth} + {config.decoder_depth} blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
