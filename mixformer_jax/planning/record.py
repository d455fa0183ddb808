"""What a plan says: the record of one train step on one topology, what follows from it, and its lines to print."""

import dataclasses
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from mixformer_jax.models.config import ConfigError
from mixformer_jax.planning.hardware import Topology
from mixformer_jax.planning.hlo import Traffic
from mixformer_jax.planning.profile import count_macs, module_of
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.loop import experiment_type, objective_of
from mixformer_jax.training.masks import MaskExperiment
from mixformer_jax.training.pretraining import PretrainExperiment
from mixformer_jax.training.program import TrainProgram, TrainState, train_program
from mixformer_jax.training.sharding import make_mesh, partition_spec, path_name

Stage = Callable[[str], AbstractContextManager[Any]]
MOST_MOVERS = 12  # lines of a plan


class Memory(NamedTuple):
    """Bytes of one chip."""

    parameters: int  # of the state
    optimizer: int  # its moments
    rest: int  # of the state: statistics, averages, counters
    batch: int  # the chip's samples
    temporaries: int  # activations kept for the gradient, gradients, and what single operations need
    code: int  # the program
    limit: float  # what a program may have

    @property
    def state(self) -> int:
        return self.parameters + self.optimizer + self.rest

    @property
    def total(self) -> int:
        return self.state + self.batch + self.temporaries + self.code


class Mover(NamedTuple):
    """Instructions of one module that do one operation: their traffic with HBM."""

    module: str  # see `profile.module_of`
    operation: str  # JAX's, of the last of what an instruction fuses
    instruction: str  # the name of the one that moves most
    times: int  # how often a step runs them
    bytes: int  # of all of them


def movers(traffic: Iterable[Traffic]) -> tuple[Mover, ...]:
    """What moves bytes, those that move most first."""
    alike: dict[tuple[str, str], list[Traffic]] = defaultdict(list)
    moved = operator.attrgetter("moved")
    for each in traffic:
        alike[module_of(each.scope), each.scope.rpartition("/")[2]].append(each)
    found = [
        Mover(*kind, max(group, key=moved).instruction, sum(each.times for each in group), sum(map(moved, group)))
        for kind, group in alike.items()
    ]
    return tuple(sorted(found, key=lambda mover: -mover.bytes))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step costs on one chip, and what that allows."""

    model: str
    topology: Topology
    mesh: Mapping[str, int]  # devices by axis
    global_batch: int  # samples a step
    # What else matters: compute type, recomputing, parts, and whether XLA was told to be quick
    settings: Mapping[str, Any]
    on_paper: bool  # no compiler has seen the step
    memory: Memory
    flops: float  # operations of a step, recomputed ones too; a multiply-add is two
    model_flops: float  # those of forward and backward pass alone
    # Traffic with memory, see `hlo.ProgramCost`; on paper operands and results of matrix products and convolutions, and
    # the state read and written.
    hbm_bytes: float
    accessed_bytes: float  # as XLA counts, moves within the chip (or, on paper, operations that will be fused) included
    # For each kind how many, their bytes, what a chip sends for them
    collectives: Mapping[str, tuple[int, float, float]]
    network_s: float  # the time to send that
    estimate_s: float | None  # the compiler's own estimate of a step without transfers; None where it has none
    seconds: Mapping[str, float]  # what the planning took
    notes: tuple[str, ...] = ()  # what a reader must know of these numbers
    movers: tuple[Mover, ...] = ()  # what the traffic with memory is; on paper nobody knows

    @property
    def peak_flops(self) -> float:
        return self.topology.chip.flops[self.settings["dtype"]]

    @property
    def bounds_s(self) -> dict[str, float]:
        """The least time that each of three resources needs for a step."""
        return {
            "compute": self.flops / self.peak_flops,
            "memory": self.hbm_bytes / self.topology.chip.hbm_bandwidth,
            "network": self.network_s,
        }

    @property
    def limited_by(self) -> str:
        return max(self.bounds_s, key=self.bounds_s.__getitem__)

    @property
    def step_s(self) -> float:
        """No step is faster: all three at once, each at its peak."""
        return max(self.bounds_s.values())

    @property
    def expected_s(self) -> float:
        """The compiler's estimate, then the network; without an estimate the three bounds one after the other."""
        if self.estimate_s is None:
            return sum(self.bounds_s.values())
        return max(self.step_s, self.estimate_s + self.network_s)

    def mfu(self, step_s: float) -> float:
        """Share of the chip's peak that the model's own operations use in a step of this length."""
        return self.model_flops / (step_s * self.peak_flops)

    @property
    def refusal(self) -> str | None:
        """Why it does not fit, by how much, and what to change; None where it fits."""
        needed, limit = self.memory.total, self.memory.limit
        return does_not_fit(needed, limit, self.topology, self.settings, self.mesh) if needed > limit else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON has it, times in seconds, sizes in bytes."""
        return {
            "fits": self.refusal is None,
            "model": self.model,
            "topology": self.topology.name,
            "chips": self.topology.size,
            "mesh": dict(self.mesh),
            "global_batch": self.global_batch,
            **self.settings,
            "on_paper": self.on_paper,
            "memory": {**self.memory._asdict(), "total": self.memory.total},
            **{name: getattr(self, name) for name in ("flops", "model_flops", "hbm_bytes", "accessed_bytes")},
            "movers": [mover._asdict() for mover in self.movers],
            "collectives": {
                kind: {"count": count, "bytes": size, "sent_bytes": sent}
                for kind, (count, size, sent) in self.collectives.items()
            },
            "bounds_s": self.bounds_s,
            "limited_by": self.limited_by,
            "step_s_at_least": self.step_s,
            "step_s_expected": self.expected_s,
            "samples_per_s_at_most": self.global_batch / self.step_s,
            "samples_per_s_expected": self.global_batch / self.expected_s,
            "mfu_ceiling": self.mfu(self.step_s),
            "mfu_expected": self.mfu(self.expected_s),
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
        }


def does_not_fit(
    needed: int | float, limit: int | float, topology: Topology, settings: Mapping[str, Any], mesh: Mapping[str, int]
) -> str:
    """The message for a step that is too big."""
    changes = []
    if not settings["remat"]:
        changes.append("recompute activations (--config.train.remat=true)")
    elif settings["remat_policy"] != "nothing_saveable":
        changes.append("recompute all of them (--config.train.remat_policy=nothing_saveable)")
    if mesh["fsdp"] == 1 and mesh["data"] > 1:
        changes.append(f"split the state (--mesh 1,{mesh['data']},{mesh['tensor']})")
    changes.append(f"send the batch through in parts (--config.train.accumulate={2 * settings['accumulate']})")
    changes.append("take a smaller --global-batch")
    return (
        f"does not fit: a chip of {topology.name} would need {gigabytes(needed)} and has {gigabytes(limit)}, "
        f"{int(needed - limit):,} bytes too many. What helps: {'; '.join(changes)}"
    )


def gigabytes(size: int | float) -> str:
    """`12.3 GB`; smaller ones in MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


