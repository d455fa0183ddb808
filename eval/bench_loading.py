"""Speed of loading training samples: from JPEG folders, packed shards and a pool, beside a PyTorch DataLoader.

    python -m eval.bench_loading --root got10k/val --dataset got10k --workers 2 --append docs/benchmarks.md
    python -m eval.bench_loading --pool pools/small --batch 32 --workers 1,2,4,8

All make the same samples of the same sequences: template, online template and search by the official `causal` scheme,
crops of MixViT-B (128 and 288 pixels) with the official jitter, grey, flips and brightness, collated to batches of
uint8. The PyTorch peer is the plain pipeline: `cv2.imread` of three whole frames, the official crop, numpy,
`torch.utils.data.DataLoader`. A second peer also does what the official loader does: padding masks, and float tensors
normalised on the host (ours are normalised on the device).

Batches are made in one thread of this process, in turns (`turns.py`); with --workers the steady rate in so many
processes is measured too. Without --root the sequences are demo clips, 640 x 360, in JPEGs.

With --pool nothing but a pool (`data.root`) is measured, by crops of MixViT-Nano and the default mix: processes that
share it beside as many threads of this process, in turns, for each number of --workers.
"""

import contextlib
import functools
import importlib.metadata
import itertools
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from tqdm import tqdm

from eval.turns import Arguments, Name, Parts, bench_parser, run_bench, time_in_turns, today
from mixformer_jax.cli.bench import device_name, num_cores
from mixformer_jax.cli.console import positives
from mixformer_jax.cli.demo import render_demo_clip
from mixformer_jax.data.augment import AugmentConfig
from mixformer_jax.data.config import DataConfig, DatasetConfig
from mixformer_jax.data.packing import PackConfig, pack
from mixformer_jax.data.pairs import can_be_drawn, draw_frames, usable_frames
from mixformer_jax.data.pipeline import Batches, batches
from mixformer_jax.data.samples import Material, TrackingSamples
from mixformer_jax.datasets.sequences import open_dataset
from mixformer_jax.pixels import IMAGENET_MEAN, IMAGENET_STD
from mixformer_jax.views import CropConfig

# Starts loading with so many worker processes: endless batches, which end when they are closed.
Loader = Callable[[int], Generator[Any] | Batches]
PEER = "PyTorch DataLoader"
CROPS = CropConfig(
    template_size=128,
    template_factor=2.0,
    search_size=288,
    search_factor=4.5,
    num_online_templates=1,
    scale_jitter=0.5,
    centre_jitter=4.5,
)
MAX_INTERVAL = 200
MEAN, STD = np.array(IMAGENET_MEAN, np.float32), np.array(IMAGENET_STD, np.float32)
JPEG_QUALITY = 95
CLIPS, FRAMES, STRIDE = 6, 60, 5  # of the demo clips
WARM_UP_BATCHES, TIMED_BATCHES, PROCESS_TURNS = 8, 40, 3
COLUMNS = (
    *("date", "device", "loader", "cores", "samples/s", "ms a sample", "quartiles"),
    *("over PyTorch", "turns", "versions"),
)
POOL_CROPS = CropConfig(
    template_size=64,
    template_factor=2.0,
    search_size=128,
    search_factor=4.0,
    num_online_templates=1,
    scale_jitter=0.3,
    centre_jitter=2.5,
)
POOL_COLUMNS = (
    *("date", "device", "loader", "workers", "samples/s", "from, to", "of linear", "over threads"),
    *("turns", "versions"),
)


def main(argv: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=16)
    parser.add_argument("--root", type=Path, help="sequences of images; default: demo clips")
    parser.add_argument("--dataset", default="folder", help="how to read them (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--workers", type=positives, default=(), help="also with so many worker processes: 1,2,4")
    parser.add_argument("--pool", type=Path, help="measure loading of this pool, a folder as data.root takes it")
    return run_bench(parser, argv, measure)


