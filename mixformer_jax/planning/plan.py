"""`mixformer plan`: what a train step needs of a topology, before anybody has it.

For TPUs the step that `train` runs is compiled by XLA's TPU compiler, which the package `libtpu` brings; it wants no
TPU. GPUs are planned on paper, with no compiler.
"""

import importlib
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType

from mixformer_jax.planning.hardware import PlanError, Topology, parse_topology
from mixformer_jax.planning.hlo import Collective, by_kind, read_program
from mixformer_jax.planning.profile import count_kernel_macs, count_macs, count_product_bytes
from mixformer_jax.planning.record import (
    Plan,
    PlannedExperiment,
    Stage,
    count_model_flops,
    does_not_fit,
    memory_of,
    movers,
    planned_type,
    program_alone,
    settings_of,
    tree_bytes,
    with_train,
)
from mixformer_jax.training.loop import objective_of
from mixformer_jax.training.objective import Objective
from mixformer_jax.training.program import TrainProgram, train_program
from mixformer_jax.training.sharding import AXES, make_mesh

# The proposed mesh splits the state until it leaves three quarters of a chip to the activations.
STATE_SHARE = 0.25


def plan(
    config: Mapping[str, Any],
    topology: str,
    global_batch: int,
    mesh: Sequence[int] | None = None,
    quick: bool = False,
    stage: Stage = nullcontext,
) -> Plan:
    """Plans one training or pre-training: a config of `train` or `pretrain`, whose mesh and batch size do not count.

    The mesh is chips along data, fsdp and tensor; None proposes one. `quick`: see `plan_tpu`; on paper it makes no
    difference. `stage` wraps each part of the work, for somebody who wants to show progress.

    Raises:
        ConfigError: the config.
        PlanError: an unknown topology, a mesh that does not divide chips or batch, or a step that XLA cannot fit.
    """
    place = parse_topology(topology)
    experiment = with_train(planned_type(config).from_mapping(config), batch_size=global_batch)
    shape = _mesh_shape(experiment, place, mesh)
    if place.chip.kind == "gpu":
        return plan_gpu(experiment, place, shape, stage)
    return plan_tpu(experiment, place, shape, stage, quick)


def propose_mesh(topology: Topology, state_bytes: int) -> tuple[int, int, int]:
    """Data parallel, and `fsdp` as far as the state would take more than `STATE_SHARE` of a chip."""
    fsdp = 1
    while state_bytes / fsdp > STATE_SHARE * topology.chip.hbm_bytes and topology.size % (2 * fsdp) == 0:
        fsdp *= 2
    return topology.size // fsdp, fsdp, 1


def _mesh_shape(experiment: PlannedExperiment, topology: Topology, mesh: Sequence[int] | None) -> tuple[int, ...]:
    batch, parts = experiment.train.batch_size, experiment.train.accumulate
    if mesh is None:
        shape: tuple[int, ...] = propose_mesh(topology, tree_bytes(program_alone(experiment).state))
    else:
        shape = tuple(mesh)
        if len(shape) != len(AXES) or min(shape) < 1 or math.prod(shape) != topology.size:
            raise PlanError(
                f"--mesh {','.join(map(str, shape))}: expected three counts (data, fsdp, tensor) whose product is the "
                f"{topology.size} chips of {topology.name}"
            )
    split = shape[0] * shape[1] * parts
    if batch % split:
        below, above = batch // split * split, -(-batch // split) * split
        near = f"{below} or {above}" if below else str(above)
        of_parts = f" x train.accumulate {parts}" if parts > 1 else ""
        raise PlanError(
            f"--global-batch {batch} does not divide among data {shape[0]} x fsdp {shape[1]}{of_parts} = {split}: try "
            f"{near}, or a mesh with fewer of them (tensor shares samples)"
        )
    return shape


def tpu_devices(topology: Topology) -> list[Any]:
    """Devices of a topology that nobody has, to compile for; ModuleNotFoundError without the package `libtpu`."""
    importlib.import_module("libtpu")  # JAX's own error does not name the package

    # Without a TPU machine around it the library complains about what it cannot find; and it lets no second process in.
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    more = {"chips_per_host_bounds": [1, 1, 1]} if topology.size == 1 else {}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more).devices)


