"""Train the score module of a tracker on what the tracker itself finds, and write the weights file to ship.

    python pretrain/mined_scores.py runs/mixvit_tiny --config mixvit_tiny --out runs/mixvit_tiny_mined

The tracker runs over the videos of the config's `data.root`, and over clips rendered from its photographs, in ways that
make it lose its target, and over pairs of photographs; see mixformer_jax/training/mining.py. Samples are kept in
OUT/mined, and the same command goes on where it was stopped. At the end OUT/model.safetensors (float16) has the score
module and the settings of the default tracker, and the scores' figures on the sequences of the config's `data.exclude`
are printed.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from mixformer_jax.cli.console import complain, is_for_the_user, parse_arguments
from mixformer_jax.config_files import CONFIG_PREFIX, load_config

# Chosen on the held-out sequences and on rendered clips, see docs/default_tracker.md.
TRACKER: dict[str, Any] = {
    "search_factor": 4.0,
    "num_online_templates": 1,
    "update_interval": 25,
    "clip_share": 0.5,
    "candidate_above": 0.8,
    "size_smoothing": 0.35,
    "lost_below": 0.4,
    "lost_after": 3,
    "found_above": 0.4,
    "found_after": 3,
    "redetect_every": 1,
    "redetect_above": 0.7,
    "entropy_margin": 1.5,
}

# How photographs are paired, beside what the config's `data` says: 38 of 100 pairs show another target.
PAIRS: dict[str, Any] = {
    "positive_share": 0.62,
    "synthetic": {"max_distractors": 6, "same_source_distractor": 0.7, "occluder": 0.35},
    "render": "host",
}


def main(arguments: list[str] | None = None) -> int:
    """Mines, trains, measures; returns the exit status."""
    try:
        return _run(arguments)
    except Exception as error:
        # Bad settings and data are told in a sentence; all else is a bug, with its traceback.
        if not is_for_the_user(error):
            raise
        return complain(str(error))


def _run(arguments: list[str] | None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("weights", help="name, run folder or .safetensors file of a tracker")
    parser.add_argument("--config", default="mixvit_tiny", help="names the data (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--clips", type=int, default=100, metavar="N", help="rendered clips with absences (100)")
    parser.add_argument("--pairs", type=int, default=4000, metavar="N", help="pairs of photographs (4,000)")
    parser.add_argument("--frames", type=int, default=36, metavar="N", help="of each sequence and condition (36)")
    parser.add_argument("--steps", type=int, default=500, metavar="N", help="of training (500)")
    parser.add_argument("--batch", type=int, default=96, metavar="N", help="samples a step (96)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(override_prefix=CONFIG_PREFIX)
    args = parse_arguments(parser, arguments)

    from mixformer_jax.convert.convert import RUN_WEIGHTS, find_weights
    from mixformer_jax.convert.weights import load_weights, save_weights
    from mixformer_jax.data.pool.clips import rendered_clips
    from mixformer_jax.data.pool.pool import ImagePool
    from mixformer_jax.data.samples import Material, TrackingSamples
    from mixformer_jax.datasets.sequences import open_dataset
    from mixformer_jax.training.experiment import crop_settings, data_section
    from mixformer_jax.training.mined_scores import mine_all, mine_photographs, score_figures, scores_of, train_scores
    from mixformer_jax.training.mining import join

    data = load_config(args.config, args.overrides)["data"].to_dict()
    videos = open_dataset("folder", Path(data["root"]) / "videos")
    learned, left_out = (
        videos.subset([name for name in videos.keys if (name in data["exclude"]) == held]) for held in (False, True)
    )
    if not left_out:
        parser.error(
            f"{videos.root} has none of the config's data.exclude; expected sequences to measure the scores on"
        )
    given = load_weights(find_weights(args.weights))
    of_pairs = {**data, **PAIRS, "mix": {**data["mix"], "video": 0.0}}
    config = data_section(of_pairs, crop_settings(given.model, given.tracker), "the weights do")
    images = ImagePool.load(data["root"])
    samples = TrackingSamples(Material(images=images), config, args.seed)
    clips = rendered_clips(images, args.clips, args.seed)
    mined, rendered, held = (
        mine_all(args.weights, part, data["groups"], args.frames, args.seed, args.out / "mined")
        for part in (learned, clips, left_out)
    )
    pairs = mine_photographs(args.weights, samples, args.pairs, args.out / "mined")
    weights = train_scores(args.weights, mined, rendered, pairs, data["groups"], args.steps, args.batch, args.seed)
    tracker = dataclasses.replace(weights.tracker, **TRACKER)
    target = args.out / RUN_WEIGHTS
    save_weights(target, weights.variables, weights.model, tracker, store="float16")
    of_held = join(list(held.values()))
    figures = score_figures(scores_of(weights, of_held), of_held.overlaps, tracker.lost_below)
    for name, value in figures._asdict().items():
        print(f"{name:20}{value:.3f}")
    print(f"weights  {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