def measure(args: Arguments) -> Parts:
    cv2.setNumThreads(1)
    if args.pool is not None:
        yield POOL_COLUMNS, of_a_pool(args.pool, args.batch, args.workers or (1, 2)), None
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        root, dataset = args.root, args.dataset
        if root is None:
            root, dataset = folder / "clips", "folder"
            write_clips(root)
        describe(root, dataset)
        packed = folder / "packed"
        pack(open_dataset(dataset, root), packed, PackConfig(), workers=2, progress=True)
        loaders = make_loaders(root, dataset, packed, args.batch)
        rows = on_one_core(loaders, args.batch, args.turns)
        for workers in args.workers:
            rows += with_workers(loaders, args.batch, workers)
    yield COLUMNS, rows, None


def write_clips(root: Path, clips: int = CLIPS) -> None:
    """Demo clips as folders of JPEGs with a ground truth."""
    numbers = itertools.product(range(clips), range(FRAMES))
    for seed, number in tqdm(list(numbers), unit=" frames", desc="rendering", disable=not sys.stderr.isatty()):
        if number == 0:
            clip = render_demo_clip(seed)
            folder = root / f"clip{seed}"
            folder.mkdir(parents=True)
            chosen = clip.boxes_xywh[: FRAMES * STRIDE : STRIDE]
            np.savetxt(folder / "groundtruth.txt", chosen, fmt="%.3f", delimiter=",")
        frame = cv2.cvtColor(clip[number * STRIDE], cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{number + 1:08d}.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def describe(root: Path, dataset: str) -> None:
    """Prints the size of the data."""
    sequences = list(open_dataset(dataset, root))
    frame = sequences[0].frame(0)
    sides = np.concatenate([np.sqrt(each.boxes_xywh[:, 2] * each.boxes_xywh[:, 3]) for each in sequences])
    print(
        f"{len(sequences)} sequences, {sum(map(len, sequences))} frames of {frame.shape[1]} x {frame.shape[0]}; "
        f"sqrt(w * h) of the targets: median {np.nanmedian(sides):.0f} px"
    )


def make_loaders(root: Path, dataset: str, packed: Path, batch_size: int) -> dict[str, Loader]:
    """The two peers, and ours from folders and from shards."""
    import torch

    torch.set_num_threads(1)

    def ours(reader: str, place: Path) -> Loader:
        config = DataConfig(
            datasets={"made": DatasetConfig(str(place), reader=reader)},
            crops=CROPS,
            augment=AugmentConfig.official(),
            max_interval=MAX_INTERVAL,
        )
        samples = TrackingSamples(Material.load(config), config, seed=0)
        return lambda workers: batches(samples, batch_size, workers=workers)

    def theirs(as_official: bool) -> Loader:
        def start(workers: int) -> Generator[Any]:
            samples = PeerSamples(root, dataset, as_official)
            yield from torch.utils.data.DataLoader(samples, batch_size, num_workers=workers, drop_last=True)

        return start

    return {
        PEER: theirs(as_official=False),
        f"{PEER}, masks and floats as official": theirs(as_official=True),
        "ours, folders": ours(dataset, root),
        "ours, packed": ours("packed", packed),
    }


def on_one_core(loaders: Mapping[str, Loader], batch_size: int, num_turns: int) -> list[tuple[str, ...]]:
    """Rows of the loaders in the calling thread."""
    calls = {name: functools.partial(next, start(0)) for name, start in loaders.items()}
    timed = time_in_turns(calls, num_turns, "one core", progress=sys.stderr.isatty())
    seconds = {name: each.quartiles()[1] / batch_size for name, each in timed.items()}
    return [
        _row(name, 1, seconds[name], each.milliseconds(2, batch_size)[1], seconds[PEER], each.turns())
        for name, each in timed.items()
    ]


def with_workers(loaders: Mapping[str, Loader], batch_size: int, workers: int) -> list[tuple[str, ...]]:
    """Rows of the loaders' steady rates with worker processes."""
    starts = {name: functools.partial(start, workers) for name, start in loaders.items()}
    seconds = steady_seconds(starts, batch_size)
    return [
        _row(
            *(name, workers, float(np.median(values)), f"{values.min() * 1e3:.2f} to {values.max() * 1e3:.2f}"),
            *(float(np.median(seconds[PEER])), f"{PROCESS_TURNS} of all"),
        )
        for name, values in seconds.items()
    ]


def of_a_pool(root: Path, batch_size: int, numbers: Sequence[int]) -> list[tuple[str, ...]]:
    """Rows of threads and of processes that render from one pool."""
    config = DataConfig(root=str(root), crops=POOL_CROPS)
    samples = TrackingSamples(Material.load(config, num_cores()), config, seed=0)
    options = {"threads": "num_threads", "processes": "workers"}
    starts = {
        (kind, number): functools.partial(batches, samples, batch_size, **{option: number})
        for number in numbers
        for kind, option in options.items()
    }
    rates = {way: 1 / seconds for way, seconds in steady_seconds(starts, batch_size).items()}
    medians = {way: float(np.median(values)) for way, values in rates.items()}
    device, least = device_name(jax.devices("cpu")[0]), min(numbers)
    return [
        (
            *(today(), device, f"pool, {kind}", str(number), f"{medians[kind, number]:.0f}"),
            f"{values.min():.0f} to {values.max():.0f}",
            f"{medians[kind, number] * least / (medians[kind, least] * number):.2f}",
            f"{medians[kind, number] / medians['threads', number]:.2f}",
            *(f"{PROCESS_TURNS} of all", f"grain {importlib.metadata.version('grain')}, opencv {cv2.__version__}"),
        )
        for (kind, number), values in rates.items()
    ]


def steady_seconds(starts: Mapping[Name, Callable[[], Any]], batch_size: int) -> dict[Name, np.ndarray]:
    """Seconds a sample in each turn, once the loader, which `starts` begins, is on its way."""
    seconds: dict[Name, list[float]] = {name: [] for name in starts}
    for _ in range(PROCESS_TURNS):
        for name, start in starts.items():
            with contextlib.closing(start()) as stream:
                for _ in range(WARM_UP_BATCHES):
                    next(stream)
                before = time.perf_counter()
                for _ in range(TIMED_BATCHES):
                    next(stream)
                seconds[name].append((time.perf_counter() - before) / (TIMED_BATCHES * batch_size))
    return {name: np.array(values) for name, values in seconds.items()}


def _row(name: str, cores: int, seconds: float, quartiles: str, peer_seconds: float, turns: str) -> tuple[str, ...]:
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("grain", "torch"))
    return (
        *(today(), device_name(jax.devices("cpu")[0]), name, str(cores), f"{1 / seconds:.0f}", f"{1e3 * seconds:.2f}"),
        *(quartiles, f"{peer_seconds / seconds:.2f}", turns, f"{versions}, opencv {cv2.__version__}"),
    )


