"""Time and memory of a train step, beside PyTorch at its best in the same run.

    python -m eval.bench_train                                   # stage 1 and TrackMAE of ViT-B, as in their configs
    python -m eval.bench_train --configs mixvit_b --batch 64 --append docs/benchmarks.md
    python -m eval.bench_train --configs mixvit_b --modules      # where the time goes, by module

Ours is the program of `mixformer train` and `mixformer pretrain` on one device, with the same batch each step.
PyTorch's is the peer of `torch_peer.py` for stage 1, and of `torch_autoencoder.py` for MAE and TrackMAE: bfloat16
autocast, fused attention, `torch.compile`, fused AdamW, clipping, and GIoU in place of CIoU. MFU counts the model's own
operations, without recomputed ones.
"""

import importlib.util
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from eval.bench_step import missing_torch, random_values, random_variables, versions
from eval.turns import Arguments, Parts, bench_parser, published_peak, run_bench, time_in_turns, today
from mixformer_jax.cli.bench import device_name
from mixformer_jax.config_files import CONFIG_PREFIX, load_config
from mixformer_jax.models.autoencoder import Autoencoder
from mixformer_jax.pixels import IMAGENET_MEAN, IMAGENET_STD
from mixformer_jax.planning.profile import module_of
from mixformer_jax.planning.record import PlannedExperiment, count_model_flops, planned_type, with_train
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.loop import objective_of
from mixformer_jax.training.pretraining import PretrainExperiment
from mixformer_jax.training.program import train_program
from mixformer_jax.training.sharding import make_mesh

COLUMNS = (
    *("date", "config", "device", "step", "dtype", "batch", "ms", "quartiles", "samples/s", "MFU", "time over ours"),
    *("temporary GB", "versions"),
)
MODULE_COLUMNS = ("date", "config", "device", "dtype", "batch", "module", "ms", "share", "versions")
Batch = Mapping[str, np.ndarray]


class Ours(NamedTuple):
    """Our compiled step."""

    advance: Callable[[], None]  # keeps the state
    text: str  # HLO
    temporary_bytes: int


def load_experiment(name: str, batch_size: int, overrides: Sequence[str]) -> PlannedExperiment:
    """A config of `mixformer train` or `pretrain`, with another batch size."""
    config = load_config(name, overrides).to_dict()
    return with_train(planned_type(config).from_mapping(config), batch_size=batch_size)


def random_batch(experiment: PlannedExperiment) -> dict[str, np.ndarray]:
    """Noise for images, and boxes in the middle of the crop."""
    rng = np.random.default_rng(0)
    shapes = objective_of(experiment).batch_shapes(experiment.train.batch_size)

    def draw(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if name == "box_cxcywh":
            return rng.uniform(0.3, 0.6, leaf.shape).astype(leaf.dtype)
        if np.issubdtype(leaf.dtype, np.floating):
            return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)
        return rng.integers(0, 256, leaf.shape, leaf.dtype)

    return {name: draw(name, leaf) for name, leaf in shapes.items()}


def our_step(experiment: PlannedExperiment, batch: Batch) -> Ours:
    """The step on the first device, from random weights."""
    program = train_program(objective_of(experiment), experiment.train, make_mesh((1, 1, 1), jax.devices()[:1]))
    compiled = program.step.lower(program.state, program.batch).compile()
    state = program.init(jax.random.key(0))
    on_device = {name: jax.device_put(batch[name], leaf.sharding) for name, leaf in program.batch.items()}

    def advance() -> None:
        nonlocal state
        state, report = compiled(state, on_device)
        jax.block_until_ready(report)

    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None  # what XLA compiled tells both
    return Ours(advance, text, memory.temp_size_in_bytes)


