"""Sheets for people to look at: validation samples with true and predicted boxes, masked images and reconstructions."""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from mixformer_jax.media.images import draw_mask

TRUE, FOUND = (0, 255, 0), (255, 64, 64)
GREY, WHITE, INK = 128, 255, (40, 40, 40)
_GAP, _LINE = 4, 18  # pixels
MAX_SAMPLES = 16


def prediction_sheet(
    batch: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], columns: int = 4
) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 16 samples: the template in the corner of the search region, the true box green, the found one red.

    Of two streams RGB is shown. The batch's `label` and the found `score` stand below, where there are such.
    """
    cells = []
    for index in range(min(MAX_SAMPLES, len(batch["search"]))):
        cell = batch["search"][index, ..., :3].copy()
        template = batch["templates"][index, 0, ..., :3]
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
    return np.concatenate([np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)])


def _outline(image: np.ndarray, box_cxcywh: Float[np.ndarray, "4"], colour: tuple[int, int, int]) -> None:
    cx, cy, w, h = (float(value) * image.shape[0] for value in box_cxcywh)
    corners = [round(edge * 16) for edge in (cx - w / 2 - 0.5, cy - h / 2 - 0.5, cx + w / 2 - 0.5, cy + h / 2 - 0.5)]
    cv2.rectangle(image, corners[:2], corners[2:], colour, 1, cv2.LINE_AA, shift=4)


def reconstruction_sheet(
    templates: UInt8[np.ndarray, "b slots T T 3"] | None,
    search: UInt8[np.ndarray, "b S S 3"],
    hidden: Bool[np.ndarray, "b cells"],
    reconstructed: UInt8[np.ndarray, "b S S 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 16 samples, a row each: templates (none of single images), masked search region, reconstruction, original.

    `hidden` cells, row-major on a square grid, are shown grey, and predicted in what is `reconstructed`.
    """
    names = [] if templates is None else ["template"] * templates.shape[1]
    rows = []
    for index in range(min(MAX_SAMPLES, len(search))):
        crops = [] if templates is None else list(templates[index])
        rows.append([*crops, _masked(search[index], hidden[index]), reconstructed[index], search[index]])
    widths = [picture.shape[1] for picture in rows[0]]
    side = search.shape[1]
    sheet = np.full((_LINE + len(rows) * (side + _GAP), sum(widths) + _GAP * (len(widths) - 1), 3), WHITE, np.uint8)
    lefts = [sum(widths[:column]) + _GAP * column for column in range(len(widths))]
    for left, name in zip(lefts, [*names, "masked", "reconstruction", "original"], strict=True):
        cv2.putText(sheet, name, (left, _LINE - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    for row, pictures in enumerate(rows):
        top = _LINE + row * (side + _GAP)
        for left, picture in zip(lefts, pictures, strict=True):
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def mask_sheet(
    template: UInt8[np.ndarray, "b S S 3"],
    search: UInt8[np.ndarray, "b S S 3"],
    mask: Bool[np.ndarray, "b S S"],
    found: Bool[np.ndarray, "b S S"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 16 samples, a row each: template, search region, and on that the true mask (green) and the found (red)."""
    rows = []
    for index in range(min(MAX_SAMPLES, len(search))):
        image = search[index]
        drawn = [draw_mask(image, mask[index], TRUE), draw_mask(image, found[index], FOUND)]
        rows.append(np.concatenate([template[index], image, *drawn], axis=1))
    return np.concatenate(rows, axis=0)


def _masked(image: UInt8[np.ndarray, "S S 3"], hidden: Bool[np.ndarray, " cells"]) -> UInt8[np.ndarray, "S S 3"]:
    grid = round(len(hidden) ** 0.5)
    side = len(image) // grid
    pixels = hidden.reshape(grid, grid).repeat(side, axis=0).repeat(side, axis=1)
    return np.where(pixels[..., None], np.uint8(GREY), image)
