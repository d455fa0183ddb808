"""A sheet of masked images and what an autoencoder makes of them, for people to look at."""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

GREY, WHITE, INK = 128, 255, (40, 40, 40)
_GAP, _LINE = 4, 18  # pixels
MAX_SAMPLES = 16


def reconstruction_sheet(
    templates: UInt8[np.ndarray, "b slots T T 3"] | None,
    search: UInt8[np.ndarray, "b S S 3"],
    hidden: Bool[np.ndarray, "b cells"],
    reconstructed: UInt8[np.ndarray, "b S S 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Up to 16 samples, a row each: templates, masked search region, reconstruction, original.

    Args:
        templates: crops of the target; None for single images.
        search: what was masked.
        hidden: which cells of it, row-major on a square grid; they are shown grey.
        reconstructed: the images with predictions in the hidden cells, see `models.patches.reconstruct`.
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


def _masked(image: UInt8[np.ndarray, "S S 3"], hidden: Bool[np.ndarray, " cells"]) -> UInt8[np.ndarray, "S S 3"]:
    grid = round(len(hidden) ** 0.5)
    side = len(image) // grid
    pixels = hidden.reshape(grid, grid).repeat(side, axis=0).repeat(side, axis=1)
    return np.where(pixels[..., None], np.uint8(GREY), image)
