"""Draws the rooms of the package into architecture.md, from the code's own imports: `python docs/rooms.py`."""

import sys
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "```mermaid\n", "```\n"
# The package's own name for its rooms; modules without a room stand together on the lowest floor.
FLOOR = "files, signals, settings, boxes"


def rooms() -> dict[str, set[str]]:
    """Which rooms each room imports from, without those that it reaches through another one."""
    graph = grimp.build_graph("mixformer_jax")
    packages = {name for name in graph.modules if name.count(".") == 1 and graph.find_children(name)}
    names = {package: package.rpartition(".")[2] for package in packages}
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        room = names.get(".".join(module.split(".")[:2]))
        if room is None:
            continue
        others = {
            names.get(".".join(other.split(".")[:2]), FLOOR)
            for other in graph.find_modules_directly_imported_by(module)
        }
        found.setdefault(room, set()).update(others - {room})
    found[FLOOR] = set()
    return {room: {other for other in below if not _by_way(found, room, other)} for room, below in found.items()}


def _by_way(found: dict[str, set[str]], room: str, other: str) -> bool:
    return any(_reaches(found, between, other) for between in found[room] - {other})


def _reaches(found: dict[str, set[str]], room: str, other: str) -> bool:
    # Rooms of one floor may see each other, so that there are circles between neighbours.
    seen, todo = set(), [room]
    while todo:
        each = todo.pop()
        if each == other:
            return True
        if each not in seen:
            seen.add(each)
            todo += found[each]
    return False


def page(text: str) -> str:
    """The page with the picture of today's imports in place of the one it has."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["flowchart TD"]
    numbers = {room: f"r{index}" for index, room in enumerate(sorted(rooms()))}
    lines += [f'    {number}["{room}"]' for room, number in numbers.items()]
    lines += [
        f"    {numbers[room]} --> {numbers[other]}"
        for room, below in sorted(rooms().items())
        for other in sorted(below)
    ]
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
