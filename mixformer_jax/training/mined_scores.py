"""The score module (section 3.5) trained on what its tracker finds by itself, `mining.py`, and calibrated. Not in the
paper. All else is frozen, as in stage 2, and its features are kept, so that training costs minutes on a CPU."""

import math
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata
from tqdm import tqdm

from mixformer_jax.boxes import cxcywh_to_xyxy, iou
from mixformer_jax.convert.convert import find_weights
from mixformer_jax.convert.weights import Weights, load_weights
from mixformer_jax.data.samples import TrackingSamples
from mixformer_jax.datasets.groundtruth import DatasetError
from mixformer_jax.datasets.records import Dataset
from mixformer_jax.evaluation.trackers import file_digest
from mixformer_jax.files import whole_file
from mixformer_jax.models.config import MixFormerConfig, with_score
from mixformer_jax.models.heads import ScorePrediction
from mixformer_jax.models.mixformer import build_model, init_variables
from mixformer_jax.training.mining import (
    AS_IN_USE,
    FOREIGN,
    LOST,
    Mined,
    Network,
    Patches,
    cut_patches,
    join,
    mine,
    mine_pairs,
    scenes_of,
)
from mixformer_jax.training.supervised import start_from

RIGHT, WRONG = 0.55, 0.3  # IoU; what lies between teaches nothing
OTHER_BOXES = 0.3  # share of boxes that are drawn around the truth instead: halves, parts, much too large ones
DROPOUT = 0.1  # of tokens; the module itself has none
EMA = 0.99
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 7e-4, 0.05, 1.0
# Of the samples that are drawn: videos, rendered clips, pairs of photographs. Clips are many, and easier than videos.
SHARES = (0.7, 0.15, 0.15)
CALIBRATED_ON = 5  # one scene of so many is left out of training
LARGEST_GRADIENT = 1e-3  # of the calibration's loss, where it has converged

Params = Mapping[str, Any]


def mine_all(
    source: str | Path, dataset: Dataset, groups: Sequence[Sequence[str]], steps: int, seed: int, folder: Path
) -> dict[str, Mined]:
    """Mines every sequence of annotated videos with a tracker's weights, with or without scores; by name.

    What is in the folder already, a file a sequence, for these weights, `steps` (frames a condition) and `seed`, is not
    mined again. Sequences of one of the `groups` show one scene: their targets are never "another target".

    Raises DatasetError: all sequences show one scene, so that none has another target; a sequence has no box that can
    be used; a file of samples cannot be read.
    """
    path = find_weights(source)
    network, digest = Network(load_weights(path)), file_digest(path)[:12]
    scene = scenes_of(dataset.keys, groups)
    if len(set(scene.values())) < 2:
        raise DatasetError(
            f"{dataset.root}: {len(dataset)} sequences of one scene; expected two scenes or more to mine"
        )
    files = {name: folder / f"{dataset.name}_{name}_{steps}_{seed}_{digest}.npz" for name in dataset.keys}
    missing = [name for name in dataset.keys if not files[name].is_file()]
    if missing:
        size = network.tracker.template_factor, network.model.template_size
        patches = {each.name: cut_patches(each, *size) for each in tqdm(dataset, "targets", file=sys.stderr)}
        folder.mkdir(parents=True, exist_ok=True)
    for sequence in tqdm(dataset.subset(missing), "mining", file=sys.stderr):
        others = [patches[name] for name in dataset.keys if scene[name] != scene[sequence.name]]
        rng = np.random.default_rng((seed, *sequence.name.encode()))
        mined = mine(rng, network, sequence, steps, Patches(*map(np.concatenate, zip(*others, strict=True))))
        _write(files[sequence.name], mined)
    return {name: _read(file) for name, file in files.items()}