def plan_tpu(
    experiment: PlannedExperiment, topology: Topology, shape: tuple[int, ...], stage: Stage, quick: bool = False
) -> Plan:
    """Compiles the step, its batch the global one, and reads what it needs.

    With `quick`, XLA takes a quarter of its time and leaves the chip's scratch memory unused. Operations, transfers
    and, within a few percent, memory are those of the real program; its traffic with HBM is overestimated.

    Raises:
        PlanError: the step does not fit.
        ModuleNotFoundError: without the package `libtpu`.
    """
    mesh = make_mesh(shape, tpu_devices(topology))
    settings, axes, chip, notes = settings_of(experiment, quick), dict(mesh.shape), topology.chip, []
    began = time.perf_counter()
    with stage("trace the step"):
        program = train_program(objective_of(experiment), experiment.train, mesh)
        step = program.step.trace(program.state, program.batch)
        lowered = step.lower()
        model_flops = count_model_flops(experiment) / topology.size
        # Of kernels, which XLA neither counts nor estimates; traced for one chip's share of the batch.
        kernel_flops = 2.0 * count_kernel_macs(step.jaxpr)
    traced = time.perf_counter()
    with stage(f"compile it for {topology.size} x {chip.name} (minutes)"):
        try:
            with _low_effort() if quick else nullcontext():
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            raise _refused(error, topology, settings, axes) from error
    done = time.perf_counter()
    with stage("read the compiled program"):
        cost = read_program(compiled.as_text())
    stats, counted = compiled.memory_analysis(), compiled.cost_analysis()
    batch = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in program.batch.values())
    kept = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    memory = memory_of(program.state, batch, mesh, topology, stats.temp_size_in_bytes, code)
    # Arrays lie in memory in tiles: what that adds is the state's and the batch's.
    memory = memory._replace(rest=memory.rest + kept - memory.state - memory.batch)
    if cost.loops_of_unknown_length:
        notes.append(f"{cost.loops_of_unknown_length} loops of unknown length count once")
    kernel_s = kernel_flops / chip.flops[experiment.model.dtype]
    if kernel_flops:
        notes.append(
            f"attention kernels count as {1e3 * kernel_s:.1f} ms in the expected step, their products at the peak"
        )
    if quick:
        notes.append(
            "--quick: compiled without the chip's scratch memory; bytes with HBM and the memory bound are too high"
        )
    estimate_s = None
    if cost.cycles is not None and chip.clock_hz is not None and not quick:
        estimate_s = cost.cycles / chip.clock_hz + kernel_s
    # XLA counts the loop over the parts of a batch once; next to nothing happens outside it.
    parts = experiment.train.accumulate
    return Plan(
        model=experiment.model.name,
        topology=topology,
        mesh=axes,
        global_batch=experiment.train.batch_size,
        settings=settings,
        on_paper=False,
        memory=memory,
        flops=counted["flops"] * parts + kernel_flops,
        model_flops=model_flops,
        hbm_bytes=float(cost.hbm_bytes),
        accessed_bytes=counted["bytes accessed"] * parts,
        collectives=by_kind(cost.collectives),
        network_s=network_seconds(cost.collectives, topology, [tuple(device.coords) for device in mesh.devices.flat]),
        estimate_s=estimate_s,
        seconds={"trace": traced - began, "compile": done - traced},
        notes=tuple(notes),
        movers=movers(cost.traffic),
    )


@contextmanager
def _low_effort() -> Iterator[None]:
    """XLA tries less hard to make programs fast: its effort goes from -1 to 1."""
    before = jax.config.jax_exec_time_optimization_effort  # type: ignore[attr-defined]
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    try:
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)


def network_seconds(
    collectives: Sequence[Collective], topology: Topology, coordinates: Sequence[tuple[int, ...]]
) -> float:
    """The least time for all transfers one after the other: each chip sends its share over all links that lead along
    the physical axes of its group."""

    def bandwidth(collective: Collective) -> float:
        if collective.kind == "collective-permute":
            return topology.chip.link_bandwidth
        places = np.array([coordinates[device] for device in collective.groups[0]])
        spans = np.ptp(places, axis=0) + 1
        return topology.bandwidth({axis: int(spans[axis]) for axis in range(len(topology.shape)) if spans[axis] > 1})

    return sum(each.times * each.wire_bytes / bandwidth(each) for each in collectives)


