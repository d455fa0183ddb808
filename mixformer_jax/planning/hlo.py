"""Reads the text of a program that XLA has compiled: its collectives, its traffic with memory, and its own estimate.

XLA's cost analysis counts the body of a loop once, and a move between a TPU's memory (HBM) and its scratch memory
(VMEM) like any other access. Here loops count as often as they run, and only HBM counts, each operand once.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
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
# Operands end at the first parenthesis that closes: constants and slices hold no names before it.
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)\)(.*?)(?:, metadata=\{.*)?$")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%([\w.-]+)")


class ArrayShape(NamedTuple):
    """One array of a compiled program."""

    bytes: int  # of its numbers
    padded_bytes: int  # of the memory that it takes, in tiles
    in_hbm: bool  # whether it lives in the chip's main memory


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One line of a computation."""

    home: "Computation"
    name: str
    opcode: str
    arrays: tuple[ArrayShape, ...]
    operands: tuple[str, ...]  # names
    called: Mapping[str, "Computation"]  # by attribute, such as `body`
    is_root: bool
    text: str  # the whole line

    @property
    def cycles(self) -> int | None:
        """XLA's own estimate; 0 where it has made none, None where it could not."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        cycles = int(found[1]) if found else 0
        return cycles if cycles < _UNKNOWN_CYCLES else None


class Computation(dict[str, Instruction]):
    """Instructions by name."""

    name = ""

    @functools.cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """Who has an instruction as an operand, each once."""
        found: dict[str, list[Instruction]] = defaultdict(list)
        for instruction in self.values():
            for name in dict.fromkeys(instruction.operands):
                found[name].append(instruction)
        return found

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.values() if instruction.is_root)

    def arrays_of(self, name: str) -> tuple[ArrayShape, ...]:
        """() for what is not here."""
        return self[name].arrays if name in self else ()

    def parameters(self) -> dict[int, str]:
        """Names by place."""
        numbers = {name: re.search(r" parameter\((\d+)\)", each.text) for name, each in self.items()}
        return {int(number[1]): name for name, number in numbers.items() if number}


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

    @property
    def moved(self) -> int:
        """Bytes of all runs."""
        return self.times * self.bytes


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
        return sum(each.moved for each in self.traffic)


def read_program(text: str) -> ProgramCost:
    """Weighs the text of a compiled module (`Compiled.as_text()`).

    Raises ValueError for a text without an entry, or groups of devices in a notation that is not known.
    """
    collectives: list[Collective] = []
    traffic: list[Traffic] = []
    cycles: list[int | None] = []
    unknown = 0
    for instruction, times in _executed(_parse(text), 1):
        if instruction.opcode == "while" and _loop_length(instruction) is None:
            unknown += 1
        if moved := _collective(instruction, times):
            collectives.append(moved)
        if moved_bytes := _hbm_bytes(instruction):
            traffic.append(Traffic(instruction.name, _scope(instruction), moved_bytes, times))
        each = instruction.cycles
        cycles.append(None if each is None else times * each)
    estimate = None if None in cycles else sum(filter(None, cycles)) or None
    return ProgramCost(collectives, traffic, estimate, unknown)


def _parse(text: str) -> Computation:
    """The entry, with what it calls."""
    computations: dict[str, Computation] = defaultdict(Computation)
    current = Computation()
    entry = None
    for line in text.splitlines():
        if found := _INSTRUCTION.match(line):
            root, name, arrays, opcode, operands, attributes = found.groups()
            current[name] = Instruction(
                home=current,
                name=name,
                opcode=opcode,
                arrays=tuple(_array(*each.groups()) for each in _ARRAY.finditer(arrays)),
                operands=tuple(re.findall(r"%([\w.-]+)", operands)),
                called={key: computations[called] for key, called in _CALLED.findall(attributes)},
                is_root=root is not None,
                text=line,
            )
        elif header := _COMPUTATION.match(line):
            current = computations[header[2]]
            current.name = header[2]
            entry = current if header[1] else entry
    if entry is None:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return entry


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


def _executed(computation: Computation, times: int) -> Iterator[tuple[Instruction, int]]:
    """Every instruction that runs, and how often; a loop whose length is not known counts once."""
    for instruction in computation.values():
        yield instruction, times
        if instruction.opcode == "while":
            yield from _executed(instruction.called["body"], times * (_loop_length(instruction) or 1))
        elif instruction.opcode in ("call", "async-start"):
            for key in ("to_apply", "calls"):
                yield from _executed(instruction.called.get(key, Computation()), times)


def _loop_length(loop: Instruction) -> int | None:
    """Of a loop that counts from 0 up to a constant, as JAX's scans do."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
        return int(known[1])
    condition = loop.called["condition"]
    root = condition.root
    if root.opcode != "compare" or "direction=LT" not in root.text or root.operands[-1] not in condition:
        return None
    number = re.search(r"constant\((\d+)\)", condition[root.operands[-1]].text)
    return int(number[1]) if number else None


