"""Where a tracker fails, on pictures that anybody may pass on: the demo clip, rendered with several seeds.

    python eval/failures.py --out failures.png [--weights W] [--seeds N] [--rows N]

The sheet has a row for each of the moments with the lowest overlap: the last frame before it on which the target was
boxed (IoU of at least a half), the moment, and the first frame after it on which it is boxed again, or the clip's end.
Green is what was found, yellow what is true. The overlaps of every seed are printed.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from mixformer_jax.boxes import iou, xywh_to_xyxy
from mixformer_jax.cli.demo import DemoClip, render_demo_clip
from mixformer_jax.media.drawing import contact_sheet
from mixformer_jax.media.images import write_image
from mixformer_jax.tracking.lanes import TrackerLike
from mixformer_jax.tracking.record import annotate
from mixformer_jax.tracking.tracker import Tracked, load

BOXED = 0.5  # IoU from which a target counts as boxed


class Failure(NamedTuple):
    """Frames of one clip, counted from 0.

    Attributes:
        overlap: IoU on the frame `worst`.
        before: the last boxed frame before.
        worst: the frame with the lowest overlap between `before` and `after`.
        after: the first boxed frame after, or the clip's last one.
    """

    overlap: float
    before: int
    worst: int
    after: int


def find_failures(overlaps: Float64[np.ndarray, " n"]) -> list[Failure]:
    """Every stretch of frames that are not boxed, the lowest overlap first. Frame 0 is given, and so boxed."""
    boxed = np.asarray(overlaps) >= BOXED
    boxed[0] = True
    starts = np.flatnonzero(boxed[:-1] & ~boxed[1:])
    found = []
    for start in map(int, starts):
        later = np.flatnonzero(boxed[start + 1 :])
        after = start + 1 + int(later[0]) if len(later) else len(boxed) - 1
        worst = start + 1 + int(np.argmin(overlaps[start + 1 : after + 1]))
        found.append(Failure(float(overlaps[worst]), start, worst, after))
    return sorted(found)


def follow(tracker: TrackerLike, clip: DemoClip) -> Float64[np.ndarray, "n 4"]:
    """The boxes of a whole clip, x, y, w, h in pixels, from the true one on its first frame."""
    state = tracker.start(clip.frames[0], clip.boxes_xywh[0])
    boxes_xywh = [clip.boxes_xywh[0]]
    for index in range(1, len(clip.frames)):
        state, found = tracker.step(state, clip.frames[index])
        boxes_xywh.append(np.asarray(found.box_xywh, np.float64))
    return np.stack(boxes_xywh)


def draw_failure(
    clip: DemoClip, boxes_xywh: Float64[np.ndarray, "n 4"], failure: Failure
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Three frames with both boxes."""
    shown = (failure.before, failure.worst, failure.after)
    return [annotate(clip.frames[i], i, Tracked(boxes_xywh[i, None]), clip.boxes_xywh) for i in shown]


def main(arguments: list[str] | None = None) -> int:
    """Writes one sheet; returns the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--weights", metavar="W", help="a weights file or the folder of a run (the embedded default)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, bfloat16 elsewhere"
    )
    parser.add_argument("--seeds", type=int, default=6, metavar="N", help="clips: seeds 0 to N - 1 (6)")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="moments to show (4)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    args = parser.parse_args(arguments)
    if min(args.seeds, args.rows) < 1:
        parser.error(f"--seeds {args.seeds}, --rows {args.rows}: expected at least 1 of each")
    try:
        tracker = load(args.weights, dtype=args.dtype)
        failures = []
        for seed in range(args.seeds):
            clip = render_demo_clip(seed)
            boxes_xywh = follow(tracker, clip)
            overlaps = iou(xywh_to_xyxy(boxes_xywh), xywh_to_xyxy(clip.boxes_xywh))
            found = find_failures(overlaps)
            failures += [(failure, seed, clip, boxes_xywh) for failure in found]
            lost = float(np.mean(overlaps[1:] < BOXED))
            print(f"seed {seed}: mean IoU {overlaps[1:].mean():.3f}, below {BOXED:g} on {lost:.0%} of the frames")
        if not failures:
            print(f"no frame with an IoU below {BOXED:g}, so there is nothing to draw")
            return 0
        failures.sort(key=lambda each: each[:2])
        pictures = []
        for failure, seed, clip, boxes_xywh in failures[: args.rows]:
            pictures += draw_failure(clip, boxes_xywh, failure)
            first, worst, last = (index + 1 for index in (failure.before, failure.worst, failure.after))  # as drawn
            print(f"seed {seed}, frames {first} to {last}: IoU {failure.overlap:.3f} on {worst}")
        write_image(args.out, contact_sheet(pictures))
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"sheet  {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
