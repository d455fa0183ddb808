"""`mixformer plan`: what a train step needs of a topology, before anybody has it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mixformer_jax.planning.gpu import plan_gpu
from mixformer_jax.planning.hardware import PlanError, Topology, parse_topology
from mixformer_jax.planning.record import AnyExperiment, Plan, Stage, program_alone, tree_bytes, with_train
from mixformer_jax.planning.tpu import plan_tpu
from mixformer_jax.training.experiment import Experiment
from mixformer_jax.training.pretraining import PretrainExperiment
from mixformer_jax.training.sharding import AXES

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
