"""Draws the packages of mixformer_jax and who imports whom, from the code's own imports.

    python docs/architecture.py           write docs/pictures/architecture.svg
    python docs/architecture.py --check   status 1 when that file is not what the code gives

Rows are the layers of import-linter's contract in pyproject.toml. Left out are arrows that follow from others, and
those to the lowest row.
"""

import argparse
import itertools
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import grimp

PACKAGE = "mixformer_jax"
REPOSITORY = Path(__file__).resolve().parents[1]
PICTURE = REPOSITORY / "docs" / "pictures" / "architecture.svg"

Imports = Mapping[str, frozenset[str]]

WIDTH, MARGIN, NODE_HEIGHT, ROW_HEIGHT = 720, 24, 30, 84


class Box(NamedTuple):
    """Centre and width of a package in the picture."""

    x: float
    y: float
    width: float


def imports_of_parts() -> Imports:
    """The packages and modules directly under mixformer_jax, each with those whose modules it imports."""
    sys.path.insert(0, str(REPOSITORY))  # of this checkout, whichever is installed
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    parts = {child.removeprefix(f"{PACKAGE}."): child for child in graph.find_children(PACKAGE)}
    imports = {}
    for part, module in sorted(parts.items()):
        modules = {module, *graph.find_descendants(module)}
        imported = {name for each in modules for name in graph.find_modules_directly_imported_by(each)}
        # `import mixformer_jax` itself, for its version and `load`, has one segment and is left out.
        found = {name.split(".")[1] for name in imported if name.startswith(f"{PACKAGE}.")}
        imports[part] = frozenset(found - {part})
    return imports


