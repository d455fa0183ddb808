"""A tracker as the VOT toolkit runs it: boxes over the TraX protocol, on standard input and output.

    python eval/vot/mixformer_vot.py --weights mixvit_b.safetensors

The toolkit starts it, see trackers.ini beside this file and docs/evaluation.md. One process serves all runs of an
experiment on a sequence. Masks come and go as the boxes around them. Needs vot-trax (pip install 'mixformer-jax[vot]').
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import trax

from mixformer_jax.config_files import TRACKER_PREFIX, parse_overrides
from mixformer_jax.evaluation.settings import read_benchmark_settings
from mixformer_jax.evaluation.trackers import TRACKERS, OpenedTracker, TrackerChoice
from mixformer_jax.images import read_image
from mixformer_jax.models.config import TrackerConfig

SETTINGS = Path(__file__).resolve().parents[2] / "configs" / "benchmarks.toml"
BENCHMARK = "vot"


def serve(opened: OpenedTracker) -> None:
    """Answers the toolkit until it wants no more of this process."""
    server = trax.Server([trax.Region.RECTANGLE], [trax.Image.PATH], ["color"], tracker_name=opened.name)
    state: Any = None
    with server:
        while True:
            request = server.wait()
            if request.type == trax.TraxStatus.INITIALIZE:
                region, _properties = request.objects[0]
                box_xywh, score = region.bounds(), None
                state = opened.lanes.start(state, 0, _frame(request), box_xywh)
            elif request.type == trax.TraxStatus.FRAME:
                state, found = opened.lanes.step(state, {0: _frame(request)})
                box_xywh, score = found[0].box_xywh.tolist(), found[0].score
            else:
                return
            # What is given is certain, and so is, for want of scores, all that a model without them says.
            confidence = 1.0 if score is None else score
            server.status([(trax.Rectangle.create(*box_xywh), {"confidence": f"{confidence:.6f}"})])


def _frame(request: Any) -> Any:
    return read_image(Path(request.image["color"].path()))


def main(*arguments: str) -> int:
    """Opens what the command line names (or `arguments`, for trackers.ini) and serves it."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--tracker", choices=TRACKERS, default=TRACKERS[0])
    parser.add_argument("--weights", help="name, folder or .safetensors file; default: the embedded tracker")
    parser.add_argument("--device", choices=("cpu", "gpu"))
    parser.add_argument(
        "--settings-of", metavar="NAME", help="a table of configs/benchmarks.toml; default: the model's own name"
    )
    parser.epilog = "Change a setting of the tracker with --tracker.SETTING=VALUE (--tracker.search_factor=5)."
    args, rest = parser.parse_known_args(arguments or None)
    overrides = [text for text in rest if text.startswith(TRACKER_PREFIX)]
    if len(overrides) < len(rest):
        parser.error(f"unknown arguments: {' '.join(text for text in rest if text not in overrides)}")
    try:
        known = read_benchmark_settings(SETTINGS)
        if args.settings_of and args.settings_of not in known:
            parser.error(f"--settings-of {args.settings_of}: not in {SETTINGS}; it has {', '.join(known)}")
        opened = TrackerChoice(
            args.tracker,
            args.weights,
            args.device,
            batch=1,
            settings={model: benchmarks.get(BENCHMARK, {}) for model, benchmarks in known.items()},
            settings_of=args.settings_of,
            changes=parse_overrides(overrides, TrackerConfig().to_dict(), TRACKER_PREFIX),
        ).open()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    opened.warm_up()
    serve(opened)
    return 0


if __name__ == "__main__":
    sys.exit(main())
