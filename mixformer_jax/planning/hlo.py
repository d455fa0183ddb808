"""Reads the text of a program that XLA has compiled: its collectives, its traffic with memory, and its own estimate.

XLA's cost analysis counts the body of a loop once, and a move between a TPU's memory (HBM) and its scratch memory
(VMEM) like any other access. Here loops count as often as they run, and only HBM counts, each operand once.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

Kind = Literal["all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute"]
KINDS: tuple[Kind, ...] = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")

# Cycles beyond this are XLA's word for "not known".
_UNKNOWN_CYCLES = 10**15
# What takes no time of its own: names, views, and the ends of what was started before.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier", "partition-id"),
    *("replica-id", "while", "conditional", "call", "domain", "iota"),
}
# From a copy to what has a scope: the end of the copy, a view or two.
_SCOPE_STEPS = 5
_BITS = {"pred": 8, "bf16": 16, "token": 0}

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(ROOT )?%([\w.-]+) = ")
_OPCODE = re.compile(r" ([a-z][a-z0-9-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPERAND = re.compile(r"%([\w.-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%([\w.-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_INTEGER = re.compile(r"constant\((\d+)\)")


class ArrayShape(NamedTuple):
    """One array of a compiled program."""

    bytes: int  # of its numbers
    padded_bytes: int  # of the memory that it takes, in tiles
    in_hbm: bool  # whether it lives in the chip's main memory


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `text` is all of it, `operands` are names."""

    name: str
    opcode: str
    arrays: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    called: Mapping[str, str]
    is_root: bool
    text: str

    @functools.cached_property
    def cycles(self) -> int | None:
        """XLA's own estimate; 0 where it has made none, None where it could not."""
        found = _CYCLES.search(self.text)
        cycles = int(found[1]) if found else 0
        return cycles if cycles < _UNKNOWN_CYCLES else None


class Computation(dict[str, Instruction]):
    """Instructions by name."""

    @functools.cached_property
    def readers(self) -> dict[str, list[str]]:
        """Who has an instruction as an operand."""
        found: dict[str, list[str]] = {}
        for instruction in self.values():
            for name in instruction.operands:
                found.setdefault(name, []).append(instruction.name)
        return found


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices."""

    kind: Kind  # what it does. A fused all-reduce of which every device keeps its part is a `reduce-scatter`.
    bytes: int  # of the whole array that is reduced, gathered or exchanged, as one device sees it
    times: int  # how often a step does it
    # Devices that do it together, a row a group; of a permutation, pairs of source and target
    groups: Int[np.ndarray, "groups size"]

    @property
    def wire_bytes(self) -> float:
        """What a device must send at least each time: a ring's share, which no algorithm undercuts."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        size = self.groups.shape[1]
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (size - 1) / size


class Traffic(NamedTuple):
    """An instruction that reads from HBM or writes to it."""

    instruction: str  # its name in the program
    # XLA's `op_name`: the modules and the operation that it comes from; of what XLA put in, such as a copy, those that
    # read it, or that made what it reads
    scope: str
    bytes: int  # of one run, each operand and each result once
    times: int  # how often a step runs it


class ProgramCost(NamedTuple):
    """What one device does in one run of a program."""

    collectives: list[Collective]  # all transfers
    traffic: list[Traffic]  # all instructions that move bytes from or to HBM
    # XLA's estimate of all instructions one after the other, transfers left out; None where it has none
    cycles: int | None
    loops_of_unknown_length: int  # loops that were counted once

    @property
    def hbm_bytes(self) -> int:
        """Read from and written to HBM."""
        return sum(each.times * each.bytes for each in self.traffic)


def read_program(text: str) -> ProgramCost:
    """Weighs the text of a compiled module (`Compiled.as_text()`).

    Raises ValueError for a text without an entry, or groups of devices in a notation that is not known.
    """
    computations, entry = _parse(text)
    collectives: list[Collective] = []
    traffic: list[Traffic] = []
    cycles, unknown = 0, 0
    cycles_known = True
    for computation, instruction, times in _executed(computations, entry, 1):
        if times == 0:
            unknown, times = unknown + 1, 1
        moved = _collective(instruction, computation, computations, times)
        if moved is not None:
            collectives.append(moved)
        moved_bytes = _hbm_bytes(instruction, computation, computations)
        if moved_bytes:
            traffic.append(Traffic(instruction.name, _scope(instruction, computation), moved_bytes, times))
        if instruction.cycles is None:
            cycles_known = False
        else:
            cycles += times * instruction.cycles
    return ProgramCost(collectives, traffic, cycles if cycles_known and cycles else None, unknown)