def _collective(instruction: Instruction, times: int) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        size = sum(array.bytes for name in instruction.operands for array in instruction.home.arrays_of(name))
        groups = device_groups(instruction.text)
        return Collective(kind, size * (groups.shape[1] if kind == "all-gather" else 1), times, groups)
    inside = instruction.called["calls"] if instruction.opcode == "fusion" else Computation()
    for inner in inside.values():
        if found := _collective(inner, times):
            scattered = found.kind == "all-reduce" and "all-reduce-scatter" in inside.name
            return dataclasses.replace(found, kind="reduce-scatter") if scattered else found
    return None


def device_groups(text: str) -> Int[np.ndarray, "groups size"]:
    """Devices that take part together, out of the attributes of a collective in any of XLA's notations.

    Raises ValueError for a notation that is not known.
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", text):
        return np.array([_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", listed[1])])
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


def _hbm_bytes(instruction: Instruction) -> int:
    """Bytes that an instruction reads from HBM and writes to it."""
    opcode, home = instruction.opcode, instruction.home
    if opcode in _FREE or opcode.endswith("-done") or "ConcatBitcast" in instruction.text:
        return 0
    if opcode in ("copy-start", "slice-start"):
        # The results are the target and, again, the source; a slice names the source first.
        target = instruction.arrays[0 if opcode == "copy-start" else 1]
        read = any(array.in_hbm for array in home.arrays_of(instruction.operands[0]))
        return target.padded_bytes * (int(read) + int(target.in_hbm))
    inside = instruction.called.get("calls") if opcode == "fusion" else None
    if not inside:
        # A kernel that is given an array several times reads its parts.
        read_bytes = sum(_hbm(home.arrays_of(name)) for name in dict.fromkeys(instruction.operands))
        return read_bytes + (_hbm(instruction.arrays) if not opcode.endswith("-start") else 0)
    parameters, total = inside.parameters(), 0
    updates: set[str] = set()
    for array, output in zip(instruction.arrays, _outputs(inside), strict=True):
        written: tuple[ArrayShape, ...] = (array,)
        if output.opcode == "dynamic-update-slice":
            updates.add(output.name)
            written = output.home.arrays_of(output.operands[1])
        total += sum(part.padded_bytes for part in written) if array.in_hbm else 0
    for place, name in enumerate(instruction.operands):
        whole = _hbm(home.arrays_of(name))
        if whole and place in parameters:
            whole = min(whole, _read_of(parameters[place], inside, updates))
        total += whole
    return total


def _outputs(inside: Computation) -> list[Instruction]:
    """What makes the results of a fusion: behind views, and in fusions inside of this one."""
    root = inside.root
    if root.opcode != "tuple" and len(root.arrays) != 1:
        return [root] * len(root.arrays)
    found = []
    for output in [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]:
        while output.opcode in ("bitcast", "fusion") and len(output.arrays) == 1:
            is_view = output.opcode == "bitcast"
            output = output.home[output.operands[0]] if is_view else output.called["calls"].root
        found.append(output)
    return found


def _scope(instruction: Instruction) -> str:
    """See `Traffic`: the nearest one, first among the readers, then among what is read."""
    for near in (_readers, _read):
        seen = [instruction]
        for _ in range(_SCOPE_STEPS):
            for each in seen:
                if found := re.search(r'op_name="([^"]*)"', each.text):
                    return found[1]
            seen = [other for each in seen for other in near(each)]
    return ""


def _readers(instruction: Instruction) -> list[Instruction]:
    return instruction.home.readers[instruction.name]


def _read(instruction: Instruction) -> list[Instruction]:
    return [instruction.home[name] for name in instruction.operands if name in instruction.home]


def _hbm(arrays: tuple[ArrayShape, ...]) -> int:
    return sum(array.padded_bytes for array in arrays if array.in_hbm)


def _read_of(parameter: str, inside: Computation, updates: Collection[str]) -> int:
    """What a fusion reads of an operand: slices where only those are used, and nothing of what it updates in place."""
    total = 0
    for user in inside.readers[parameter]:
        only = user.operands.index(parameter) == 0 and user.operands.count(parameter) == 1
        if user.opcode == "bitcast" and not user.is_root:
            total += _read_of(user.name, inside, updates)
        elif user.opcode == "fusion":
            within = user.called["calls"]
            names = [within.parameters()[place] for place, name in enumerate(user.operands) if name == parameter]
            total += sum(_read_of(name, within, updates) for name in names)
        elif user.opcode in ("slice", "dynamic-slice", "gather") and only:
            total += sum(array.padded_bytes for array in user.arrays)
        elif user.name not in updates or not only:
            return sum(array.padded_bytes for array in inside[parameter].arrays)
    return total


def by_kind(collectives: list[Collective]) -> dict[str, tuple[int, float, float]]:
    """For each kind how many a step does, their bytes, and what a device sends for them."""
    grouped = {kind: [each for each in collectives if each.kind == kind] for kind in KINDS}
    return {
        kind: (
            sum(each.times for each in alike),
            float(sum(each.times * each.bytes for each in alike)),
            float(sum(each.times * each.wire_bytes for each in alike)),
        )
        for kind, alike in grouped.items()
        if alike
    }