PlannedExperiment = Experiment | PretrainExperiment


def planned_type(config: Mapping[str, Any]) -> type[PlannedExperiment]:
    """What a config describes: a pre-training or the training of a tracker; ConfigError for a training of masks."""
    kind = experiment_type(config)
    if issubclass(kind, MaskExperiment):
        raise ConfigError("a config of masks: plan weighs trainings of trackers and pre-trainings alone")
    return kind


def with_train(experiment: PlannedExperiment, **changes: Any) -> PlannedExperiment:
    """The same under other settings of its run."""
    train: Any = dataclasses.replace(experiment.train, **changes)
    return dataclasses.replace(experiment, train=train)


def program_alone(experiment: PlannedExperiment) -> TrainProgram:
    """The program on one device, to look at shapes; attention in plain operations, which can be counted anywhere."""
    settings = dataclasses.replace(experiment.train, batch_size=experiment.train.accumulate)
    model = dataclasses.replace(experiment.model, attention_kernel="xla")
    if isinstance(experiment, PretrainExperiment):
        autoencoder = dataclasses.replace(experiment.autoencoder, model=model)
        experiment = dataclasses.replace(experiment, autoencoder=autoencoder)
    else:
        experiment = dataclasses.replace(experiment, model=model)
    return train_program(objective_of(experiment), settings, make_mesh((1, 1, 1), jax.devices()[:1]))