def mine_photographs(source: str | Path, samples: TrackingSamples, count: int, folder: Path) -> dict[str, Mined]:
    """As `mine_all`, of labelled pairs of photographs; one entry."""
    path = find_weights(source)
    file = folder / f"photographs_{count}_{samples.seed}_{file_digest(path)[:12]}.npz"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, mine_pairs(Network(load_weights(path)), samples, count))
    return {"photographs": _read(file)}


def _write(file: Path, mined: Mined) -> None:
    with whole_file(file) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **mined._asdict())


def _read(file: Path) -> Mined:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return Mined(**arrays)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{file}: cannot be read; delete it, and its sequence is mined again: {error}") from error


class CalibrationError(ValueError):
    """Scores cannot be calibrated; the message says why."""


class ScoreFigures(NamedTuple):
    """How well scores tell right boxes from wrong ones."""

    roc_area: float  # probability that a box with an IoU above 0.3 scores above one below; ties count half.
    # Mean gap between the score and the share of boxes with an IoU above 0.5, over 15 equal bins of the score, weighted
    # by their samples.
    calibration_error: float
    lost_called: float  # share of boxes with an IoU below 0.1 that score below the threshold.
    good_called: float  # the same of boxes with an IoU above 0.5.


def score_figures(scores: Float[np.ndarray, " n"], overlaps: Float[np.ndarray, " n"], below: float) -> ScoreFigures:
    """Figures of scores in [0, 1] and of the overlaps of the same boxes; `below`: score of what counts as lost."""
    right = overlaps > WRONG
    pairs = right.sum() * (~right).sum()
    area = (rankdata(scores)[right].sum() - right.sum() * (right.sum() + 1) / 2) / pairs if pairs else math.nan
    bins = np.minimum((scores * 15).astype(int), 14)
    gaps = [abs((scores - (overlaps > 0.5))[bins == number].sum()) for number in range(15)]
    called = scores < below
    lost, good = (called[chosen].mean() if chosen.any() else math.nan for chosen in (overlaps < LOST, overlaps > 0.5))
    return ScoreFigures(float(area), float(sum(gaps) / len(scores)), float(lost), float(good))


