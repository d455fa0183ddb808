"""A tracker for the got10k toolkit: its experiments on GOT-10k, OTB, UAV123, LaSOT and more run ours.

    python eval/got10k_adapter.py --experiment GOT10k --root GOT-10k --subset val --weights mixvit_b.safetensors

or from Python, for the toolkit's own ways:

    from got10k.experiments import ExperimentGOT10k
    from eval.got10k_adapter import ToolkitTracker

    ExperimentGOT10k("GOT-10k", subset="val").run(ToolkitTracker("MixFormer", TrackerChoice("mixformer").open()))

Needs the toolkit (pip install -e '.[got10k]'). `eval/run.py` does the same over several processes, and leaves the same
files. Settings and compute type are those of `eval/run.py`: configs/benchmarks.toml's for the data set, and float32.
"""

import argparse
import inspect
import sys
from typing import Any

import numpy as np
from jaxtyping import Float64

from mixformer_jax.config_files import BENCHMARK_SETTINGS
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

try:
    import got10k.experiments
    from got10k.trackers import Tracker as GotTracker
    from PIL.Image import Image
except ModuleNotFoundError:
    sys.exit(f"error: {is_not_installed('got10k')}")

# The toolkit's names of the data sets that have settings.
BENCHMARKS = {"GOT10k": "got10k", "LaSOT": "lasot", "OTB": "otb100", "UAV123": "uav123", "TrackingNet": "trackingnet"}
EXPERIMENTS: dict[str, Any] = {
    name.removeprefix("Experiment"): experiment
    for name, experiment in inspect.getmembers(got10k.experiments, inspect.isclass)
    if name.startswith("Experiment")
}


class ToolkitTracker(GotTracker):
    """Ours behind the toolkit's interface: images are PIL's, boxes x, y, w, h in pixels, 0-based.

    Deterministic, so that the toolkit does not repeat what would come out the same.
    """

    def __init__(self, name: str, opened: OpenedTracker) -> None:
        super().__init__(name, is_deterministic=True)
        opened.warm_up()
        self._lanes = opened.lanes
        self._state: Any = None

    def init(self, image: Image, box: Float64[np.ndarray, "4"]) -> None:
        self._state = self._lanes.start(None, 0, np.asarray(image), box)

    def update(self, image: Image) -> Float64[np.ndarray, "4"]:
        self._state, found = self._lanes.step(self._state, {0: np.asarray(image)})
        return found[0].box_xywh


def main(arguments: list[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--experiment", default="GOT10k", choices=sorted(EXPERIMENTS))
    parser.add_argument("--root", required=True, help="folder of the data set, as the toolkit wants it")
    parser.add_argument("--subset", help="of GOT-10k: val or test")
    parser.add_argument("--results", default="results", help="folder of the toolkit's results (default: %(default)s)")
    parser.add_argument("--reports", default="reports", help="folder of the toolkit's reports (default: %(default)s)")
    parser.add_argument("--tracker", choices=TRACKERS, default=TRACKERS[0])
    parser.add_argument(
        "--weights", help="name, folder, .safetensors file or official checkpoint; default: the embedded tracker"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help=f"default: {BENCHMARK_DTYPE} on every device")
    parser.add_argument(
        "--settings-of", metavar="NAME", help="a table of configs/benchmarks.toml; default: the model's own name"
    )
    parser.add_argument("--name", default="MixFormer", help="of the tracker in the toolkit (default: %(default)s)")
    args = parser.parse_args(arguments)
    try:
        benchmark = BENCHMARKS.get(args.experiment, args.experiment)
        settings = settings_on(read_benchmark_settings(BENCHMARK_SETTINGS), benchmark, args.settings_of)
        choice = TrackerChoice(
            args.tracker,
            args.weights,
            batch=1,
            settings=settings,
            settings_of=args.settings_of,
            benchmark=benchmark,
            dtype=args.dtype,
        )
        opened = choice.open()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(announce(choice, opened.settings, opened.about), flush=True)
    subset = {} if args.subset is None else {"subset": args.subset}
    experiment = EXPERIMENTS[args.experiment](args.root, result_dir=args.results, report_dir=args.reports, **subset)
    experiment.run(ToolkitTracker(args.name, opened))
    experiment.report([args.name])
    return 0


if __name__ == "__main__":
    sys.exit(main())
