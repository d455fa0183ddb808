"""A tracker as the VOT toolkit runs it: boxes over the TraX protocol, on standard input and output.

    python eval/vot/mixformer_vot.py --weights mixvit_b.safetensors

The toolkit starts it, see trackers.ini beside this file and docs/evaluation.md. One process serves all runs of an
experiment on a sequence. Masks come and go as the boxes around them. Needs vot-trax (pip install -e '.[vot]').
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mixformer_jax.cli.console import parse_arguments
from mixformer_jax.config_files import BENCHMARK_SETTINGS, TRACKER_PREFIX, parse_overrides
from mixformer_jax.evaluation.trackers import (
    BENCHMARK_DTYPE,
    TRACKERS,
    OpenedTracker,
    TrackerChoice,
    announce,
    read_benchmark_settings,
    settings_on,
)
from mixformer_jax.extras import is_not_installed
from mixformer_jax.media.images import read_image
from mixformer_jax.models.config import TrackerConfig

try:
    import trax
except ModuleNotFoundError:
    sys.exit(f"error: {is_not_installed('trax')}")

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
    parser.add_argument(
        "--weights", help="name, folder, .safetensors file or official checkpoint; default: the embedded tracker"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=f"default: {BENCHMARK_DTYPE} on every device")
    parser.add_argument(
        "--settings-of", metavar="NAME", help="a table of configs/benchmarks.toml; default: the model's own name"
    )
    parser.epilog = "Change a setting of the tracker with --tracker.SETTING=VALUE (--tracker.search_factor=5)."
    parser.set_defaults(override_prefix=TRACKER_PREFIX)
    args = parse_arguments(parser, arguments or None)
    try:
        choice = TrackerChoice(
            args.tracker,
            args.weights,
            args.device,
            batch=1,
            settings=settings_on(read_benchmark_settings(BENCHMARK_SETTINGS), BENCHMARK, args.settings_of),
            settings_of=args.settings_of,
            changes=parse_overrides(args.overrides, TrackerConfig().to_dict(), TRACKER_PREFIX),
            benchmark=BENCHMARK,
            dtype=args.dtype,
        )
        opened = choice.open()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    # The toolkit talks on standard output, and keeps what is said here in its log.
    print(announce(choice, opened.settings, opened.about), file=sys.stderr, flush=True)
    opened.warm_up()
    serve(opened)
    return 0


if __name__ == "__main__":
    sys.exit(main())
