"""Time of a frame with many objects, by their number and by how they are looked for, beside how well they are tracked.

    python -m eval.bench_mot --objects 20 --frames 150 --seeds 3 --append docs/benchmarks.md

A frame is `MotTracker.step` on the rendered scene of `eval/crowd.py`: association, crops, and the network's batched
call; neither decoding nor the detector. Contenders go over the same frames in turns, in stretches of STRETCH frames,
and times are those of the least turn of each stretch, summed: what a frame takes where nothing else runs. "Over one" is
the time over that of `Tracker.step` for one target, without looking for it elsewhere when it is lost.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from eval.crowd import Crowd
from eval.turns import Arguments, Parts, bench_parser, run_bench, today
from mixformer_jax.cli.bench import device_name
from mixformer_jax.cli.console import WEIGHTS, positive, positives
from mixformer_jax.evaluation.mot_scoring import MotCounts, MotTruth, count, frames_of, measures, total
from mixformer_jax.media.sources import Frame
from mixformer_jax.models.backbone import TemplateCache
from mixformer_jax.tracking.mot import MotSettings, MotState, MotTracker
from mixformer_jax.tracking.record import result_rows
from mixformer_jax.tracking.tracker import Tracked, Tracker, load

STRETCH = 10
ONE = "Tracker.step"
# How objects are looked for.
WAYS = {
    "all in the whole region": MotSettings(search_all=True, search_share=1.0),
    "all": MotSettings(search_all=True),
    "in doubt in the whole region": MotSettings(search_share=1.0),
    "in doubt": MotSettings(),
    "in doubt up to 4": MotSettings(searches=4),
    "in doubt up to 2": MotSettings(searches=2),
    "detections alone": MotSettings(searches=0),
}
MEASURED = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDs")
COLUMNS = (
    *("date", "model", "dtype", "device", "objects", "way", "searched a frame", "ms a frame", "ms an object"),
    *("over one", *MEASURED, "frames", "versions"),
)


class Contender(NamedTuple):
    objects: int
    way: str
    tracker: "CountingTracker"


class CountingTracker(MotTracker):
    """Counts whom the network looks for."""

    searched = 0

    def _locate(
        self, caches: list[TemplateCache | None], frame: Frame, around_xywh: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        self.searched += len(caches)
        return super()._locate(caches, frame, around_xywh)


class Scene:
    """A crowd, rendered."""

    def __init__(self, objects: int, num_frames: int, seed: int) -> None:
        self.crowd = Crowd(objects, num_frames, seed)
        self.frames = list(self.crowd)


def follow(tracker: MotTracker, scene: Scene, state: MotState, first: int, end: int) -> tuple[MotState, list[Tracked]]:
    """Goes on over some frames."""
    found = []
    for index in range(first, end):
        state, tracked = tracker.step(state, scene.frames[index], scene.crowd.detections[index + 1])
        found.append(tracked._replace(frame=index + 1))
    return state, found


def score(tracker: MotTracker, scenes: Sequence[Scene]) -> MotCounts:
    """How well the objects of all scenes are tracked."""
    counts = []
    for scene in scenes:
        truth = MotTruth(scene.crowd.truth, None)
        _, shown = follow(tracker, scene, tracker.start(), 0, len(scene.frames))
        counts.append(count(frames_of(truth, result_rows(truth.rows.path, shown))))
    return total(counts)


def least_seconds(
    single: Tracker, contenders: Sequence[Contender], scenes: Mapping[int, Scene], num_turns: int
) -> list[float]:
    """Seconds of a frame: of the tracker of one target, and by contender."""
    scene = next(iter(scenes.values()))
    single, num_frames = single.with_settings(redetect_every=0), len(scene.frames)
    states = [contender.tracker.start() for contender in contenders]
    one, _ = single.step(single.start(scene.frames[0], scene.crowd.truth.boxes_xywh[0]), scene.frames[0])
    seconds = np.zeros(1 + len(contenders))
    for first in range(0, num_frames, STRETCH):
        end = min(first + STRETCH, num_frames)
        turns, ends = [], list(states)
        for _ in range(num_turns):
            before, state = time.perf_counter(), one
            for index in range(first, end):
                state, _ = single.step(state, scene.frames[index])
            turn = [time.perf_counter() - before]
            for number, (objects, _way, tracker) in enumerate(contenders):
                before = time.perf_counter()
                ends[number], _ = follow(tracker, scenes[objects], states[number], first, end)
                turn.append(time.perf_counter() - before)
            turns.append(turn)
        seconds, states, one = seconds + np.min(turns, axis=0), ends, state
    return [float(each) for each in seconds / num_frames]


def bench(
    tracker: Tracker, objects: Sequence[int], ways: Sequence[str], num_frames: int, seeds: int, num_turns: int
) -> list[tuple[str, ...]]:
    scenes = {number: [Scene(number, num_frames, seed) for seed in range(seeds)] for number in objects}
    contenders = [Contender(number, way, CountingTracker(tracker, WAYS[way])) for number in objects for way in ways]
    # Every program is compiled in these.
    counts = [score(contender.tracker, scenes[contender.objects]) for contender in contenders]
    searched = [contender.tracker.searched / (num_frames * seeds) for contender in contenders]
    one, *seconds = least_seconds(tracker, contenders, {number: each[0] for number, each in scenes.items()}, num_turns)
    about = (today(), tracker.config.name, tracker.config.dtype, device_name(tracker.device))
    ends = f"{num_frames} x {seeds}", f"jax {jax.__version__}"
    milliseconds = f"{1e3 * one:.1f}"
    rows = [(*about, "1", ONE, "1.0", milliseconds, milliseconds, "1.0", *[""] * len(MEASURED), *ends)]
    for (number, way, _), looked_for, each, of_all in zip(contenders, searched, seconds, counts, strict=True):
        found = measures(of_all)
        told = (f"{found[name]:.1f}" if isinstance(found[name], float) else str(found[name]) for name in MEASURED)
        times = (f"{looked_for:.1f}", f"{1e3 * each:.1f}", f"{1e3 * each / number:.2f}", f"{each / one:.1f}")
        rows.append((*about, str(number), way, *times, *told, *ends))
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=3)
    parser.add_argument("--weights", metavar="W", help=WEIGHTS)
    parser.add_argument("--objects", type=positives, default=(5, 10, 20, 40), help="numbers, separated by commas")
    parser.add_argument("--ways", default=",".join(WAYS), help="how objects are looked for (default: all: %(default)s)")
    parser.add_argument("--frames", type=positive, default=100, help="of a scene (default: %(default)s)")
    parser.add_argument("--seeds", type=positive, default=2, help="scenes that are scored; the first is timed")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU")

    def measure(args: Arguments) -> Parts:
        ways = args.ways.split(",")
        if unknown := set(ways) - set(WAYS):
            parser.error(f"--ways {', '.join(sorted(unknown))}: expected some of {', '.join(WAYS)}")
        tracker = load(args.weights, dtype=args.dtype)
        yield COLUMNS, bench(tracker, args.objects, ways, args.frames, args.seeds, args.turns), slice(1, -1)

    return run_bench(parser, arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
