"""A sheet of validation samples with true and predicted boxes, for people to look at."""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Float, UInt8

TRUE, FOUND = (0, 255, 0), (255, 64, 64)
MAX_SAMPLES = 16


def prediction_sheet(
    batch: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], columns: int = 4
) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 16 samples: the template in the corner of the search region, the true box green, the found one red.

    Args:
        batch: `templates`, `search`, `box_cxcywh`, and in the score stage `label`.
        found: `box_cxcywh`, and `score` where the model gives one.
        columns: samples in a row.
    """
    cells = []
    for index in range(min(MAX_SAMPLES, len(batch["search"]))):
        cell = batch["search"][index].copy()
        template = batch["templates"][index, 0]
        small = cv2.resize(template, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cell[: small.shape[0], : small.shape[1]] = small
        _outline(cell, batch["box_cxcywh"][index], TRUE)
        _outline(cell, found["box_cxcywh"][index], FOUND)
        words = []
        if "label" in batch:
            words.append(f"label {batch['label'][index]:.0f}")
        if "score" in found:
            words.append(f"score {found['score'][index]:.2f}")
        at = (2, cell.shape[0] - 4)
        cv2.putText(cell, " ".join(words), at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 0), 1, cv2.LINE_AA)
        cells.append(np.pad(cell, ((0, 2), (0, 2), (0, 0)), constant_values=64))
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    return np.concatenate(
        [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)], axis=0
    )


def _outline(image: np.ndarray, box_cxcywh: Float[np.ndarray, "4"], colour: tuple[int, int, int]) -> None:
    cx, cy, w, h = (float(value) * image.shape[0] for value in box_cxcywh)
    corners = [round(edge * 16) for edge in (cx - w / 2 - 0.5, cy - h / 2 - 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5)]
    cv2.rectangle(image, corners[:2], corners[2:], colour, 1, cv2.LINE_AA, shift=4)