def train_scores(
    source: str | Path,
    videos: Mapping[str, Mined],
    clips: Mapping[str, Mined],
    pairs: Mapping[str, Mined],
    groups: Sequence[Sequence[str]],
    steps: int,
    batch: int,
    seed: int,
) -> Weights:
    """A tracker whose score module learned from mined samples; its logits are calibrated on scenes left out of that.

    The tracker `source` mined them from real sequences (one scene of five is left out; `groups` are sequences of one
    scene), from rendered clips and from photographs; of the last two there may be none. In the calibration each scene
    has the same weight, and conditions in use alone count: with the others nearly half of all boxes are wrong, and a
    score fitted to that calls good boxes lost.

    Raises CalibrationError: of `calibration`, on the scenes that were left out.
    """
    weights = load_weights(find_weights(source))
    model = weights.model if weights.model.score_heads else with_score(weights.model)
    variables = init_variables(build_model(model), jax.random.key(seed))
    given = start_from(source, model, may_be_fresh=("score",)).variables
    variables = unflatten_dict(flatten_dict(variables) | flatten_dict(given))

    rng = np.random.default_rng(seed)
    scene = scenes_of(videos, groups)
    scenes = sorted(set(scene.values()))
    left_out = set(rng.permutation(scenes)[: max(1, len(scenes) // CALIBRATED_ON)])
    learned = {name: samples for name, samples in videos.items() if scene[name] not in left_out}
    learned |= {**clips, **pairs}
    kept = {name: samples for name, samples in videos.items() if scene[name] in left_out}
    data = join(list(learned.values()))
    kinds = _for_each_sample(learned, [1 if name in clips else 2 if name in pairs else 0 for name in learned])
    chances = _chances(_scene_sizes(learned, scene), kinds, data.condition)
    params = _fit(_module(model), variables["params"]["score"], _batches(rng, data, chances, batch), steps)

    def with_scores(params: Params) -> Weights:
        score = {**variables, "params": {**variables["params"], "score": params}}
        return Weights(score, model, weights.tracker)

    params, samples = jax.device_get(params), join(list(kept.values()))
    counts = np.isin(samples.condition, AS_IN_USE) / _scene_sizes(kept, scene)
    sharpness, offset = calibration(_logits(with_scores(params), samples), samples.overlaps, counts)
    last = params["fc2"]
    return with_scores(
        {**params, "fc2": {"kernel": last["kernel"] * sharpness, "bias": last["bias"] * sharpness + offset}}
    )


def _for_each_sample(samples: Mapping[str, Mined], values: Sequence[Any]) -> np.ndarray:
    """The value of each sample's sequence."""
    return np.repeat(values, [len(of_one.overlaps) for of_one in samples.values()])


def _scene_sizes(samples: Mapping[str, Mined], scene: Mapping[str, str]) -> np.ndarray:
    """How many samples there are of each one's scene; a sequence without one has its own."""
    scenes = _for_each_sample(samples, [scene.get(name, name) for name in samples])
    _, inverse, sizes = np.unique(scenes, return_inverse=True, return_counts=True)
    return sizes[inverse]


def _chances(scene_sizes: np.ndarray, kinds: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """How often each sample is drawn; `kinds` are places in SHARES."""
    # A scene counts by its samples to the power of 0.3: many clips of one place are worth little more than one.
    chances = scene_sizes**-0.7 * np.where(condition == FOREIGN, 0.8, 1.0)
    for kind in np.unique(kinds):
        chances[kinds == kind] *= SHARES[kind] / chances[kinds == kind].sum()
    return chances / chances.sum()


def _fit(
    module: ScorePrediction, params: Params, batches: Iterator[tuple[Any, np.ndarray, np.ndarray]], steps: int
) -> Params:
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(1, steps // 20), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adamw(schedule, weight_decay=WEIGHT_DECAY))

    @jax.jit
    def step(params: Params, average: Params, state: Any, inputs: Any, labels: Any, counts: Any, key: Any) -> Any:
        def loss_of(params: Params) -> Any:
            search, template, boxes_xyxy = inputs
            tokens = []
            for each, maps in zip(jax.random.split(key), (search, template), strict=True):
                keep = jax.random.bernoulli(each, 1 - DROPOUT, maps.shape)
                tokens.append(jnp.where(keep, jnp.asarray(maps, jnp.float32) / (1 - DROPOUT), 0.0))
            logits = module.apply({"params": params}, *tokens, boxes_xyxy)
            return (optax.sigmoid_binary_cross_entropy(logits, labels) * counts).sum() / jnp.maximum(counts.sum(), 1)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        changes, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
        return params, optax.incremental_update(params, average, 1 - EMA), state, loss

    average, state = params, optimizer.init(params)
    with tqdm(range(steps), "scores", unit="step", file=sys.stderr) as progress:
        for number, batch in zip(progress, batches, strict=False):
            params, average, state, loss = step(params, average, state, *batch, jax.random.key(number))
            if number % 50 == 49:
                progress.set_postfix(loss=f"{float(loss):.3f}")
    return average


def _batches(
    rng: np.random.Generator, data: Mined, chances: np.ndarray, batch: int
) -> Iterator[tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]]:
    """Inputs of the module, labels, and which samples count, for ever."""
    is_absent = data.is_absent
    while True:
        chosen = rng.choice(len(chances), batch, p=chances)
        boxes_cxcywh, overlaps = data.boxes_cxcywh[chosen], data.overlaps[chosen]
        for row in np.flatnonzero((rng.random(batch) < OTHER_BOXES) & ~is_absent[chosen]):
            truth = data.truth_cxcywh[chosen[row]]
            box = _other_box(rng, truth)
            if (box[:2] > 0).all() and (box[:2] < 1).all():
                boxes_cxcywh[row] = box
                overlaps[row] = iou(cxcywh_to_xyxy(box), cxcywh_to_xyxy(truth))
        labels, counted = overlaps > 0.5, _is_clear(overlaps)
        yield _inputs(data, chosen, boxes_cxcywh), labels.astype(np.float32), counted.astype(np.float32)


def _other_box(rng: np.random.Generator, truth_cxcywh: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4"]:
    """Nearly right; a half, a part or much too large; or anywhere."""
    chance = rng.random()
    if chance < 0.75:
        move, stretch = (0.08, 0.1) if chance < 0.35 else (0.4, 0.45)
        centre = truth_cxcywh[:2] + rng.normal(0, move, 2) * truth_cxcywh[2:]
    else:
        centre, stretch = rng.random(2), 0.3
    return np.concatenate([centre, truth_cxcywh[2:] * np.exp(rng.normal(0, stretch, 2))])


def _inputs(data: Mined, chosen: np.ndarray, boxes_cxcywh: np.ndarray) -> tuple[np.ndarray, ...]:
    boxes_xyxy = cxcywh_to_xyxy(boxes_cxcywh).astype(np.float32)
    return data.features[chosen], data.templates[data.template[chosen]], boxes_xyxy


def _module(model: MixFormerConfig) -> ScorePrediction:
    return ScorePrediction(model.output_width, model.score_heads, jnp.dtype("float32"))


def _logits(weights: Weights, data: Mined) -> Float[np.ndarray, " n"]:
    """Of the found boxes, by a tracker's score module."""
    variables, module = {"params": weights.variables["params"]["score"]}, _module(weights.model)
    predict: Callable[..., Any] = jax.jit(
        lambda search, template, boxes: module.apply(
            variables, search.astype(jnp.float32), template.astype(jnp.float32), boxes
        )
    )
    count, batch, parts = len(data.overlaps), 128, []
    for begin in range(0, count, batch):
        chosen = np.minimum(np.arange(begin, begin + batch), count - 1)  # one shape
        parts.append(np.asarray(predict(*_inputs(data, chosen, data.boxes_cxcywh[chosen]))))
    return np.concatenate(parts)[:count].astype(np.float64)


def scores_of(weights: Weights, data: Mined) -> Float[np.ndarray, " n"]:
    """Scores in [0, 1] of the found boxes, by a tracker's score module."""
    return np.asarray(jax.nn.sigmoid(_logits(weights, data)))


def calibration(
    logits: Float[np.ndarray, " n"], overlaps: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> tuple[float, float]:
    """Sharpness and offset: sigmoid(sharpness * logit + offset) fits the share of boxes with an IoU above 0.5 best.

    Platt scaling, with his targets, which are not quite 0 and 1 so that separable samples have an answer as well. A box
    counts as much as its weight.

    Raises CalibrationError: no box is clearly right or wrong, or the fit has not converged.
    """
    counted = _is_clear(overlaps) & (weights > 0)
    if not counted.any():
        raise CalibrationError(
            f"none of {len(logits)} scores can be calibrated: no IoU above {RIGHT:g} or below {WRONG:g}"
        )
    logits, right, weights = logits[counted], overlaps[counted] > 0.5, weights[counted]
    targets = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        fitted = values[0] * logits + values[1]
        errors = weights * (expit(fitted) - targets) / weights.sum()
        losses = weights @ (np.logaddexp(0, fitted) - targets * fitted) / weights.sum()
        return float(losses), np.array([errors @ logits, errors.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    if not np.abs(found.jac).max() < LARGEST_GRADIENT:
        raise CalibrationError(f"the calibration of {len(logits)} scores has not converged: {found.message}")
    return float(found.x[0]), float(found.x[1])


def _is_clear(overlaps: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    return (overlaps > RIGHT) | (overlaps < WRONG)