def _refused(
    error: jax.errors.JaxRuntimeError, topology: Topology, settings: Mapping[str, Any], mesh: Mapping[str, int]
) -> Exception:
    """What XLA said, for people: a step that is too big, or its own words."""
    text = str(error)
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", text) or re.search(
        r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", text
    )
    if "RESOURCE_EXHAUSTED" not in text or found is None:
        return PlanError(f"XLA cannot compile the step for {topology.name}: {text.strip().splitlines()[0]}")
    needed, limit = (float(found[place]) * units[found[place + 1]] for place in (1, 3))
    return PlanError(does_not_fit(needed, limit, topology, settings, mesh))


def plan_gpu(experiment: PlannedExperiment, topology: Topology, shape: tuple[int, ...], stage: Stage) -> Plan:
    """Reckons the step out of its shapes; PlanError for a mesh with a tensor axis."""
    count, train = topology.size, experiment.train
    data, fsdp, tensor = shape
    if tensor > 1:
        raise PlanError(f"--mesh {data},{fsdp},{tensor}: on paper (GPUs) there is no tensor axis; make it 1")
    own = with_train(experiment, batch_size=train.batch_size // count)
    began = time.perf_counter()
    with stage("trace the step"):
        objective = objective_of(own)
        program = train_program(objective, own.train, make_mesh((1, 1, 1), jax.devices()[:1]))
        traced = program.step.trace(program.state, program.batch)
        flops = 2.0 * count_macs(traced.jaxpr).total()
        kept = _kept_bytes(objective, program)
        model_flops = count_model_flops(own) if train.remat else flops
    with stage("count bytes"):
        accessed = traced.lower().cost_analysis()["bytes accessed"] * train.accumulate
        products = count_product_bytes(traced.jaxpr)
    mesh = AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    gradients = tree_bytes(program.state.opt_state, mesh) // 2
    memory = memory_of(program.state, tree_bytes(program.batch), mesh, topology, kept + gradients, 0)
    whole, groups = tree_bytes(program.state.params), np.arange(count).reshape(data, fsdp)
    collectives = []
    if fsdp > 1:
        # Parameters are gathered for the forward and again for the backward pass.
        collectives += [Collective("all-gather", whole, 2, groups), Collective("reduce-scatter", whole, 1, groups)]
    if data > 1:
        collectives.append(Collective("all-reduce", whole // fsdp, 1, groups.T))
    notes = ["on paper: out of shapes, no GPU compiler has seen this step; fused attention would need less"]
    if topology.chip.name == "v100":
        notes.append("V100 has no units for bfloat16: the peak is float32's")
    return Plan(
        model=experiment.model.name,
        topology=topology,
        mesh=dict(mesh.shape),
        global_batch=train.batch_size,
        settings=settings_of(experiment),
        on_paper=True,
        memory=memory,
        flops=flops,
        model_flops=model_flops,
        hbm_bytes=float(products + 2 * memory.state),
        accessed_bytes=accessed,
        collectives=by_kind(collectives),
        network_s=sum(each.times * each.wire_bytes for each in collectives) / topology.bandwidth(),
        estimate_s=None,
        seconds={"trace": time.perf_counter() - began},
        notes=tuple(notes),
    )


def _kept_bytes(objective: Objective, program: TrainProgram) -> int:
    """Bytes that one part of a batch leaves for its gradient, parameters left out."""
    train = objective.experiment.train

    def residuals(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            return objective.loss({"params": params, **model_state}, batch, key)[0]

        return jax.vjp(loss, params)[1]

    state, key = program.state, jax.eval_shape(lambda: jax.random.key(0))
    batch = objective.batch_shapes(train.batch_size // train.accumulate)
    kept = jax.eval_shape(residuals, state.params, state.model_state, batch, key)
    # A matrix product keeps its parameters too, in the compute type.
    return max(0, tree_bytes(kept) - tree_bytes(state.params))