def tree_bytes(state: Any, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Bytes of a part of the state, or of what one device of a mesh has of it."""

    def on_device(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> int:
        shape: tuple[int, ...] = leaf.shape
        if mesh is not None:
            shape = NamedSharding(mesh, partition_spec(path_name(path), shape, mesh)).shard_shape(shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(on_device(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state))


def memory_of(
    state: TrainState, batch_bytes: int, mesh: Mesh | AbstractMesh, topology: Topology, more: int, code: int
) -> Memory:
    parameters, optimizer = tree_bytes(state.params, mesh), tree_bytes(state.opt_state, mesh)
    rest = tree_bytes(state, mesh) - parameters - optimizer
    return Memory(parameters, optimizer, rest, batch_bytes, more, code, topology.chip.hbm_bytes)


def settings_of(experiment: PlannedExperiment, quick: bool = False) -> dict[str, Any]:
    names = ("residual_dtype", "remat", "remat_policy", "accumulate")
    of_train = {name: getattr(experiment.train, name) for name in names}
    return {"dtype": experiment.model.dtype, **of_train, "quick": quick}


def count_model_flops(experiment: PlannedExperiment) -> float:
    """Operations of forward and backward pass of the whole batch, nothing recomputed, whatever kernels compute it."""
    kept = {"remat": False, "remat_policy": "nothing_saveable"}
    alone = program_alone(with_train(experiment, **kept, batch_size=1, accumulate=1))
    return 2.0 * count_macs(alone.step.trace(alone.state, alone.batch).jaxpr).total() * experiment.train.batch_size


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """Names and values, an empty name where a line goes on with the one before."""
    memory, chip = plan.memory, plan.topology.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    settings = plan.settings
    how = [settings["dtype"], f"{settings['residual_dtype']} between blocks"]
    how += [f"activations recomputed ({settings['remat_policy']})" if settings["remat"] else "activations kept"]
    how += [f"in {settings['accumulate']} parts"] if settings["accumulate"] > 1 else []
    per_chip, full = plan.global_batch / plan.topology.size, memory.total / memory.limit
    lines = [
        ("model", f"{plan.model}, {', '.join(how)}"),
        ("topology", f"{plan.topology.name}, {plan.topology.size} chips, mesh {mesh}"),
        ("batch", f"{plan.global_batch} samples, {per_chip:g} a chip"),
        ("memory", f"{gigabytes(memory.total)} a chip of {gigabytes(memory.limit)} ({full:.0%})"),
    ]
    parts = ("parameters", "optimizer", "other state", "batch", "activations, gradients, scratch", "program")
    sizes = zip(parts, memory, strict=False)  # all but the limit
    lines += [("", f"  {gigabytes(size):>9}  {name}") for name, size in sizes if size]
    beside = f"{plan.flops / plan.model_flops - 1:+.0%} to the model's {plan.model_flops / 1e12:.2f} T"
    lines += [
        ("FLOPs", f"{plan.flops / 1e12:.2f} T a chip and step, {beside}"),
        ("bytes", f"{gigabytes(plan.hbm_bytes)} with HBM; {gigabytes(plan.accessed_bytes)} accessed, as XLA counts"),
    ]
    for mover in plan.movers[:MOST_MOVERS]:
        share, what = f"{mover.bytes / plan.hbm_bytes:4.0%}", f"{mover.module}: {mover.operation or 'put in by XLA'}"
        lines.append(("", f"  {gigabytes(mover.bytes):>9} {share}  {what} ({mover.times} x, {mover.instruction})"))
    for place, (kind, (count, size, sent)) in enumerate(plan.collectives.items()):
        name = "" if place else "collectives"
        lines.append((name, f"{count} {kind} of {gigabytes(size)} in all; a chip sends {gigabytes(sent)}"))
    if not plan.collectives:
        lines.append(("collectives", "none"))
    peaks = {
        "compute": f"{plan.peak_flops / 1e12:g} TFLOP/s",
        "memory": f"{chip.hbm_bandwidth / 1e9:g} GB/s",
        "network": f"{plan.topology.bandwidth() / 1e9:g} GB/s out of a chip",
    }
    for place, (name, seconds) in enumerate(plan.bounds_s.items()):
        limits = "  <- limits" if name == plan.limited_by else ""
        lines.append(("" if place else "at least", f"{seconds * 1e3:.2f} ms {name} at {peaks[name]}{limits}"))
    ceiling = "no ceiling, see the note" if settings["quick"] else "the ceiling"
    lines.append(("", f"{_speed(plan, plan.step_s)}: {ceiling}"))
    basis = "XLA's estimate of computing, then the network" if plan.estimate_s else "the three one after the other"
    lines.append(("expected", f"{plan.expected_s * 1e3:.2f} ms a step: {basis}"))
    lines.append(("", _speed(plan, plan.expected_s)))
    lines.append(("took", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.seconds.items())))
    lines += [("note", note) for note in plan.notes]
    return lines


def _speed(plan: Plan, seconds: float) -> str:
    return f"{plan.global_batch / seconds:,.0f} samples/s, MFU {plan.mfu(seconds):.1%}"
