"""Tables of official and our names, and state dicts and variable trees by them: all that does not fit is one error."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.weights import WeightsError, mismatches
from mixformer_jax.models.layers import sincos_positions

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


Table = Sequence[Entry | Carried]
Shapes = Mapping[str, tuple[int, ...]]


def read_by_table(state: Mapping[str, np.ndarray], table: Table, shapes: Shapes, title: str) -> dict[str, Any]:
    """A state dict as variables: views of its arrays wherever a transposition is all it takes.

    Args:
        state: official names and layouts.
        table: the whole state dict.
        shapes: of our variables, by name.
        title: what the state dict should be, for the error.

    Raises:
        WeightsError: names of the table that are missing or have another shape, names that nothing uses, or values
            that cannot be carried. Tensors that no forward pass reads may be missing.
    """
    known = {entry.official for entry in table}
    complaints = [f"unexpected {name} {value.shape}" for name, value in state.items() if name not in known]
    for entry in table:
        found = state.get(entry.official)
        if isinstance(entry, Carried):
            complaints += _carried_complaints(entry, found)
            continue
        expected = official_shape(entry, shapes[entry.name])
        if found is None:
            complaints.append(f"missing {entry.official} {expected}")
        elif found.shape != expected:
            complaints.append(f"misshapen {entry.official}: {found.shape}, expected {expected}")
    if complaints:
        raise WeightsError(f"not {title}:\n  " + "\n  ".join(complaints))
    used = (entry for entry in table if isinstance(entry, Entry))
    return unflatten_dict({entry.path: to_ours(state[entry.official], entry.layout) for entry in used})


def carried_by_table(state: Mapping[str, np.ndarray], table: Table) -> dict[str, np.ndarray]:
    """The tensors of a state dict that no forward pass reads, by their official names."""
    unread = (entry.official for entry in table if isinstance(entry, Carried))
    return {name: state[name] for name in unread if name in state}


def write_by_table(
    variables: Mapping[str, Any], table: Table, shapes: Shapes, carried: Mapping[str, np.ndarray], title: str
) -> dict[str, np.ndarray]:
    """Variables as a state dict, in the table's order; what is carried nowhere is made up.

    Raises:
        WeightsError: variables or carried tensors that are missing, unexpected or misshapen.
    """
    ours = {"/".join(path): np.asarray(value) for path, value in flatten_dict(variables).items()}
    unread = {entry.official: entry for entry in table if isinstance(entry, Carried)}
    complaints = mismatches({name: value.shape for name, value in ours.items()}, shapes)
    for name, value in carried.items():
        if name in unread:
            complaints += _carried_complaints(unread[name], value)
        else:
            complaints.append(f"unexpected carried {name} {value.shape}")
    if complaints:
        raise WeightsError(f"not {title}:\n  " + "\n  ".join(complaints))
    return {
        entry.official: to_official(ours[entry.name], entry)
        if isinstance(entry, Entry)
        else carried.get(entry.official, entry.make(entry.shape))
        for entry in table
    }


def _carried_complaints(entry: Carried, found: np.ndarray | None) -> Iterator[str]:
    if found is None:
        return
    if not entry.fits(found.shape):
        yield f"misshapen {entry.official}: {found.shape}, expected {entry.shape}"
    elif entry.objection is not None and np.abs(found - entry.make(entry.shape)).max() > 1e-5:
        yield f"{entry.official} {entry.objection}"
