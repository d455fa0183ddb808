"""The plan for GPUs: there is no compiler for them here, so it is made on paper, out of shapes."""

import time
from typing import Any

import jax
import numpy as np

from mixformer_jax.planning.hardware import PlanError, Topology
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
    settings_of,
    tree_bytes,
    with_train,
)
from mixformer_jax.training.program import TrainProgram, train_program
from mixformer_jax.training.sharding import AXES, make_mesh


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