def layers() -> list[list[str]]:
    """The layers of the contract, highest first."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (contract,) = (each for each in contracts if each["type"] == "layers")
    rows = [row.replace("|", ":").split(":") for row in contract["layers"]]
    return [[name.strip(" ()") for name in row] for row in rows]


def without_implied(imports: Imports) -> dict[str, frozenset[str]]:
    """The imports less those that others imply: A to C where A reaches B and B reaches C.

    Raises:
        ValueError: packages that import each other in a circle.
    """
    reached: dict[str, frozenset[str]] = {}

    def reach(part: str, path: tuple[str, ...] = ()) -> frozenset[str]:
        if part in path:
            raise ValueError(f"imports in a circle: {' -> '.join((*path, part))}")
        if part not in reached:
            reached[part] = imports[part].union(*(reach(each, (*path, part)) for each in imports[part]))
        return reached[part]

    return {
        part: frozenset(each for each in found if not any(each in reach(other) for other in found))
        for part, found in imports.items()
    }


def picture(imports: Imports, rows: list[list[str]]) -> str:
    """The picture as SVG text; a pointer on a box shows all that its package imports."""
    rows = [[name for name in row if name in imports and name != "__main__"] for row in rows]
    rows = [row for row in rows if row]
    lowest = frozenset(rows[-1])
    arrows = [
        (source, target)
        for source, found in sorted(without_implied(imports).items())
        for target in sorted(found - lowest)
        if source != "__main__"
    ]
    boxes = _placed(rows, arrows)
    height = MARGIN + ROW_HEIGHT * (len(rows) - 1) + NODE_HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        'font-family="monospace" font-size="14">',
        "<title>The packages of mixformer_jax and who imports whom</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5c6bc0"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        '<g fill="none" stroke="#5c6bc0" stroke-width="1.3" marker-end="url(#head)">',
    ]
    for source, target in arrows:
        (x0, y0), *middle, (x3, y3) = _control_points(boxes[source], boxes[target])
        bends = " ".join(f"{x:.1f} {y:.1f}" for x, y in middle)
        lines.append(f'<path d="M{x0:.1f} {y0:.1f} C{bends} {x3:.1f} {y3:.1f}"/>')
    lines.append("</g>")
    for name, box in boxes.items():
        said = ", ".join(sorted(imports[name])) or "nothing of the package"
        fill = "#f5f5f5" if name in lowest else "#e8eaf6"
        lines += [
            f"<g><title>{name} imports {said}</title>",
            f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y - NODE_HEIGHT / 2:.1f}" width="{box.width:.1f}" '
            f'height="{NODE_HEIGHT}" rx="6" fill="{fill}" stroke="#3f51b5"/>',
            f'<text x="{box.x:.1f}" y="{box.y + 5:.1f}" text-anchor="middle" fill="#1a237e">{name}</text></g>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def _placed(rows: list[list[str]], arrows: list[tuple[str, str]]) -> dict[str, Box]:
    """A box a name: row by row, the order and shift with the least to cross, until no row can do better."""

    def boxes_of(row: Sequence[str], number: int, shift: float) -> dict[str, Box]:
        widths = [8.4 * len(name) + 24 for name in row]
        space = (WIDTH - 2 * MARGIN - sum(widths)) / (len(row) + 1)
        left, placed = MARGIN + shift * space, {}
        for name, width in zip(row, widths, strict=True):
            left += space
            placed[name] = Box(left + width / 2, MARGIN + NODE_HEIGHT / 2 + ROW_HEIGHT * number, width)
            left += width
        return placed

    def cost(boxes: dict[str, Box]) -> float:
        curves = {(a, b): _points(_control_points(boxes[a], boxes[b])) for a, b in arrows}
        hidden = sum(
            abs(x - box.x) < box.width / 2 + 6 and abs(y - box.y) < NODE_HEIGHT / 2 + 3
            for ends, curve in curves.items()
            for name, box in boxes.items()
            if name not in ends
            for x, y in curve
        )
        crossed = sum(
            (one[1][0] - other[1][0]) * (one[-2][0] - other[-2][0]) < 0
            for (a, one), (b, other) in itertools.combinations(curves.items(), 2)
            if boxes[a[0]].y == boxes[b[0]].y
        )
        length = sum(abs(boxes[a].x - boxes[b].x) for a, b in arrows)
        return 100 * hidden + 40 * crossed + length

    boxes = {name: box for number, row in enumerate(rows) for name, box in boxes_of(row, number, 0).items()}
    least = cost(boxes)
    improved = True
    while improved:
        improved = False
        for number, row in enumerate(rows[:-1]):  # no arrow is drawn to the lowest
            for order, shift in itertools.product(itertools.permutations(row), (-0.9, -0.6, -0.3, 0, 0.3, 0.6, 0.9)):
                tried = boxes | boxes_of(order, number, shift)
                if (found := cost(tried)) < least - 1e-6:
                    boxes, least, improved = tried, found, True
    return boxes


def _control_points(source: Box, target: Box) -> list[tuple[float, float]]:
    """Of a cubic curve, from the lower side of a box to the upper side of another; in a row, from side to side."""
    if source.y == target.y:
        way = 1 if target.x > source.x else -1
        x0, x3 = source.x + way * source.width / 2, target.x - way * target.width / 2
        return [(x0 + (x3 - x0) * part / 3, source.y) for part in range(4)]
    y0, y3 = source.y + NODE_HEIGHT / 2, target.y - NODE_HEIGHT / 2
    return [(source.x, y0), (source.x, (y0 + y3) / 2), (target.x, (y0 + y3) / 2), (target.x, y3)]


def _points(control: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a cubic curve."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = control
    points = []
    for t in (i / 24 for i in range(25)):
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        points.append((a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3))
    return points


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    args = parser.parse_args()
    drawn = picture(imports_of_parts(), layers())
    if not args.check:
        PICTURE.write_text(drawn, encoding="utf-8")
        return 0
    if PICTURE.is_file() and PICTURE.read_text(encoding="utf-8") == drawn:
        return 0
    print(f"{PICTURE} is not what the code gives: run python docs/architecture.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
