"""Where the time of a frame goes: every stage alone, the whole step in the host's loop, and the step inside lax.scan.

    python eval/speed.py --model mixvit_b_online --batch 1,8,32 --append docs/benchmarks.md

Stages: decode (a JPEG), crop (the search crop, on the host), upload (of the crops), backbone (from bytes to features,
on cached templates), head, SPM (the score), readback (boxes to the host), and encode (the templates, once an update
interval). `step` is `Tracker.step` with the boxes of all targets on the host; `scan` is a frame of a `lax.scan` over
several, on the device alone. Stages take turns (`turns.py`); the table has medians.

GMAC are 10^9 multiply-accumulates (the paper's FLOPs), two operations each in shares of the device's peak: the maker's
figure for dense products on an accelerator, and on a CPU the speed of a large one, timed with the stages (`product`).
"""

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from eval import turns
from eval.bench_step import random_variables
from mixformer_jax.cli.bench import device_name
from mixformer_jax.cli.console import UsageError, add_model_arguments, load_model, positives, read_size
from mixformer_jax.media.images import read_image
from mixformer_jax.models.heads import QueryHead
from mixformer_jax.models.mixformer import MixFormer
from mixformer_jax.pixels import normalise
from mixformer_jax.planning.profile import profile_model
from mixformer_jax.tracking.step import encode_templates, scan_frames
from mixformer_jax.tracking.tracker import Tracker

SCAN_FRAMES = 4
COLUMNS = (
    *("date", "model", "device", "dtype", "targets", "stage", "ms", "quartiles"),
    *("targets/s", "GMAC", "peak", "turns", "jax"),
)


class Stage(NamedTuple):
    call: Callable[[], object]  # returns when the work is done
    frames: int = 1  # in one call
    macs: int | None = None  # multiply-accumulates of a call; None where there are no matrix products


def stages(tracker: Tracker, targets: int, image: Path) -> dict[str, Stage]:
    """The stages of one frame by name."""
    config, settings, variables = tracker.config, tracker.settings, tracker.variables
    frame = read_image(image)
    height, width = frame.shape[:2]
    boxes_xywh = np.tile(np.array([0.4 * width, 0.4 * height, 0.1 * width, 0.1 * height]), (targets, 1))
    state = tracker.start(frame, boxes_xywh)
    crops = tracker.search_crops(state, frame)
    pixels = jax.device_put(crops.pixels, tracker.device)

    find = jax.jit(functools.partial(tracker.model.apply, method=_find))
    cache, features, token = find(variables, state, pixels)
    head = jax.jit(functools.partial(tracker.model.apply, method=_head))
    answer = head(variables, features, token)
    costs = profile_model(config, settings.num_slots)
    cost = {"backbone": costs.backbone, "head": costs.head, "SPM": costs.score, "step": costs.whole}
    macs = {name: targets * part.frame for name, part in cost.items()}

    def waits(call: Callable[[], Any]) -> Callable[[], object]:
        return lambda: jax.block_until_ready(call())

    found = {
        "decode": Stage(lambda: read_image(image)),
        "crop": Stage(lambda: tracker.search_crops(state, frame)),
        "upload": Stage(waits(lambda: jax.device_put(crops.pixels, tracker.device))),
        "backbone": Stage(waits(lambda: find(variables, state, pixels)), macs=macs["backbone"]),
        "head": Stage(waits(lambda: head(variables, features, token)), macs=macs["head"]),
    }
    if config.score_heads:
        score = jax.jit(functools.partial(tracker.model.apply, method=lambda model, *given: model.score(*given)))
        inside_xyxy = jnp.tile(jnp.array([0.3, 0.3, 0.7, 0.7], answer.dtype), (targets, 1))
        initial = cache.features[:, 0]
        found["SPM"] = Stage(waits(lambda: score(variables, features, initial, inside_xyxy)), macs=macs["SPM"])
    # An array caches its copy on the host, so each call reads a new one.
    add = jax.jit(lambda boxes: boxes + 0)
    found["readback"] = Stage(lambda: jax.device_get(add(answer)))
    if config.is_cacheable:
        encode = waits(lambda: encode_templates(tracker.model, settings, variables, state.templates, state.filled))
        found["encode"] = Stage(encode, macs=targets * costs.whole.encoding)
    found["step"] = Stage(lambda: tracker.step(state, frame), macs=macs["step"])
    frames = jax.device_put(np.repeat(frame[None], SCAN_FRAMES, axis=0), tracker.device)
    scan = waits(lambda: scan_frames(tracker.model, settings, variables, state, frames))
    found["scan"] = Stage(scan, SCAN_FRAMES, SCAN_FRAMES * macs["step"])
    return found


