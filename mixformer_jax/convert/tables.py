"""State dicts and variable trees by a table of names, strictly: all that does not fit is one error."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mixformer_jax.convert.entries import Carried, Entry, official_shape, to_official, to_ours
from mixformer_jax.convert.weights import WeightsError

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
    complaints = [f"missing {name} {shape}" for name, shape in shapes.items() if name not in ours]
    complaints += [f"unexpected {name} {value.shape}" for name, value in ours.items() if name not in shapes]
    complaints += [
        f"misshapen {name}: {value.shape}, expected {shapes[name]}"
        for name, value in ours.items()
        if name in shapes and value.shape != shapes[name]
    ]
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