class PeerSamples:
    """A plain PyTorch data set of the same samples; `as_official` adds padding masks, and normalised float tensors."""

    def __init__(self, root: Path, dataset: str, as_official: bool) -> None:
        self.as_official = as_official
        self.sequences = [
            (
                [str(each.frame.path(index)) for index in range(len(each))],  # type: ignore[attr-defined]
                each.boxes_xywh,
                usable_frames(each),
            )
            for each in open_dataset(dataset, root)
            if can_be_drawn(each, CROPS.num_online_templates)
        ]

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        paths, boxes_xywh, usable = random.choice(self.sequences)
        rng = np.random.default_rng(random.getrandbits(32))
        templates, search = draw_frames(rng, "causal", usable, usable, MAX_INTERVAL, CROPS.num_online_templates)
        frames = [_read(paths[number]) for number in (*templates, search)]
        boxes = [boxes_xywh[number].copy() for number in (*templates, search)]
        if random.random() < 0.05:
            frames = [cv2.cvtColor(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for each in frames]
        if random.random() < 0.5:
            frames = [np.fliplr(each) for each in frames]
            for frame, box in zip(frames, boxes, strict=True):
                box[0] = frame.shape[1] - box[0] - box[2]
        size, factor = CROPS.template_size, CROPS.template_factor
        shown, _, template_masks = self._part(frames[:2], boxes[:2], boxes[:2], factor, size)
        size, factor = CROPS.search_size, CROPS.search_factor
        (region,), (box,), (search_mask,) = self._part(frames[2:], boxes[2:], [_jittered(boxes[2], rng)], factor, size)
        sample = {"templates": np.stack(shown), "search": region, "box_cxcywh": box}
        if self.as_official:
            sample |= {"template_masks": np.stack(template_masks), "search_mask": search_mask}
        return sample

    def _part(
        self, frames: list[np.ndarray], boxes: list[np.ndarray], around: list[np.ndarray], factor: float, size: int
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Crops of one kind with the same augmentation, boxes in them, and padding masks."""
        crops, found, masks = [], [], []
        gain, flip = random.uniform(0.8, 1.2), random.random() < 0.5
        for frame, box, each in zip(frames, boxes, around, strict=True):
            pixels, scale, mask = _sample_target(frame, each, factor, size, self.as_official)
            centre = 0.5 + (box[:2] + box[2:] / 2 - each[:2] - each[2:] / 2) * scale / size
            if flip:
                pixels, mask, centre[0] = pixels[:, ::-1], mask[..., ::-1], 1 - centre[0]
            found.append(np.concatenate([centre, box[2:] * scale / size]).astype(np.float32))
            masks.append(np.ascontiguousarray(mask))
            if self.as_official:
                disturbed = np.clip(pixels.astype(np.float32) / 255 * gain, 0, 1)
                crops.append(np.ascontiguousarray(((disturbed - MEAN) / STD).transpose(2, 0, 1)))
            else:
                disturbed = np.clip(pixels.astype(np.float32) * gain, 0, 255).astype(np.uint8)
                crops.append(np.ascontiguousarray(disturbed))
        return crops, found, masks


def _read(path: str) -> np.ndarray:
    pixels = cv2.imread(path)
    if pixels is None:
        raise OSError(f"{path}: cannot be read")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _jittered(box_xywh: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = box_xywh[2:] * np.exp(rng.standard_normal(2) * CROPS.scale_jitter)
    reach = math.sqrt(size[0] * size[1]) * CROPS.centre_jitter
    centre = box_xywh[:2] + box_xywh[2:] / 2 + reach * (rng.random(2) - 0.5)
    return np.concatenate([centre - size / 2, size])


def _sample_target(
    frame: np.ndarray, box_xywh: np.ndarray, factor: float, size: int, with_mask: bool
) -> tuple[np.ndarray, float, np.ndarray]:
    """The square around a box, padded with black, at `size`; its scale; and its padding mask."""
    x, y, w, h = box_xywh.tolist()
    side = math.ceil(math.sqrt(w * h) * factor)
    left, top = round(x + 0.5 * w - side * 0.5), round(y + 0.5 * h - side * 0.5)
    height, width = frame.shape[:2]
    pad_left, pad_right = max(0, -left), max(left + side - width + 1, 0)
    pad_top, pad_bottom = max(0, -top), max(top + side - height + 1, 0)
    inside = frame[top + pad_top : top + side - pad_bottom, left + pad_left : left + side - pad_right]
    if not inside.size:
        return np.zeros((size, size, 3), np.uint8), size / side, np.ones((size, size), bool)
    padded = cv2.copyMakeBorder(inside, pad_top, pad_bottom, pad_left, pad_right, cv2.BORDER_CONSTANT)
    mask = np.zeros(0, bool)
    if with_mask:
        outside = np.ones(padded.shape[:2])
        outside[pad_top : side - pad_bottom, pad_left : side - pad_right] = 0
        mask = cv2.resize(outside, (size, size)).astype(bool)
    return cv2.resize(padded, (size, size)), size / side, mask


if __name__ == "__main__":
    sys.exit(main())