def _find(model: MixFormer, state: Any, crops: Any) -> Any:
    """From pixels to what the head reads."""
    if state.cache is None:
        cache, found = model.backbone.joint(normalise(state.templates), normalise(crops), state.filled, train=False)
    else:
        cache, found = state.cache, model.backbone.locate(state.cache, normalise(crops), train=False)
    features = found.features
    if model.config.context_augment_layers:
        features = model.context_augment(cache.features, features, cache.filled)
    return cache, features, found.token


def _head(model: MixFormer, features: Any, token: Any) -> Any:
    if isinstance(model.head, QueryHead):
        return model.head(token)
    return model.head(features, train=False).boxes_xyxy


def measure(
    tracker: Tracker, targets: int, size: tuple[int, int], num_turns: int, progress: bool = False
) -> list[list[str]]:
    """Rows of the table, on a frame of (height, width) pixels."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "frame.jpg"
        # Compresses like a photograph.
        cv2.imwrite(str(image), cv2.GaussianBlur(rng.integers(0, 256, (*size, 3), dtype=np.uint8), (0, 0), 3))
        parts = stages(tracker, targets, image)
        if tracker.device.platform == "cpu":
            parts["product"] = Stage(turns.large_product(tracker.device, tracker.config.dtype), macs=turns.PRODUCT_MACS)
        timed = turns.time_in_turns(
            {name: part.call for name, part in parts.items()}, num_turns, f"{tracker.config.name} x{targets}", progress
        )
    if "product" in parts:
        peak: float | None = 2 * turns.PRODUCT_MACS / timed["product"].quartiles()[1]
    else:
        peak = turns.published_peak(tracker.device, tracker.config.dtype)
    about = (turns.today(), tracker.config.name, device_name(tracker.device), tracker.config.dtype, str(targets))
    rows = []
    for name, (_call, frames, macs) in parts.items():
        timing = timed[name]
        seconds = timing.quartiles()[1] / frames
        # Decoding serves all targets of a frame.
        rate = "" if name in ("decode", "product") else f"{targets / seconds:.1f}"
        gmac = "" if macs is None else f"{macs / frames / 1e9:.2f}"
        share = "" if macs is None or peak is None else f"{2 * macs / frames / seconds / peak:.1%}"
        milliseconds = timing.milliseconds(3, frames)
        rows.append([*about, name, *milliseconds, rate, gmac, share, timing.turns(), jax.__version__])
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = turns.bench_parser(__doc__, turns=12)
    add_model_arguments(parser, with_sizes=True)
    parser.add_argument("--batch", type=positives, default="1", help="targets in one step, with commas (%(default)s)")
    parser.add_argument("--size", default="640x360", metavar="WxH", help="of the frame (default: %(default)s)")

    def measure_all(args: turns.Arguments) -> turns.Parts:
        try:
            size = read_size(args.size)
        except UsageError as error:
            parser.error(str(error))
        tracker = load_model(args)
        if args.model is not None:
            tracker = Tracker(tracker.config, tracker.settings, random_variables(tracker.config), tracker.device)
        print(f"{tracker.config.name} on {device_name(tracker.device)}; frames of {args.size}")
        for targets in args.batch:
            yield COLUMNS, measure(tracker, targets, size, args.turns, sys.stderr.isatty()), slice(4, -1)

    return turns.run_bench(parser, arguments, measure_all)


if __name__ == "__main__":
    sys.exit(main())
