"""What a device could compute at best: the yardstick of a share of its peak."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense products, FLOP/s: (bfloat16, float32). On NVIDIA's cards JAX computes float32 products in TF32. From the makers'
# data sheets: H100 (SXM), H200, A100, L4, L40S, RTX 4090 (Ada whitepaper, FP32 accumulation); for TPU v4, v5e, v5p and
# v6e the pages of Cloud TPU, where float32 has no figure of its own.
PUBLISHED: Mapping[str, tuple[float, float | None]] = MappingProxyType(
    {
        "NVIDIA H100 80GB HBM3": (989.4e12, 494.7e12),
        "NVIDIA H100": (989.4e12, 494.7e12),
        "NVIDIA H200": (989.4e12, 494.7e12),
        "NVIDIA A100-SXM4-40GB": (312e12, 156e12),
        "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
        "NVIDIA A100-PCIE-40GB": (312e12, 156e12),
        "NVIDIA A100 80GB PCIe": (312e12, 156e12),
        "NVIDIA L4": (121e12, 60e12),
        "NVIDIA L40S": (362e12, 183e12),
        "NVIDIA GeForce RTX 4090": (165.2e12, 82.6e12),
        "TPU v4": (275e12, None),
        "TPU v5 lite": (197e12, None),
        "TPU v5": (459e12, None),
        "TPU v6 lite": (918e12, None),
    }
)
MATRIX_SIDE = 2048
TRIES = 7


class Peak(NamedTuple):
    """FLOP/s of a device, None where nobody knows, and where that comes from."""

    flops: float | None
    source: str

    def __str__(self) -> str:
        return "unknown" if self.flops is None else f"{self.flops / 1e12:.3g} TFLOP/s ({self.source})"


def device_peak(device: jax.Device, dtype: str) -> Peak:
    """The published peak of an accelerator; for a CPU, the best of several products of large matrices."""
    if device.platform == "cpu":
        return Peak(_measured_flops(device, dtype), f"measured, {dtype} product of {MATRIX_SIDE} x {MATRIX_SIDE}")
    bfloat16, float32 = PUBLISHED.get(device.device_kind, (None, None))
    return Peak(float32 if dtype == "float32" else bfloat16, f"published, {dtype}")


def _measured_flops(device: jax.Device, dtype: str) -> float:
    matrix = jax.device_put(jnp.ones((MATRIX_SIDE, MATRIX_SIDE), dtype), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(TRIES):
        before = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - before)
    return 2 * MATRIX_SIDE**3 / min(seconds)
