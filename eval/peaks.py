"""What a device could compute at best: the yardstick of a share of its peak."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

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
PRODUCT_MACS = MATRIX_SIDE**3


def published_peak(device: jax.Device, dtype: str) -> float | None:
    """FLOP/s of an accelerator, two for each multiply-accumulate; None where nobody knows."""
    bfloat16, float32 = PUBLISHED.get(device.device_kind, (None, None))
    return float32 if dtype == "float32" else bfloat16


def large_product(device: jax.Device, dtype: str) -> Callable[[], object]:
    """A call that multiplies two matrices of PRODUCT_MACS multiply-accumulates: the best that a CPU does."""
    matrix = jax.device_put(jnp.ones((MATRIX_SIDE, MATRIX_SIDE), dtype), device)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix).block_until_ready()
