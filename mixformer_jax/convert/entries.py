"""What a table of names is made of: single tensors under both names, and the layers that hold them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from einops import rearrange

from mixformer_jax.models.positions import sincos_positions

TreePath = tuple[str, ...]
Layout = Literal["same", "linear", "pointwise", "conv", "depthwise", "patches", "positions", "token"]

# Official axes -> ours.
PATTERNS: Mapping[Layout, str] = MappingProxyType(
    {
        "same": "... -> ...",
        "linear": "o i -> i o",
        "pointwise": "o i 1 1 -> i o",
        "conv": "o i h w -> h w i o",
        "depthwise": "c 1 h w -> h w c",
        "patches": "o i h w -> (h w i) o",
        "positions": "1 n c -> n c",
        "token": "1 1 c -> c",
    }
)


class Entry(NamedTuple):
    """One tensor under both names; `patch` is the side of the layout `patches`."""

    official: str
    path: TreePath
    layout: Layout
    patch: int = 1

    @property
    def name(self) -> str:
        """Our name, as in weights files and messages."""
        return "/".join(self.path)


class Carried(NamedTuple):
    """One official tensor that no forward pass reads.

    Attributes:
        official: its name.
        shape: its shape in the official builds.
        make: the value where no checkpoint gave one, of such a shape.
        free: the axis whose length does not matter (the classes of a classifier, the rows of a position table).
        objection: what is to be said of any other value than that of `make`; None: any will do.
    """

    official: str
    shape: tuple[int, ...]
    make: Callable[[tuple[int, ...]], np.ndarray]
    free: int | None = None
    objection: str | None = None

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be the one."""
        return len(shape) == len(self.shape) and all(
            found == expected or axis == self.free
            for axis, (found, expected) in enumerate(zip(shape, self.shape, strict=True))
        )


def official_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The official tensor's shape for that of our variable."""
    return to_official(np.broadcast_to(np.float32(0), shape), entry).shape


def to_ours(value: np.ndarray, layout: Layout) -> np.ndarray:
    return rearrange(value, PATTERNS[layout])


def to_official(value: np.ndarray, entry: Entry) -> np.ndarray:
    official, ours = PATTERNS[entry.layout].split(" -> ")
    sides = {"h": entry.patch, "w": entry.patch} if entry.layout == "patches" else {}
    return rearrange(value, f"{ours} -> {official}", **sides)


def affine(official: str, path: TreePath, layout: Layout, patch: int = 1) -> list[Entry]:
    return [
        Entry(f"{official}.weight", (*path, "kernel"), layout, patch),
        Entry(f"{official}.bias", (*path, "bias"), "same"),
    ]


def norm(official: str, path: TreePath) -> list[Entry]:
    return [
        Entry(f"{official}.weight", (*path, "scale"), "same"),
        Entry(f"{official}.bias", (*path, "bias"), "same"),
    ]


def batch_norm(official: str, path: TreePath, frozen: bool) -> list[Entry]:
    affine, statistics = ("constants", "constants") if frozen else ("params", "batch_stats")
    return [
        Entry(f"{official}.weight", (affine, *path, "scale"), "same"),
        Entry(f"{official}.bias", (affine, *path, "bias"), "same"),
        Entry(f"{official}.running_mean", (statistics, *path, "mean"), "same"),
        Entry(f"{official}.running_var", (statistics, *path, "var"), "same"),
    ]


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def ones(shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape, np.float32)


def sincos(shape: tuple[int, ...]) -> np.ndarray:
    _, cells, width = shape
    return sincos_positions(round(cells**0.5), width)[None].astype(np.float32)


def sincos_with_class(shape: tuple[int, ...]) -> np.ndarray:
    one, rows, width = shape
    return np.concatenate([zeros((one, 1, width)), sincos((one, rows - 1, width))], axis=1)
