"""Training samples for people to look at."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from mixformer_jax.data.sampling import Sample

LINE = 14  # pixels of a line of text


def contact_sheet(
    samples: Sequence[Sample], names: Sequence[str] | None = None, columns: int = 4
) -> UInt8[np.ndarray, "h w 3"]:
    """Samples side by side: templates stacked at the left, the search crop with its box at the right.

    The box is green, and red where the sample's `label` says that it is not the target of the templates.
    """
    cells = [_cell(sample, names[i] if names else "") for i, sample in enumerate(samples)]
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=0)


def _cell(sample: Sample, name: str) -> np.ndarray:
    templates, search = sample["templates"], sample["search"].copy()
    size, edge = search.shape[0], templates.shape[1]
    cx, cy, w, h = sample["box_cxcywh"] * size
    edges = (cx - w / 2 - 0.5, cy - h / 2 - 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5)
    corners = [round(float(edge) * 16) for edge in edges]
    colour = (0, 255, 0) if sample.get("label", 1) else (255, 0, 0)
    cv2.rectangle(search, corners[:2], corners[2:], colour, 1, cv2.LINE_AA, shift=4)
    height = max(size, len(templates) * edge)
    cell = np.full((height + 2, edge + size + 4, 3), 64, np.uint8)
    for slot, template in enumerate(templates):
        cell[slot * edge : (slot + 1) * edge, :edge] = template
    cell[:size, edge : edge + size] = search
    for line, text in enumerate(name.splitlines()):
        place = (edge + 2, 10 + line * LINE)
        cv2.putText(cell, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0), 1, cv2.LINE_AA)
    return cell
