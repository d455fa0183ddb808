"""Pre-train the tracker's encoder as a masked autoencoder.

    python pretrain/run.py --config configs/pretrain/trackmae_vit_b.py
    mixformer train --config configs/mixvit_b.py --config.train.init=runs/trackmae_vit_b

The folder (runs/NAME unless --out names another) holds what a training's folder holds: metrics, curves, pictures of
masked images and their reconstructions, checkpoints, and model.safetensors, from which a training starts. Started again
on the same folder, a run goes on. --config.SECTION.SETTING=VALUE changes a setting of the config.
"""

import argparse
import sys
from pathlib import Path

from mixformer_jax.signals import Stopped, StopSignals


def main(arguments: list[str] | None = None) -> int:
    """Runs one pre-training; returns the exit status."""
    # Before anything imports JAX.
    with StopSignals("pretrain/run.py"):
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    from mixformer_jax.config_files import PREFIX, default_settings, load_config
    from mixformer_jax.convert.weights import WeightsError
    from mixformer_jax.datasets.groundtruth import DatasetError
    from mixformer_jax.models.config import ConfigError
    from mixformer_jax.training.checkpoints import CheckpointError
    from mixformer_jax.training.folder import TrainingError
    from mixformer_jax.training.pretraining import PretrainExperiment, pretrain

    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME, after the config")
    args, rest = parser.parse_known_args(arguments)
    unknown = [text for text in rest if not text.startswith(PREFIX)]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    try:
        config = load_config(args.config, rest, default_settings(PretrainExperiment))
        weights = pretrain(config.to_dict(), args.out or Path("runs") / args.config.stem)
    except Stopped as stopped:
        print(f"pretrain/run.py: {stopped.word}", file=sys.stderr)
        return stopped.status
    except (CheckpointError, ConfigError, DatasetError, TrainingError, WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"weights  {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
