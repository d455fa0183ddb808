"""`mixformer plan`: what a train step needs of a topology, before anybody has it; GPUs on paper, with no compiler."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from mixformer_jax.models.config import ConfigError
from mixformer_jax.planning.hardware import PlanError, Topology, parse_topology
from mixformer_jax.planning.hlo import Collective, by_kind
from mixformer_jax.planning.macs import count_macs, count_product_bytes
from mixformer_jax.planning.record import (
    AnyExperiment,
    Plan,
    Stage,
    abstract_mesh,
    count_model_flops,
    memory_of,
    objective_of,
    program_alone,
    settings_of,
    tree_bytes,
    with_train,
)
from mixformer_jax.planning.tpu import plan_tpu
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.masks import NETWORKS
from mixformer_jax.training.pretraining import PretrainExperiment
from mixformer_jax.training.program import TrainProgram, train_program
from mixformer_jax.training.sharding import AXES, make_mesh

# The proposed mesh splits the state until it leaves three quarters of a chip to the activations.
STATE_SHARE = 0.25


@contextmanager
def _silently(_what: str) -> Iterator[None]:
    yield


def plan(
    config: Mapping[str, Any],
    topology: str,
    global_batch: int,
    mesh: Sequence[int] | None = None,
    quick: bool = False,
    stage: Stage = _silently,
) -> Plan:
    """Plans one training or pre-training.

    Args:
        config: as `train` or `pretrain` takes it; its mesh and batch size do not count.
        topology: such as `v5e:16x16` or `h100:8`.
        global_batch: samples a step, over all chips.
        mesh: chips along data, fsdp and tensor; None proposes one.
        quick: see `plan_tpu`; on paper it makes no difference.
        stage: wraps each part of the work, for somebody who wants to show progress.

    Raises:
        ConfigError: the config.
        PlanError: an unknown topology, a mesh that does not divide chips or batch, or a step that XLA cannot fit.
    """
    if not NETWORKS.keys().isdisjoint(config):
        raise ConfigError("a config of masks: plan weighs trainings of trackers and pre-trainings alone")
    place = parse_topology(topology)
    kind = PretrainExperiment if "autoencoder" in config else Experiment
    experiment: AnyExperiment = kind.from_mapping(config)
    experiment = with_train(experiment, batch_size=global_batch)
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


def _mesh_shape(experiment: AnyExperiment, topology: Topology, mesh: Sequence[int] | None) -> tuple[int, ...]:
    batch, parts = experiment.train.batch_size, experiment.train.accumulate
    if mesh is None:
        shape: tuple[int, ...] = propose_mesh(topology, tree_bytes(program_alone(experiment).state, None))
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


def plan_gpu(experiment: AnyExperiment, topology: Topology, shape: tuple[int, ...], stage: Stage) -> Plan:
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
        kept = _kept_bytes(own, program)
        model_flops = count_model_flops(own) if train.remat else flops
    with stage("count bytes"):
        accessed = traced.lower().cost_analysis()["bytes accessed"] * train.accumulate
        products = count_product_bytes(traced.jaxpr)
    batch = tree_bytes(program.batch, None)
    mesh = abstract_mesh(shape)
    gradients = tree_bytes(program.state.opt_state, mesh) // 2
    memory = memory_of(program.state, batch, shape, topology, kept + gradients, 0)
    whole = tree_bytes(program.state.params, None)
    groups = np.arange(count).reshape(1, count)
    collectives = []
    if count > 1:
        collectives = [Collective("all-reduce", whole, 1, groups)]
        if fsdp > 1:
            ours = np.arange(count).reshape(data, fsdp)
            # Parameters are gathered for the forward and again for the backward pass.
            collectives = [Collective("all-gather", whole, 2, ours), Collective("reduce-scatter", whole, 1, ours)]
            if data > 1:
                collectives.append(Collective("all-reduce", whole // fsdp, 1, ours.T))
    notes = ["on paper: out of shapes, no GPU compiler has seen this step; fused attention would need less"]
    if topology.chip.name == "v100":
        notes.append("V100 has no units for bfloat16: the peak is float32's")
    return Plan(
        model=experiment.model.name,
        topology=topology,
        mesh=dict(zip(AXES, shape, strict=True)),
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


def _kept_bytes(experiment: AnyExperiment, program: TrainProgram) -> int:
    """Bytes that one part of a batch leaves for its gradient, parameters left out."""
    objective = objective_of(experiment)
    batch = objective.batch_shapes(experiment.train.batch_size // experiment.train.accumulate)
    state = program.state

    def residuals(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        def loss(params: Any) -> Any:
            return objective.loss({"params": params, **model_state}, batch, key)[0]

        return jax.vjp(loss, params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    kept = jax.eval_shape(residuals, state.params, state.model_state, batch, key)
    # A matrix product keeps its parameters too, in the compute type.
    return max(0, tree_bytes(kept, None) - tree_bytes(state.params, None))