def torch_step(experiment: PlannedExperiment, batch: Batch) -> Callable[[], None]:
    """The PyTorch peer's step in its fastest mode, on the kind of device that ours runs on."""
    import torch

    platform, train = "cuda" if jax.default_backend() == "gpu" else "cpu", experiment.train
    if isinstance(experiment, Experiment):
        peer, loss_of, given = _torch_boxes(experiment, batch, platform)
    else:
        peer, loss_of, given = _torch_autoencoder(experiment, batch, platform)
    parameters = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True)
    compiled = torch.compile(loss_of, mode="max-autotune-no-cudagraphs" if platform == "cuda" else None)

    def advance() -> None:
        optimizer.zero_grad(set_to_none=True)
        compiled(*given).backward()
        torch.nn.utils.clip_grad_norm_(parameters, train.clip_norm)
        optimizer.step()
        if platform == "cuda":
            torch.cuda.synchronize()

    return advance


def _torch_boxes(experiment: Experiment, batch: Batch, platform: str) -> tuple[Any, Callable[..., Any], list[Any]]:
    """Stage 1: the peer, its loss, and what that is given."""
    import torch
    from torch.nn import functional

    from eval.torch_peer import channels_first, peer_of

    train, config = experiment.train, experiment.model
    peer = peer_of(config, random_variables(config), fused_attention=True).to(platform).train()
    mean, deviation = (torch.tensor(each, device=platform).view(3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    given = [channels_first(batch[name]).to(platform) for name in ("templates", "search")]
    target = torch.from_numpy(batch["box_cxcywh"]).to(platform)

    def corners(boxes: torch.Tensor) -> torch.Tensor:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return torch.cat([centre - half, centre + half], dim=1)

    def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
        hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
        common = sides.prod(dim=1)
        union = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - common
        return common / union - (hull.prod(dim=1) - union) / hull.prod(dim=1)

    def loss_of(templates: torch.Tensor, search: torch.Tensor) -> torch.Tensor:
        with torch.autocast(platform, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            shown = (templates / 255 - mean) / deviation
            output = peer(shown[:, 0], shown[:, 1:], (search / 255 - mean) / deviation)
        boxes = output.boxes_cxcywh.float()
        overlap = generalised_iou(corners(boxes), corners(target))
        return train.l1_weight * functional.l1_loss(boxes, target) + train.iou_weight * (1 - overlap).mean()

    return peer, loss_of, given


def _torch_autoencoder(
    experiment: PretrainExperiment, batch: Batch, platform: str
) -> tuple[Any, Callable[..., Any], list[Any]]:
    """MAE or TrackMAE, likewise."""
    import torch

    from eval.torch_autoencoder import AutoencoderPeer

    config = experiment.autoencoder
    peer = AutoencoderPeer(config)
    peer.load_variables(random_values(Autoencoder(config)))
    peer = peer.to(platform).train()
    mean, deviation = (torch.tensor(each, device=platform) for each in (IMAGENET_MEAN, IMAGENET_STD))
    given = [torch.from_numpy(batch[name]).to(platform) for name in ("search", "templates") if name in batch]

    def loss_of(*images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(platform, torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
            search, templates = [*((each / 255 - mean) / deviation for each in images), None][:2]
            return peer.loss(search, templates)

    return peer, loss_of, given


def has_peer(experiment: PlannedExperiment) -> bool:
    """Whether PyTorch's side of it is there."""
    if isinstance(experiment, Experiment):
        return experiment.train.stage == "box"
    config, model = experiment.autoencoder, experiment.autoencoder.model
    is_plain = (model.patch_embed, model.positions, model.attention) == ("linear", "sincos", "asymmetric")
    return is_plain and not config.class_token and not model.layer_scale


def time_by_module(ours: Ours, steps: int = 5) -> dict[str, float]:
    """Milliseconds of a step by module and direction, from the profiler, the longest first.

    On a GPU, kernels inside command buffers have no names: set XLA_FLAGS=--xla_gpu_enable_command_buffer= for this.
    """
    names = dict(re.findall(r"%?([\w.-]+) = .*?op_name=\"([^\"]*)\"", ours.text))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                ours.advance()
        nanoseconds: dict[str, float] = defaultdict(float)
        for file in Path(folder).rglob("*.xplane.pb"):
            for operation, duration in _operations(jax.profiler.ProfileData.from_file(str(file))):
                nanoseconds[module_of(names.get(operation, ""))] += duration
    if not nanoseconds:
        raise RuntimeError(f"JAX's profiler recorded no operation of {steps} steps; run the program again, on its own")
    longest = sorted(nanoseconds, key=nanoseconds.__getitem__, reverse=True)
    return {module: nanoseconds[module] / steps / 1e6 for module in longest}


def _operations(trace: Any) -> Iterator[tuple[str, float]]:
    """Names and nanoseconds of operations: of a GPU's streams, a TPU's line of operations, or a CPU's threads."""
    devices = [plane for plane in trace.planes if plane.name.startswith("/device:")]
    for plane in devices or trace.planes:
        for line in plane.lines:
            if devices and not line.name.startswith(("Stream", "XLA Ops")):
                continue
            for event in line.events:
                operation = dict(event.stats).get("hlo_op")
                if operation is not None:
                    yield str(operation), event.duration_ns


def about_step(experiment: PlannedExperiment) -> tuple[str, str, str]:
    """Cells of a table: date, what is trained, device."""
    suffix = "" if isinstance(experiment, Experiment) else " pre-training"
    return today(), f"{experiment.model.name}{suffix}", device_name(jax.devices()[0])


def module_rows(experiment: PlannedExperiment) -> list[list[str]]:
    """Rows of the table of times by module for one config."""
    found = time_by_module(our_step(experiment, random_batch(experiment)))
    whole = sum(found.values())
    about = (*about_step(experiment), experiment.model.dtype, str(experiment.train.batch_size))
    version = f"jax {jax.__version__}"
    return [[*about, module, f"{ms:.2f}", f"{ms / whole:.1%}", version] for module, ms in found.items()]


def step_rows(experiment: PlannedExperiment, turns: int) -> list[list[str]]:
    """Rows of the table of whole steps for one config."""
    batch = random_batch(experiment)
    ours = our_step(experiment, batch)
    calls: dict[str, Callable[[], object]] = {"ours": ours.advance}
    if has_peer(experiment) and missing_torch() is None:
        calls["PyTorch compiled, autocast, fused attention and AdamW"] = torch_step(experiment, batch)
    timed = time_in_turns(calls, turns, experiment.model.name, progress=sys.stderr.isatty())
    flops, samples = count_model_flops(experiment), experiment.train.batch_size
    peak = published_peak(jax.devices()[0], experiment.model.dtype)
    rows = []
    for step, timing in timed.items():
        seconds = timing.quartiles()[1]
        mfu = "" if peak is None else f"{flops / seconds / peak:.0%}"
        ratio = seconds / timed["ours"].quartiles()[1]
        temporary = f"{ours.temporary_bytes / 1e9:.1f}" if step == "ours" else ""
        figures = (*timing.milliseconds(), f"{samples / seconds:.0f}", mfu, f"{ratio:.2f}", temporary)
        rows.append([*about_step(experiment), step, experiment.model.dtype, str(samples), *figures, versions()])
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = bench_parser(__doc__, turns=20, overrides=CONFIG_PREFIX)
    parser.add_argument("--configs", default="mixvit_b,trackmae_vit_b", help="names or files, separated by commas")
    parser.add_argument("--batch", type=int, help="samples a step (default: 64 for stage 1, 256 for pre-training)")
    parser.add_argument("--modules", action="store_true", help="the time by module instead")

    def measure(args: Arguments) -> Parts:
        if absent := missing_torch():
            print(f"no comparison with PyTorch: {absent}")
        elif jax.default_backend() == "gpu" and importlib.util.find_spec("triton") is None:
            parser.error("torch.compile needs triton on a GPU: pip install triton")
        for name in args.configs.split(","):
            experiment = load_experiment(name, args.batch or (256 if "mae" in name else 64), args.overrides)
            if args.modules:
                yield MODULE_COLUMNS, module_rows(experiment), slice(5, -1)
            else:
                yield COLUMNS, step_rows(experiment, args.turns), slice(None)

    return run_bench(parser, arguments, measure)


if __name__ == "__main__":
    sys.exit(main())