def _parse(text: str) -> tuple[dict[str, Computation], str]:
    computations: dict[str, Computation] = {}
    current = Computation()
    entry = ""
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            found = _instruction(line)
            if found is not None:
                current[found.name] = found
        elif header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], Computation())
            entry = header[2] if header[1] else entry
    if not entry:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = _NAME.match(line)
    if head is None:
        return None
    code = _OPCODE.search(line, head.end() - 1)
    if code is None:
        return None
    # Operands end at the parenthesis that closes the opcode's; constants and slices hold no names before it.
    end = line.find(")", code.end())
    metadata = line.find(", metadata={", end)
    attributes = line[end : metadata if metadata > 0 else len(line)]
    return Instruction(
        name=head[2],
        opcode=code[1],
        arrays=tuple(_array(*found.groups()) for found in _ARRAY.finditer(line, head.end(), code.start())),
        operands=tuple(_OPERAND.findall(line, code.end(), end)),
        called=dict(_CALLED.findall(attributes)),
        is_root=head[1] is not None,
        text=line,
    )


def _array(dtype: str, dimensions: str, layout: str | None) -> ArrayShape:
    digits = re.search(r"\d+", dtype)
    bits = _BITS[dtype] if dtype in _BITS else int(digits[0]) if digits else 0
    shape = [int(size) for size in dimensions.split(",")] if dimensions else []
    padded, (order, _, tiles) = list(shape), (layout or "").partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    if tile and shape:
        minor_first = [int(axis) for axis in order.split(",")] if order else []
        for axis, size in zip(minor_first, reversed([int(size) for size in tile[1].split(",")]), strict=False):
            padded[axis] = -(-shape[axis] // size) * size
    space = re.search(r"S\((\d+)\)", tiles)
    return ArrayShape(math.prod(shape) * bits // 8, math.prod(padded) * bits // 8, space is None or space[1] == "0")


def _executed(
    computations: dict[str, Computation], name: str, times: int
) -> Iterator[tuple[Computation, Instruction, int]]:
    """Every instruction that runs, with its computation and how often; 0 marks a loop whose length is not known."""
    for instruction in computations[name].values():
        yield computations[name], instruction, times
        if instruction.opcode == "while":
            length = _loop_length(instruction, computations)
            if length is None:
                yield computations[name], instruction, 0
            yield from _executed(computations, instruction.called["body"], times * (length or 1))
        elif instruction.opcode in ("call", "async-start"):
            for key in ("to_apply", "calls"):
                if key in instruction.called:
                    yield from _executed(computations, instruction.called[key], times)


def _loop_length(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """Of a loop that counts from 0 up to a constant, as JAX's scans do."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text)
    if known:
        return int(known[1])
    condition = computations[loop.called["condition"]]
    root = next(instruction for instruction in condition.values() if instruction.is_root)
    if root.opcode != "compare" or "direction=LT" not in root.text:
        return None
    limit = condition.get(root.operands[-1])
    number = _INTEGER.search(limit.text) if limit is not None else None
    return int(number[1]) if number else None


def _collective(
    instruction: Instruction, computation: Computation, computations: dict[str, Computation], times: int
) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        size = sum(array.bytes for name in instruction.operands for array in _arrays_of(name, computation))
        groups = device_groups(instruction.text)
        if kind == "all-gather":
            size *= groups.shape[1]
        return Collective(kind, size, times, groups)
    if instruction.opcode == "fusion":
        inside = computations.get(instruction.called.get("calls", ""), Computation())
        for inner in inside.values():
            found = _collective(inner, inside, computations, times)
            if found is not None:
                scattered = found.kind == "all-reduce" and "all-reduce-scatter" in instruction.called["calls"]
                return dataclasses.replace(found, kind="reduce-scatter") if scattered else found
    return None


def _arrays_of(name: str, computation: Computation) -> tuple[ArrayShape, ...]:
    found = computation.get(name)
    return found.arrays if found is not None else ()


def device_groups(text: str) -> Int[np.ndarray, "groups size"]:
    """Devices that take part together, out of the attributes of a collective in any of XLA's notations.

    Raises ValueError for a notation that is not known.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", text):
        return _listed(pairs[1])
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", text):
        return _listed(listed[1])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[2]).reshape(_numbers(iota[1]))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\]?(?:T\([\d,]+\))?)\))? \{([^}]*)\}", text
    )
    if named:
        axes = {name: int(size) for name, size in re.findall(r"'([\w.-]+)'=(\d+)", named[1])}
        together = re.findall(r"'([\w.-]+)'", named[3])
        if ":(" not in named[3] and set(together) <= set(axes):
            devices = _iota(named[2]) if named[2] else np.arange(math.prod(axes.values()))
            order = [*(axis for axis in axes if axis not in together), *together]
            places = list(axes)
            mesh = devices.reshape(tuple(axes.values())).transpose([places.index(axis) for axis in order])
            return mesh.reshape(-1, math.prod(axes[axis] for axis in together))
    shown = re.search(r"(replica_groups|source_target_pairs)=.{0,120}", text)
    raise ValueError(f"groups of devices in a notation that is not known: {shown[0] if shown else text[:200]}")


