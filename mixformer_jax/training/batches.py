"""How a batch of the loader becomes one on the devices: sent there, or rendered there from its numbers."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixformer_jax.data.pool.device_samples import DeviceSamples
from mixformer_jax.training.objective import Samples
from mixformer_jax.training.sharding import BATCH, place, put_batch

ToDevices = Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]


def to_devices(samples: Samples, mesh: Mesh, batch_size: int) -> ToDevices:
    """The function from this process's part of a batch to the global one of `batch_size` samples.

    For `DeviceSamples` every device of the mesh gets the whole pool now, and then renders its own samples.

    Raises:
        ValueError: a pool that does not suit the config, see `DeviceSamples.check`.
    """
    if not isinstance(samples, DeviceSamples):
        return lambda batch: put_batch(batch, mesh)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, BATCH)
    resident = jax.tree.map(lambda value: place(value, whole), samples.resident)
    samples.check(resident)
    numbers = {"index": jax.ShapeDtypeStruct((batch_size,), np.uint32, sharding=split)}
    render = jax.jit(samples.render, out_shardings=split).lower(resident, numbers).compile()
    return lambda batch: render(resident, put_batch(batch, mesh))
