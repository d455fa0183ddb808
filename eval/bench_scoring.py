"""Time and memory of scoring a benchmark of LaSOT's size.

    python eval/bench_scoring.py         280 sequences x 2,500 frames x 10 trackers, synthetic

Each turn reads and scores the result files in a process of its own, so that the peak of memory is that of scoring. With
the got10k toolkit (pip install -e '.[got10k]'), its OTB report takes turns with ours on the same files, without its
plots; ours also has the normalised precision.
"""

import argparse
import importlib.util
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from mixformer_jax.cli.console import positive
from mixformer_jax.datasets.groundtruth import read_groundtruth
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.metrics import benchmark_rules
from mixformer_jax.evaluation.scoring import find_results, score_results

OURS, TOOLKIT = "ours", "got10k toolkit"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=positive, default=280)
    parser.add_argument("--frames", type=positive, default=2500, help="a sequence")
    parser.add_argument("--trackers", type=positive, default=10)
    parser.add_argument("--turns", type=positive, default=3)
    args = parser.parse_args(arguments)
    contenders = [OURS] if importlib.util.find_spec("got10k") is None else [OURS, TOOLKIT]
    measured: dict[str, list[Turn]] = {name: [] for name in contenders}
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, fresh.Pool(1, maxtasksperchild=1) as process:
        root = Path(folder)
        _write_files(root, args.sequences, args.frames, args.trackers)
        for _ in range(args.turns):
            for name in contenders:
                measured[name].append(process.apply(_turn, (name, root)))
    # Not in the turns' processes, whose memory it would add to.
    import jax

    from mixformer_jax.cli.bench import device_name

    device = device_name(jax.devices("cpu")[0])
    print(f"{device}; {args.sequences} sequences x {args.frames} frames x {args.trackers} trackers")
    seconds = {name: [turn.seconds for turn in turns] for name, turns in measured.items()}
    medians = {name: median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        peak = max(turn.peak_mb for turn in measured[name])
        spread = f"{min(values):.2f} to {max(values):.2f}, {args.turns} turns"
        print(f"{name}: median {medians[name]:.2f} s ({spread}), peak {peak:.0f} MB")
    if TOOLKIT in medians:
        gap = np.abs(np.subtract(measured[OURS][0].auc, measured[TOOLKIT][0].auc)).max()
        print(f"{TOOLKIT} takes {medians[TOOLKIT] / medians[OURS]:.2f} times as long; AUC differs by {gap:.1e} at most")
    else:
        print("the got10k toolkit is not installed, so there is nothing to compare with")
    return 0


class Turn(NamedTuple):
    seconds: float
    peak_mb: float  # of the process
    auc: list[float]  # by tracker


def _turn(name: str, root: Path) -> Turn:
    """What a process of its own does."""
    score = _score if name == OURS else _toolkit(root)
    begin = time.perf_counter()
    auc = score(root)
    seconds = time.perf_counter() - begin
    return Turn(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, auc)


def _score(root: Path) -> list[float]:
    paths = sorted((root / "groundtruth").iterdir())
    sequences = [TrackingSequence(path.stem, read_groundtruth(path), _no_frame, 30.0, root) for path in paths]
    files = find_results(root / "results", [sequence.name for sequence in sequences])
    scores = score_results(files, "otb100", sequences, benchmark_rules("otb100", "got10k-toolkit"))
    return [tracker.headline["AUC"] / 100 for tracker in sorted(scores.trackers, key=lambda t: t.name)]


def _toolkit(root: Path) -> Callable[[Path], list[float]]:
    import matplotlib

    matplotlib.use("Agg")
    from got10k.experiments import ExperimentOTB

    names = sorted(path.stem for path in (root / "groundtruth").iterdir())

    class Annotations:
        """In place of the toolkit's data set, which needs images."""

        seq_names = names

        def __len__(self) -> int:
            return len(names)

        def __iter__(self) -> Iterator[tuple[list[str], np.ndarray]]:
            for name in names:
                yield [], np.loadtxt(root / "groundtruth" / f"{name}.txt", delimiter=",")

    class Experiment(ExperimentOTB):
        def __init__(self) -> None:
            self.dataset = Annotations()
            self.result_dir, self.report_dir = str(root / "results"), str(root / "report")
            self.nbins_iou, self.nbins_ce = 21, 51

        def plot_curves(self, tracker_names: list[str]) -> None:
            pass

    def score(root: Path) -> list[float]:
        trackers = sorted(path.name for path in (root / "results").iterdir())
        performance = Experiment().report(trackers)
        return [float(performance[tracker]["overall"]["success_score"]) for tracker in trackers]

    return score


def _write_files(root: Path, sequences: int, frames: int, trackers: int) -> None:
    """Boxes that wander, and trackers with growing errors, four decimals a number."""
    rng = np.random.default_rng(0)
    (root / "groundtruth").mkdir()
    for tracker in range(trackers):
        (root / "results" / f"tracker{tracker:02d}").mkdir(parents=True)
    for number in tqdm(range(sequences), unit="sequence", desc="writing"):
        steps = rng.normal(0, 2, (frames, 4)).cumsum(0)
        truth = np.abs(np.array([300, 200, 80, 60]) + steps).round() + 1
        np.savetxt(root / "groundtruth" / f"s{number:03d}.txt", truth, fmt="%d", delimiter=",")
        for tracker in range(trackers):
            boxes = truth + rng.normal(0, 1 + tracker, (frames, 4))
            boxes[:, 2:] = np.abs(boxes[:, 2:])
            lines = "".join(f"{x:.4f},{y:.4f},{w:.4f},{h:.4f}\n" for x, y, w, h in boxes.tolist())
            (root / "results" / f"tracker{tracker:02d}" / f"s{number:03d}.txt").write_text(lines)


def _no_frame(index: int) -> np.ndarray:
    raise AssertionError("scoring reads no frames")


if __name__ == "__main__":
    sys.exit(main())
