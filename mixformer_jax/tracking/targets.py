"""Targets that come and go: rows of a `TrackState` that hold one or are free, and whose they are. There are a power of
two of rows (beside what `start` made), and templates are encoded a target at a time: following up to eight takes five
programs, and a target's boxes are those that it would have alone, up to rounding.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Int64

from mixformer_jax.models.config import TrackerConfig
from mixformer_jax.tracking.step import Targets, TrackState, is_refresh_due

FREE = -1  # the number of a row without a target
# The parts of a `TrackState` that have a row a target: all before its counters.
_NUM_PARTS = TrackState._fields.index("frame_index")


def targets_of(state: TrackState) -> Targets:
    """Whose the rows are; before anyone has come or gone, the targets of `start`, numbered from 0."""
    if state.targets is not None:
        return state.targets
    n = len(state.boxes_xywh)
    nothing = np.zeros(n, np.int64)
    return Targets(np.arange(n), nothing, nothing + int(state.num_refreshes), nothing, n)


def live_rows(state: TrackState) -> Int64[np.ndarray, " live"]:
    """The rows that hold targets, in the order of their numbers."""
    if state.targets is None:
        return np.arange(len(state.boxes_xywh))
    numbers = state.targets.numbers
    order = np.argsort(numbers, kind="stable")
    return order[numbers[order] != FREE]


def is_live(state: TrackState) -> Bool[np.ndarray, " n"]:
    """Which rows hold targets."""
    return np.isin(np.arange(len(state.boxes_xywh)), live_rows(state))


def live_numbers(state: TrackState) -> Int64[np.ndarray, " live"]:
    """The numbers of the targets that are followed, in their order."""
    return targets_of(state).numbers[live_rows(state)]


def row_of(state: TrackState, target: int) -> int:
    """The row of a target; ValueError where there is no such target."""
    numbers = targets_of(state).numbers
    found = np.flatnonzero((numbers == target) & (numbers != FREE))
    if len(found) == 0:
        listed = ", ".join(map(str, live_numbers(state))) or "none"
        raise ValueError(f"no target {target} is followed; there are: {listed}")
    return int(found[0])


def target_alone(state: TrackState, target: int) -> TrackState:
    """The state of one target, as if it were followed alone; ValueError as `row_of`."""
    return _alone(state, row_of(state, target))


def add_targets(
    state: TrackState | None, newcomers: Sequence[TrackState]
) -> tuple[TrackState, Int64[np.ndarray, " new"]]:
    """Takes in states of a single target each, in free rows or in more rows; also returns the targets' new numbers."""
    if state is None:
        state = newcomers[0]
        state = state._replace(targets=targets_of(state)._replace(numbers=np.array([FREE]), next_number=0))
    live = live_rows(state)
    needed = len(live) + len(newcomers)
    if needed > len(state.boxes_xywh):
        state = _in_rows(state, live, _power_of_two(needed))
    numbers = targets_of(state).next_number + np.arange(len(newcomers))
    for row, number, new in zip(np.flatnonzero(~is_live(state)).tolist(), numbers.tolist(), newcomers, strict=False):
        state = _begin(state, row, number, new)
        state = state._replace(targets=targets_of(state)._replace(next_number=number + 1))
    return state, numbers


def remove_targets(state: TrackState, gone: Sequence[int]) -> TrackState:
    """Frees the rows of targets, and lets go of half of them where half are enough; ValueError as `row_of`."""
    numbers = targets_of(state).numbers.copy()
    numbers[[row_of(state, target) for target in gone]] = FREE
    state = state._replace(targets=targets_of(state)._replace(numbers=numbers))
    live = live_rows(state)
    enough = _power_of_two(len(live))
    return _in_rows(state, live, enough) if enough < len(numbers) else state


def replace_target(state: TrackState, target: int, newcomer: TrackState) -> TrackState:
    """Gives a target's row and number to the state of a single target; ValueError as `row_of`."""
    return _begin(state, row_of(state, target), target, newcomer)


def due_rows(state: TrackState, settings: TrackerConfig) -> Iterator[tuple[int, TrackState, int]]:
    """Targets whose online templates are renewed after this frame, each by its own count of frames.

    Gives the row, the target's state alone, and how many of the first online slots are the user's, and stay.
    """
    targets, frame_index = targets_of(state), int(state.frame_index)
    for row in live_rows(state).tolist():
        pinned = int(targets.pinned[row])
        if is_refresh_due(settings, frame_index - targets.since[row]) and pinned < settings.num_online_templates:
            yield row, _alone(state, row), pinned


def put_row(state: TrackState, row: int, alone: TrackState, **columns: int) -> TrackState:
    """Takes the state of a single target into a row, and numbers of `Targets` for that row."""
    targets, is_row = targets_of(state), np.arange(len(state.boxes_xywh)) == row
    changed: dict[str, Any] = {name: np.where(is_row, value, getattr(targets, name)) for name, value in columns.items()}
    return _with_parts(state, _put_parts(_parts(state), row, _parts(alone)), targets._replace(**changed))


def without_free_looks(state: TrackState) -> TrackState:
    """The state as a step takes it: free rows look nowhere else, which would cost a second pass of the network."""
    live, redetection = is_live(state), state.redetection
    if redetection is not None and not live.all():
        redetection = redetection._replace(is_look=redetection.is_look & live)
    return state._replace(targets=None, redetection=redetection)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _parts(state: TrackState) -> tuple:
    return tuple(state[:_NUM_PARTS])


def _with_parts(state: TrackState, parts: tuple, targets: Targets | None) -> TrackState:
    return state._replace(**dict(zip(TrackState._fields, parts, strict=False)), targets=targets)


def _alone(state: TrackState, row: int) -> TrackState:
    targets = targets_of(state)
    counters = int(state.frame_index) - targets.since[row], targets.refreshes[row]
    age, refreshes = (jnp.asarray(counter, jnp.int32) for counter in counters)
    alone = _with_parts(state, _row(_parts(state), row), None)
    return alone._replace(frame_index=age, num_refreshes=refreshes)


def _begin(state: TrackState, row: int, number: int, newcomer: TrackState) -> TrackState:
    """Nothing of what was in the row stays."""
    since = int(state.frame_index)
    return put_row(state, row, newcomer, numbers=number, since=since, refreshes=0, pinned=0)


def _in_rows(state: TrackState, order: Int64[np.ndarray, " live"], count: int) -> TrackState:
    """The rows of `order`, and free ones behind them, which hold copies of the first row there was."""
    targets, free = targets_of(state), np.zeros(count - len(order), np.int64)
    rows = np.concatenate([order, free])
    since, refreshes, pinned = (
        np.concatenate([column[order], free]) for column in (targets.since, targets.refreshes, targets.pinned)
    )
    numbers = np.concatenate([targets.numbers[order], free + FREE])
    # On the host: a program for each pair of sizes would be compiled for a copy.
    parts = jax.tree.map(lambda many: jax.device_put(np.asarray(many)[rows], many.sharding), _parts(state))
    return _with_parts(state, parts, Targets(numbers, since, refreshes, pinned, targets.next_number))


@jax.jit
def _row(parts: tuple, row: Int32[Array, ""] | int) -> tuple:
    return jax.tree.map(lambda many: many[row][None], parts)


@jax.jit
def _put_parts(parts: tuple, row: Int32[Array, ""] | int, one: tuple) -> tuple:
    return jax.tree.map(lambda many, single: many.at[row].set(single[0]), parts, one)
