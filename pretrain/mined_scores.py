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
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from mixformer_jax.cli.console import complain, is_for_the_user, parse_arguments
from mixformer_jax.config_files import CONFIG_PREFIX, load_config
from mixformer_jax.data.pool.pool import ImagePool
from mixformer_jax.datasets.records import Dataset, TrackingSequence

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


# Rendered clips
WIDTH, HEIGHT = 512, 288
FRAMES, FPS = 60, 30.0
NOISE = 2.0  # grey levels
MOST_ZOOM = 1.25
LEAST_SEEN = 0.3  # share of the target in view from which it has a box
LEAST_BOXED = 0.2  # share of a clip's frames with a box


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


def rendered_clips(pool: ImagePool, count: int, seed: int = 0) -> Dataset:
    """`count` sequences `rendered_clip_0`, ...; the same ones for the same seed.

    In each the target, a cut-out among one to four others that move over a photograph, is out of sight now and then,
    and comes back elsewhere. Raises ValueError where no photograph of the pool has an instance mask.
    """
    if not pool.cutouts:
        raise ValueError(
            "no photograph of the pool has an instance mask NAME.png beside it, so no clip can be rendered"
        )

    def read(name: str) -> TrackingSequence:
        rng = np.random.default_rng((seed, int(name.removeprefix("rendered_clip_"))))
        while True:
            clip = _Clip(pool, rng)
            frames, boxes_xywh = zip(*(clip.render(index / FRAMES) for index in range(FRAMES)), strict=True)
            if np.isfinite(boxes_xywh).all(axis=1).sum() >= LEAST_BOXED * FRAMES:
                return TrackingSequence(name, np.stack(boxes_xywh), frames.__getitem__, FPS, Path(name))

    return Dataset("rendered", Path("rendered"), [f"rendered_clip_{number}" for number in range(count)], read)


class _Actor(NamedTuple):
    """A cut-out and its path; time runs from 0 to 1."""

    premultiplied: np.ndarray  # float32, colours times alpha and alpha (0 to 1)
    centre: np.ndarray
    swing: np.ndarray
    rate: np.ndarray
    phase: np.ndarray
    turn: float


class _Clip:
    def __init__(self, pool: ImagePool, rng: np.random.Generator) -> None:
        self._rng = rng
        photo = pool.photos[rng.choice(pool.backgrounds)][0]
        scale = 1.5 * max(WIDTH / photo.shape[1], HEIGHT / photo.shape[0])
        self._background = cv2.resize(photo, None, fx=scale, fy=scale)
        side = rng.uniform(24, 130)
        self._actors = [self._draw_actor(pool, side * rng.uniform(0.6, 1.5)) for _ in range(rng.integers(1, 5))]
        self._place_of_target = int(rng.integers(len(self._actors) + 1))  # between the others, from back to front
        self._actors.insert(self._place_of_target, self._draw_actor(pool, side))
        self._pan, self._pan_phase = rng.uniform(0, 6, 2), rng.uniform(0, 6, 2)
        self._absences = []  # begin, end, and where the target goes on
        begin = rng.uniform(0.15, 0.35)
        while begin < 1:
            end = begin + rng.uniform(0.08, 0.3)
            self._absences.append((begin, end, self._spot()))
            begin = end + rng.uniform(0.15, 0.3)

    def _spot(self) -> np.ndarray:
        return self._rng.uniform([80, 50], [WIDTH - 80, HEIGHT - 50])

    def _draw_actor(self, pool: ImagePool, side: float) -> _Actor:
        rng = self._rng
        cutout = pool.cutouts[rng.integers(len(pool.cutouts))].levels[0].astype(np.float32)
        alpha = cutout[..., 3:] / 255
        premultiplied = np.concatenate([cutout[..., :3] * alpha, alpha], axis=2)
        # As large as it is ever drawn: a warp does not average.
        scale = MOST_ZOOM * side / max(cutout.shape[:2])
        pixels = cv2.resize(premultiplied, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        swing, rate = rng.uniform([20, 10], [130, 70]), rng.uniform(0.5, 2.2, 2)
        return _Actor(pixels, self._spot(), swing, rate, rng.uniform(0, 2 * math.pi, 4), rng.uniform(5, 25))

    def render(self, time: float) -> tuple[UInt8[np.ndarray, "h w 3"], Float64[np.ndarray, "4"]]:
        """The picture, and the target's box `x, y, w, h`: NaN where too little of it is in view."""
        room = np.array(self._background.shape[1::-1]) - (WIDTH, HEIGHT)
        left, top = (room * (0.5 + 0.5 * np.sin(self._pan * time + self._pan_phase))).astype(int)
        picture = self._background[top : top + HEIGHT, left : left + WIDTH].astype(np.float32)
        seen = target = np.zeros((HEIGHT, WIDTH), bool)
        whole = math.inf
        for number, actor in enumerate(self._actors):
            is_target = number == self._place_of_target
            if is_target and any(begin <= time < end for begin, end, _ in self._absences):
                continue
            matrix = self._matrix(actor, time, is_target)
            drawn = cv2.warpAffine(actor.premultiplied, matrix, (WIDTH, HEIGHT))
            picture += drawn[..., :3] - drawn[..., 3:] * picture
            seen = seen & (drawn[..., 3] < 0.5)
            if is_target:
                seen = target = drawn[..., 3] > 0.5
                whole = (actor.premultiplied[..., 3] > 0.5).sum() * np.linalg.det(matrix[:, :2])
        noisy = picture + self._rng.normal(0, NOISE, (HEIGHT, WIDTH, 1))
        is_seen = seen.sum() > max(LEAST_SEEN * whole, 30)
        box_xywh = np.array(cv2.boundingRect(target.astype(np.uint8)), np.float64)
        return np.clip(noisy, 0, 255).astype(np.uint8), box_xywh if is_seen else np.full(4, np.nan)

    def _matrix(self, actor: _Actor, time: float, is_target: bool) -> np.ndarray:
        centre = actor.centre
        for begin, _, spot in self._absences if is_target else ():
            centre = spot if time >= begin else centre
        centre = centre + actor.swing * np.sin(2 * math.pi * actor.rate * time + actor.phase[:2])
        zoom = (1 + (MOST_ZOOM - 1) * math.sin(5 * time + actor.phase[2])) / MOST_ZOOM
        angle = math.radians(actor.turn * math.sin(7 * time + actor.phase[3]))
        linear = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        middle = np.array(actor.premultiplied.shape[1::-1]) / 2
        return np.column_stack([linear, centre - linear @ middle])


if __name__ == "__main__":
    sys.exit(main())
