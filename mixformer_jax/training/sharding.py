"""Where arrays live: one mesh, one table of rules from parameter paths to partition specs.

Programs are written for whole arrays; `jax.jit` with these shardings divides them, so the result is the same on every
mesh up to rounding, batch norm over the global batch included.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from mixformer_jax.data.pool.device import DeviceSamples
from mixformer_jax.models.config import ConfigError
from mixformer_jax.models.tpu_attention import BATCH_AXES
from mixformer_jax.training.objective import Samples

# `data` splits the batch; `fsdp` the batch and, with it, parameters and optimizer state; `tensor` the inner dimensions
# of attention and MLP.
AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(BATCH_AXES)

Tree = TypeVar("Tree")

# The first pattern found at the end of a path decides; it also finds the path's moments in the optimizer state. The
# axes are those of the last dimensions; one that does not divide its dimension is left out. What no pattern knows
# (norms, biases, statistics) is small and stays whole.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # Matrices into heads and into an MLP's hidden layer, and those back out of them. The one matrix for queries, keys
    # and values cannot be cut between heads: it is whole where it is used.
    (r"/(q|k|v|fc0|fc1)/kernel$", ("fsdp", "tensor")),
    (r"/(attention(_\d+)?/proj|fc2)/kernel$", ("tensor", "fsdp")),
    (r"/(q|k|v|fc0|fc1)/bias$", ("tensor",)),
    # Embeddings, convolutions, position tables: the output channels.
    (r"/(kernel|table)$", ("fsdp",)),
)


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with `AXES` of these devices, or of all, of all processes; a single process may use fewer than it has.

    One of the counts along the axes may be -1, for as many as there are. ConfigError: the devices do not allow them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(shape)
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"train.mesh is {tuple(shape)}; expected three counts (data, fsdp, tensor), one may be -1")
    if -1 in sizes:
        rest = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, len(devices) // rest)
    count = math.prod(sizes)
    if count > len(devices) or (count < len(devices) and jax.process_count() > 1):
        raise ConfigError(f"train.mesh {tuple(shape)} wants {count} devices; there are {len(devices)}")
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=devices[:count])


def batch_axis_size(mesh: Mesh) -> int:
    """Into how many parts a mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def partition_spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """How one array is split: the first of `RULES` that fits its path, without the axes that do not divide."""
    axes = next((axes for pattern, axes in RULES if re.search(pattern, path)), ())
    if len(axes) > len(shape):
        return PartitionSpec()
    aligned = (None,) * (len(shape) - len(axes)) + axes
    return PartitionSpec(
        *(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(aligned, shape, strict=True))
    )


def tree_shardings(shapes: Tree, mesh: Mesh) -> Tree:
    """The sharding of every array of a tree of shapes, such as `jax.eval_shape` gives; its structure is the tree's."""

    def sharding(path: tuple[Any, ...], value: Any) -> NamedSharding:
        return NamedSharding(mesh, partition_spec(path_name(path), value.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def gather_params(params: Tree, shardings: Tree) -> Tree:
    """Parameters about to be used: whole along `fsdp`; their gradients are split as the parameters are. Left to itself
    the compiler may rather split activations by channels, and send whole batches about."""
    return jax.tree.map(_gathered, params, shardings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(param: Array, stored: NamedSharding) -> Array:
    used = PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored.spec))
    return jax.lax.with_sharding_constraint(param, NamedSharding(stored.mesh, used))


def _gathered_forward(param: Array, stored: NamedSharding) -> tuple[Array, None]:
    return _gathered(param, stored), None


def _gathered_backward(stored: NamedSharding, _: None, gradient: Array) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(gradient, stored),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def path_name(path: tuple[Any, ...]) -> str:
    """`/params/head/conv1/kernel` for a path of `jax.tree_util`."""
    return "".join(f"/{jax.tree_util.keystr((key,), simple=True)}" for key in path)


def with_shardings(shapes: Tree, shardings: Any) -> Tree:
    """Abstract arrays that know where they live."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def place(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole, as one array of all of them."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def process_rows(batch_size: int, mesh: Mesh) -> tuple[int, int]:
    """Which of how many equal parts of a batch this process loads, as (index, count); processes that share samples (a
    `tensor` axis across them) load the same part.

    Raises ConfigError: a batch that the mesh does not divide, or a mesh that scatters a process's rows.
    """
    parts = batch_axis_size(mesh)
    if batch_size % parts:
        raise ConfigError(f"train.batch_size {batch_size} does not divide among {parts} devices (data x fsdp)")
    owned = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    starts = sorted({(rows or (slice(None),))[0].indices(batch_size)[0] for rows in owned.values()})
    rows = batch_size // parts
    first, count = starts[0], len(starts) * rows
    if starts != list(range(first, first + count, rows)) or first % count:
        raise ConfigError(f"train.mesh {dict(mesh.shape)}: the devices of a process must hold neighbouring samples")
    return first // count, batch_size // count


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as a part of the global one."""
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return {name: jax.device_put(value, sharding) for name, value in batch.items()}
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def own_rows(value: jax.Array | np.ndarray) -> np.ndarray:
    """This process's part of an array of a global batch, as `put_batch` took it."""
    if isinstance(value, np.ndarray) or value.is_fully_addressable:
        return np.asarray(value)
    # Devices along `tensor` hold the same rows.
    parts = {shard.index[0].start: shard.data for shard in value.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def to_devices(
    samples: Samples, mesh: Mesh, batch_size: int
) -> Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]:
    """The function from this process's part of a batch to the global one of `batch_size` samples.

    For `DeviceSamples` every device of the mesh gets the whole pool now, and then renders its own samples.

    Raises ValueError: a pool that does not suit the config, see `DeviceSamples.check`.
    """
    if not isinstance(samples, DeviceSamples):
        return lambda batch: put_batch(batch, mesh)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, BATCH)
    resident = jax.tree.map(lambda value: place(value, whole), samples.resident)
    samples.check(resident)
    numbers = {"index": jax.ShapeDtypeStruct((batch_size,), np.uint32, sharding=split)}
    render = jax.jit(samples.render, out_shardings=split).lower(resident, numbers).compile()
    return lambda batch: render(resident, put_batch(batch, mesh))
