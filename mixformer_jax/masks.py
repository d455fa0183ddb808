"""Masks of targets on whole frames: boxes around them, and run lengths for text files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

FrameMask = Bool[np.ndarray, "height width"]


def mask_box_xywh(mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, "4"]:
    """The tightest box around a mask's pixels, x, y, w, h; ValueError where it has none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("an empty mask has no box; expected one with at least one pixel")
    return np.array([columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1], np.float64)


def fit_to_frame(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> FrameMask:
    """A mask from the frame's corner on, cut or filled up with zeros at the right and below to (height, width)."""
    fitted = np.zeros(size, bool)
    height, width = (min(pair) for pair in zip(mask.shape, size, strict=True))
    fitted[:height, :width] = mask[:height, :width]
    return fitted


def run_lengths(values: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " runs"]:
    """Lengths of runs of zeros and of ones in turn; the first, of zeros, may be 0."""
    changes = np.flatnonzero(np.diff(values, prepend=False))
    return np.diff(changes, prepend=0, append=values.size)


def encode_rle(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """COCO's uncompressed run lengths: `size` (height, width), `counts` column by column, beginning with zeros.

    `pycocotools.mask.frPyObjects` reads them.
    """
    return {"size": list(mask.shape), "counts": run_lengths(mask.ravel(order="F")).tolist()}


def decode_rle(record: Mapping[str, Any]) -> FrameMask:
    """The mask of such a record; ValueError where the runs do not fill it."""
    height, width = record["size"]
    counts = np.asarray(record["counts"], np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"run lengths of {counts.sum()} pixels; expected {height} x {width} = {height * width}")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(height, width, order="F")