def _listed(text: str) -> Int[np.ndarray, "groups size"]:
    return np.array([_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", text)])


def _iota(text: str) -> Int[np.ndarray, " devices"]:
    """`[4,2]T(1,0)`: all devices in order, as a grid of this shape, its axes exchanged."""
    shape = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if shape is None:
        raise ValueError(f"devices in a notation that is not known: {text}")
    sizes = _numbers(shape[1])
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return (devices.transpose(_numbers(shape[2])) if shape[2] else devices).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.replace(" ", "").split(",") if number)


def _hbm_bytes(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or "ConcatBitcast" in instruction.text:
        return 0
    if opcode in ("copy-start", "slice-start"):
        source = _arrays_of(instruction.operands[0], computation)
        # The results are the target and, again, the source; a slice names the source first.
        target = instruction.arrays[0 if opcode == "copy-start" else 1]
        read = any(array.in_hbm for array in source)
        return target.padded_bytes * (int(read) + int(target.in_hbm))
    inside = computations.get(instruction.called.get("calls", "")) if opcode == "fusion" else None
    if inside is None:
        # A kernel that is given an array several times reads its parts.
        read_bytes = sum(_hbm(_arrays_of(name, computation)) for name in dict.fromkeys(instruction.operands))
        return read_bytes + (_hbm(instruction.arrays) if not opcode.endswith("-start") else 0)
    parameters, total = _parameters(inside), 0
    updates: set[str] = set()
    for array, (output, home) in zip(instruction.arrays, _outputs(inside, computations), strict=True):
        written: tuple[ArrayShape, ...] = (array,)
        if output.opcode == "dynamic-update-slice":
            updates.add(output.name)
            written = _arrays_of(output.operands[1], home)
        total += sum(part.padded_bytes for part in written) if array.in_hbm else 0
    for place, name in enumerate(instruction.operands):
        whole = _hbm(_arrays_of(name, computation))
        if whole and place in parameters:
            whole = min(whole, _read_of(parameters[place], inside, updates, computations))
        total += whole
    return total


def _outputs(inside: Computation, computations: Mapping[str, Computation]) -> list[tuple[Instruction, Computation]]:
    """What makes the results of a fusion, and where it stands: behind views, and in a fusion inside of this one."""
    root = next(inner for inner in inside.values() if inner.is_root)
    if root.opcode != "tuple" and len(root.arrays) != 1:
        return [(root, inside)] * len(root.arrays)
    found = []
    for output in [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]:
        home = inside
        while output.opcode in ("bitcast", "fusion") and len(output.arrays) == 1:
            if output.opcode == "bitcast":
                output = home[output.operands[0]]
            else:
                home = computations[output.called["calls"]]
                output = next(inner for inner in home.values() if inner.is_root)
        found.append((output, home))
    return found


def _scope(instruction: Instruction, computation: Computation) -> str:
    """See `Traffic`: the nearest one, first among the readers, then among what is read."""
    for near in (_readers, _operands):
        seen = [instruction]
        for _ in range(_SCOPE_STEPS):
            for each in seen:
                if found := _SCOPE.search(each.text):
                    return found[1]
            seen = [other for each in seen for other in near(each, computation)]
    return ""


def _readers(instruction: Instruction, computation: Computation) -> list[Instruction]:
    return [computation[name] for name in computation.readers.get(instruction.name, ())]


def _operands(instruction: Instruction, computation: Computation) -> list[Instruction]:
    return [computation[name] for name in instruction.operands if name in computation]


def _hbm(arrays: tuple[ArrayShape, ...]) -> int:
    return sum(array.padded_bytes for array in arrays if array.in_hbm)


def _parameters(inside: Computation) -> dict[int, str]:
    places = {}
    for inner in inside.values():
        number = re.search(r" parameter\((\d+)\)", inner.text) if inner.opcode == "parameter" else None
        if number:
            places[int(number[1])] = inner.name
    return places


def _read_of(
    parameter: str, inside: Computation, updates: Collection[str], computations: Mapping[str, Computation]
) -> int:
    """What a fusion reads of an operand: slices where only those are used, and nothing of what it updates in place."""
    total = 0
    for user in (inside[name] for name in dict.fromkeys(inside.readers.get(parameter, ()))):
        only = user.operands.index(parameter) == 0 and user.operands.count(parameter) == 1
        if user.opcode == "bitcast" and not user.is_root:
            total += _read_of(user.name, inside, updates, computations)
        elif user.opcode == "fusion":
            within = computations[user.called["calls"]]
            names = [_parameters(within)[place] for place, name in enumerate(user.operands) if name == parameter]
            total += sum(_read_of(name, within, updates, computations) for name in names)
        elif user.opcode in ("slice", "dynamic-slice", "gather") and only:
            total += sum(array.padded_bytes for array in user.arrays)
        elif user.name not in updates or not only:
            return sum(array.padded_bytes for array in inside[parameter].arrays)
    return total


def by_kind(collectives: list[Collective]) -> dict[str, tuple[int, float, float]]:
    """For each kind how many a step does, their bytes, and what a device sends for them."""
    counts, sizes, sent = Counter[str](), Counter[str](), Counter[str]()
    for each in collectives:
        counts[each.kind] += each.times
        sizes[each.kind] += each.times * each.bytes
        sent[each.kind] += each.times * each.wire_bytes  # type: ignore[assignment]
    return {kind: (counts[kind], float(sizes[kind]), float(sent[kind])) for kind in KINDS if counts[kind]}
