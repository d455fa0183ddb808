"""What the setting `long_term` is worth on long videos: VOT-LT's precision, recall and F on rendered clips.

    python -m eval.long_term --out long_term            6 clips of 2,100 frames with three settings
    mixformer report --dataset votlt --root long_term --results long_term/results

In the clips (`LongClip` of `mixformer_jax.cli.demo`) the target goes out of sight every few seconds and comes back
somewhere else. Their seeds are none of those on which the default's settings were chosen. OUT gets ground truth and
results as a workspace of the VOT toolkit has them, without frames, and the table, long_term.md and .json. The same
command goes on where it was stopped.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.turns import plain_parser
from mixformer_jax.cli.console import positive
from mixformer_jax.cli.demo import HEIGHT, WIDTH, LongClip
from mixformer_jax.datasets.records import TrackingSequence
from mixformer_jax.evaluation.results import rows_of_text
from mixformer_jax.evaluation.runner import describe, run_dataset
from mixformer_jax.evaluation.trackers import OpenedTracker, TrackerChoice
from mixformer_jax.evaluation.vot import LongTermScores, read_sequences, score_long_term
from mixformer_jax.evaluation.workers import Alone
from mixformer_jax.files import write_atomically
from mixformer_jax.reports.studies import interval
from mixformer_jax.text_tables import markdown

SETTINGS = {
    "never_looks": {"redetect_every": 0, "long_term": False},
    "long_term": {"redetect_every": 1, "long_term": True},
    "looks": {"redetect_every": 1, "long_term": False},
}
FIRST_SEED = 100
DATASET = "votlt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Tracks, scores and writes the table."""
    parser = plain_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--clips", type=positive, default=6, metavar="N", help="default: %(default)s")
    parser.add_argument("--frames", type=positive, default=2100, metavar="N", help="of a clip (default: %(default)s)")
    parser.add_argument("--weights", metavar="W", help="of a model with scores (default: the embedded tracker)")
    args = parser.parse_args(arguments)
    opened = {
        name: TrackerChoice("mixformer", args.weights, batch=1, changes=changes).open
        for name, changes in SETTINGS.items()
    }
    print(run_study(args.out, render(args.clips, args.frames), opened), end="")
    return 0


def render(num_clips: int, num_frames: int) -> list[TrackingSequence]:
    """Clips, each frame of which is rendered when it is read."""
    clips = []
    for seed in range(FIRST_SEED, FIRST_SEED + num_clips):
        clip = LongClip(seed, num_frames)
        clips.append(TrackingSequence(f"seed{seed}", clip.boxes_xywh, clip.__getitem__, clip.fps, Path()))
    return clips


def run_study(out: Path, clips: Sequence[TrackingSequence], opened: Mapping[str, Callable[[], OpenedTracker]]) -> str:
    """Tracks the clips with every setting, whose trackers are opened by name; returns the table.

    Raises RuntimeError for a clip that could not be tracked, ResultsError for results of other settings in `out`.
    """
    write_workspace(out, clips)
    for name, open_tracker in opened.items():
        tracker = open_tracker()
        settings = {**tracker.settings, "frames": [len(clip) for clip in clips]}
        summary = run_dataset(Alone(tracker), clips, out / "results", name, settings, DATASET, about=tracker.about)
        print(f"{name}: {describe(summary)}", flush=True)
        if summary.failures:
            raise RuntimeError(f"{len(summary.failures)} clips could not be tracked")
    sequences = read_sequences(out)
    scores = {name: score_long_term(out / "results" / name / "longterm", sequences) for name in opened}
    table = study_table(scores, clips)
    record = {
        name: {**score.headline, "by_clip": {key: values.tolist() for key, values in score.by_sequence.items()}}
        for name, score in scores.items()
    }
    write_atomically(out / "long_term.json", json.dumps(record, indent=1) + "\n")
    write_atomically(out / "long_term.md", table)
    return table


def write_workspace(out: Path, clips: Sequence[TrackingSequence]) -> None:
    """The clips as sequences of a workspace, without frames."""
    folder = out / "sequences"
    for clip in clips:
        place = folder / clip.name
        place.mkdir(parents=True, exist_ok=True)
        about = {"fps": round(clip.fps), "width": WIDTH, "height": HEIGHT, "length": len(clip)}
        write_atomically(place / "sequence", "".join(f"{key}={value}\n" for key, value in about.items()))
        write_atomically(place / "groundtruth.txt", rows_of_text(clip.boxes_xywh, decimals=4))
    write_atomically(folder / "list.txt", "".join(f"{clip.name}\n" for clip in clips))


def study_table(scores: Mapping[str, LongTermScores], clips: Sequence[TrackingSequence]) -> str:
    """F, precision and recall by setting, and F by clip against the first setting, with a 95% interval over clips."""
    away = np.mean(np.concatenate([np.isnan(clip.boxes_xywh[:, 0]) for clip in clips]))
    first = next(iter(scores))
    lines = [["setting", "F", "Pr", "Re", "F by clip", f"F by clip against {first}"]]
    for name, score in scores.items():
        numbers = (f"{100 * value:.1f}" for value in score.headline.values())
        by_clip = 100 * score.by_sequence["F"]
        gain = interval((by_clip - 100 * scores[first].by_sequence["F"]).tolist())
        lines.append([name, *numbers, ", ".join(f"{x:.1f}" for x in by_clip), "-" if name == first else str(gain)])
    about = (
        f"{len(clips)} rendered clips of {len(clips[0]):,} frames; the target is away on {away:.0%} of them. In "
        "percent; after ±: half of a 95% interval over clips (Student's t).\n"
    )
    return f"{about}\n{markdown(lines)}"


if __name__ == "__main__":
    sys.exit(main())
