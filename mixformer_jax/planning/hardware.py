"""The accelerators that `mixformer plan` knows: what a chip can do, and how the chips of a topology are connected.

TPU figures: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (read 2026-11), which give the bandwidth of all links of a
chip in both directions together; v4's links are those of Jouppi et al. 2023 ("TPU v4", 50 GB/s each way). HBM is what
XLA lets a program have, a little less than the chip carries. GPU figures: NVIDIA's data sheets of the SXM modules,
dense products, without sparsity; NVLink's figures there count both directions too.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

GIB = 2**30


class PlanError(ValueError):
    """A step that cannot run as asked; the message says why and what to change."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator."""

    name: str  # as in a topology, `v5e` of `v5e:4x4`
    kind: Literal["tpu", "gpu"]  # `tpu` has a compiler here, `gpu` is planned on paper
    hbm_bytes: float  # memory that a program may have
    hbm_bandwidth: float  # bytes a second
    flops: Mapping[str, float]  # peak operations a second of matrix products (a multiply-add is two) by compute type
    link_bandwidth: float  # bytes a second of one link in one direction; for GPUs, of all links together
    topologies: tuple[str, ...] = ()  # TPU slices that exist, such as `4x4`
    clock_hz: float | None = None  # of the matrix units, where the documented peak and their number give it


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
# A wrapped axis of a flat pod is a whole side of it.
_FLAT_SIDE = 16
# A 128 x 128 unit does so many operations a cycle.
_MXU = 128 * 128 * 2


def _tpu(flops: float) -> Mapping[str, float]:
    # JAX's default precision multiplies float32 matrices in one bfloat16 pass.
    return MappingProxyType({"bfloat16": flops, "float32": flops})


_CHIPS = (
    Chip("v4", "tpu", 30.75 * GIB, 1200e9, _tpu(275e12), 50e9, _CUBES, 275e12 / (8 * _MXU)),
    Chip("v5e", "tpu", 15.75 * GIB, 819e9, _tpu(197e12), 50e9, _FLAT, 197e12 / (4 * _MXU)),
    Chip("v5p", "tpu", 95.74 * GIB, 2765e9, _tpu(459e12), 100e9, (*_CUBES, "16x16x16"), 459e12 / (8 * _MXU)),
    Chip("v6e", "tpu", 31.25 * GIB, 1638e9, _tpu(918e12), 100e9, _FLAT),
    # float32 goes through TF32, JAX's default there. V100 has neither TF32 nor bfloat16.
    Chip("v100", "gpu", 32e9, 900e9, MappingProxyType({"bfloat16": 15.7e12, "float32": 15.7e12}), 150e9),
    Chip("a100", "gpu", 80e9, 2039e9, MappingProxyType({"bfloat16": 312e12, "float32": 156e12}), 300e9),
    Chip("h100", "gpu", 80e9, 3350e9, MappingProxyType({"bfloat16": 989e12, "float32": 494e12}), 450e9),
    Chip("h200", "gpu", 141e9, 4800e9, MappingProxyType({"bfloat16": 989e12, "float32": 494e12}), 450e9),
)
CHIPS: Mapping[str, Chip] = MappingProxyType({chip.name: chip for chip in _CHIPS})
MOST_GPUS = 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they hang together."""

    chip: Chip  # what they are
    shape: tuple[int, ...]  # chips along each physical axis

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def bandwidth(self, spans: Mapping[int, int] | None = None) -> float:
        """Bytes a second that every chip can send at once, also the one with the fewest links.

        `spans` are lengths along physical axes, from a chip to its last peer; None is all of all axes.
        """
        if self.chip.kind == "gpu":
            return self.chip.link_bandwidth
        is_flat, is_cube = len(self.shape) < 3, all(side % 4 == 0 for side in self.shape)
        links = 0
        for axis, length in (dict(enumerate(self.shape)) if spans is None else spans).items():
            wraps = length == self.shape[axis] and (length == _FLAT_SIDE if is_flat else is_cube)
            links += 0 if length == 1 else 2 if wraps else 1
        return self.chip.link_bandwidth * max(1, links)


def parse_topology(text: str) -> Topology:
    """`v5e:4x4` or `h100:8`; PlanError, which lists those that are known, for another one."""
    name, _, shape = text.partition(":")
    chip = CHIPS.get(name)
    if chip is not None and chip.kind == "tpu" and shape in chip.topologies:
        return Topology(chip, tuple(map(int, shape.split("x"))))
    if chip is not None and chip.kind == "gpu" and shape.isdecimal() and 1 <= int(shape) <= MOST_GPUS:
        return Topology(chip, (int(shape),))
    known = [
        f"  {chip.name}:{{{', '.join(chip.topologies) or f'1 to {MOST_GPUS} (one node)'}}}" for chip in CHIPS.values()
    ]
    raise PlanError(f"--topology {text}: not one that exists; the known ones:\n" + "\n".join(known))
